"""The points that a chain passes, and what can be wrong with them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sb3_diffusion.numeric import MAX_STEPS, integer


class GridPoint(NamedTuple):
    """A diffusion time and its signal coefficient ``alpha``, in ``(0, 1]``; the noise coefficient is ``sigma``."""

    time: float
    alpha: float

    @property
    def sigma(self) -> float:
        """Noise coefficient ``sqrt(1 - alpha^2)``."""
        return math.sqrt((1.0 - self.alpha) * (1.0 + self.alpha))

    @property
    def half_log_snr(self) -> float:
        """``log(alpha / sigma)``; infinite at a noiseless point."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf


def check_steps(steps: int, most: int | None = None) -> None:
    """
    Reject a number of steps that is out of range.

    :param steps: Number of steps
    :param most: Largest allowed number, if there is one
    :raises ValueError: If ``steps`` is smaller than 1, or larger than ``most`` or :data:`~sb3_diffusion.numeric.MAX_STEPS`
    """
    integer("steps", steps, high=MAX_STEPS, remedy="every step costs a pass of the network")
    if steps < 1:
        raise ValueError(f"The number of sampling steps must be at least 1, got {steps}.")
    if most is not None and steps > most:
        raise ValueError(
            f"{steps} sampling steps are more than the {most} diffusion steps of the process: lower sampling_steps or raise "
            "diffusion_steps."
        )


def check_bounds(bounds: tuple[float, float]) -> None:
    """
    Reject inverted clip bounds.

    :param bounds: Lower and upper bound
    :raises ValueError: If the lower bound is not below the upper one
    """
    if not bounds[0] < bounds[1]:
        raise ValueError(f"clip_bounds must be (low, high) with low < high, got {bounds}.")


def check_grid(grid: Sequence[GridPoint]) -> None:
    """
    :param grid: Points of a chain in increasing time
    :raises ValueError: If they are fewer than two, or their signal coefficients do not decrease
    """
    if len(grid) < 2:
        raise ValueError(f"A chain needs at least two grid points (one step), got {len(grid)}.")
    alphas = [point.alpha for point in grid]
    if not (alphas[-1] > 0.0 and alphas[0] <= 1.0 and all(a > b for a, b in pairwise(alphas))):
        raise ValueError(f"The signal coefficients must lie in (0, 1] and decrease strictly with the index, got {alphas}.")


def pairs(grid: Sequence[GridPoint]) -> list[tuple[GridPoint, GridPoint]]:
    """
    :param grid: Points of a chain in increasing time
    :return: (now, next) for every step, in order of execution
    """
    return [(grid[i], grid[i - 1]) for i in range(len(grid) - 1, 0, -1)]
