"""Log densities from denoising errors, for networks that are exact for a known density."""

import math

import pytest
import torch as th

from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FlowMatching
from sb3_diffusion.generative.likelihood import LikelihoodEstimator
from sb3_diffusion.generative.process import Denoise, GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws

CONTINUOUS = ContinuousDiffusion()


def gaussian_network(process: GenerativeProcess, estimator: LikelihoodEstimator, mean: float, std: float) -> Denoise:
    """Optimal noise prediction for data N(mean, std^2)."""

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        alpha, sigma = process.coefficients(estimator.times[k])
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return denoise


def uniform_network(process: GenerativeProcess, estimator: LikelihoodEstimator) -> Denoise:
    """Optimal noise prediction for data that are uniform on the box: the clean sample follows a truncated normal."""

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        alpha, sigma = (value.double() for value in process.coefficients(estimator.times[k]))
        centre, spread = x.abs().double() / alpha, sigma / alpha  # mirrored, where tail probabilities keep their precision
        normal = th.distributions.Normal(th.zeros((), dtype=th.float64), 1.0)
        low, high = (-1.0 - centre) / spread, (1.0 - centre) / spread
        mass = 0.5 * (th.special.erfc(-high / math.sqrt(2.0)) - th.special.erfc(-low / math.sqrt(2.0)))
        mean = centre + spread * (normal.log_prob(low).exp() - normal.log_prob(high).exp()) / mass
        return ((x - alpha * mean * x.sign()) / sigma).float()

    return denoise


def estimate(
    process: GenerativeProcess, network: str, x0: th.Tensor, steps: int = 20, rule: str = "trapezoid", n: int = 20_000
) -> th.Tensor:
    estimator = process.likelihood(steps, rule, clip=network == "uniform")
    if network == "uniform":
        denoise = uniform_network(process, estimator)
    else:
        denoise = gaussian_network(process, estimator, *{"unit": (0.0, 1.0), "narrow": (0.3, 0.25)}[network])
    return estimator.log_prob(denoise, x0, Randomness(th.Generator().manual_seed(0)), "test", n)


@pytest.mark.parametrize("rule", ["trapezoid", "rectangle"])
def test_standard_normal(rule: str) -> None:
    x0 = th.tensor([[1.0, -1.0], [0.0, 0.0]])
    log_prob = estimate(CONTINUOUS, "unit", x0, rule=rule, n=10_000)
    assert log_prob.tolist() == pytest.approx([-2.8379, -1.8380], abs=0.05)


NARROW = th.tensor([[0.3], [0.55], [0.8]])
NARROW_LOG_DENSITY = th.tensor([0.0, -0.5, -2.0]) - math.log(0.25 * math.sqrt(2.0 * math.pi))


def test_narrow_normal() -> None:
    # three dimensions that are equal
    log_prob = estimate(CONTINUOUS, "narrow", NARROW.expand(-1, 3))
    th.testing.assert_close(log_prob, 3.0 * NARROW_LOG_DENSITY, rtol=0.0, atol=0.05)
    th.testing.assert_close(estimate(CONTINUOUS, "narrow", NARROW, steps=10), NARROW_LOG_DENSITY, rtol=0.0, atol=0.03)


def test_bias_of_the_rectangle_rule() -> None:
    """As good as the trapezoidal rule only for the standard normal; the error falls with the first power of the width."""
    for steps, error in ((20, -0.227), (50, -0.097)):
        log_prob = estimate(CONTINUOUS, "narrow", NARROW[:1], steps, "rectangle")
        assert (log_prob - NARROW_LOG_DENSITY[:1]).item() == pytest.approx(error, abs=0.03)


def test_uniform_density_on_the_box() -> None:
    x0 = th.tensor([[0.0], [-0.5], [0.9], [-0.95]])
    th.testing.assert_close(estimate(CONTINUOUS, "uniform", x0), th.full((4,), -math.log(2.0)), rtol=0.0, atol=0.05)
    both = th.cat([x0, x0.flip(0)], dim=1)
    th.testing.assert_close(estimate(CONTINUOUS, "uniform", both), th.full((4,), -math.log(4.0)), rtol=0.0, atol=0.07)


def test_discrete_process() -> None:
    process = DiscreteDiffusion("cosine", 100)
    th.testing.assert_close(estimate(process, "narrow", NARROW, steps=100), NARROW_LOG_DENSITY, rtol=0.0, atol=0.05)
    # the table has no more levels
    assert len(process.likelihood(1000).times) == 100 and len(process.likelihood(1000, "rectangle").times) == 100


def test_rectangle_rule_is_the_sum_of_weighted_noise_errors() -> None:
    """The authors' form: ``sum_i v_i (d abar_i - |eps_hat - eps|^2) - d/2 log(2 pi e)``, ``v_i`` as below."""
    estimator = CONTINUOUS.likelihood(20, "rectangle")
    generator = th.Generator().manual_seed(1)
    x0, eps = th.rand(3, 2, generator=generator) * 2.0 - 1.0, th.randn(20, 3, 7, 2, generator=generator)

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        return th.tanh(x + 0.1 * k)

    log_prob = estimator.log_prob(denoise, x0, RecordedDraws({"a": eps}), "a", 7)

    alpha, sigma = CONTINUOUS.coefficients(CONTINUOUS.time_grid(20))
    expected = th.full((3,), -math.log(2.0 * math.pi * math.e), dtype=th.float64)
    for i in range(1, 21):
        v = (alpha[i - 1] ** 2 - alpha[i] ** 2) / (2.0 * alpha[i] ** 2 * sigma[i] ** 2)
        assert v.item() == pytest.approx({1: 0.497, 20: 51.0}.get(i, v.item()), rel=0.02)
        x_t = alpha[i] * x0.double().unsqueeze(1) + sigma[i] * eps[i - 1]
        clean = ((x_t - sigma[i] * denoise(x_t, i - 1)) / alpha[i]).clamp(-1.0, 1.0)
        noise = (x_t - alpha[i] * clean) / sigma[i]
        expected += v * (2.0 * alpha[i] ** 2 - (noise - eps[i - 1]).square().sum(2).mean(1))
    th.testing.assert_close(log_prob, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rule", "gain"), [("rectangle", 4.9), ("trapezoid", 0.3)])
def test_clipping_limits_what_an_error_of_the_network_costs(rule: str, gain: float) -> None:
    """The noisiest levels amplify it by ``1 / alpha``, and the rectangle rule gives these the largest weight."""
    estimates = []
    for clip in (True, False):
        estimator = CONTINUOUS.likelihood(20, rule, clip=clip)
        exact = uniform_network(CONTINUOUS, estimator)
        noise = Randomness(th.Generator().manual_seed(0))
        x0 = th.tensor([[0.5]])
        estimates.append(estimator.log_prob(lambda x, k, net=exact: net(x, k) + 0.3, x0, noise, "test", 5000))  # type: ignore[misc]
    assert (estimates[0] - estimates[1]).item() == pytest.approx(gain, abs=0.2)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="rule='simpson'"):
        CONTINUOUS.likelihood(20, "simpson")
    with pytest.raises(ValueError, match="needs an interval between two noisy levels"):
        DiscreteDiffusion("cosine", 1).likelihood(20)
    with pytest.raises(ValueError, match="FlowMatching has no likelihood estimator"):
        FlowMatching().likelihood(20)
