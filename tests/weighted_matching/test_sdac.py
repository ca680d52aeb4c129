"""SDAC: its target and theorem on bandits, and its numbers beside those of the reference implementation."""

import pytest
import torch as th

from sb3_diffusion import SDAC
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.policies.particles import self_normalized_weights
from sb3_diffusion.policies.parts import own_parameters
from tests.bandits import (
    bandit_model,
    bimodal_log_density,
    check_bimodal,
    draw,
    fit,
    flat,
    gaussian_log_density,
    give_critic,
    total_variation,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.golden_algorithms import (
    check_gradients,
    check_step,
    check_targets,
    critic_step,
    draws,
    golden_batch,
    golden_model,
    weights_of,
)
from tests.golden_tools import close, load, sub
from tests.golden_weights import denoiser_gradients
from tests.helpers import part

CASE = MethodCase(
    tiny={"n_particles": 4, "n_action_candidates": 3},
    learns_with={"n_particles": 16, "learning_rate": 0.001},
    wrong_arguments=[
        ({"temperature": 0.0}, ["temperature=0.0", "positive"]),
        ({"n_particles": 0}, ["n_particles=0", "at least 1"]),
    ],
    operation_counts={"operations": 957, "kflop": 185, "synchronisations": 0},
)


def sdac_target(model: SDAC, eps_reverse: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Loss of a batch of one with given reverse draws and values, ``(K,)`` each, and the loss that the formula predicts."""
    draws = {"actor.t": th.tensor([[0.5]]), "actor.eps": th.tensor([[0.3]]), "actor.eps_reverse": eps_reverse.view(1, -1, 1)}
    model.randomness = RecordedDraws(draws)
    give_critic(model, lambda actions: values.expand(actions.shape[:-1]))
    batch = uniform_batch(model, 1)
    loss, _ = model.actor_loss(batch)
    noisy, t, *_ = model.actor.add_noise(batch.actions, model.randomness, "actor")
    predicted = model.actor.denoise(noisy, t, model.actor.encode(batch.observations))
    weights = th.softmax(values / model.temperature, dim=0)
    return loss, (predicted + (weights * eps_reverse).sum()).square().mean()


def test_sdac_target_is_minus_the_weighted_reverse_noise() -> None:
    model = bandit_model(SDAC, temperature=0.3, n_particles=1)
    th.testing.assert_close(*sdac_target(model, th.tensor([0.7]), th.tensor([2.0])))

    model = bandit_model(SDAC, temperature=0.3, n_particles=2)
    values = th.tensor([0.0, 0.3 * th.log(th.tensor(3.0)).item()])
    weights = self_normalized_weights(values.unsqueeze(0), 0.3)
    th.testing.assert_close(weights, th.tensor([[0.25, 0.75]]))
    th.testing.assert_close(*sdac_target(model, th.tensor([0.4, -0.2]), values))


def test_sdac_with_a_flat_value_is_uniform() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    give_critic(model, flat)
    fit(model, 2500)
    samples = draw(model)
    assert total_variation(samples, flat) <= 0.08
    assert samples.std().item() == pytest.approx(0.577, abs=0.04)


def test_sdac_samples_the_boltzmann_distribution() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    give_critic(model, bimodal_log_density(left_mass=0.7))
    fit(model, 3000)
    check_bimodal(draw(model), 0.7, distance=0.10, mass_error=0.05)


def test_sdac_on_a_gaussian_is_wider_than_qsm() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    fit(model, 2500)
    assert draw(model).std().item() >= 0.23


def test_sdac() -> None:
    case = load("04_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    model.randomness, batch = draws(case), golden_batch(case)
    close(model.target_actions(batch), case["expected/next_action"], atol=2e-5)
    # the reference's weights use the critics of before their step
    loss, _ = model.actor_loss(batch)
    # summed over particles as published; the reference's mean over particles is a fifth of it (apart from a constant)
    gradient_scale = 5.0
    critic_step(model, batch, case)
    model.actor.optimizer.zero_grad()
    (loss / gradient_scale).backward(inputs=own_parameters(model.actor))
    check_gradients(denoiser_gradients(model.actor.denoiser), sub(case, "expected/grads/actor"))
    model.actor.optimizer.step()
    check_step(model, case, "actor", sub(case, "expected/grads/actor"))
    check_targets(model, case)


def test_sdac_loss_differs_from_the_published_one_by_the_spread_of_the_particles() -> None:
    """sum_k w_k (e + n_k)^2 = (e + sum_k w_k n_k)^2 + variance of n under w, whose gradient is zero."""
    case = load("04_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    model.randomness = draws(case)
    loss, _ = model.actor_loss(golden_batch(case))
    weights, noise = case["expected/weights"], case["noise/actor.eps_reverse"]
    mean = (weights * noise).sum(0)
    spread = (weights * (noise - mean).square()).sum(0).mean()
    close(loss + spread, case["expected_fixed/loss/actor"])
    close((loss + spread) / 5.0, case["expected/loss/actor"])


def test_sdac_best_of_ten() -> None:
    case = load("04_sdac")
    model = golden_model(SDAC, case)
    actions = model.policy.select_actions(case["batch/obs"], 10, draws(case), "act_best")
    close(actions, case["expected/act_best/action"], atol=2e-5)


def test_sdac_sequence() -> None:
    case = load("07_sequence_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    for k in range(4):
        model.randomness, batch = draws(case, f"noise/{k}"), golden_batch(case, f"batch/{k}")
        actor_loss, _ = model.actor_loss(batch)
        critic_loss, _ = model.critic_loss(batch)
        close(critic_loss, case[f"expected/{k}/loss/critic"], rtol=1e-3, atol=1e-4)
        model.step(part(model, "critic"), critic_loss)
        model.step(part(model, "actor"), actor_loss / 5.0)
        model.update_targets()
        for name in ("actor", "critic", "critic_target"):
            norm = th.stack([value.square().sum() for value in weights_of(model, name).values()]).sum().sqrt()
            close(norm, case[f"expected/{k}/param_norm/{name}"], rtol=1e-4, atol=0.0)
