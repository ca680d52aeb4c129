"""Where a chain was clipped is told by its states: there the gradient of a step's prediction is cut off."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch as th

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.sampler import Sampler
from sb3_diffusion.kernels import switched_off
from sb3_diffusion.networks.denoiser import Denoiser

SHAPE = (64, 3)
CHAINS: dict[str, Any] = {
    "ddpm": lambda: ContinuousDiffusion().sampler(20),
    "ddpm, 100 steps": lambda: ContinuousDiffusion("linear").sampler(100),
    "ddpm, discrete": lambda: DiscreteDiffusion("cosine", diffusion_steps=5).sampler(5),
    "ddim": lambda: ContinuousDiffusion().sampler(10, "ddim"),
    "state": lambda: ContinuousDiffusion().sampler(8, clip_target="state"),
    "no clip": lambda: ContinuousDiffusion().sampler(6, clip=False),
}


def randomness() -> Randomness:
    return Randomness(th.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CHAINS)
def test_the_share_is_that_of_the_clipped_steps(name: str) -> None:
    chain: Sampler = CHAINS[name]()
    predictions: list[th.Tensor] = []

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        # about half of the noise, so that some estimates lie in the box and some beyond
        predictions.append((0.5 * x.detach() + 0.3 * th.sin(5.0 * x.detach())).requires_grad_())
        return predictions[-1]

    watched = chain.sample_and_watch(denoise, SHAPE, randomness())
    gradients = th.autograd.grad(watched.samples.sum(), predictions)
    assert watched.cut_off is not None and watched.states.shape == (chain.steps + 1, *SHAPE)
    if name == "state":
        cut_off = (watched.states[1:] <= -1.0) | (watched.states[1:] >= 1.0)
    else:
        cut_off = chain.clipped(watched.states[:-1].movedim(0, -2), th.stack(predictions).movedim(0, -2)).movedim(-2, 0)
    share = cut_off.float().mean()
    assert not th.stack(gradients)[cut_off].any()  # elsewhere it is not zero, unless a later step has cut it off
    th.testing.assert_close(watched.cut_off, share, rtol=0, atol=2e-3)
    assert watched.cut_off == 0.0 if name == "no clip" else 0.02 < float(watched.cut_off) < 0.98


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpm2", "dpm++2m"])
@pytest.mark.parametrize("compiled", [True, False])
def test_watching_changes_nothing(solver: str, compiled: bool) -> None:
    chain = ContinuousDiffusion().sampler(4, solver)
    network = Denoiser(5, 3, net_arch=[16], state_arch=[8], time_dim=8)
    outcomes: list[tuple[th.Tensor, ...]] = []
    for watches in (False, True):
        network.zero_grad()
        bound = network.bind(network.encode_state(th.ones(64, 5)), network.encode_time(chain.times.unsqueeze(-1)))
        with nullcontext() if compiled else switched_off():
            if watches:
                watched = chain.sample_and_watch(bound, SHAPE, randomness())
                samples, states = watched.samples, watched.states
                assert (watched.cut_off is None) == (solver in ("dpm2", "dpm++2m"))
            else:
                samples = chain.sample(bound, SHAPE, randomness(), clip_output=False)
                states = chain.chain(bound, SHAPE, randomness(), clip_output=False).detach()
            samples.square().sum().backward()
        outcomes.append((samples.detach(), states, *(p.grad.clone() for p in network.parameters() if p.grad is not None)))
    assert not outcomes[1][1].requires_grad
    assert all(th.equal(*pair) for pair in zip(*outcomes, strict=True))


def test_compiled_chains_tell_the_same() -> None:
    chain = ContinuousDiffusion().sampler(20)
    network = Denoiser(5, 3, net_arch=[32], state_arch=[8], time_dim=8)
    shares = []
    for kernels in (nullcontext(), switched_off()):
        with kernels, th.no_grad():
            bound = network.bind(network.encode_state(th.ones(64, 5)), network.encode_time(chain.times.unsqueeze(-1)))
            shares.append(chain.sample_and_watch(bound, SHAPE, randomness()).cut_off)
    assert 0.02 < float(shares[0]) < 0.98  # type: ignore[arg-type]
    th.testing.assert_close(*shares, rtol=0, atol=2e-3)
