"""
Reverse chains of variance-preserving diffusion.

One machine serves discrete and continuous processes: it only sees the sequence of times and signal coefficients of its
grid. Every update of every solver is a linear combination with constant coefficients, computed once in float64 and kept as
Python floats, so that a step costs the network call and a handful of elementwise operations.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.kernels.structures import CompiledStep
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import MAX_STEPS, integer

#: Names of the integration rules.
SOLVERS = ("ddpm", "ddim", "dpm2", "dpm++2m")
#: Variances of the step noise of ``ddpm``.
VARIANCES = ("beta", "posterior")
#: What clipping applies to.
CLIP_TARGETS = ("x0", "state")


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


class _Update(NamedTuple):
    """
    One update, ``x0 * estimate + state * x + noise * prediction + previous * (previous estimate) + std * z``, where the
    estimate is ``(x - sigma * prediction) / alpha``, clipped if asked for.
    """

    x0: float
    state: float
    noise: float = 0.0
    previous: float = 0.0
    std: float = 0.0


class _Step(NamedTuple):
    """An update after the constants have been merged; see :meth:`Sampler._advance`."""

    estimate_state: float  # the estimate is kept multiplied by its own coefficient, which saves an operation per step
    estimate_noise: float
    low: float
    high: float
    state: float
    noise: float
    previous: float
    needs_estimate: bool
    is_midpoint: bool


class Sampler(nn.Module):
    """
    Reverse chain of a variance-preserving process for a fixed grid and solver.

    The module has no parameters and an empty ``state_dict()``; ``times`` is the only tensor a caller needs, and its device
    and dtype are those of the samples. The chain is differentiable from its last state back to the network at every step.

    Sources: ``ddpm`` Ho et al. 2020 (alg. 2); ``ddim`` Song et al. 2021 (eq. 12 with eta = 0); ``dpm2`` midpoint rule with
    two evaluations per step (the reference implementation's form of DPM-Solver-2); ``dpm++2m`` Lu et al. 2022
    (DPM-Solver++, alg. 2).

    :param grid: Points of the chain in increasing time, index 0 the clean end, ``steps + 1`` of them
    :param solver: One of :data:`SOLVERS`
    :param variance: Variance of the step noise of ``ddpm``: ``"beta"`` (``beta_i``) or ``"posterior"``
        (``beta_i (1 - abar_{i-1}) / (1 - abar_i)``). With few steps the first is slightly too wide and the second much too
        narrow. The last step never adds noise.
    :param clip: Whether to clip, see ``clip_target``
    :param clip_bounds: Lower and upper bound of clipping and of ``clip_output``
    :param clip_target: ``"x0"`` clips the estimate of the clean sample in every step; ``"state"`` clips every new state
        instead, which distorts noisy states and exists to reproduce the reference implementation's discrete ``ddim``
    :param ddim_recompute_noise: For ``ddim`` and ``dpm2``: after clipping the estimate, use the noise that is consistent
        with it (Dhariwal & Nichol 2021 code and DPPO). ``False`` keeps the raw prediction, as the reference implementation.
    :param lower_order_final: For ``dpm++2m``: take a first-order last step. On a grid uniform in time the last step is much
        longer than the one before in log-SNR, and extrapolating over it costs more than it gains. ``False`` as in the
        reference implementation. A last step to a noiseless point is always first order.
    :param midpoints: For ``dpm2``: ``midpoints[i]`` lies between ``grid[i]`` and ``grid[i + 1]``
    :raises ValueError: For unknown names, fewer than two grid points, a grid that is not strictly decreasing in ``alpha``,
        inverted bounds, or missing midpoints
    """

    times: th.Tensor
    noise_std: th.Tensor
    coefficients: th.Tensor

    def __init__(
        self,
        grid: Sequence[GridPoint],
        solver: str = "ddpm",
        *,
        variance: str = "beta",
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
        clip_target: str = "x0",
        ddim_recompute_noise: bool = True,
        lower_order_final: bool = True,
        midpoints: Sequence[GridPoint] | None = None,
    ) -> None:
        super().__init__()
        choice("solver", solver, SOLVERS)
        choice("variance", variance, VARIANCES)
        choice("clip_target", clip_target, CLIP_TARGETS)
        check_bounds(clip_bounds)
        _check_grid(grid)
        if solver == "dpm2" and (midpoints is None or len(midpoints) != len(grid) - 1):
            raise ValueError("solver='dpm2' needs one midpoint between each two grid points: pass midpoints=.")
        self.solver = solver
        self.clip_low, self.clip_high = clip_bounds
        self._clip_x0 = clip and clip_target == "x0"
        self._clip_state = clip and clip_target == "state"
        self.steps = len(grid) - 1

        updates: list[tuple[GridPoint, _Update, bool]] = []  # (point of evaluation, update, is a midpoint)
        if solver == "ddpm":
            updates = [(now, _ddpm(now, nxt, variance), False) for now, nxt in _pairs(grid)]
            point, last, _ = updates[-1]
            updates[-1] = (point, last._replace(std=0.0), False)
        elif solver == "ddim":
            updates = [(now, _ddim(now, now, nxt, ddim_recompute_noise), False) for now, nxt in _pairs(grid)]
        elif solver == "dpm2":
            assert midpoints is not None
            for (now, nxt), middle in zip(_pairs(grid), reversed(midpoints), strict=True):
                # both halves start from the state at `now`; the second one uses the prediction made at the middle
                updates.append((now, _ddim(now, now, middle, ddim_recompute_noise), True))
                updates.append((middle, _ddim(now, now, nxt, ddim_recompute_noise), False))
        else:
            updates = [(now, update, False) for now, update in _dpmpp_2m(grid, lower_order_final)]

        bases = [now for now, _ in _pairs(grid) for _ in range(len(updates) // self.steps)]
        self._steps = self._merge(updates, bases)
        self._is_midpoint = [is_midpoint for _, _, is_midpoint in updates]
        self.register_buffer("times", th.tensor([point.time for point, _, _ in updates]), persistent=False)
        std = [update.std for _, update, _ in updates if update.std > 0.0]
        self.register_buffer("noise_std", th.tensor(std), persistent=False)
        self.n_noisy_steps = len(std)
        self.register_buffer("coefficients", self._table(std), persistent=False)

    def _merge(self, updates: list[tuple[GridPoint, _Update, bool]], bases: list[GridPoint]) -> list[_Step]:
        """Fold the constants of each update; without clipping or history the estimate disappears altogether."""
        uses_history = any(update.previous for _, update, _ in updates)
        steps = []
        previous_scale = 1.0
        for (_, update, is_midpoint), base in zip(updates, bases, strict=True):
            inverse, ratio = 1.0 / base.alpha, base.sigma / base.alpha
            if self._clip_x0 or uses_history:
                steps.append(
                    _Step(
                        estimate_state=update.x0 * inverse,
                        estimate_noise=-update.x0 * ratio,
                        low=update.x0 * self.clip_low,
                        high=update.x0 * self.clip_high,
                        state=update.state,
                        noise=update.noise,
                        previous=update.previous / previous_scale,
                        needs_estimate=True,
                        is_midpoint=is_midpoint,
                    )
                )
            else:
                state, noise = update.state + update.x0 * inverse, update.noise - update.x0 * ratio
                steps.append(_Step(0.0, 0.0, 0.0, 0.0, state, noise, 0.0, needs_estimate=False, is_midpoint=is_midpoint))
            previous_scale = update.x0
        return steps

    def _table(self, noise_std: list[float]) -> th.Tensor:
        """The steps as a compiled chain reads them, one :class:`CompiledStep` per evaluation."""
        noise_std = noise_std + [0.0] * (len(self._steps) - len(noise_std))
        return th.tensor(
            [
                CompiledStep(
                    *(step.estimate_state, step.estimate_noise, step.low, step.high),
                    *(step.state, step.noise, step.previous, std),
                    *(step.needs_estimate, step.needs_estimate and self._clip_x0, self._clip_state, step.is_midpoint),
                )
                for step, std in zip(self._steps, noise_std, strict=True)
            ]
        )

    def _advance(
        self, step: _Step, x: th.Tensor, prediction: th.Tensor, previous: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Deterministic part of an update; returns the new state and the (scaled) estimate of the clean sample."""
        estimate = None
        # in-place operations only touch tensors made here and none of which autograd needs the old value
        if step.needs_estimate:
            estimate = (x * step.estimate_state).add_(prediction, alpha=step.estimate_noise)
            if self._clip_x0:
                estimate = estimate.clamp(step.low, step.high)
            x = th.add(estimate, x, alpha=step.state)
        else:
            x = x * step.state
        if step.noise != 0.0:
            x = x.add_(prediction, alpha=step.noise)
        if previous is not None and step.previous != 0.0:
            x = x.add_(previous, alpha=step.previous)
        return x, estimate

    def _run(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str,
        visit: Callable[[th.Tensor], None] | None,
    ) -> th.Tensor:
        shape, like, draws = tuple(shape), self.times, None
        x = randomness.normal(shape, f"{label}.x_T", like=like)
        if self.n_noisy_steps:
            draws = randomness.normal((self.n_noisy_steps, *shape), f"{label}.step_noise", like=like)
        clip = (self.clip_low, self.clip_high)
        if (compiled := run_compiled(denoise, x, self.coefficients, self._is_midpoint, draws, clip, visit)) is not None:
            return compiled
        if visit is not None:
            visit(x)
        step_noise: tuple[th.Tensor, ...] = ()
        if draws is not None:
            step_noise = (draws * self.noise_std.view(-1, *(1 for _ in shape))).unbind(0)
        point, previous = x, None
        for k, step in enumerate(self._steps):
            point, previous = self._advance(step, x, denoise(point, k), previous)
            if k < self.n_noisy_steps:  # only ddpm adds noise, and it does so in all steps but the last
                point = point.add_(step_noise[k])
            if self._clip_state:
                point = point.clamp(self.clip_low, self.clip_high)
            if not step.is_midpoint:
                x = point
                if visit is not None:
                    visit(x)
        return x

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Run the chain from fresh noise.

        Two draws are made: ``"<label>.x_T"`` of shape ``shape`` and, for ``ddpm`` with more than one step,
        ``"<label>.step_noise"`` of shape ``(steps - 1, *shape)``, first executed step first.

        :param denoise: ``denoise(x, k)`` returns the predicted noise, of the shape of ``x``, for the evaluation number
            ``k`` (Python integer) at time ``times[k]``
        :param shape: Shape of the samples ``(..., action_dim)``
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Clamp the result to the clip bounds; a chain that stops slightly before time zero, or that does
            not clip, can leave them. The clamp stops the gradient of the coordinates outside.
        :return: Samples of shape ``shape``
        """
        x = self._run(denoise, shape, randomness, label, None)
        return x.clamp(self.clip_low, self.clip_high) if clip_output else x

    def chain(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Run the chain and keep every state. Parameters and draws as in :meth:`sample`.

        :param denoise: The network
        :param shape: Shape of the samples
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Clamp the last state to the clip bounds
        :return: ``(steps + 1, *shape)``, starting noise first, sample last (midpoints of ``dpm2`` are not included)
        """
        states: list[th.Tensor] = []
        self._run(denoise, shape, randomness, label, states.append)
        if clip_output:
            states[-1] = states[-1].clamp(self.clip_low, self.clip_high)
        return th.stack(states)

    @override
    def extra_repr(self) -> str:
        return f"solver={self.solver!r}, steps={self.steps}"


def run_compiled(
    denoise: Denoise,
    x: th.Tensor,
    coefficients: th.Tensor,
    is_midpoint: Sequence[bool],
    draws: th.Tensor | None,
    clip: tuple[float, float],
    visit: Callable[[th.Tensor], None] | None,
) -> th.Tensor | None:
    """
    A chain of linear updates in one call, where the network can do that.

    :param denoise: The network
    :param x: Starting points
    :param coefficients: One row per evaluation, see :meth:`~sb3_diffusion.kernels.Network.run_chain`
    :param is_midpoint: For each evaluation, whether its result is not a state of the chain
    :param draws: Standard normal noise of the first steps
    :param clip: Bounds of the state where a step clips it
    :param visit: Called with every state
    :return: The last state, None where the network cannot do it
    """
    run_chain = getattr(denoise, "run_chain", None)
    points = None if run_chain is None else run_chain(x, coefficients, draws, clip)
    if points is None:
        return None
    if visit is not None:
        visit(points[0])
        for point, is_between in zip(points[1:], is_midpoint, strict=True):
            if not is_between:
                visit(point)
    return points[-1]  # type: ignore[no-any-return]


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


def _check_grid(grid: Sequence[GridPoint]) -> None:
    if len(grid) < 2:
        raise ValueError(f"A chain needs at least two grid points (one step), got {len(grid)}.")
    alphas = [point.alpha for point in grid]
    if not (alphas[-1] > 0.0 and alphas[0] <= 1.0 and all(a > b for a, b in pairwise(alphas))):
        raise ValueError(f"The signal coefficients must lie in (0, 1] and decrease strictly with the index, got {alphas}.")


def _pairs(grid: Sequence[GridPoint]) -> list[tuple[GridPoint, GridPoint]]:
    """(now, next) for every step, in order of execution."""
    return [(grid[i], grid[i - 1]) for i in range(len(grid) - 1, 0, -1)]


def _ddpm(now: GridPoint, nxt: GridPoint, variance: str) -> _Update:
    keep = (now.alpha / nxt.alpha) ** 2  # 1 - beta of this step
    beta = 1.0 - keep
    shrink = nxt.sigma**2 / now.sigma**2
    return _Update(
        x0=nxt.alpha * beta / now.sigma**2,
        state=math.sqrt(keep) * shrink,
        std=math.sqrt(beta if variance == "beta" else beta * shrink),
    )


def _ddim(base: GridPoint, now: GridPoint, nxt: GridPoint, recompute_noise: bool) -> _Update:
    if not recompute_noise:
        return _Update(x0=nxt.alpha, state=0.0, noise=nxt.sigma)
    # the noise consistent with the estimate is (x - alpha x0) / sigma
    ratio = nxt.sigma / now.sigma
    return _Update(x0=nxt.alpha - base.alpha * ratio, state=ratio)


def _dpmpp_2m(grid: Sequence[GridPoint], lower_order_final: bool) -> list[tuple[GridPoint, _Update]]:
    updates = []
    last_width: float | None = None
    pairs = _pairs(grid)
    for i, (now, nxt) in enumerate(pairs):
        width = nxt.half_log_snr - now.half_log_snr
        gain = -nxt.alpha * math.expm1(-width)
        is_last = i == len(pairs) - 1
        # no extrapolation: nothing to extrapolate from, asked not to, or an infinitely long step
        if last_width is None or (is_last and lower_order_final) or math.isinf(width):
            correction = 0.0
        else:
            correction = 0.5 * width / last_width  # 1 / (2 r) with r = last_width / width
        updates.append((now, _Update(gain * (1 + correction), nxt.sigma / now.sigma, previous=-gain * correction)))
        last_width = width
    return updates
