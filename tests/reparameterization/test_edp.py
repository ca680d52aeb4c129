"""EDP: its one-step actions, its three modes by hand, and what they do with lobes of actions."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import EDP
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import bandit_model, draw, give_critic, uniform_batch
from tests.cases import MethodCase
from tests.helpers import flat_parameters, make, make_filled, sample_batch
from tests.lobes import inside_the_data, lobe_model, right_mass, train

CASE = MethodCase(
    tiny={"n_action_candidates": 1, "actor_target_start": 1, "actor_target_interval": 2},
    # three steps through a table of a thousand levels end in a corner whatever the observation
    tiny_policy={"process": "continuous", "solver": "ddpm"},
    every_update={"actor_target_start": 0, "actor_target_interval": 1},
    wrong_arguments=[
        ({"mode": "awr"}, ["mode='awr'", "td3, crr, iql"]),
        ({"eta": -1.0}, ["eta=-1.0", "behaviour cloning"]),
        ({"expectile": 1.0}, ["expectile=1.0", "0.5 is the mean"]),
        ({"inverse_temperature": -1.0}, ["inverse_temperature=-1.0", "at least 0"]),
        ({"max_weight": 0.0}, ["max_weight=0.0", "positive"]),
        ({"normalizer": "both"}, ["normalizer='both'", "other, same"]),
        ({"policy_kwargs": {"process": "discrete", "sampling_steps": 1001}}, ["1001", "1000 diffusion steps"]),
    ],
    operation_counts={"operations": 859, "kflop": 322, "synchronisations": 0},
)


def test_the_true_noise_gives_the_clean_action_back() -> None:
    process = DiscreteDiffusion("vp", 5)
    action, noise, t = th.tensor([[0.3]]), th.tensor([[-1.0]]), th.tensor([[3.0]])
    noisy = process.add_noise(action, t, noise)
    assert noisy.item() == pytest.approx(-0.797897, abs=1e-5)
    assert process.predicted_clean(noisy, t, noise).item() == pytest.approx(0.3, abs=1e-5)


def fixed(model: Any, predicted: th.Tensor, **draws: th.Tensor) -> Any:
    """The denoiser answers this; the noise of the data's actions is zero, at the cleanest level."""
    n = len(predicted)
    model.actor.denoise = lambda *args: predicted
    recorded = {"actor.t": th.ones(n, 1), "actor.eps": th.zeros(n, 1), "actor.choice": th.zeros(1), **draws}
    model.randomness = RecordedDraws(recorded)
    return model


def test_the_value_is_in_units_of_the_same_critic() -> None:
    """Values 1 and 3 have the mean magnitude 2, so that their weight is 1."""
    model = fixed(bandit_model(EDP), th.zeros(2, 1))
    give_critic(model, lambda actions: th.tensor([1.0, 3.0]) + 0.0 * actions[..., 0])
    assert model.eta == 2.0 and model.actor_loss(uniform_batch(model, 2))[0].item() == pytest.approx(-2.0, abs=1e-5)


def test_the_value_is_that_of_the_expected_clean_action_and_its_gradient_reaches_the_denoiser() -> None:
    predicted = th.tensor([[0.01], [-0.02]], requires_grad=True)
    model = fixed(bandit_model(EDP), predicted)
    seen: list[th.Tensor] = []

    def value(actions: th.Tensor) -> th.Tensor:
        seen.append(actions)
        return actions[..., 0]

    give_critic(model, value)
    batch = uniform_batch(model, 2)._replace(actions=th.tensor([[0.5], [-0.2]]))
    alpha, sigma = model.actor.process.coefficients(th.ones(1))
    loss, metrics = model.actor_loss(batch)
    th.testing.assert_close(seen[0].detach(), batch.actions - sigma / alpha * predicted.detach())
    (slope,) = th.autograd.grad(metrics["bc_loss"] * 0.0 + loss - predicted.square().mean(), predicted)
    size = seen[0].detach().abs().mean()
    th.testing.assert_close(slope, (2.0 * sigma / alpha / 2.0 / size).expand(2, 1), rtol=1e-4, atol=1e-6)


def test_pure_noise_says_nothing_about_the_action() -> None:
    """At the noisiest level the estimate is 150 times the prediction: nearly all are clipped, and pass no gradient."""
    model, n = bandit_model(EDP), 500
    draws = {"actor.t": th.full((n, 1), 1000.0), "actor.eps": th.randn(n, 1), "actor.choice": th.zeros(1)}
    model.randomness = RecordedDraws(draws)
    batch = uniform_batch(model, n)
    noisy = model.actor.add_noise(batch.actions, model.randomness, "actor")
    predicted = model.actor.denoise(noisy.x_t, noisy.t, model.actor.encode(batch.observations)).detach().requires_grad_()
    model.actor.denoise = lambda *args: predicted
    give_critic(model, lambda actions: actions[..., 0] + 2.0)
    loss, _ = model.actor_loss(batch)
    (gradient,) = th.autograd.grad(loss - (predicted - noisy.eps).square().mean(), predicted)
    assert (gradient != 0.0).float().mean().item() < 0.1


@pytest.mark.parametrize("mode, expected", [("iql", [20.0855, 100.0]), ("crr", [2.7183, 20.0])])
def test_weights_of_the_actions_of_the_data(mode: str, expected: list[float]) -> None:
    """Advantages 1 and 9, the second with the largest weight."""
    model = bandit_model(EDP, mode=mode)
    values = th.tensor([3.0, 11.0])
    # candidates around the policy's action are worth 2, and so is the state
    give_critic(model, lambda actions: values if actions.dim() == 2 else th.full(actions.shape[:-1], 2.0))
    if mode == "iql":
        model.policy.value.forward = lambda observations: th.full((2,), 2.0)
    weights = model.weights(uniform_batch(model, 2), th.zeros(2, 1))
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)
    model.inverse_temperature, model.max_weight = 0.0, 0.5
    assert model.weights(uniform_batch(model, 2), th.zeros(2, 1)).tolist() == [0.5, 0.5]


def test_the_likelihood_is_weighed() -> None:
    """Weight 2, squared distance 0.04: a loss of 2 * 0.04 / 2 beside that of imitation."""
    model = fixed(bandit_model(EDP, mode="iql"), th.zeros(2, 1))
    batch = uniform_batch(model, 2)._replace(actions=th.tensor([[0.5], [0.1]]))
    model.actor.process.predicted_clean = lambda *args: batch.actions + 0.2
    model.weights = lambda *args: th.tensor([2.0, 2.0])
    assert model.actor_loss(batch)[0].item() == pytest.approx(0.04, abs=1e-6)


def test_critics_of_iql_learn_from_a_state_value_that_is_an_expectile() -> None:
    model = bandit_model(EDP, mode="iql", expectile=0.9)
    model.policy.value.forward = lambda observations: th.tensor([1.0, 5.0])
    give_critic(model, lambda actions: th.tensor([3.0, 3.0]))
    batch = uniform_batch(model, 2)
    assert model.next_values(batch)[0].tolist() == [1.0, 5.0]
    assert model.value_loss(batch)[0].item() == pytest.approx(0.5 * (0.9 * 4.0 + 0.1 * 4.0))


def test_every_mode_trains_its_networks() -> None:
    for mode in ("td3", "crr", "iql"):
        model = make_filled(EDP, mode=mode, value_learning_rate=1e-2)
        before = {name: flat_parameters(network) for name, network in model.policy.trained.items()}
        assert set(before) == {"actor", "critic", *(["value"] if mode == "iql" else [])}
        model.train(2, 8)
        assert all(not th.equal(flat_parameters(model.policy.trained[name]), old) for name, old in before.items())
        assert ("train/value_learning_rate" in model.logger.name_to_value) == (mode == "iql")
    loss, _ = model.actor_loss(sample_batch(model))
    assert loss.isfinite()


def test_a_long_table_and_a_short_chain() -> None:
    model = EDP("DiffusionPolicy", "Pendulum-v1", buffer_size=1, device="cpu")
    assert model.actor.process.diffusion_steps == 1000 and model.actor.update_chain.steps == 15
    assert model.actor.update_chain.solver == "dpm++2m" and not model.policy.choose_with_target
    assert float(model.actor.process.alpha[-1] ** 2) == pytest.approx(4e-5, rel=0.1)
    shorter = make(EDP, policy_kwargs={"process": "discrete", "process_kwargs": {"diffusion_steps": 100}})
    assert float(shorter.actor.process.alpha[-1] ** 2) == pytest.approx(2.4e-5, rel=0.3)  # noise as well
    assert "process_kwargs" not in make(EDP, policy_kwargs={"process": "continuous"}).policy_settings()


@pytest.mark.parametrize(("mode", "share"), [("td3", 0.8), ("iql", 0.65)])
def test_the_policy_moves_to_the_better_lobe_and_stays_within_the_data(mode: str, share: float) -> None:
    arguments: dict[str, Any] = {"td3": {"eta": 0.1}, "iql": {"inverse_temperature": 4.0}}[mode]
    model = lobe_model(EDP, mode=mode, **arguments)
    if mode == "iql":
        model.policy.value.forward = lambda observations: th.zeros(len(observations))
    train(model, ("actor",), 400)
    actions = draw(model, 2000)
    assert right_mass(actions) > 0.7 and inside_the_data(actions) > share
