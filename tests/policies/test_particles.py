"""Importance sampling of clean actions."""

import math

import pytest
import torch as th

from sb3_diffusion import SDAC
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.policies.particles import (
    boltzmann_noise,
    effective_sample_size,
    particle_value_gradients,
    particle_values,
    propose_clean,
    reverse_sample,
)
from tests.bandits import (
    bandit_model,
)


def test_reverse_samples_of_a_centred_action() -> None:
    root = th.full((1, 1), 0.5**0.5)
    th.manual_seed(0)
    noise, clean = reverse_sample(th.zeros(1, 1), root, root, 100_000, Randomness(), "test")
    assert noise.abs().max() <= 1.0 and clean.abs().max() <= 1.0
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.var().item() - 0.2911) < 0.01
    th.testing.assert_close(root * clean + root * noise, th.zeros_like(clean), atol=1e-6, rtol=0.0)


def test_reverse_samples_of_an_action_outside_the_box_are_finite() -> None:
    alpha, sigma = th.full((1, 1), 0.99998), th.full((1, 1), 0.00643)
    noise, clean = reverse_sample(th.full((1, 3), 1.4), alpha, sigma, 500, Randomness(), "test")
    assert noise.isfinite().all()
    assert clean.abs().max() <= 1.0


def test_blocks_of_particles_do_not_change_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bandit_model(SDAC)
    actions, observations = th.rand(4, 30, 1), th.rand(4, 1)
    context = model.critic.encode(observations)
    whole = particle_values(model.critic, actions, context)
    monkeypatch.setattr("sb3_diffusion.policies.particles.BLOCK_ROWS", 16)
    th.testing.assert_close(particle_values(model.critic, actions, context), whole)
    assert whole.shape == (4, 30)


def test_effective_sample_size_counts_the_particles_that_matter() -> None:
    weights = th.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert effective_sample_size(weights).item() == pytest.approx(2.5)


def test_value_gradients_are_those_of_the_smaller_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bandit_model(SDAC)
    actions, context = th.rand(4, 30, 1) * 2.0 - 1.0, model.critic.encode(th.rand(4, 1))
    inputs = actions.clone().requires_grad_()
    members = model.critic.q(inputs, context)
    first, second = (th.autograd.grad(q.sum(), inputs, retain_graph=True)[0] for q in members)
    smaller = (members[0] < members[1]).unsqueeze(-1)
    assert smaller.any() and not smaller.all()
    with th.no_grad():
        values, gradients = particle_value_gradients(model.critic, actions, context)
    th.testing.assert_close(values, members.amin(0).detach())
    th.testing.assert_close(gradients, th.where(smaller, first, second))

    monkeypatch.setattr("sb3_diffusion.policies.particles.BLOCK_ROWS", 16)
    th.testing.assert_close(particle_value_gradients(model.critic, actions, context), (values, gradients))


def test_value_gradients_leave_no_graph_behind() -> None:
    """Nor do they touch what came before the particles: the actions' own history, the critics' parameters."""
    model = bandit_model(SDAC)
    weight = th.ones(1, requires_grad=True)
    context = model.critic.encode(th.rand(4, 1))
    values, gradients = particle_value_gradients(model.critic, weight * th.rand(4, 30, 1), context)
    assert context.requires_grad
    assert not values.requires_grad and not gradients.requires_grad
    assert weight.grad is None and all(parameter.grad is None for parameter in model.critic.parameters())


def test_proposals() -> None:
    z = th.tensor([-3.0, -0.5, 0.0, 2.0]).view(1, 4, 1)
    x_t, alpha, sigma = th.tensor([[0.3]]), th.tensor([[0.8]]), th.tensor([[0.6]])
    free, slope = propose_clean(x_t, alpha, sigma, 4, "normal", RecordedDraws({"test": z}), "test")
    th.testing.assert_close(free.flatten(), th.tensor([-1.875, 0.0, 0.375, 1.875]))
    th.testing.assert_close(slope.expand(1, 4, 1).flatten(), th.full((4,), 1.25))

    clipped, slope = propose_clean(x_t, alpha, sigma, 4, "normal_clip", RecordedDraws({"test": z}), "test")
    th.testing.assert_close(clipped.flatten(), th.tensor([-1.0, 0.0, 0.375, 1.0]))
    th.testing.assert_close(slope.flatten(), th.tensor([0.0, 1.25, 1.25, 0.0]))

    inside, slope = propose_clean(x_t, alpha, sigma, 500, "truncated", Randomness(), "test")
    assert inside.shape == (1, 500, 1) and inside.abs().max() <= 1.0
    th.testing.assert_close(slope, th.full((1, 1, 1), 1.25))


def test_boltzmann_noise_of_two_particles() -> None:
    """Weights 1/4 and 3/4, gradients (2, 0) and (4, 8), divided by the temperature once more: score (2, 3) / (0.8 * 0.5)."""
    values = th.tensor([[0.0, 0.5 * math.log(3.0)]])
    gradients = th.tensor([[[2.0, 0.0], [4.0, 8.0]]])
    slope = th.tensor([[[1.25, 1.25], [0.625, 0.625]]])  # 1 / 0.8, and half of it for the second
    noise, weights = boltzmann_noise(values, gradients, slope, th.tensor([[0.6]]), 0.5)
    th.testing.assert_close(weights, th.tensor([[0.25, 0.75]]))
    th.testing.assert_close(noise, -0.6 * th.tensor([[2.0, 3.0]]) / (0.8 * 0.5))


def test_coarser_particles_are_close_and_stay_float32() -> None:
    """Off by default; bfloat16 rounds values to 8 bits, tf32 exists on accelerators only."""
    model = bandit_model(SDAC)
    actions, context = th.rand(4, 30, 1), model.critic.encode(th.rand(4, 1)).detach()
    assert model.critic.particle_precision == "float32"
    with th.no_grad():
        exact = particle_values(model.critic, actions, context)
    _, slopes = particle_value_gradients(model.critic, actions, context)
    for precision, tolerance in (("tf32", 1e-6), ("bfloat16", 0.03)):
        coarse = bandit_model(SDAC, policy_kwargs={"particle_precision": precision})
        coarse.policy.load_state_dict(model.policy.state_dict())
        with th.no_grad():
            values = particle_values(coarse.critic, actions, context)
        assert values.dtype == th.float32
        th.testing.assert_close(values, exact, rtol=tolerance, atol=tolerance)
        assert th.equal(values, exact) == (precision == "tf32")
        gradients = particle_value_gradients(coarse.critic, actions, context)[1]
        th.testing.assert_close(gradients, slopes, rtol=0.0, atol=5 * tolerance * float(slopes.abs().max()))


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="particle_precision='half'; known are float32, tf32, bfloat16"):
        bandit_model(SDAC, policy_kwargs={"particle_precision": "half"})
