"""DPS: its estimator, guidance at sampling time without any training, and the distilled policy."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DPS, DiffusionPolicy
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.policies.guided import GuidedPolicy
from sb3_diffusion.policies.guides import CriticGuide
from tests.bandits import (
    ActionValue,
    AnalyticCritic,
    absolute_model,
    bimodal_log_density,
    check_bimodal,
    draw,
    fit,
    gaussian_log_density,
    give_critic,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.helpers import act, assert_identical, flat_parameters, make, make_filled, observations, rows, with_logger

CASE = MethodCase(
    tiny={"n_particles": 4, "n_action_candidates": 3},
    learns_with={"n_particles": 16, "learning_rate": 0.001},
    operation_counts={"operations": 1013, "kflop": 209, "synchronisations": 0},
)

ONLINE: dict[str, Any] = {"score_injection": "online", "normalize_gradient": False}


def unclipped(**kwargs: Any) -> Any:
    """The estimator without the box."""
    return absolute_model(DPS, **{"clip_target": False, **kwargs})


def log_partition_noise(
    value: ActionValue, a_t: th.Tensor, z: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, clip: bool
) -> Any:
    """``-sigma`` times autograd's gradient of ``logsumexp(Q)`` by the noisy actions."""
    inputs = a_t.clone().requires_grad_()
    clean = (inputs.unsqueeze(1) + sigma.unsqueeze(1) * z) / alpha.unsqueeze(1)
    values = value(clean.clamp(-1.0, 1.0) if clip else clean)
    return -sigma * th.autograd.grad(values.logsumexp(1).sum(), inputs)[0]


# -- the estimator -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", ["normal", "normal_clip"])
def test_target_is_the_gradient_of_the_log_partition(proposal: str) -> None:
    """At the same draws the weighted gradients are what autograd makes of the logarithm of the sum."""
    th.manual_seed(0)
    a_t, z = th.linspace(-1.2, 1.2, 6).unsqueeze(-1), th.randn(6, 40, 1)
    value = gaussian_log_density(0.3, 0.25)
    model = unclipped(n_particles=40, proposal=proposal)
    give_critic(model, value)
    model.randomness = RecordedDraws({"actor.eps_reverse": z})
    alpha, sigma = model.actor.process.coefficients(th.linspace(0.05, 0.9, 6).unsqueeze(-1))
    target, _ = model.noise_target(uniform_batch(model, 6), a_t, alpha, sigma)
    expected = log_partition_noise(value, a_t, z, alpha, sigma, clip=proposal == "normal_clip")
    assert expected.abs().max() > 0.5
    th.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)


def test_target_of_a_single_particle() -> None:
    model = unclipped(n_particles=1, temperature=0.5)
    give_critic(model, lambda actions: actions[..., 0] ** 2)
    model.randomness = RecordedDraws({"actor.eps_reverse": th.tensor([[[0.5]]])})
    alpha, sigma = th.tensor([[0.8]]), th.tensor([[0.6]])
    target, _ = model.noise_target(uniform_batch(model, 1), th.tensor([[0.1]]), alpha, sigma)
    # the particle (0.1 + 0.6 * 0.5) / 0.8 = 0.5 has the gradient 1
    th.testing.assert_close(target, th.tensor([[-0.6 / 0.8 / 0.5]]))


# -- guidance at sampling time -------------------------------------------------------------------------------------------


class OneState(AnalyticCritic):
    """As the guided actor sees critics: the context has an axis for them."""

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return observations.unsqueeze(0)


def guided(value: ActionValue, **kwargs: Any) -> Any:
    model = unclipped(**{**ONLINE, **kwargs})
    critic: Any = OneState(value)
    model.actor.follow(CriticGuide(critic, model.n_particles, model.temperature, model.proposal))
    return model


@pytest.mark.parametrize(("proposal", "left_mass"), [("normal_clip", 0.5), ("truncated", 0.7)])
def test_online_guidance_needs_no_training(proposal: str, left_mass: float) -> None:
    model = guided(bimodal_log_density(left_mass), n_particles=256, proposal=proposal)
    check_bimodal(draw(model), left_mass, distance=0.15, mass_error=0.06)


def test_clipped_proposals_are_heavier_at_the_edges_than_truncated_ones() -> None:
    log_density = bimodal_log_density(0.5)
    edges = {}
    for proposal in ("normal_clip", "truncated"):
        samples = draw(guided(log_density, n_particles=64, proposal=proposal))
        edges[proposal] = (samples.abs() > 0.95).float().mean().item()
    assert 1.5 * edges["truncated"] < edges["normal_clip"] < 0.12


@pytest.mark.parametrize("proposal", ["normal_clip", "truncated", "normal"])
@pytest.mark.parametrize("n_candidates", [1, 3])
def test_online_actions_are_a_function_of_the_observation(proposal: str, n_candidates: int, tmp_path: pathlib.Path) -> None:
    model = make_filled(DPS, proposal=proposal, n_action_candidates=n_candidates, temperature=10.0, **ONLINE)
    assert type(model.policy) is GuidedPolicy
    model.train(3, 8)
    obs = observations(model.observation_space, 5)
    actions = act(model, obs)
    np.testing.assert_array_equal(act(model, obs), actions)
    for i in range(5):
        np.testing.assert_allclose(act(model, rows(obs, i)), actions[i], atol=1e-5)
    assert not np.array_equal(act(model, obs, deterministic=False), act(model, obs, deterministic=False))
    with th.no_grad():
        assert model.actor(th.as_tensor(obs)).shape == (5, model.actor.action_dim)

    model.save(tmp_path / "model")
    model.policy.save(str(tmp_path / "policy"))
    loaded = DPS.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), actions)
    np.testing.assert_array_equal(act(GuidedPolicy.load(str(tmp_path / "policy"), device="cpu"), obs), actions)
    with_logger(loaded).replay_buffer = model.replay_buffer
    loaded.train(2, 8)
    assert not np.array_equal(act(loaded, obs), actions)  # the loaded actor follows the loaded critics


def test_online_guidance_trains_the_critics_alone() -> None:
    model = make_filled(DPS, **ONLINE)
    actor, critic = flat_parameters(model.actor), flat_parameters(model.critic)
    model.train(3, 8)
    assert_identical(flat_parameters(model.actor), actor)
    assert not th.equal(flat_parameters(model.critic), critic)
    assert "train/actor_loss" not in model.logger.name_to_value
    names = [name for name, _ in model.policy.named_parameters()]
    assert len(names) == len(set(names)) == len(list(make(DPS).policy.parameters()))


# -- the distilled policy ------------------------------------------------------------------------------------------------


def test_distilled_policy_samples_the_boltzmann_distribution() -> None:
    model = absolute_model(DPS, n_particles=16, learning_rate=1e-2)
    give_critic(model, bimodal_log_density(0.7))
    fit(model, 2000)
    check_bimodal(draw(model), 0.7, distance=0.15, mass_error=0.06)


# -- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"proposal": "uniform"}, "proposal='uniform'.*normal_clip"),
        ({"score_injection": "both"}, "score_injection='both'.*distill"),
        ({"score_injection": "online"}, "normalize_gradient=False"),
        ({"policy": DiffusionPolicy, **ONLINE}, "GuidedPolicy"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"n_particles": 0}, "n_particles=0"),
    ],
)
def test_wrong_arguments_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(DPS, **arguments)
