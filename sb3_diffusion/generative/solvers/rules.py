"""The rules of integration: every update of every solver is a linear combination with constant coefficients."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sb3_diffusion.generative.solvers.grid import GridPoint, pairs

#: Names of the integration rules.
SOLVERS = ("ddpm", "ddim", "dpm2", "dpm++2m")
#: Variances of the step noise of ``ddpm``.
VARIANCES = ("beta", "posterior")
#: What clipping applies to.
CLIP_TARGETS = ("x0", "state")


class Update(NamedTuple):
    """
    One update, ``x0 * estimate + state * x + noise * prediction + previous * (previous estimate) + std * z``, where the
    estimate is ``(x - sigma * prediction) / alpha``, clipped if asked for.
    """

    x0: float
    state: float
    noise: float = 0.0
    previous: float = 0.0
    std: float = 0.0


class Evaluation(NamedTuple):
    """
    One call of the network and what is made of it.

    :param point: Where the network is asked
    :param base: Where the step begins: for a midpoint's second half another point than that of the evaluation
    :param update: What is done with the prediction
    :param is_midpoint: Whether the result is no state of the chain
    """

    point: GridPoint
    base: GridPoint
    update: Update
    is_midpoint: bool = False


def evaluations(
    grid: Sequence[GridPoint],
    solver: str,
    variance: str,
    recompute_noise: bool,
    lower_order_final: bool,
    midpoints: Sequence[GridPoint] | None,
    min_std: float = 0.0,
) -> list[Evaluation]:
    """
    :param grid: Points of the chain in increasing time
    :param solver: One of :data:`SOLVERS`
    :param variance: One of :data:`VARIANCES`
    :param recompute_noise: See :class:`~sb3_diffusion.generative.solvers.sampler.Sampler`
    :param lower_order_final: See there
    :param midpoints: See there
    :param min_std: See there
    :return: What a chain consists of, in order of execution
    """
    steps = pairs(grid)
    if solver == "ddpm":
        updates = [_ddpm(now, nxt, variance) for now, nxt in steps]
        stds = [max(update.std, min_std) for update in updates]
        if min_std == 0.0:
            stds[-1] = 0.0
        return [
            Evaluation(now, now, update._replace(std=std)) for (now, _), update, std in zip(steps, updates, stds, strict=True)
        ]
    if solver == "ddim":
        return [Evaluation(now, now, _ddim(now, now, nxt, recompute_noise)) for now, nxt in steps]
    if solver == "dpm2":
        assert midpoints is not None
        halves = []
        for (now, nxt), middle in zip(steps, reversed(midpoints), strict=True):
            # both halves start from the state at `now`; the second one uses the prediction made at the middle
            halves.append(Evaluation(now, now, _ddim(now, now, middle, recompute_noise), is_midpoint=True))
            halves.append(Evaluation(middle, now, _ddim(now, now, nxt, recompute_noise)))
        return halves
    return [Evaluation(now, now, update) for now, update in _dpmpp_2m(grid, lower_order_final)]


def _ddpm(now: GridPoint, nxt: GridPoint, variance: str) -> Update:
    keep = (now.alpha / nxt.alpha) ** 2  # 1 - beta of this step
    beta = 1.0 - keep
    shrink = nxt.sigma**2 / now.sigma**2
    return Update(
        x0=nxt.alpha * beta / now.sigma**2,
        state=math.sqrt(keep) * shrink,
        std=math.sqrt(beta if variance == "beta" else beta * shrink),
    )


def _ddim(base: GridPoint, now: GridPoint, nxt: GridPoint, recompute_noise: bool) -> Update:
    if not recompute_noise:
        return Update(x0=nxt.alpha, state=0.0, noise=nxt.sigma)
    # the noise consistent with the estimate is (x - alpha x0) / sigma
    ratio = nxt.sigma / now.sigma
    return Update(x0=nxt.alpha - base.alpha * ratio, state=ratio)


def _dpmpp_2m(grid: Sequence[GridPoint], lower_order_final: bool) -> list[tuple[GridPoint, Update]]:
    updates = []
    last_width: float | None = None
    steps = pairs(grid)
    for i, (now, nxt) in enumerate(steps):
        width = nxt.half_log_snr - now.half_log_snr
        gain = -nxt.alpha * math.expm1(-width)
        is_last = i == len(steps) - 1
        # no extrapolation: nothing to extrapolate from, asked not to, or an infinitely long step
        if last_width is None or (is_last and lower_order_final) or math.isinf(width):
            correction = 0.0
        else:
            correction = 0.5 * width / last_width  # 1 / (2 r) with r = last_width / width
        updates.append((now, Update(gain * (1 + correction), nxt.sigma / now.sigma, previous=-gain * correction)))
        last_width = width
    return updates
