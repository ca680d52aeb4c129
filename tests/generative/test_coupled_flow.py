"""Invertible coupled flow: inverse, determinant, density."""

import math

import pytest
import torch as th
from torch import nn

from sb3_diffusion.generative.coupled_flow import CoupledFlow, CoupledProcess
from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from tests.golden_tools import close


def network(action_dim: int, seed: int = 0, gain: float = 1.0) -> Denoise:
    """A random velocity that depends on the time index."""
    generator = th.Generator().manual_seed(seed)
    layers = nn.Sequential(nn.Linear(action_dim + 1, 32), nn.ELU(), nn.Linear(32, action_dim)).double()
    for parameter in layers.parameters():
        nn.init.normal_(parameter, 0.0, gain / math.sqrt(parameter.shape[-1]), generator=generator)

    def velocity(x: th.Tensor, k: int) -> th.Tensor:
        time = x.new_full((*x.shape[:-1], 1), k / 5)
        return layers.to(x.dtype)(th.cat([x, time], -1))

    return velocity


def starts(n: int, size: int, dtype: th.dtype = th.float64) -> th.Tensor:
    return th.randn(n, size, generator=th.Generator().manual_seed(1), dtype=th.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-9)])
@pytest.mark.parametrize(("steps", "mixing"), [(5, 0.95), (5, 1.0), (1, 0.6)])
@th.no_grad()
def test_round_trip(steps: int, mixing: float, dtype: th.dtype, tolerance: float) -> None:
    flow, velocity = CoupledFlow(steps, mixing), network(3)
    x = starts(64, 6, dtype)
    close(flow.inverse(velocity, flow(velocity, x)), x, 0.0, tolerance)
    close(flow(velocity, flow.inverse(velocity, x)), x, 0.0, tolerance)


@pytest.mark.parametrize("gain", [1.0, 3.0])
@pytest.mark.parametrize("action_dim", [1, 3])
def test_determinant_is_constant(action_dim: int, gain: float) -> None:
    flow, velocity = CoupledFlow(5, 0.95), network(action_dim, gain=gain)
    for x in starts(3, 2 * action_dim):
        jacobian = th.autograd.functional.jacobian(lambda x0: flow(velocity, x0), x)
        assert float(th.linalg.slogdet(jacobian).logabsdet) == pytest.approx(flow.log_det(action_dim), abs=1e-6)
    assert CoupledFlow(5, 0.95).log_det(3) == pytest.approx(-1.538798831626, abs=1e-11)


@th.no_grad()
def test_density_integrates_to_one() -> None:
    flow, velocity = CoupledFlow(5, 0.95), network(1)
    axis = th.linspace(-9, 9, 601, dtype=th.float64)
    density = flow.log_prob(velocity, th.cartesian_prod(axis, axis)).exp()
    assert float(density.sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.01)


@th.no_grad()
def test_both_densities_agree_and_the_entropy_is_constant() -> None:
    flow, velocity = CoupledFlow(5, 0.95).double(), network(3)
    x1, log_prob = flow.sample(velocity, (20_000, 6), Randomness(th.Generator().manual_seed(0)), label="act")
    close(flow.log_prob(velocity, x1), log_prob, 1e-9, 1e-9)
    entropy = 3 * math.log(2 * math.pi * math.e) + flow.log_det(3)
    assert float(-log_prob.mean()) == pytest.approx(entropy, abs=4 * math.sqrt(3 / 20_000))


def test_gradient_flows_through_the_inverse() -> None:
    flow = CoupledFlow(3, 0.9)
    gain = th.tensor(0.5, dtype=th.float64, requires_grad=True)
    x1 = starts(4, 2)
    assert th.autograd.gradcheck(lambda g: flow.log_prob(lambda x, k: g * th.tanh(x), x1), gain)


def test_without_velocity_the_halves_move_together() -> None:
    flow = CoupledFlow(5, 0.9)
    z, y = flow(lambda x, k: th.zeros_like(x), starts(8, 4)).chunk(2, -1)
    z0, y0 = starts(8, 4).chunk(2, -1)
    close(z - y, 0.9**10 * (z0 - y0), 1e-9, 1e-12)
    close(0.9 * z + y, 0.9 * z0 + y0, 1e-9, 1e-12)
    close(flow.action(th.cat([z, y], -1)), (z + y) / 2, 0.0, 0.0)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mixing=0\.5 must be in \(0\.5, 1\]"):
        CoupledFlow(5, 0.5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CoupledFlow(0)
    with pytest.raises(ValueError, match="odd last dimension 3"):
        CoupledFlow()(lambda x, k: x, th.zeros(2, 3))
    flow = CoupledFlow(4)
    assert not flow.state_dict()
    assert flow.times.tolist() == [0.0, 0.25, 0.5, 0.75]


@th.no_grad()
@pytest.mark.parametrize("executed", ["mean", "first"])
def test_a_sampler_hides_that_actions_are_doubled(executed: str) -> None:
    sampler, velocity = CoupledProcess(0.9).sampler(4, executed), network(3)
    th.manual_seed(0)
    doubled = sampler.draw(velocity, (500, 3), Randomness(), "act")
    th.manual_seed(0)
    actions = sampler.sample(velocity, (500, 3), Randomness(), "act", clip_output=False)
    assert doubled.shape == (500, 6) and (sampler.steps, sampler.flow.mixing) == (4, 0.9)
    close(actions, doubled[:, :3] if executed == "first" else (doubled[:, :3] + doubled[:, 3:]) / 2, 0.0, 0.0)
    th.manual_seed(0)
    close(sampler.sample(velocity, (500, 3), Randomness(), "act"), actions.clamp(-1.0, 1.0), 0.0, 0.0)
