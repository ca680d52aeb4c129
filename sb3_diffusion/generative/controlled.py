"""Langevin diffusion with a learned control, whose chain bounds the log density of its own samples (DIME)."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.grid import check_steps
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

#: Course of the step sizes over the chain, by name: fraction of the chain in ``[0, 1)`` -> relative size.
STEP_SCHEDULES: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "cosine": lambda fraction: th.cos((fraction + 0.008) / 1.008 * math.pi / 2) ** 2,
    "linear": lambda fraction: 1.0 - fraction,
}
_SMALLEST_RELATIVE_STEP = 0.001
#: A chain of this many steps uses the step sizes as they are; another length scales them, so that the total time is the same.
REFERENCE_STEPS = 16
#: Largest step size (of a chain of :data:`REFERENCE_STEPS`), which learned ones approach.
LARGEST_STEP = 0.5
_INITIAL_STEP = 0.1


class PathSample(NamedTuple):
    """
    Samples and what their chains say about their density.

    The expectation of ``log_ratio`` over the chains that end at a sample is at least the log density of the sample, so that
    ``-log_ratio`` is, on average, a lower bound of the entropy.

    :param samples: In (-1, 1), ``(..., action_dim)``
    :param run_cost: Log ratio of the transitions of the chain and of the noising chain backwards, minus the log
        determinant of the final tanh, ``(...)``
    :param prior_log_prob: Log density of the starting noise, ``(...)``
    """

    samples: th.Tensor
    run_cost: th.Tensor
    prior_log_prob: th.Tensor

    @property
    def log_ratio(self) -> th.Tensor:
        """The whole log ratio, ``(...)``."""
        return self.run_cost + self.prior_log_prob


def _expm1(x: th.Tensor) -> th.Tensor:
    """``e^x - 1`` of negative numbers without cancellation; exporters know the formula, not the function."""
    if not th.jit.is_tracing():
        return th.expm1(x)
    half = (0.5 * x).tanh()
    return 2.0 * half / (1.0 - half)


class ControlledDiffusion(nn.Module):
    """
    Langevin dynamics of a normal prior with a learned control, and tanh at the end (Celik et al. 2025, arXiv 2502.02316).

    The chain starts at ``x_0 ~ N(0, prior_std^2)`` and runs ``n = 0 .. steps - 1``; the sample is ``tanh`` of the last state::

        x_{n+1} = x_n - h_n x_n / prior_std^2 + h_n f(x_n, n) + sqrt(2 h_n) z_n

    Without the control ``f`` the prior is stationary. Step sizes are learned: one rate for all dimensions, divided by a
    friction per dimension, times a course over the chain that falls to almost zero. Unlike the other processes this one has
    parameters, which its samplers share.

    :param action_dim: Size of the samples
    :param noise_schedule: Course of the step sizes, one of :data:`STEP_SCHEDULES`
    :param prior_std: Standard deviation of the starting noise, before tanh
    :raises ValueError: If the schedule is unknown or ``prior_std`` is not positive
    """

    #: What the network of this process predicts, see :class:`~sb3_diffusion.generative.process.GenerativeProcess`.
    prediction: ClassVar[str] = "control"
    #: Numbers that tell the network the time.
    n_times: ClassVar[int] = 1

    def __init__(self, action_dim: int, noise_schedule: str = "cosine", prior_std: float = 2.5) -> None:
        super().__init__()
        choice("noise_schedule", noise_schedule, list(STEP_SCHEDULES))
        self.noise_schedule = noise_schedule
        self.prior_std = prior_std = real("prior_std", prior_std, above=0)
        # what step_rates() saturates to _INITIAL_STEP
        initial = -LARGEST_STEP * math.log1p(-_INITIAL_STEP / LARGEST_STEP)
        self.raw_rate = nn.Parameter(th.tensor(_inverse_softplus(initial)))
        self.raw_friction = nn.Parameter(th.full((action_dim,), _inverse_softplus(1.0)))

    def step_rates(self) -> th.Tensor:
        """Largest step size of each dimension, below :data:`LARGEST_STEP`, ``(action_dim,)``."""
        rates = F.softplus(self.raw_rate) / F.softplus(self.raw_friction)
        # a clamp would have no gradient beyond the bound, and a rate that got there would stay
        return LARGEST_STEP * -_expm1(-rates / LARGEST_STEP)

    def sampler(self, steps: int) -> "ControlledSampler":
        """
        Build a chain.

        :param steps: Number of steps, at least 1
        :return: The sampler, which reads this module's parameters
        """
        return ControlledSampler(self, steps)

    @override
    def extra_repr(self) -> str:
        return f"noise_schedule={self.noise_schedule!r}, prior_std={self.prior_std}"


class ControlledSampler(nn.Module):
    """
    Chain of a :class:`ControlledDiffusion` with a fixed number of steps.

    Has the interface of :class:`~sb3_diffusion.generative.process.ChainSampler`, with the control in the place of the
    noise network, and an empty ``state_dict()``. ``times`` fall from 1 at the prior towards 0.

    :param process: Owner of the parameters
    :param steps: Number of steps, at least 1
    :raises ValueError: If there is no step
    """

    times: th.Tensor
    course: th.Tensor

    def __init__(self, process: ControlledDiffusion, steps: int) -> None:
        super().__init__()
        check_steps(steps)
        self.steps = steps
        # in a tuple, which hides it from nn.Module: it would be saved once more for every chain
        self._process = (process,)
        fraction = th.arange(steps, dtype=th.float64) / steps
        course = STEP_SCHEDULES[process.noise_schedule](fraction)
        course = _SMALLEST_RELATIVE_STEP + (1.0 - _SMALLEST_RELATIVE_STEP) * course
        self.register_buffer("times", (1.0 - fraction).float(), persistent=False)
        self.register_buffer("course", (course * REFERENCE_STEPS / steps).float(), persistent=False)

    def step_sizes(self) -> th.Tensor:
        """The step sizes ``h``, ``(steps, action_dim)``."""
        return self.course.unsqueeze(-1) * self._process[0].step_rates()

    def _run(
        self,
        control: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str,
        visit: Callable[[th.Tensor], None] | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Run the chain, show every state to ``visit``; returns the last state, step sizes and standard normal step noise."""
        shape = tuple(shape)
        prior_std = self._process[0].prior_std
        sizes = self.step_sizes().view(self.steps, *(1 for _ in shape[:-1]), -1)
        x = prior_std * randomness.normal(shape, f"{label}.x_T", like=self.times)
        draws = randomness.normal((self.steps, *shape), f"{label}.step_noise", like=self.times)
        step_noise = ((2.0 * sizes).sqrt() * draws).unbind(0)
        keep, h = (1.0 - sizes / prior_std**2).unbind(0), sizes.unbind(0)
        if visit is not None:
            visit(x)
        for k in range(self.steps):
            x = th.addcmul(keep[k] * x, h[k], control(x, k)).add_(step_noise[k])
            if visit is not None:
                visit(x)
        return x, sizes, draws

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Run the chain from fresh noise.

        Draws ``"<label>.x_T"`` of shape ``shape`` and ``"<label>.step_noise"`` of shape ``(steps, *shape)``.

        :param denoise: ``denoise(x, k)`` returns the control, of the shape of ``x``, at step ``k`` (time ``times[k]``)
        :param shape: Shape of the samples ``(..., action_dim)``
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Without effect: tanh keeps the samples in the box
        :return: Samples of shape ``shape`` in (-1, 1)
        """
        return self._run(denoise, shape, randomness, label)[0].tanh()

    def chain(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Run the chain and keep every state. Parameters and draws as in :meth:`sample`.

        :param denoise: The control
        :param shape: Shape of the samples
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Without effect
        :return: ``(steps + 1, *shape)``: the states before tanh, starting noise first, but behind tanh the last one
        """
        states: list[th.Tensor] = []
        self._run(denoise, shape, randomness, label, states.append)
        return th.stack([*states[:-1], states[-1].tanh()])

    def sample_with_log_ratio(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample"
    ) -> PathSample:
        """
        :meth:`sample`, and the bound of the log density; no further evaluation of the network.

        The noising chain leads from ``x_{n+1}`` back to ``x_n`` with the mean ``x_{n+1} - h_n x_{n+1} / prior_std^2`` and the
        variance ``2 h_n``.

        :param denoise: The control
        :param shape: Shape of the samples
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :return: Samples and log ratios, differentiable in the control and in the step sizes
        """
        visited: list[th.Tensor] = []
        last, sizes, draws = self._run(denoise, shape, randomness, label, visited.append)
        states, prior_std = th.stack(visited), self._process[0].prior_std
        # the difference of neighbouring states first: it is small, and their size would cost its digits
        back = states[:-1] - states[1:] + sizes / prior_std**2 * states[1:]
        run = (back.square() / (4.0 * sizes) - 0.5 * draws.square()).sum(0)
        # log(1 - tanh(x)^2), without the cancellation at the ends of the box
        log_det = 2.0 * (math.log(2.0) - last - F.softplus(-2.0 * last))
        log_prior = -0.5 * (states[0] / prior_std).square() - math.log(prior_std) - 0.5 * math.log(2.0 * math.pi)
        return PathSample(last.tanh(), (run - log_det).sum(-1), log_prior.sum(-1))

    @override
    def extra_repr(self) -> str:
        return f"steps={self.steps}"


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
