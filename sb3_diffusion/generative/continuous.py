"""Variance-preserving diffusion in continuous time."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th

from sb3_diffusion.generative.likelihood import LikelihoodEstimator
from sb3_diffusion.generative.process import GenerativeProcess, noise_to_clean
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.schedules import ContinuousSchedule, resolve_continuous_schedule
from sb3_diffusion.generative.solvers.grid import GridPoint, check_steps
from sb3_diffusion.generative.solvers.sampler import Sampler
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

#: Spacings of the sampling times.
GRIDS = ("t", "logsnr")


class ContinuousDiffusion(GenerativeProcess):
    """
    Diffusion whose network is trained at times uniform in ``[t_min, t_max]`` and predicts the noise.

    Any number of sampling steps can be used with one trained network. The chain ends at ``t_min = 0.001``, where a little
    noise is left (``sigma = 0.006`` for the cosine schedule): unclipped samples can leave the box by about that much.

    :param noise_schedule: ``"cosine"``, ``"linear"``, or a :class:`~sb3_diffusion.generative.schedules.ContinuousSchedule`
    :raises ValueError: If the name is unknown
    """

    prediction: ClassVar[str] = "noise"

    def __init__(self, noise_schedule: str | ContinuousSchedule = "cosine") -> None:
        super().__init__()
        self.schedule = resolve_continuous_schedule(noise_schedule)

    def coefficients(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GenerativeProcess.coefficients`."""
        return self.schedule.alpha_sigma(t)

    def sample_time(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.sample_time`; uniform in ``[t_min, t_max)``."""
        return randomness.uniform(shape, label, like, self.schedule.t_min, self.schedule.t_max)

    def regression_target(self, x0: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """The noise itself."""
        return eps

    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.predicted_clean`."""
        return noise_to_clean(x_t, prediction, *self.coefficients(t))

    def time_grid(self, steps: int, grid: str = "t", power: float = 1.0) -> th.Tensor:
        """
        Sampling times.

        :param steps: Number of steps, at least 1
        :param grid: ``"t"``: ``t_min + (t_max - t_min) (i / steps)^power``; ``"logsnr"``: evenly spaced in
            ``log(alpha / sigma)``
        :param power: Exponent of the grid in ``t``; larger than 1 concentrates steps near the clean end
        :return: float64 tensor ``(steps + 1,)``, increasing, on the CPU
        :raises ValueError: If ``grid`` is unknown, ``steps`` smaller than 1, ``power`` not positive, or ``power`` is
            combined with ``grid="logsnr"``
        """
        check_steps(steps)
        choice("grid", grid, GRIDS)
        if real("power", power) <= 0 or (grid != "t" and power != 1.0):
            raise ValueError(f"power must be positive and belongs to grid='t', got power={power} with grid={grid!r}.")
        ends = th.tensor([self.schedule.t_min, self.schedule.t_max], dtype=th.float64)
        fraction = th.arange(steps + 1, dtype=th.float64) / steps
        if grid == "t":
            return ends[0] + (ends[1] - ends[0]) * fraction**power
        start, end = self._half_log_snr(ends)
        times = self._time_of_half_log_snr(start + (end - start) * fraction)
        times[0], times[-1] = ends
        return times

    def sampler(
        self, steps: int, solver: str = "ddpm", *, clip: bool = True, grid: str = "t", power: float = 1.0, **options: Any
    ) -> Sampler:
        """
        Build the reverse chain.

        :param steps: Number of steps, at least 1 (``dpm2`` makes two network evaluations per step)
        :param solver: ``"ddpm"``, ``"ddim"``, ``"dpm2"`` or ``"dpm++2m"``
        :param clip: Clip the estimate of the clean sample to [-1, 1] in every step
        :param grid: Spacing of the times, see :meth:`time_grid`
        :param power: Exponent of the grid, see :meth:`time_grid`
        :param options: ``variance``, ``clip_bounds``, ``clip_target``, ``ddim_recompute_noise`` and ``lower_order_final``
            of :class:`~sb3_diffusion.generative.solvers.sampler.Sampler`
        :return: The sampler
        :raises ValueError: For unknown names and values out of range
        """
        times = self.time_grid(steps, grid, power)
        midpoints = None
        if solver == "dpm2":
            if grid == "t":
                middle = (times[1:] + times[:-1]) / 2
            else:
                snr = self._half_log_snr(times)
                middle = self._time_of_half_log_snr((snr[1:] + snr[:-1]) / 2)
            midpoints = self._grid_points(middle)
        return Sampler(self._grid_points(times), solver, clip=clip, midpoints=midpoints, **options)

    def likelihood(self, steps: int, rule: str = "trapezoid", *, clip: bool = True) -> LikelihoodEstimator:
        """
        See :meth:`GenerativeProcess.likelihood`. The levels are evenly spaced in the log signal-to-noise ratio for the rule
        ``"trapezoid"``, in time for ``"rectangle"``.
        """
        times = self.time_grid(steps, "logsnr" if rule == "trapezoid" else "t")
        return LikelihoodEstimator(self._grid_points(times), rule, clip=clip)

    def _grid_points(self, times: th.Tensor) -> list[GridPoint]:
        alpha, _ = self.schedule.alpha_sigma(times)
        return [GridPoint(t, a) for t, a in zip(times.tolist(), alpha.tolist(), strict=True)]

    def _half_log_snr(self, times: th.Tensor) -> th.Tensor:
        alpha, sigma = self.schedule.alpha_sigma(times)
        return th.log(alpha / sigma)

    def _time_of_half_log_snr(self, half_log_snr: th.Tensor) -> th.Tensor:
        return self.schedule.time_of_alpha(th.sigmoid(2 * half_log_snr).sqrt())
