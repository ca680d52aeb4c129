"""
Densities of the samples of a noise network.

A network that predicts noise well knows the density of its data: the log density at a point is an integral, over all noise
levels, of how well the network recovers that point (Kong et al. 2023, Information-Theoretic Diffusion). With
``abar = alpha^2``, ``snr = alpha^2 / sigma^2`` and the estimate ``x_hat`` of the clean sample,

``log p(x) = -d/2 log(2 pi e) + 1/2 int abar (d - E |x - x_hat|^2 / sigma^2) d log snr``,

where the expectation is over the noise and ``d`` is the number of dimensions. The integrand is zero for a standard normal on
average, so that only the difference from it is integrated numerically.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.grid import GridPoint, check_bounds
from sb3_diffusion.names import choice

#: Rules of numerical integration.
RULES = ("trapezoid", "rectangle")


class _Level(NamedTuple):
    """A noise level; ``weight`` multiplies ``d - |x - x_hat|^2 / sigma^2`` and contains the width of the interval."""

    alpha: float
    sigma: float
    weight: float


class LikelihoodEstimator(nn.Module):
    """
    Estimates log densities by integrating the denoising error over the noise levels of a grid.

    The module has no parameters and an empty ``state_dict()``; ``times`` holds the times to feed to the network, in the order
    of evaluation. What is finer than the noise of the cleanest level is not resolved: a narrower density is taken to be about
    as wide as this noise, and on the edge of a uniform density the estimate is about one nat per dimension too low.

    :param grid: Points in increasing time, index 0 the clean end, as for a sampling chain
    :param rule: ``"trapezoid"`` integrates over the log signal-to-noise ratio; on a grid that is uniform in it, 20 intervals
        are as good as exact. ``"rectangle"`` takes the noisier end of every interval of ``abar`` (the rule of MaxEntDP,
        Dong et al. 2025); it needs ten times as many intervals for a tenth of a nat. A noiseless end of the grid has
        no finite ratio: the first rule leaves it out.
    :param clip: Clip the estimate of the clean sample. For samples in a box this is what bounds the error at the noisy levels,
        where a small error of the network is multiplied by ``1 / alpha``.
    :param clip_bounds: Lower and upper bound of clipping
    :raises ValueError: For an unknown rule, inverted bounds, or a grid without an interval
    """

    times: th.Tensor

    def __init__(
        self,
        grid: Sequence[GridPoint],
        rule: str = "trapezoid",
        *,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        choice("rule", rule, RULES)
        check_bounds(clip_bounds)
        self.rule = rule
        self.clip_bounds = clip_bounds if clip else None
        points = _trapezoid(grid) if rule == "trapezoid" else _rectangle(grid)
        if not points:
            raise ValueError(f"rule={rule!r} needs an interval between two noisy levels, the grid has {len(grid)} points.")
        self._levels = [_Level(point.alpha, point.sigma, weight) for point, weight in points]
        # the value of a point that is recovered without any error, per dimension
        self._offset = sum(level.weight for level in self._levels) - 0.5 * math.log(2.0 * math.pi * math.e)
        self.register_buffer("times", th.tensor([point.time for point, _ in points]), persistent=False)

    def log_prob(self, denoise: Denoise, x0: th.Tensor, randomness: Randomness, label: str, n_samples: int) -> th.Tensor:
        """
        Estimate the log density at clean samples; unbiased but for the error of integration.

        :param denoise: ``denoise(x, k)`` returns the predicted noise at time ``times[k]`` for ``x`` of shape
            ``(batch, n_samples, dim)``
        :param x0: clean samples ``(batch, dim)``
        :param randomness: Source of the draw, of shape ``(len(times), batch, n_samples, dim)``
        :param label: Its name
        :param n_samples: Noises per sample and level
        :return: Log densities in nats ``(batch,)``
        """
        batch, dim = x0.shape
        eps = randomness.normal((len(self._levels), batch, n_samples, dim), label, like=x0)
        x0 = x0.unsqueeze(1)
        error = x0.new_zeros(batch)
        for k, level in enumerate(self._levels):
            x_t = level.alpha * x0 + level.sigma * eps[k]
            clean = (x_t - level.sigma * denoise(x_t, k)) / level.alpha
            if self.clip_bounds is not None:
                clean = clean.clamp(*self.clip_bounds)
            error = error + level.weight / level.sigma**2 * (clean - x0).square().sum(2).mean(1)
        return dim * self._offset - error

    @override
    def extra_repr(self) -> str:
        return f"rule={self.rule!r}, levels={len(self._levels)}"


def _trapezoid(grid: Sequence[GridPoint]) -> list[tuple[GridPoint, float]]:
    points = [point for point in grid if point.sigma > 0.0]
    log_snr = [2.0 * point.half_log_snr for point in points]
    if len(points) < 2:
        return []
    last = len(points) - 1
    widths = [(log_snr[max(i - 1, 0)] - log_snr[min(i + 1, last)]) / 2.0 for i in range(last + 1)]
    return [(point, 0.5 * point.alpha**2 * width) for point, width in zip(points, widths, strict=True)]


def _rectangle(grid: Sequence[GridPoint]) -> list[tuple[GridPoint, float]]:
    # d log snr = d abar / (abar sigma^2)
    return [(noisier, 0.5 * (cleaner.alpha**2 - noisier.alpha**2) / noisier.sigma**2) for cleaner, noisier in pairwise(grid)]
