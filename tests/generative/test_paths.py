"""The divergence of two reverse chains is that of the distributions of their paths."""

import pytest
import torch as th

from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.paths import PathDivergence
from sb3_diffusion.generative.randomness import Randomness

STEPS = 5


@pytest.mark.parametrize(("t", "expected"), [(1, 0.621794), (2, 0.750509), (3, 1.037196), (4, 1.602045), (5, 2.547205)])
def test_a_step_costs_the_squared_difference_of_the_predictions(t: int, expected: float) -> None:
    process = DiscreteDiffusion("vp", STEPS)
    first, second = th.tensor([[1.5, 0.3], [0.0, 0.0]]), th.tensor([[0.5, 0.3], [0.0, 2.0]])
    divergence = process.step_divergence(first, second, th.full((2, 1), float(t)))
    th.testing.assert_close(divergence, expected * th.tensor([1.0, 4.0]), rtol=1e-5, atol=1e-5)


def joint(process: DiscreteDiffusion, slopes: th.Tensor, offsets: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Mean and covariance of a path ``x_T, ..., x_0`` whose network predicts ``slope * x + offset``, one of each per step, and
    whose last step adds noise as the others do.
    """
    mean, covariance = th.zeros(STEPS + 1, dtype=th.float64), th.zeros(STEPS + 1, STEPS + 1, dtype=th.float64)
    covariance[0, 0] = 1.0
    for k in range(STEPS):
        t = STEPS - k
        beta, sigma = process.betas[t].double(), process.sigma[t].double()
        shrink = (1.0 - beta).rsqrt()
        factor, shift = shrink * (1.0 - beta / sigma * slopes[k]), -shrink * beta / sigma * offsets[k]
        mean[k + 1] = factor * mean[k] + shift
        covariance[k + 1, : k + 1] = covariance[: k + 1, k + 1] = factor * covariance[k, : k + 1]
        covariance[k + 1, k + 1] = factor**2 * covariance[k, k] + beta
    return mean, covariance


def test_the_mean_over_paths_is_the_divergence_of_gaussian_paths() -> None:
    """Both networks are linear, and nothing is clipped: the paths are Gaussian vectors, whose divergence is known."""
    process = DiscreteDiffusion("vp", STEPS)
    generator = th.Generator().manual_seed(0)
    slopes, offsets = th.rand((2, 2, STEPS), generator=generator)  # by network
    chain = process.sampler(clip=False)
    path = PathDivergence(
        process,
        lambda x, k: slopes[0, k] * x + offsets[0, k],
        lambda x, k: slopes[1, k] * x + offsets[1, k],
        chain.times,
    )
    chain.sample(path, (100_000, 1), Randomness(generator), clip_output=False)

    (mean, covariance), (other, other_covariance) = (joint(process, slopes[i].double(), offsets[i].double()) for i in range(2))
    precision, gap = th.linalg.inv(other_covariance), other - mean
    known = 0.5 * ((precision @ covariance).trace() + gap @ precision @ gap - (STEPS + 1))
    known = known + 0.5 * (th.logdet(other_covariance) - th.logdet(covariance))
    assert path.total.shape == (100_000,)
    assert path.total.mean().item() == pytest.approx(known.item(), rel=0.02) and known > 0.3


def test_a_network_is_not_far_from_itself() -> None:
    process = DiscreteDiffusion("vp", STEPS)
    chain = process.sampler()
    path = PathDivergence(process, lambda x, k: 0.5 * x, lambda x, k: 0.5 * x, chain.times)
    chain.sample(path, (3, 4, 2), Randomness(th.Generator().manual_seed(0)))
    assert path.total.tolist() == [[0.0] * 4] * 3
