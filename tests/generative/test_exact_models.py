"""Samplers driven by the exact network of Gaussian data: errors, orders and biases are known in closed form."""

import math
from itertools import pairwise

import pytest
import torch as th

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FLOW_SOLVERS, FlowMatching
from sb3_diffusion.generative.langevin import Langevin
from sb3_diffusion.generative.process import Denoise, GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.generative.solvers.sampler import Sampler
from tests.golden_tools import close

MEAN, STD = 0.7, 0.3
STARTS = th.linspace(-2.5, 2.5, 51, dtype=th.float64).unsqueeze(-1)


def exact_noise(process: GenerativeProcess, sampler: Sampler) -> Denoise:
    """Optimal noise prediction for data N(MEAN, STD^2)."""

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        alpha, sigma = process.coefficients(sampler.times[k])
        return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)

    return denoise


def flow_map(process: ContinuousDiffusion, x: th.Tensor) -> th.Tensor:
    """Where the probability-flow equation takes x on its way from t_max to t_min."""
    ends = th.tensor([process.schedule.t_min, process.schedule.t_max], dtype=th.float64)
    alpha, sigma = process.coefficients(ends)
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    return alpha[0] * MEAN + spread[0] / spread[1] * (x - alpha[1] * MEAN)


def ode_error(steps: int, solver: str, **options) -> float:  # type: ignore[no-untyped-def]
    process = ContinuousDiffusion().double()
    sampler = process.sampler(steps, solver, clip=False, **options).double()
    draws = RecordedDraws({"sample.x_T": STARTS})
    x = sampler.sample(exact_noise(process, sampler), STARTS.shape, draws, clip_output=False)
    return float((x - flow_map(process, STARTS)).abs().max())


def chain_moments(process: GenerativeProcess, steps: int, variance: str) -> tuple[float, float]:
    """
    Exact mean and standard deviation of the samples. The chain is affine in its draws, so that the response to each draw
    alone gives its share of the variance; no Monte Carlo.
    """
    sampler = process.sampler(steps, "ddpm", clip=False, variance=variance).double()
    rows = steps + 1  # row 0: all draws zero; row i: draw i - 1 is one
    draws = {"sample.x_T": th.zeros(rows, 1), "sample.step_noise": th.zeros(steps - 1, rows, 1)}
    draws["sample.x_T"][1] = 1.0
    for k in range(steps - 1):
        draws["sample.step_noise"][k, k + 2] = 1.0
    x = sampler.sample(exact_noise(process, sampler), (rows, 1), RecordedDraws(draws), clip_output=False)
    return float(x[0]), float((x[1:] - x[0]).square().sum().sqrt())


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("process", [DiscreteDiffusion("cosine", 1000), ContinuousDiffusion()])
def test_long_ddpm_chain_recovers_the_data(process: GenerativeProcess, variance: str) -> None:
    mean, std = chain_moments(process.double(), 1000, variance)
    assert mean == pytest.approx(MEAN, rel=0.02)
    assert std == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(("variance", "std"), [("posterior", 0.2144), ("beta", 0.3193)])
def test_bias_of_a_short_ddpm_chain(variance: str, std: float) -> None:
    assert chain_moments(DiscreteDiffusion("cosine", 10).double(), 10, variance)[1] == pytest.approx(std, abs=2e-4)


def test_sampled_moments_of_a_ddpm_chain() -> None:
    process = DiscreteDiffusion("cosine", 10)
    sampler = process.sampler(10, "ddpm", clip=False)
    x = sampler.sample(
        exact_noise(process, sampler), (20_000, 1), Randomness(th.Generator().manual_seed(0)), clip_output=False
    )
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(0.3193, abs=0.007)


def test_ddim_error_halves_with_the_step() -> None:
    errors = [ode_error(steps, "ddim") for steps in (10, 20, 40, 80)]
    assert errors[:2] == pytest.approx([0.15, 0.08], abs=0.006)
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


@pytest.mark.parametrize(
    ("solver", "steps", "options", "error"),
    [
        ("dpm++2m", 10, {"lower_order_final": False}, 0.26),
        ("dpm++2m", 20, {"lower_order_final": False}, 0.13),
        ("dpm++2m", 10, {}, 0.095),
        ("dpm++2m", 20, {}, 0.018),
        ("dpm++2m", 10, {"lower_order_final": False, "grid": "logsnr"}, 0.025),
        ("ddim", 10, {"grid": "logsnr"}, 0.164),
    ],
)
def test_errors_of_the_ode_solvers(solver: str, steps: int, options: dict[str, str | bool], error: float) -> None:
    assert ode_error(steps, solver, **options) == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("solver", ["dpm2", "dpm++2m"])
def test_second_order_on_a_log_snr_grid(solver: str) -> None:
    errors = [ode_error(steps, solver, grid="logsnr") for steps in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > 1.9


@pytest.mark.parametrize(("solver", "order"), [("euler", 0.95), ("midpoint", 1.9), ("heun", 1.85), ("rk4", 3.9)])
def test_order_of_the_flow_solvers(solver: str, order: float) -> None:
    nodes = FLOW_SOLVERS[solver].nodes

    def error(steps: int) -> float:
        sampler = FlowMatching().sampler(steps, solver).double()
        assert len(sampler.times) == steps * len(nodes)

        def velocity(x: th.Tensor, k: int) -> th.Tensor:
            t = (k // len(nodes) + nodes[k % len(nodes)]) / steps
            assert float(sampler.times[k]) == pytest.approx(t, abs=1e-6)
            return MEAN + (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2) * (x - t * MEAN)

        x = sampler.sample(velocity, STARTS.shape, RecordedDraws({"sample.x_T": STARTS}), clip_output=False)
        return float((x - (MEAN + STD * STARTS)).abs().max())

    errors = [error(steps) for steps in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > order


@pytest.mark.parametrize("process", [DiscreteDiffusion("cosine", 10), DiscreteDiffusion("vp", 5)])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_ddpm_step_is_the_bayes_posterior(process: DiscreteDiffusion, variance: str) -> None:
    process = process.double()
    index = th.arange(1, process.diffusion_steps + 1, dtype=th.float64).unsqueeze(-1)
    beta, (before, sigma_before) = process.betas[index.long()], process.coefficients(index - 1)
    x_t, clean = th.tensor(0.8, dtype=th.float64), th.tensor(-0.4, dtype=th.float64)
    # prior N(before * clean, sigma_before^2) times likelihood N(x_t; sqrt(1 - beta) x, beta)
    precision = 1 / sigma_before**2 + (1 - beta) / beta
    mean = (before * clean / sigma_before**2 + (1 - beta).sqrt() * x_t / beta) / precision
    std = (1 / precision if variance == "posterior" else beta).sqrt()
    alpha, sigma = process.coefficients(index)
    prediction = (x_t - alpha * clean) / sigma
    states = x_t.expand_as(index)

    def step(z: float) -> th.Tensor:
        draws = RecordedDraws({"value.step_noise": th.tensor(z)})
        return process.reverse_step(states, index, prediction, draws, "value.step_noise", variance=variance)

    close(step(0.0)[1:], mean[1:], 1e-5, 1e-6)
    close((step(1.0) - step(0.0))[1:], std[1:], 1e-5, 1e-6)
    # the step to the clean end returns the estimate and adds nothing
    close(step(1.0)[:1], clean.view(1, 1), 1e-5, 1e-6)


def test_single_steps_reproduce_the_chain() -> None:
    process = DiscreteDiffusion("cosine", 6).double()
    sampler = process.sampler(solver="ddpm", variance="posterior").double()
    noise = Randomness(th.Generator().manual_seed(0))
    draws = RecordedDraws({"a.x_T": noise.normal((5, 2), "", STARTS), "a.step_noise": noise.normal((5, 5, 2), "", STARTS)})
    chain = sampler.chain(lambda x, k: th.sin(3 * x), (5, 2), draws, label="a", clip_output=False)
    for k in range(6):
        t = sampler.times[k].expand(5, 1)
        z = RecordedDraws({"z": draws.draws["a.step_noise"][min(k, 4)]})
        x = process.reverse_step(chain[k], t, th.sin(3 * chain[k]), z, "z", variance="posterior")
        close(x, chain[k + 1], 1e-5, 1e-6)


def test_langevin_reaches_the_density_of_its_energy() -> None:
    # energy -(x - m)^2 / (2 s^2); the discretised chain has the stationary variance s^2 / (1 - step / (4 s^2))
    step, n_steps = 0.02, 120
    sampler = Langevin([step / 2] * n_steps, [math.sqrt(step)] * n_steps, clip=False)
    noise = Randomness(th.Generator().manual_seed(0))
    x = sampler.sample(lambda x, k: (MEAN - x) / STD**2, (20_000, 1), noise, clip_output=False)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.var()) == pytest.approx(STD**2 / (1 - step / (4 * STD**2)), rel=0.04)
