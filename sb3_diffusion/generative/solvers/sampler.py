"""
Reverse chains of variance-preserving diffusion.

One machine serves discrete and continuous processes: it only sees the sequence of times and signal coefficients of its
grid. The coefficients of the updates are computed once in float64 and kept as Python floats, so that a step costs the network
call and a handful of elementwise operations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.compiled import compiled_points, run_compiled
from sb3_diffusion.generative.solvers.grid import GridPoint, check_bounds, check_grid
from sb3_diffusion.generative.solvers.rules import CLIP_TARGETS, SOLVERS, VARIANCES, Evaluation, evaluations
from sb3_diffusion.generative.solvers.watching import WatchedSamples, share_of_estimates, share_of_states
from sb3_diffusion.kernels.structures import CompiledStep
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real


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
    :param solver: One of :data:`~sb3_diffusion.generative.solvers.rules.SOLVERS`
    :param variance: Variance of the step noise of ``ddpm``: ``"beta"`` (``beta_i``) or ``"posterior"``
        (``beta_i (1 - abar_{i-1}) / (1 - abar_i)``). With few steps the first is slightly too wide and the second much too
        narrow. The last step adds no noise.
    :param min_std: Smallest standard deviation of the step noise of ``ddpm``. With any, the last step adds noise as well, so
        that every step has a density, see :meth:`means`
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
        min_std: float = 0.0,
    ) -> None:
        super().__init__()
        if real("min_std", min_std, low=0) > 0.0 and solver != "ddpm":
            raise ValueError(f"min_std={min_std} needs the noise of solver='ddpm', not solver={solver!r}.")
        choice("solver", solver, SOLVERS)
        choice("variance", variance, VARIANCES)
        choice("clip_target", clip_target, CLIP_TARGETS)
        check_bounds(clip_bounds)
        check_grid(grid)
        if solver == "dpm2" and (midpoints is None or len(midpoints) != len(grid) - 1):
            raise ValueError("solver='dpm2' needs one midpoint between each two grid points: pass midpoints=.")
        self.solver = solver
        self.clip_low, self.clip_high = clip_bounds
        self._clip_x0 = clip and clip_target == "x0"
        self._clip_state = clip and clip_target == "state"
        self.steps = len(grid) - 1

        updates = evaluations(grid, solver, variance, ddim_recompute_noise, lower_order_final, midpoints, min_std)
        self._steps = self._merge(updates)
        self._is_midpoint = [evaluation.is_midpoint for evaluation in updates]
        self.register_buffer("times", th.tensor([evaluation.point.time for evaluation in updates]), persistent=False)
        std = [evaluation.update.std for evaluation in updates if evaluation.update.std > 0.0]
        self.register_buffer("noise_std", th.tensor(std), persistent=False)
        self.n_noisy_steps = len(std)
        self.register_buffer("coefficients", self._table(std), persistent=False)

    def _merge(self, updates: list[Evaluation]) -> list[_Step]:
        """Fold the constants of each update; without clipping or history the estimate disappears altogether."""
        uses_history = any(evaluation.update.previous for evaluation in updates)
        steps = []
        previous_scale = 1.0
        for _, base, update, is_midpoint in updates:
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

    def _draw(self, shape: Sequence[int], randomness: Randomness, label: str) -> tuple[th.Tensor, th.Tensor | None]:
        """The starting point, and the noise of the steps if they have any."""
        shape, like, draws = tuple(shape), self.times, None
        x = randomness.normal(shape, f"{label}.x_T", like=like)
        if self.n_noisy_steps:
            draws = randomness.normal((self.n_noisy_steps, *shape), f"{label}.step_noise", like=like)
        return x, draws

    def _run(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str,
        visit: Callable[[th.Tensor], None] | None,
    ) -> th.Tensor:
        x, draws = self._draw(shape, randomness, label)
        clip = (self.clip_low, self.clip_high)
        if (compiled := run_compiled(denoise, x, self.coefficients, self._is_midpoint, draws, clip, visit)) is not None:
            return compiled
        return self._steps_one_by_one(denoise, x, draws, visit)

    def _steps_one_by_one(
        self, denoise: Denoise, x: th.Tensor, draws: th.Tensor | None, visit: Callable[[th.Tensor], None] | None
    ) -> th.Tensor:
        if visit is not None:
            visit(x)
        step_noise: tuple[th.Tensor, ...] = ()
        if draws is not None:
            step_noise = (draws * self.noise_std.view(-1, *(1 for _ in x.shape))).unbind(0)
        point, previous = x, None
        for k, step in enumerate(self._steps):
            point, previous = self._advance(step, x, denoise(point, k), previous)
            if k < self.n_noisy_steps:  # only ddpm adds noise; the last step only with min_std
                point = point.add_(step_noise[k])
            if self._clip_state:
                point = point.clamp(self.clip_low, self.clip_high)
            if not step.is_midpoint:
                x = point
                if visit is not None:
                    visit(x)
        return x

    def means(self, states: th.Tensor, predictions: th.Tensor) -> th.Tensor:
        """
        Where every step of a chain leads without its noise, all of them at once. With ``ddpm`` the next state is Gaussian
        around it, with the standard deviations :attr:`step_std`.

        :param states: States at which the network was evaluated, in order of execution, ``(..., steps, action_dim)``; fewer
            are those of the last steps
        :param predictions: What it predicted there, of the same shape
        :return: Means of the same shape
        :raises ValueError: If a step depends on more than its state and prediction
        """
        if self.solver not in ("ddpm", "ddim") or self._clip_state:
            raise ValueError(
                f"The steps of solver={self.solver!r} with clip_target={'state' if self._clip_state else 'x0'!r} have no mean "
                "of their own; means() is for 'ddpm' and 'ddim', and states that are not clipped."
            )
        step = self._last_steps(states.shape[-2])
        if not self._steps[0].needs_estimate:
            return states * step.state + predictions * step.noise
        estimate = states * step.estimate_state + predictions * step.estimate_noise
        if self._clip_x0:
            estimate = estimate.clamp(step.low, step.high)
        return estimate + states * step.state + predictions * step.noise

    def clipped(self, states: th.Tensor, predictions: th.Tensor) -> th.Tensor:
        """
        Where the steps of a chain clip the estimate of the clean sample, and :meth:`means` has no gradient from it.

        :param states: See :meth:`means`
        :param predictions: See there
        :return: bool, of the same shape
        """
        if not self._clip_x0:
            return th.zeros_like(states, dtype=th.bool)
        step = self._last_steps(states.shape[-2])
        estimate = states * step.estimate_state + predictions * step.estimate_noise
        return (estimate < step.low) | (estimate > step.high)

    def _last_steps(self, n: int) -> Any:
        """Coefficients of the last steps, all at once, ``(n, 1)`` each."""
        return CompiledStep(*self.coefficients[-n:].unsqueeze(-1).unbind(1))  # type: ignore[arg-type]

    @property
    def step_std(self) -> th.Tensor:
        """Standard deviations of the noise of the steps, ``(steps,)``, 0 where there is none."""
        return self.coefficients[:, CompiledStep._fields.index("noise_std")]

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Run the chain from fresh noise.

        Two draws are made: ``"<label>.x_T"`` of shape ``shape`` and, for ``ddpm`` with more than one step,
        ``"<label>.step_noise"`` of shape ``(steps - 1, *shape)`` (``(steps, *shape)`` with ``min_std``), first executed step
        first.

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

    def sample_and_watch(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample"
    ) -> WatchedSamples:
        """
        Run the chain, keep its states and look where it was clipped. Parameters and draws as in :meth:`sample`.

        :param denoise: The network
        :param shape: Shape of the samples
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :return: The samples, which are those of ``sample(..., clip_output=False)``, and what has happened
        """
        x, draws = self._draw(shape, randomness, label)
        states: list[th.Tensor] = []
        points = compiled_points(denoise, x, self.coefficients, draws, (self.clip_low, self.clip_high))
        samples = self._steps_one_by_one(denoise, x, draws, states.append) if points is None else points[-1]
        with th.no_grad():
            if points is None:
                passed = th.stack(states)
            elif any(self._is_midpoint):
                passed = points[[0, *(k for k, is_between in enumerate(self._is_midpoint, 1) if not is_between)]]
            else:
                passed = points.detach()
            return WatchedSamples(samples, passed, self._share_cut_off(passed, draws))

    def _share_cut_off(self, states: th.Tensor, draws: th.Tensor | None) -> th.Tensor | None:
        if self._clip_state:
            return share_of_states(states, self.clip_low, self.clip_high)
        if not self._clip_x0:
            return states.new_zeros(())
        # with other rules, more than the clipped estimate and the state makes the next state
        alone = self.solver in ("ddpm", "ddim") and not any(step.noise for step in self._steps)
        return share_of_estimates(states, draws, self.coefficients) if alone else None

    @override
    def extra_repr(self) -> str:
        return f"solver={self.solver!r}, steps={self.steps}"
