"""DACERv2: what its auxiliary loss pulls the chain to, and that the rest of it is DACER."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_diffusion import DACER, DACERv2
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import bandit_model, draw, fit, flat, give_critic, uniform_batch
from tests.cases import MethodCase
from tests.helpers import assert_identical, make_filled

CASE = MethodCase(
    tiny={"n_entropy_samples": 8, "n_entropy_states": 4},
    every_update={"alpha_update_interval": 1},
    learns_with={"reward_scale": 1.0, "alpha_update_interval": 20, "learning_rate": 0.001, "field_weight": 0.01},
    wrong_arguments=[
        ({"field_weight": -1.0}, ["field_weight=-1.0", "pass 0"]),
        ({"field_form": "x0"}, ["'x0'", "score", "eps"]),
        ({"policy_kwargs": {"process": "controlled"}}, ["'controlled'", "control", "DACERv2", "noise"]),
        ({"n_entropy_states": 0}, ["n_entropy_states=0", "at least 1"]),
    ],
    operation_counts={"operations": 1179, "kflop": 184, "synchronisations": 0},
)

FIVE: dict[str, Any] = {"policy_kwargs": {"diffusion_steps": 5}}
W = [math.exp(0.4 * step - 1.8) for step in (5, 4, 3, 2, 1)]
"""Weights of the five steps, noisiest first."""


def linear(slope: float, dim: int = 1) -> Any:
    return lambda actions: slope * actions[..., :dim].sum(-1)


def field_loss(model: Any, states: th.Tensor) -> th.Tensor:
    """The auxiliary loss at given states ``(5, batch, action_dim)``."""
    observations = th.zeros(states.shape[1], 1)
    times = model.actor.update_chain.times
    return model.field_loss(states, times, model.actor.encode(observations), model.critic.encode(observations))


class ConstantNoise(nn.Module):
    """Noise network that predicts a given number at each of the five times."""

    def __init__(self, values: th.Tensor):
        super().__init__()
        self.values = values

    def encode_state(self, features: th.Tensor) -> th.Tensor:
        return features

    def encode_time(self, times: th.Tensor) -> th.Tensor:
        return times

    def forward(self, x: th.Tensor, context: th.Tensor, times: th.Tensor) -> th.Tensor:
        assert times.shape == (1, 5, 1)
        return self.values.view(1, 5, 1).expand(x.shape)


def test_dacerv2_without_its_auxiliary_loss_is_dacer() -> None:
    settings = {"policy_delay": 2, "alpha_update_interval": 1}
    plain = make_filled(DACER, policy_kwargs={"diffusion_steps": 5}, **settings)
    ours = make_filled(DACERv2, policy_kwargs={"diffusion_steps": 5}, field_weight=0.0, **settings)
    pulled = make_filled(DACERv2, policy_kwargs={"diffusion_steps": 5}, field_weight=0.1, **settings)
    for model in (plain, ours, pulled):
        model.replay_buffer = plain.replay_buffer
        th.manual_seed(1)
        np.random.seed(1)
        model.train(6, 8)
    assert_identical(ours.get_parameters(), plain.get_parameters())
    with pytest.raises(AssertionError):
        assert_identical(pulled.get_parameters(), plain.get_parameters())


def test_dacerv2_samples_in_five_steps() -> None:
    assert len(DACERv2("DiffusionPolicy", "Pendulum-v1", buffer_size=1, device="cpu").actor.update_chain.times) == 5


@pytest.mark.parametrize("slope", [0.01, 30.0, -2.0])
def test_the_field_is_the_weighted_direction_of_the_value(slope: float) -> None:
    """With Q = c a the best score is w(t) sign(c), whatever the size of c."""
    model = bandit_model(DACERv2, **FIVE)
    give_critic(model, linear(slope))
    sigma = model.actor.process.coefficients(model.actor.update_chain.times)[1]
    states = th.randn(5, 7, 1)
    best = math.copysign(1.0, slope) * th.tensor(W)
    model.actor.denoiser = ConstantNoise(-sigma * best)
    # the norm is increased by 1e-6, which is 1e-4 of the smallest slope
    assert field_loss(model, states).item() < 1e-6
    model.actor.denoiser = ConstantNoise(-sigma * (best + 0.5))
    assert field_loss(model, states).item() == pytest.approx(0.25, rel=1e-3)
    model.actor.denoiser = ConstantNoise(sigma * best)
    assert field_loss(model, states).item() == pytest.approx(4.0 * sum(w * w for w in W) / 5, rel=1e-3)


def test_the_other_form_leaves_the_noise_level_out() -> None:
    model = bandit_model(DACERv2, field_form="eps", **FIVE)
    give_critic(model, linear(1.0))
    model.actor.denoiser = ConstantNoise(-th.tensor(W))
    assert field_loss(model, th.randn(5, 7, 1)).item() < 1e-9


def test_the_weights_are_largest_where_the_chain_starts() -> None:
    model = bandit_model(DACERv2, field_growth=0.7, field_offset=0.1, field_form="eps", **FIVE)
    give_critic(model, linear(1.0))
    for step, weight in zip((5, 4, 3, 2, 1), range(5), strict=True):
        values = th.zeros(5)
        values[weight] = -math.exp(0.7 * step + 0.1)
        rest = sum(math.exp(0.7 * other + 0.1) ** 2 for other in range(1, 6) if other != step) / 5
        model.actor.denoiser = ConstantNoise(values)
        assert field_loss(model, th.randn(5, 3, 1)).item() == pytest.approx(rest, rel=1e-4)


def test_directions_have_length_one_and_vanish_with_the_gradient() -> None:
    model = bandit_model(DACERv2)
    give_critic(model, lambda actions: 3.0 * actions[..., 0] - 4.0 * actions[..., 1])
    direction = model.q_direction(th.randn(6, 5, 2), th.zeros(6, 1))
    th.testing.assert_close(direction, th.tensor([0.6, -0.8]).expand(6, 5, 2))
    give_critic(model, flat)
    assert not model.q_direction(th.randn(6, 5, 2), th.zeros(6, 1)).any()


def test_the_direction_follows_the_smaller_critic() -> None:
    model = bandit_model(DACERv2)
    actions = th.linspace(-1.0, 1.0, 200).view(20, 10, 1).requires_grad_()
    context = model.critic.encode(th.zeros(20, 1)).detach()
    with th.no_grad():  # lift one critic until each is the smaller one somewhere
        values = model.critic.q(actions, context)
        model.critic.ensemble.trunk.output.bias[1, :, 0] += (values[0] - values[1]).median()
    values = model.critic.q(actions, context)
    first, second, smaller = (th.autograd.grad(v.sum(), actions, retain_graph=True)[0] for v in (*values, values.amin(0)))
    assert not th.equal(smaller.sign(), first.sign()) and not th.equal(smaller.sign(), second.sign())
    th.testing.assert_close(model.q_direction(actions, context), smaller.sign(), rtol=0.0, atol=1e-3)


def test_the_auxiliary_loss_does_not_move_the_states_of_the_chain() -> None:
    """Its gradient with respect to the noise the chain starts from is zero, that of the value is not."""
    x_T = th.randn(4, 1, requires_grad=True)
    gradients = []
    for slope, weight in ((0.0, 1.0), (1.0, 0.0)):
        model = bandit_model(DACERv2, field_weight=weight, **FIVE)
        give_critic(model, linear(slope))
        model.randomness = RecordedDraws({"actor.x_T": x_T, "actor.step_noise": 0.1 * th.randn(4, 4, 1)})
        loss, _ = model.actor_loss(uniform_batch(model, 4))
        gradients.append(th.autograd.grad(loss, x_T)[0])
    assert not gradients[0].any() and gradients[1].any()


def test_dacerv2_finds_the_maximum() -> None:
    model = bandit_model(DACERv2, learning_rate=1e-3, field_weight=0.01, **FIVE)
    give_critic(model, lambda actions: -((actions[..., 0] - 0.5) ** 2))
    fit(model, 500)
    assert draw(model).mean().item() == pytest.approx(0.5, abs=0.05)
