"""D-QL: its two losses by hand and on lobes of actions, and its numbers beside those of the reference implementation."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DQL
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import bandit_model, draw, uniform_batch
from tests.cases import MethodCase
from tests.golden_algorithms import (
    actor_step,
    check_targets,
    critic_step,
    draws,
    golden_batch,
    golden_model,
    weights_of,
)
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import load_denoiser
from tests.helpers import flat_parameters, make_filled, part, sample_batch
from tests.lobes import inside_the_data, lobe_model, near_a_lobe, right_mass, train

CASE = MethodCase(
    tiny={"n_action_candidates": 1, "actor_target_start": 1, "actor_target_interval": 2},
    every_update={"actor_target_start": 0, "actor_target_interval": 1},
    wrong_arguments=[
        ({"eta": -1.0}, ["eta=-1.0", "behaviour cloning"]),
        ({"normalizer": "both"}, ["normalizer='both'", "other, same"]),
        ({"n_target_candidates": 0}, ["n_target_candidates=0", "at least 1"]),
        ({"selection_temperature": 0.0}, ["selection_temperature=0.0", "greedier"]),
        ({"actor_tau": 2.0}, ["actor_tau=2.0", "1 copies the actor"]),
        ({"actor_target_interval": 0}, ["actor_target_interval=0", "at least 1"]),
    ],
    operation_counts={"operations": 1307, "kflop": 424, "synchronisations": 0},
)


def with_coin(model: Any, value: float) -> Any:
    model.randomness = RecordedDraws({"actor.choice": th.tensor(value)})
    return model


@pytest.mark.parametrize("coin, expected", [(0.9, -1.5), (0.1, -1.0 / 3.0)])
def test_one_critic_is_maximised_in_units_of_the_other(coin: float, expected: float) -> None:
    """Means 3 and 1, mean magnitudes 3 and 2."""
    model = with_coin(bandit_model(DQL), coin)
    values = th.tensor([[2.0, 4.0], [-1.0, 3.0]], requires_grad=True)
    value = model.normalized_value(values)
    assert -value.item() == pytest.approx(expected, abs=1e-5)
    (gradient,) = th.autograd.grad(value, values)
    used = gradient.abs().sum(1) > 0.0  # the measure is a constant
    assert used.tolist() == [coin > 0.5, coin <= 0.5]


def test_a_critic_may_be_its_own_measure() -> None:
    model = with_coin(bandit_model(DQL, normalizer="same"), 0.1)
    assert model.normalized_value(th.tensor([[2.0, 4.0], [-1.0, 3.0]])).item() == pytest.approx(0.5, abs=1e-5)


def test_a_single_critic_is_its_own_measure() -> None:
    model = with_coin(bandit_model(DQL, policy_kwargs={"n_critics": 1}), 0.0)
    assert model.normalized_value(th.tensor([[2.0, -4.0]])).item() == pytest.approx(-1.0 / 3.0, abs=1e-5)


class FixedValues:
    """Target critics with given values (critic, row, candidate)."""

    def __init__(self, values: th.Tensor):
        self.values = values

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return observations

    def q(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        assert actions.dim() == self.values.dim()
        return self.values


def test_every_critic_takes_its_best_candidate_before_the_smaller_one_counts() -> None:
    """Taking the minimum first would give 2."""
    model = bandit_model(DQL, max_q_backup=True, n_target_candidates=2)
    model.critic_target = FixedValues(th.tensor([[[1.0, 5.0]], [[4.0, 2.0]]]))
    values, _ = model.next_values(uniform_batch(model, 1))
    assert values.tolist() == [4.0]
    plain = bandit_model(DQL)  # one action, without an axis of candidates
    plain.critic_target = FixedValues(th.tensor([[1.0], [4.0]]))
    values, _ = plain.next_values(uniform_batch(plain, 1))
    assert values.tolist() == [1.0]


def test_the_loss_of_the_critics_is_a_sum_unless_asked() -> None:
    losses = []
    for summed in (True, False):
        model = make_filled(DQL, sum_critic_losses=summed)
        th.manual_seed(0)
        losses.append(model.critic_loss(sample_batch(model))[0].item())
    assert losses[0] == pytest.approx(2.0 * losses[1], rel=1e-6)


def test_the_average_waits_and_then_moves_now_and_then() -> None:
    model = make_filled(DQL, actor_target_start=6, actor_target_interval=3, actor_tau=0.25)
    moved = []
    for update in range(1, 13):
        before = flat_parameters(model.actor_target)
        model.train(1, 8)
        after, current = flat_parameters(model.actor_target), flat_parameters(model.actor)
        if not th.equal(after, before):
            moved.append(update)
            th.testing.assert_close(after, before + 0.25 * (current - before))
    assert moved == [6, 9, 12]


def test_gradients_of_the_chain_are_finite_differences() -> None:
    """Some states are on the edge of the box, where the clipping of the estimates lets no gradient through."""
    model = bandit_model(DQL, policy_kwargs={"diffusion_steps": 2, "net_arch": [8], "time_dim": 4, "time_arch": [4]})
    model.actor.double()
    shapes = {"actor.x_T": (16, 1), "actor.step_noise": (1, 16, 1)}
    recorded = RecordedDraws({name: th.randn(shape, dtype=th.float64) for name, shape in shapes.items()})

    def actions() -> th.Tensor:
        context = model.actor.denoiser.encode_state(th.zeros(16, 1, dtype=th.float64))
        return model.actor.sample(context, recorded, "actor")

    weight = model.actor.denoiser.trunk.output.weight
    (gradient,) = th.autograd.grad(actions().square().mean(), weight)
    assert gradient.abs().max() > 1e-3 and 0 < (actions().abs() == 1.0).sum() < 16
    for index in ((0, 0), (5, 0)):
        with th.no_grad():
            ends = []
            for step in (1e-6, -2e-6):
                weight[index] += step
                ends.append(actions().square().mean().item())
            weight[index] += 1e-6
        assert gradient[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-5)


def test_values_draw_the_policy_to_the_better_lobe_of_the_data() -> None:
    """
    The policy is better than the data, whose mean value is 0, and stays within them. Five steps end at an expected action and
    leave some of the actions between the lobes. (With eta = 1 the policy moves on to the end of the box at 1: leaving a lobe
    by 0.5 costs less in imitation than it gains.)
    """
    model = lobe_model(DQL, eta=0.05)
    train(model, ("actor",), 400)
    actions = draw(model, 2000)
    assert actions[:, 0].mean().item() > 0.2 and right_mass(actions) > 0.7
    assert near_a_lobe(actions) > 0.65 and inside_the_data(actions) > 0.8


def test_without_a_value_it_imitates() -> None:
    model = lobe_model(DQL, eta=0.0)
    train(model, ("actor",), 400)
    actions = draw(model, 2000)
    assert right_mass(actions) == pytest.approx(0.5, abs=0.08) and near_a_lobe(actions) > 0.6
    assert inside_the_data(actions) > 0.98


def dql_model(case: Case, **kwargs: Any) -> Any:
    """The method with the settings of the reference: averaged losses of the critics."""
    networks = {"net_arch": {"pi": [16, 16], "qf": [16, 16]}, "time_arch": None}
    kwargs = {"eta": 0.7, "sum_critic_losses": False, "actor_tau": 0.1, "max_grad_norm": None, **kwargs}
    model = golden_model(DQL, case, policy_kwargs=networks, **kwargs)
    load_denoiser(model.actor_target.denoiser, sub(case, "params/actor_target"))
    model.randomness = model.policy.randomness = draws(case)
    return model


@pytest.mark.parametrize("name", ["05_dql", "05_dql_maxq"])
def test_dql_update(name: str) -> None:
    case = load(name)
    model, batch = dql_model(case, max_q_backup=name == "05_dql_maxq", actor_target_start=0), golden_batch(case)
    with th.no_grad():
        values, _ = model.next_values(batch)
    close(batch.rewards + batch.discounts * values, case["expected/q_target"].squeeze(-1))
    critic_step(model, batch, case)
    check_targets(model, case)

    actions = model.actor.sample(model.actor.encode(batch.observations), model.randomness, "actor")
    close(actions, case["expected/actor_action"], atol=2e-5)
    close(model.action_values(actions, batch), case["expected/actor_q_both"].squeeze(-1), atol=2e-5)
    loss, metrics = model.actor_loss(batch)
    close(metrics["bc_loss"], case["expected/loss/bc"])
    close(-metrics["q_term"], case["expected/loss/q"])
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)
    model._n_updates = 5
    model.after_update(batch)
    for path, value in sub(case, "expected/new_params/actor_target").items():
        close(weights_of(model, "actor_target")[path], value)


def test_dql_acts_by_a_softmax_of_the_target_critics() -> None:
    case = load("05_dql")
    model = dql_model(case, n_action_candidates=6)
    with th.no_grad():
        candidates = model.actor.act(case["batch/obs"], model.randomness, "act", 6)
        q = model.critic_target.q(candidates, model.critic_target.encode(case["batch/obs"])).amin(0)
        close(q, case["expected/act/q"], atol=2e-5)
        actions = model.policy.explore(case["batch/obs"])
    close(actions, case["expected/act/action"], atol=2e-5)
    assert not th.equal(q.argmax(1), case["expected/act/index"].long())  # a draw, and not the best


def test_gradients_are_clipped_by_network() -> None:
    model = make_filled(DQL, max_grad_norm=1e-3)
    batch = sample_batch(model)
    for name in ("critic", "actor"):
        one = part(model, name)
        model.step(one, one.loss(batch)[0])
        gradients = [parameter.grad for parameter in one.parameters if parameter.grad is not None]
        norm = th.stack([gradient.norm() for gradient in gradients]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)
