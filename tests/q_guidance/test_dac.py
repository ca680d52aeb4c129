"""DAC: its loss and its multiplier by hand, on lobes of actions, and its numbers beside those of the reference."""

import math
from typing import Any

import pytest
import torch as th

from sb3_diffusion import DAC
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.networks.reducers import state_values
from tests.bandits import bandit_model, draw, uniform_batch
from tests.cases import MethodCase
from tests.golden_algorithms import actor_step, critic_step, draws, golden_batch, golden_model, weights_of
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import load_denoiser
from tests.helpers import flat_parameters, make_filled, part, sample_batch
from tests.lobes import lobe_model, near_a_lobe, right_mass, train

CASE = MethodCase(
    tiny={
        "n_target_candidates": 2,
        "n_action_candidates": 2,
        "actor_target_start": 1,
        "actor_target_interval": 2,
        "lr_decay": "none",
    },
    tiny_policy={"n_critics": 2, "time_arch": [8]},  # the shared suites count on two critics
    every_update={"actor_target_start": 0, "actor_target_interval": 1},
    wrong_arguments=[
        ({"eta": 0.0}, ["eta=0.0", "0.001"]),
        ({"eta_learning_rate": -1.0}, ["eta_learning_rate=-1.0", "0 keeps eta"]),
        ({"bc_threshold": -0.5}, ["bc_threshold=-0.5"]),
        ({"target_reduction": "mean"}, ["target_reduction='mean'", "lcb, min, convex"]),
        ({"rho": -1.0}, ["rho=-1.0", "more pessimistic"]),
        ({"target_reduction": "convex", "rho": 1.5}, ["rho=1.5", "share of the smallest"]),
        ({"selection_temperature": -1.0}, ["selection_temperature=-1.0", "best candidate"]),
        ({"lr_decay": "linear"}, ["lr_decay='linear'", "cosine, none"]),
        ({"n_target_candidates": 0}, ["n_target_candidates=0", "at least 1"]),
    ],
    operation_counts={"operations": 851, "kflop": 179, "synchronisations": 0},
)


class Slope:
    """Target critics ``Q = slope * a_x``, two of them, of which the second is flat."""

    def __init__(self, slope: float):
        self.slope = slope

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return observations

    def q(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        return th.stack((2.0 * self.slope * actions[..., 0], 0.0 * actions[..., 0]))

    def value_and_gradient(self, actions: th.Tensor, context: th.Tensor, reduction: str) -> tuple[th.Tensor, th.Tensor]:
        assert reduction == "mean"
        gradient = th.zeros_like(actions)
        gradient[..., 0] = self.slope
        return self.q(actions, context).mean(0), gradient


def at_one_action(t: int, eps: float, **kwargs: Any) -> tuple[Any, Any]:
    """A model and a batch of one action 1 with a value of 1 and a slope of 1, made noisy by known draws."""
    model = bandit_model(DAC, **kwargs)
    model.critic_target = Slope(1.0)
    model.randomness = RecordedDraws({"actor.t": th.tensor(t), "actor.eps": th.tensor(eps)})
    batch = uniform_batch(model, 1)
    return model, batch._replace(actions=th.ones(1, 1))


def test_the_best_prediction_is_the_noise_less_the_guidance() -> None:
    """At t = 3, without noise, with a gradient of 1 and eta = 0.5, it is -0.917333, and the loss there -0.420750."""
    model, batch = at_one_action(3, 0.0, eta=0.5)
    predicted = th.zeros(1, 1, requires_grad=True)
    optimizer = th.optim.SGD([predicted], lr=1.0)  # the Newton step of a parabola of curvature 1
    model.actor.denoise = lambda x_t, t, context: predicted
    for _ in range(2):
        optimizer.zero_grad()
        loss, metrics = model.actor_loss(batch)
        loss.backward()
        optimizer.step()
    assert predicted.item() == pytest.approx(-0.917333, abs=1e-5)
    assert loss.item() == pytest.approx(-0.420750, abs=1e-5)
    assert metrics["bc_loss"].item() == pytest.approx(0.841500, abs=1e-5) and metrics["q_size"].item() == 1.0


def test_guidance_is_a_constant_in_units_of_the_values_of_the_data() -> None:
    model, batch = at_one_action(2, 0.5)
    model.critic_target = Slope(-3.0)
    gradient, size = model.guidance(batch, th.full((1, 1), 0.3))
    assert size.item() == pytest.approx(3.0) and gradient.item() == pytest.approx(-1.0, abs=1e-6)
    assert not gradient.requires_grad


@pytest.mark.parametrize(("error", "expected"), [(0.3, 0.9993), (5.0, 1.001), (1.0, 1.0)])
def test_the_multiplier_moves_by_the_limited_excess_of_the_error(error: float, expected: float) -> None:
    model = make_filled(DAC)
    model.adapt_multipliers({"bc_loss": th.tensor(error)})
    assert model.policy.multipliers["eta"]().item() == pytest.approx(expected, abs=1e-6)


def test_the_multiplier_keeps_to_its_range_and_waits_for_the_actor() -> None:
    model = make_filled(DAC, eta=0.001, eta_learning_rate=0.5, policy_delay=2)
    model.adapt_multipliers({"bc_loss": th.tensor(0.0)})
    assert model.policy.multipliers["eta"]().item() == pytest.approx(0.001)
    model.adapt_multipliers({})
    model.adapt_multipliers({"bc_loss": th.tensor(3.0)})
    assert model.policy.multipliers["eta"]().item() == pytest.approx(0.501)
    fixed = make_filled(DAC, eta=0.1, eta_learning_rate=0.0)
    fixed.train(3, 8)
    assert fixed.policy.multipliers["eta"]().item() == pytest.approx(0.1)


def test_candidates_are_reduced_before_critics() -> None:
    values = th.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])
    nothing = RecordedDraws({})

    def reduced(rule: str, rho: float, best: bool) -> float:
        return state_values(values, rule, rho, best, nothing, "").item()

    assert [reduced("lcb", rho, False) for rho in (0.0, 1.0, 7.0)] == [2.0, 2.0, 2.0]
    assert reduced("lcb", 1.0, True) == pytest.approx(2.0)  # with the unbiased deviation it would be 1.7929
    assert reduced("min", 0.0, True) == 2.0 and reduced("convex", 0.75, True) == pytest.approx(2.25)
    weights = RecordedDraws({"weights": th.tensor([[0.1], [0.3]])})
    assert state_values(values, "random_convex", 0.0, True, weights, "weights").item() == pytest.approx(2.25, abs=1e-4)


def test_one_critic_has_no_deviation_and_a_gradient() -> None:
    values = th.tensor([[[1.0, 3.0]]], requires_grad=True)
    value = state_values(values, "lcb", 2.0, False, RecordedDraws({}), "")
    value.backward()
    assert value.item() == 2.0 and values.grad is not None and values.grad.tolist() == [[[0.5, 0.5]]]


def test_the_critics_bootstrap_from_the_best_or_the_mean_of_the_candidates() -> None:
    values = {}
    for best in (False, True):
        model = make_filled(DAC, max_q_backup=best, n_target_candidates=6, rho=0.0, seed=1)
        th.manual_seed(0)
        values[best] = model.next_values(sample_batch(model))[0]
    assert bool((values[True] > values[False]).all())


def test_the_actor_follows_the_target_critics_of_this_update() -> None:
    model = make_filled(DAC, tau=1.0)
    seen = []

    def guidance(batch: Any, noisy_actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        seen.append(flat_parameters(model.critic_target))
        return noisy_actions, th.ones(())

    model.guidance = guidance
    model.train(1, 8)
    assert len(seen) == 1 and th.equal(seen[0], flat_parameters(model.critic))


def test_rates_fall_to_zero_where_they_are_numbers() -> None:
    model = make_filled(DAC, lr_decay="cosine", critic_learning_rate=lambda progress: 0.5)
    rate = model.lr_schedule_of("actor")
    assert [rate(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert model.lr_schedule_of("critic")(0.0) == 0.5


@pytest.mark.parametrize(("slope", "low", "high"), [(1.0, 0.70, 1.0), (-1.0, 0.0, 0.3)])
def test_guidance_draws_the_policy_to_the_better_lobe(slope: float, low: float, high: float) -> None:
    """
    The temperature ``2 * eta * mean |Q|`` is half of the distance between the lobes: exact guidance would put 0.88 into the
    better one, and leave them in their places. The last of five steps alone moves an action by 0.44.
    """
    model = lobe_model(DAC, slope, eta=0.5, eta_learning_rate=0.0)
    train(model, ("actor",), 250)
    actions = draw(model, 2000)
    assert low < right_mass(actions) < high and near_a_lobe(actions, spreads=4.0 + 4.4) > 0.95


def dac_model(case: Case, **kwargs: Any) -> Any:
    """The method with the settings of the reference."""
    networks = {"time_arch": None, "n_critics": 3}
    method = {"eta": 0.8, "eta_learning_rate": 0.05, "bc_threshold": 0.5, "rho": 0.5, "n_target_candidates": 4}
    averaged = {"actor_tau": 0.1, "actor_target_start": 0, "actor_target_interval": 1, "max_grad_norm": None}
    model = golden_model(DAC, case, policy_kwargs=networks, **{**method, **averaged, **kwargs})
    load_denoiser(model.actor_target.denoiser, sub(case, "params/actor_target"))
    model.randomness = model.policy.randomness = draws(case)
    return model


def test_dac_update() -> None:
    case = load("05_dac")
    model, batch = dac_model(case), golden_batch(case)
    with th.no_grad():
        values, _ = model.next_values(batch)
    close(batch.rewards + batch.discounts * values, case["expected/q_target"].squeeze(-1), atol=2e-5)
    critic_step(model, batch, case)
    move: Any = part(model, "critic").then
    move()
    for path, value in sub(case, "expected/new_params/critic_target").items():
        close(weights_of(model, "critic_target")[path], value)

    noisy = model.actor.add_noise(batch.actions, model.randomness, "actor")
    close(noisy.x_t, case["expected/a_t"])
    gradient, size = model.guidance(batch, noisy.x_t)
    close(gradient, case["expected/q_grad"])
    close(size, case["expected/q_norm"])
    loss, metrics = model.actor_loss(batch)
    close(metrics["bc_loss"], case["expected/loss/bc"])
    close(metrics["guidance"], case["expected/loss/guidance"])
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)
    model.adapt_multipliers(metrics)
    close(model.policy.multipliers["eta"](), case["expected/new_eta"])
    model.after_update(batch)
    for path, value in sub(case, "expected/new_params/actor_target").items():
        close(weights_of(model, "actor_target")[path], value)


def test_dac_acts_by_the_mean_of_the_target_critics() -> None:
    case = load("05_dac")
    model = dac_model(case, n_action_candidates=6)
    with th.no_grad():
        candidates = model.actor.act(case["batch/obs"], model.randomness, "act", 6)
        q = model.critic_target.q(candidates, model.critic_target.encode(case["batch/obs"])).mean(0)
        close(q, case["expected/act/q"], atol=2e-5)
        actions = model.policy.explore(case["batch/obs"])
    assert th.equal(q.argmax(1), case["expected/act/index"].long())
    close(actions, case["expected/act/action"], atol=2e-5)


def test_the_references_table_of_reductions() -> None:
    case = load("05_dac")
    values = case["inputs/aggregate_q"].squeeze(-1)
    weights = RecordedDraws({"weights": case["noise/aggregate_uniform"].squeeze(-1)})
    names = {"min": "min", "convex": "convex", "lcb": "lcb", "random_convex": "rand_convex"}
    for rule, name in names.items():
        for best in (False, True):
            expected = case[f"expected/aggregate/{name}_{'max' if best else 'mean'}"].squeeze(-1)
            close(state_values(values, rule, 0.5, best, weights, "weights"), expected)


def test_a_warm_choice_is_a_draw() -> None:
    model = make_filled(DAC, selection_temperature=0.5, n_action_candidates=5)
    rule = model.policy.selection
    assert (rule.rule, rule.temperature, rule.reduction, rule.target) == ("softmax", 0.5, "mean", True)
    assert make_filled(DAC).policy.selection.rule == "argmax" and math.isclose(model.policy.n_behavior_candidates, 5)
