"""DPMD: its weights, temperature, refreshes and theorem, and its numbers beside those of the reference implementation."""

import math
from functools import partial
from typing import Any

import pytest
import torch as th

from sb3_diffusion import DPMD
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.policies.particles import kl_from_uniform, self_normalized_weights, sparse_weights
from tests.bandits import bandit_model, draw, fit, give_critic, linear, total_variation, uniform_batch
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
from tests.helpers import assert_identical, make_filled, parameters, part, soften

CASE = MethodCase(
    tiny={"n_particles": 4, "target_kl": 0.5, "actor_learning_rate": None, "n_action_candidates": 3},
    every_update={"refresh_interval": 1},
    wrong_arguments=[
        ({"n_particles": 0}, ["n_particles=0", "at least 1"]),
        ({"weights": "square"}, ["'square'", "exp", "linear"]),
        ({"target_kl": 1.5}, ["target_kl=1.5", "log(n_particles) = 1.39", "raise n_particles"]),
        ({"target_kl": 0.0}, ["target_kl=0.0", "positive"]),
        ({"initial_temperature": 0.0}, ["initial_temperature=0.0", "positive"]),
        ({"temperature_learning_rate": -1.0}, ["temperature_learning_rate=-1.0", "0 for a fixed one"]),
        ({"refresh_interval": 0}, ["refresh_interval=0", "at least 1"]),
        ({"particle_noise": -0.1}, ["particle_noise=-0.1", ">= 0"]),
        ({"loss_clip": 0.0}, ["loss_clip=0.0", "None"]),
        ({"policy_kwargs": {"process": "flow"}}, ["'flow'", "velocity", "DPMD", "noise"]),
    ],
    operation_counts={"operations": 1225, "kflop": 428, "synchronisations": 0},
)

VALUES = th.tensor([[0.0, 1.0, 2.0, 3.0]])


# -- weights ----------------------------------------------------------------------------------------------------------


def test_exponential_weights() -> None:
    weights = self_normalized_weights(VALUES, 1.0)
    th.testing.assert_close(weights, th.tensor([[0.0321, 0.0871, 0.2369, 0.6439]]), rtol=0.0, atol=1e-4)
    assert kl_from_uniform(weights).item() == pytest.approx(0.4388, abs=1e-4)


@pytest.mark.parametrize("temperature, expected", [(2.0, [0.0, 0.0, 0.25, 0.75]), (1.0, [0.0, 0.0, 0.0, 1.0])])
def test_linear_weights(temperature: float, expected: list[float]) -> None:
    for values in (VALUES, VALUES + 1000.0, VALUES.flip(1)):
        weights = sparse_weights(values, temperature)
        wanted = th.tensor([expected]).flip(1) if values[0, 0] > values[0, 1] else th.tensor([expected])
        th.testing.assert_close(weights, wanted)


def test_linear_weights_are_the_projection_on_the_simplex() -> None:
    """sparsemax(q / temperature) is the point of the simplex closest to q / temperature."""
    generator = th.Generator().manual_seed(0)
    values = th.randn(50, 20, generator=generator)
    weights = sparse_weights(values, 0.7)
    th.testing.assert_close(weights.sum(1), th.ones(50))
    assert bool((weights >= 0.0).all()) and 1 < (weights > 0.0).sum(1).float().mean() < 15
    scaled = values / 0.7
    # the gradient of the distance is the same at all positive weights and not smaller at the others
    slope = weights - scaled
    level = slope.where(weights > 0.0, th.tensor(-math.inf)).amax(1, keepdim=True)
    lowest = slope.where(weights > 0.0, th.tensor(math.inf)).amin(1, keepdim=True)
    th.testing.assert_close(level, lowest, rtol=0.0, atol=1e-5)
    assert bool((slope >= level - 1e-5).all())


def test_divergence_of_the_weights() -> None:
    assert kl_from_uniform(th.full((3, 8), 0.125)).item() == pytest.approx(0.0, abs=1e-5)
    alone = th.zeros(3, 8)
    alone[:, 2] = 1.0
    assert kl_from_uniform(alone).item() == pytest.approx(math.log(8), abs=2e-4)


# -- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_kl, rises", [(0.2, True), (1.0, False)])
def test_temperature_follows_the_divergence(target_kl: float, rises: bool) -> None:
    model = bandit_model(DPMD, n_particles=4, target_kl=target_kl, temperature_learning_rate=0.01)
    give_particles(model, VALUES)
    batch = uniform_batch(model, 1)
    _, metrics = model.actor_loss(batch)
    assert metrics["weight_kl"].item() == pytest.approx(0.4388, abs=1e-4)
    model.temperature.descend(target_kl - metrics["weight_kl"])
    assert model.temperature.log_value.item() == pytest.approx(0.01 if rises else -0.01, abs=1e-6)


def give_particles(model: DPMD, values: th.Tensor) -> None:
    """Particles at 0 with the given values, ``(batch, n_particles)``."""
    model.particles = lambda batch: th.zeros(*values.shape, 1)  # type: ignore[method-assign]
    give_critic(model, lambda actions: values)


def test_the_divergence_settles_at_its_target() -> None:
    model = bandit_model(DPMD, n_particles=4, target_kl=0.8, temperature_learning_rate=0.02)
    give_particles(model, VALUES)
    batch = uniform_batch(model, 1)
    for _ in range(300):
        _, metrics = model.actor_loss(batch)
        model.temperature.descend(model.target_kl - metrics["weight_kl"])
    assert metrics["weight_kl"].item() == pytest.approx(0.8, abs=0.01)


def test_an_unreachable_divergence_leaves_the_temperature_finite() -> None:
    model = bandit_model(DPMD, n_particles=4, target_kl=0.8, temperature_learning_rate=5.0)
    give_particles(model, th.zeros(1, 4))
    batch = uniform_batch(model, 1)
    for _ in range(10):
        loss, metrics = model.actor_loss(batch)
        model.temperature.descend(model.target_kl - metrics["weight_kl"])
    assert model.temperature().item() == pytest.approx(1e-5) and bool(th.isfinite(loss))


@pytest.mark.parametrize("target_kl, direction", [(1e-4, 1.0), (1.38, -1.0)])
def test_an_update_of_the_actor_moves_the_temperature(target_kl: float, direction: float) -> None:
    model: Any = make_filled(DPMD, n_particles=4, target_kl=target_kl, policy_delay=2)
    soften(model)  # particles that differ
    model.actor_target.load_state_dict(model.actor.state_dict())
    history = []
    for _ in range(4):
        model.train(1, 8)
        history.append(model.temperature.log_value.item())
    assert 1e-4 < model.logger.name_to_value["train/weight_kl"] < 1.38
    assert history[0] == 0.0 and history[1] == history[2]  # together with the actor
    assert history[1] == pytest.approx(direction * 3e-4, rel=1e-2)
    assert history[3] == pytest.approx(direction * 6e-4, rel=1e-1)


def test_a_fixed_temperature_stays() -> None:
    model: Any = make_filled(DPMD, initial_temperature=0.7, temperature_learning_rate=0.0)
    model.train(5, 8)
    assert model.temperature().item() == pytest.approx(0.7)


# -- previous policy --------------------------------------------------------------------------------------------------


def test_the_previous_policy_is_refreshed_at_its_interval() -> None:
    model: Any = make_filled(DPMD, refresh_interval=4)
    assert not any(parameter.requires_grad for parameter in model.actor_target.parameters())
    assert_identical(parameters(model.actor_target), parameters(model.actor))
    changed = []
    for update in range(1, 12):
        before = parameters(model.actor_target)
        model.train(1, 8)
        after = parameters(model.actor_target)
        if not all(th.equal(before[name], after[name]) for name in before):
            changed.append(update)
            assert_identical(after, parameters(model.actor))
    assert changed == [1, 5, 9]


def test_default_refresh_interval() -> None:
    model: Any = make_filled(DPMD)
    copied = []
    for count in (1, 2, 1000, 1001, 1002, 2001):
        model._n_updates = count
        with th.no_grad():
            model.actor_target.denoiser.trunk.output.bias.fill_(7.0)
        model.after_update(None)
        if model.actor_target.denoiser.trunk.output.bias[0] != 7.0:
            copied.append(count)
    assert copied == [1, 1001, 2001]


def test_particles_come_from_the_previous_policy_and_stay_in_the_box() -> None:
    model = bandit_model(DPMD, particle_noise=0.5)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.fill_(float("nan"))
    batch = uniform_batch(model, 50)
    particles = model.particles(batch)
    assert particles.shape == (50, 64, 1) and bool((particles.abs() <= 1.0).all())
    model.clip_particles = False
    assert bool((model.particles(batch).abs() > 1.0).any())
    recorded = {f"particles.{name}": th.zeros(()) for name in ("x_T", "step_noise")}
    model.randomness = RecordedDraws({**recorded, "particles.additive": th.tensor([[[-1.0], [0.0], [2.0]]])})
    model.n_particles = 3
    low, middle, high = model.particles(uniform_batch(model, 1))[0, :, 0]
    assert (middle - low).item() == pytest.approx(0.5) and (high - middle).item() == pytest.approx(1.0)


# -- theorem ----------------------------------------------------------------------------------------------------------


def uniform_start(model: Any) -> None:
    """Make the previous policy sample the uniform distribution, whatever its network."""
    model.actor_target.sample = lambda context, noise, label, n: noise.uniform((len(context), n, 1), label, context, -1.0, 1.0)


def test_two_steps_of_mirror_descent() -> None:
    # 64 particles: the mean under self-normalised weights is too small by 0.02 with 16
    settings: dict[str, Any] = {"particle_noise": 0.0, "temperature_learning_rate": 0.0, "loss_clip": None}
    model = bandit_model(DPMD, n_particles=64, **settings, policy_kwargs={"diffusion_steps": 40})
    uniform_start(model)
    give_critic(model, linear)
    fit(model, 1500, batch_size=16)
    samples = draw(model)
    assert total_variation(samples, linear) <= 0.12
    assert samples.mean().item() == pytest.approx(0.54, abs=0.05)

    del model.actor_target.sample
    polyak_update(model.actor_target, model.actor, tau=1.0)
    fit(model, 500, batch_size=16)
    assert draw(model).mean().item() == pytest.approx(0.75, abs=0.05)


# -- the loss, by hand ------------------------------------------------------------------------------------------------


def hand_made_loss(model: DPMD, values: th.Tensor, clip: float | None) -> tuple[th.Tensor, th.Tensor]:
    """Loss of one state with particles at 0, and what the formula predicts."""
    model.loss_clip = clip
    n = values.shape[1]
    eps = th.linspace(-2.5, 2.5, n).view(1, n, 1)
    model.randomness = RecordedDraws({"actor.t": th.linspace(0.1, 0.9, n).view(1, n, 1), "actor.eps": eps})
    give_particles(model, values)
    batch = uniform_batch(model, 1)
    loss, _ = model.actor_loss(batch)
    noisy = model.actor.add_noise(th.zeros(1, n, 1), model.randomness, "actor")
    expected = th.zeros(())
    for j in range(n):
        predicted = model.actor.denoise(noisy.x_t[:, j], noisy.t[:, j], model.actor.encode(batch.observations))
        error = (predicted - eps[:, j]).square()
        weight = th.softmax(values[0] / model.temperature(), 0)[j]
        expected = expected + weight * (error if clip is None else error.clamp(max=clip)).squeeze()
    return loss, expected


@pytest.mark.parametrize("clip", [None, 3.0])
def test_loss_by_hand(clip: float | None) -> None:
    model = bandit_model(DPMD, n_particles=4, target_kl=1.0, initial_temperature=1.7)
    th.testing.assert_close(*hand_made_loss(model, VALUES, clip))


def test_a_cut_error_has_no_gradient() -> None:
    model = bandit_model(DPMD, n_particles=4, target_kl=1.0)
    loss, _ = hand_made_loss(model, VALUES, clip=1e-9)
    gradient = th.autograd.grad(loss, list(model.actor.parameters()), allow_unused=True)
    assert all(part is None or not part.any() for part in gradient)


# -- the reference implementation -------------------------------------------------------------------------------------


def dpmd_model(case: Case, **kwargs: Any) -> Any:
    """
    The algorithm as the reference has it: particles that are not clipped to the box. Its divergence constraint is written
    with an entropy, its weights are multiplied by the number of particles and averaged; these are the same.
    """
    settings = {"actor_learning_rate": None, "temperature_learning_rate": 1e-2, "n_particles": 4, "target_kl": 0.5}
    model = golden_model(DPMD, case, clip_particles=False, **settings, **kwargs)
    target = "params/actor_target" if sub(case, "params/actor_target") else "params/actor"
    load_denoiser(model.actor_target.denoiser, sub(case, target))
    model.actor_target.sample = partial(model.actor_target.sample, clip_output=False)
    with th.no_grad():
        model.temperature.log_value.copy_(case["params/temp/value"])
    return model


def test_dpmd() -> None:
    case = load("04_dpmd")
    model = dpmd_model(case)
    model.randomness, batch = draws(case), golden_batch(case)
    close(model.target_actions(batch), case["expected/next_action"], atol=2e-5)
    with th.no_grad():
        close(model.particles(batch), case["expected/particles"], atol=2e-5)
    # the reference's weights use the critics of before their step
    loss, metrics = model.actor_loss(batch)
    close(loss, case["expected/loss/actor"])
    entropy = case["expected/entropy"].mean()
    close(metrics["weight_kl"], math.log(4) - entropy)
    critic_step(model, batch, case)
    actor_step(model, loss, case)

    model.temperature.descend(model.target_kl - metrics["weight_kl"])
    # the loss is the temperature times the slope, and so is its gradient with respect to the logarithm
    close(model.temperature.log_value.grad, case["expected/loss/temp"])
    close(model.temperature.log_value.grad, case["expected/grads/temp/value"])
    close(model.temperature.log_value, case["expected/new_params/temp/value"], rtol=1e-5)
    check_targets(model, case)


def test_dpmd_clips_particles_unless_told_otherwise() -> None:
    case = load("04_dpmd")
    model = dpmd_model(case)
    model.randomness, batch = draws(case), golden_batch(case)
    model.clip_particles = True
    assert bool((case["expected/particles"].abs() > 1.0).any())
    with th.no_grad():
        close(model.particles(batch), case["expected/particles"].clamp(-1.0, 1.0), atol=2e-5)
    assert not th.allclose(model.actor_loss(batch)[0], case["expected/loss/actor"], rtol=1e-3)


def test_dpmd_sequence() -> None:
    case = load("07_sequence_dpmd")
    model = dpmd_model(case, refresh_interval=2)
    for k in range(4):
        model.randomness, batch = draws(case, f"noise/{k}"), golden_batch(case, f"batch/{k}")
        actor_loss, metrics = model.actor_loss(batch)
        close(actor_loss, case[f"expected/{k}/loss/actor"], rtol=1e-3, atol=1e-4)
        critic_loss, _ = model.critic_loss(batch)
        close(critic_loss, case[f"expected/{k}/loss/critic"], rtol=1e-3, atol=1e-4)
        model.step(part(model, "critic"), critic_loss)
        model.step(part(model, "actor"), actor_loss)
        model.temperature.descend(model.target_kl - metrics["weight_kl"])
        close(model.temperature.log_value, case[f"expected/{k}/value/temp"], rtol=1e-3, atol=1e-4)
        model.update_targets()
        model._n_updates = k + 1
        model.after_update(batch)
        for name in ("actor", "actor_target", "critic", "critic_target"):
            norm = th.stack([value.square().sum() for value in weights_of(model, name).values()]).sum().sqrt()
            close(norm, case[f"expected/{k}/param_norm/{name}"], rtol=1e-4, atol=0.0)
