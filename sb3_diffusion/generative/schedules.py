"""
Noise schedules of variance-preserving diffusion, ``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t^2 + sigma_t^2 = 1``.

Discrete schedules are tables of ``beta_i``; continuous ones are functions of a time in ``[0, 1]``. Small times are clean.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch as th

from sb3_diffusion.names import choice
from sb3_diffusion.numeric import MAX_STEPS, integer

_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999
_LARGEST_FINAL_SIGNAL = 0.05
_already_warned: set[str] = set()


def linear_betas(steps: int, beta_min: float = 1e-4, beta_max: float = 2e-2) -> th.Tensor:
    """
    Linear table of DDPM (Ho et al. 2020, section 4). It is not rescaled with the number of steps: made for about 1000.

    :param steps: Number of diffusion steps
    :param beta_min: First value
    :param beta_max: Last value
    :return: float64 tensor ``(steps,)``
    """
    return th.linspace(beta_min, beta_max, steps, dtype=th.float64)


def scaled_linear_betas(steps: int) -> th.Tensor:
    """
    :func:`linear_betas` for 1000 steps, made larger for fewer so that the end of the chain is noise, too; each value limited
    to 0.999.

    :param steps: Number of diffusion steps
    :return: float64 tensor ``(steps,)``
    """
    scale = 1000 / steps
    return linear_betas(steps, 1e-4 * scale, 2e-2 * scale).clamp(max=_LARGEST_BETA)


def cosine_betas(steps: int) -> th.Tensor:
    """
    Cosine table (Nichol & Dhariwal 2021, eq. 17), each value limited to 0.999.

    :param steps: Number of diffusion steps
    :return: float64 tensor ``(steps,)``
    """
    fraction = th.arange(steps + 1, dtype=th.float64) / steps
    signal = th.cos((fraction + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(0.0, _LARGEST_BETA)


def vp_betas(steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> th.Tensor:
    """
    Table obtained by integrating the variance-preserving SDE (Song et al. 2021) over each step (Xiao et al. 2022).

    :param steps: Number of diffusion steps
    :param beta_min: Rate of the SDE at time 0
    :param beta_max: Rate of the SDE at time 1
    :return: float64 tensor ``(steps,)``
    """
    index = th.arange(1, steps + 1, dtype=th.float64)
    return -th.expm1(-beta_min / steps - 0.5 * (beta_max - beta_min) * (2 * index - 1) / steps**2)


#: Discrete schedules by name.
DISCRETE_SCHEDULES: dict[str, Callable[[int], th.Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "vp": vp_betas,
}


def discrete_betas(noise_schedule: str, steps: int) -> th.Tensor:
    """
    Look up a discrete schedule. Warns (once per process) if the last step still carries signal.

    :param noise_schedule: One of :data:`DISCRETE_SCHEDULES`
    :param steps: Number of diffusion steps ``T``, at least 1
    :return: float64 tensor ``(T + 1,)``; index 0 is the clean end, where beta is 0
    :raises ValueError: If the name is unknown or ``steps`` is smaller than 1
    """
    choice("noise_schedule", noise_schedule, sorted(DISCRETE_SCHEDULES))
    integer("diffusion_steps", steps, high=MAX_STEPS)
    if steps < 1:
        raise ValueError(f"diffusion_steps must be at least 1, got {steps}.")
    betas = th.cat([th.zeros(1, dtype=th.float64), DISCRETE_SCHEDULES[noise_schedule](steps)])
    signal = float(th.prod(1 - betas))
    if signal > _LARGEST_FINAL_SIGNAL:
        _warn_once(
            f"The {noise_schedule!r} noise schedule with {steps} steps leaves a signal of {signal:.2f} (squared coefficient) "
            "at its noisy end, but sampling starts from pure noise: samples will be biased. Use more diffusion steps or "
            "noise_schedule='cosine'."
        )
    return betas


def _warn_once(message: str) -> None:
    if message not in _already_warned:
        _already_warned.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)


class ContinuousSchedule(ABC):
    """
    Variance-preserving noise schedule over a continuous time.

    :param t_min: Smallest time used for training and sampling (the clean end; sampling stops there, not at 0)
    :param t_max: Largest time used for training and sampling
    """

    def __init__(self, t_min: float, t_max: float) -> None:
        self.t_min = t_min
        self.t_max = t_max

    @abstractmethod
    def alpha_sigma(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Signal and noise coefficients.

        :param t: Times of any shape
        :return: ``(alpha, sigma)``, both of the shape of ``t``; sigma keeps its relative precision for small times
        """

    @abstractmethod
    def time_of_alpha(self, alpha: th.Tensor) -> th.Tensor:
        """
        Inverse of the signal coefficient.

        :param alpha: Signal coefficients in ``(0, 1]``
        :return: Times of the same shape
        """


class CosineSchedule(ContinuousSchedule):
    """
    ``alpha(t) = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s))`` with ``s = 0.008`` and ``t`` limited to ``[0, 0.9946]``
    (Nichol & Dhariwal 2021; continuous form of the DPM-Solver paper, Lu et al. 2022). Times ``[0.001, 0.9946]``.
    """

    def __init__(self) -> None:
        super().__init__(t_min=1e-3, t_max=0.9946)
        self._scale = math.pi / 2 / (1 + _COSINE_OFFSET)
        self._angle_0 = self._scale * _COSINE_OFFSET

    def alpha_sigma(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`ContinuousSchedule.alpha_sigma`."""
        elapsed = t.clamp(0.0, self.t_max) * self._scale
        alpha = th.cos(elapsed + self._angle_0) / math.cos(self._angle_0)
        # cos^2(a_0) - cos^2(a) = sin(a - a_0) sin(a + a_0): no cancellation near t = 0, unlike 1 - alpha^2
        variance = th.sin(elapsed) * th.sin(elapsed + 2 * self._angle_0)
        return alpha, th.sqrt(variance) / math.cos(self._angle_0)

    def time_of_alpha(self, alpha: th.Tensor) -> th.Tensor:
        """See :meth:`ContinuousSchedule.time_of_alpha`."""
        return (th.acos(alpha * math.cos(self._angle_0)) - self._angle_0) / self._scale


class LinearSchedule(ContinuousSchedule):
    """
    Variance-preserving SDE whose rate grows linearly (Song et al. 2021, eq. 32-33):
    ``log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2``. Times ``[0.001, 1]``.

    :param beta_min: Rate at time 0
    :param beta_max: Rate at time 1
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__(t_min=1e-3, t_max=1.0)
        self.beta_min = beta_min
        self.beta_max = beta_max

    def alpha_sigma(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`ContinuousSchedule.alpha_sigma`."""
        log_alpha = -t * (0.25 * (self.beta_max - self.beta_min) * t + 0.5 * self.beta_min)
        return th.exp(log_alpha), th.sqrt(-th.expm1(2 * log_alpha))

    def time_of_alpha(self, alpha: th.Tensor) -> th.Tensor:
        """See :meth:`ContinuousSchedule.time_of_alpha`."""
        decay = -th.log(alpha)
        half_rate = 0.5 * self.beta_min
        return 2 * decay / (half_rate + th.sqrt(half_rate**2 + (self.beta_max - self.beta_min) * decay))


#: Continuous schedules by name.
CONTINUOUS_SCHEDULES: dict[str, Callable[[], ContinuousSchedule]] = {"linear": LinearSchedule, "cosine": CosineSchedule}


def resolve_continuous_schedule(noise_schedule: str | ContinuousSchedule) -> ContinuousSchedule:
    """
    Look up a continuous schedule.

    :param noise_schedule: One of :data:`CONTINUOUS_SCHEDULES`, or a schedule, which is returned as it is
    :return: The schedule
    :raises ValueError: If the name is unknown
    """
    if isinstance(noise_schedule, ContinuousSchedule):
        return noise_schedule
    choice("noise_schedule", noise_schedule, sorted(CONTINUOUS_SCHEDULES))
    return CONTINUOUS_SCHEDULES[noise_schedule]()
