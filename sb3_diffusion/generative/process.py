"""
What diffusion and flow processes have in common, and the conversions between what their networks can predict.

In the conversions ``x = alpha * clean + sigma * noise``. The score is the gradient of the log density of ``x``. The
variance-preserving velocity is ``alpha * noise - sigma * clean`` (Salimans & Ho 2022); the flow velocity is
``clean - noise`` on the straight path with ``alpha = t`` and ``sigma = 1 - t`` (Lipman et al. 2023), so ``t = 1`` is data.
The coefficients broadcast against the samples, usually as ``(..., 1)`` against ``(..., action_dim)``. No guard is added
to the divisions: keep the coefficient in the denominator away from zero by choosing the times.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch as th
from torch import nn

from sb3_diffusion.generative.randomness import Randomness

#: A network as the samplers call it: ``denoise(x, k)`` returns the prediction at state ``x`` for evaluation number ``k``
#: (a Python integer, in order of execution), with the shape of ``x``. It may have a method
#: ``run_chain(x, steps, draws, clip)`` that takes over a whole chain of linear updates and returns all its points, or None
#: (see ``networks.denoiser.BoundDenoiser``).
Denoise = Callable[[th.Tensor, int], th.Tensor]


class ChainSampler(Protocol):
    """
    Interface of every sampler: a reverse chain with a fixed number of steps.

    ``times`` has shape ``(n_evaluations,)``, or ``(n_evaluations, n_times)`` where the network takes several numbers, and
    holds the time to feed to the network at each evaluation, in order of execution.
    """

    times: th.Tensor

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """Run the chain and return its last state, of shape ``shape``."""

    def chain(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """Run the chain and return all its states, of shape ``(steps + 1, *shape)``, starting noise first."""


class GenerativeProcess(nn.Module):
    """
    Path between noise and data, ``x_t = alpha_t x_0 + sigma_t eps``, and the samplers that run it backwards.

    ``x_0`` is the clean sample (action) and ``eps`` standard normal noise in every process, whatever the direction of its
    time. No process has parameters or persistent buffers: ``state_dict()`` is empty.
    """

    #: What the network of this process predicts: ``"noise"``, ``"velocity"`` or ``"average velocity"``.
    prediction: ClassVar[str]
    #: Numbers that tell the network the time; the size of the last axis of every ``t`` below.
    n_times: ClassVar[int] = 1

    @abstractmethod
    def coefficients(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Signal and noise coefficients.

        :param t: Times ``(..., 1)``
        :return: ``(alpha, sigma)``, each of the shape of ``t``
        """

    @abstractmethod
    def sample_time(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """
        Draw training times, uniform over those that the network has to know.

        :param shape: Shape of the result, usually ``(batch, 1)``
        :param randomness: Source of the draw
        :param label: Complete label of the draw, for example ``"actor.t"``
        :param like: Tensor whose device and floating-point dtype the result takes
        :return: Times of shape ``shape``
        """

    @abstractmethod
    def regression_target(self, x0: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """
        What the network should output at ``add_noise(x0, t, eps)`` in plain denoising or flow matching.

        :param x0: clean samples ``(..., action_dim)``
        :param eps: Noise of the same shape
        :return: Target of the same shape
        """

    @abstractmethod
    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """
        Clean sample implied by a network output (not clipped).

        :param x_t: Noisy samples ``(..., action_dim)``
        :param t: Their times ``(..., 1)``
        :param prediction: Network output at ``(x_t, t)``
        :return: Estimate of the clean sample, of the shape of ``x_t``
        """

    @abstractmethod
    def sampler(self, steps: int, solver: str, *, clip: bool = True, **options: Any) -> Any:
        """
        Build the module that runs the reverse chain.

        :param steps: Number of steps, at least 1
        :param solver: Name of the integration rule
        :param clip: Whether intermediate estimates are limited to the clip bounds
        :param options: Further options of the sampler of this process
        :return: A module with the interface :class:`ChainSampler`
        :raises ValueError: If a name is unknown or ``steps`` is out of range
        """

    def likelihood(self, steps: int, rule: str = "trapezoid", *, clip: bool = True) -> Any:
        """
        Build the module that estimates log densities from the errors of the network.

        :param steps: Number of intervals over which the errors are integrated
        :param rule: Rule of integration, see :class:`~sb3_diffusion.generative.likelihood.LikelihoodEstimator`
        :param clip: Whether estimates of the clean sample are limited to [-1, 1]
        :return: A :class:`~sb3_diffusion.generative.likelihood.LikelihoodEstimator`
        :raises ValueError: If the process has none, a name is unknown, or ``steps`` is out of range
        """
        raise ValueError(f"{type(self).__name__} has no likelihood estimator; use a variance-preserving diffusion.")

    def log_snr(self, t: th.Tensor) -> th.Tensor:
        """
        Logarithm of the signal-to-noise ratio, ``log(alpha^2 / sigma^2)``.

        :param t: Times ``(..., 1)`` with noise
        :return: Ratios of the shape of ``t``
        """
        alpha, sigma = self.coefficients(t)
        return 2.0 * th.log(alpha / sigma)

    def add_noise(self, x0: th.Tensor, t: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """
        Move clean samples to time ``t``: ``alpha_t x0 + sigma_t eps``.

        :param x0: clean samples ``(..., action_dim)``
        :param t: Times ``(..., 1)``
        :param eps: Standard normal noise of the shape of ``x0``
        :return: Noisy samples of the shape of ``x0``
        """
        alpha, sigma = self.coefficients(t)
        return alpha * x0 + sigma * eps

    def sample(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        steps: int,
        solver: str,
        clip: bool = True,
        label: str = "sample",
    ) -> th.Tensor:
        """
        Build a sampler and run it once. Keep the result of :meth:`sampler` instead when sampling repeatedly.

        :param denoise: The network, see :data:`Denoise`; it receives the evaluation index, not the time
        :param shape: Shape of the samples ``(..., action_dim)``
        :param randomness: Source of all draws
        :param steps: Number of steps
        :param solver: Name of the integration rule
        :param clip: Whether intermediate estimates are limited to [-1, 1]
        :param label: Prefix of the labels of the draws
        :return: Samples of shape ``shape`` in [-1, 1]
        """
        return self.sampler(steps, solver, clip=clip).sample(denoise, shape, randomness, label)


# -- conversions ---------------------------------------------------------------------------------------------------------


def noise_to_clean(x: th.Tensor, noise: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x - sigma noise) / alpha``."""
    return (x - sigma * noise) / alpha


def clean_to_noise(x: th.Tensor, clean: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x - alpha clean) / sigma``."""
    return (x - alpha * clean) / sigma


def noise_to_score(noise: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-noise / sigma``."""
    return -noise / sigma


def score_to_noise(score: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-sigma score``."""
    return -sigma * score


def clean_to_score(x: th.Tensor, clean: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-(x - alpha clean) / sigma^2``."""
    return (alpha * clean - x) / sigma**2


def score_to_clean(x: th.Tensor, score: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x + sigma^2 score) / alpha`` (Tweedie's formula)."""
    return (x + sigma**2 * score) / alpha


def vp_velocity(clean: th.Tensor, noise: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``alpha noise - sigma clean``."""
    return alpha * noise - sigma * clean


def vp_velocity_to_clean(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``alpha x - sigma velocity``; needs ``alpha^2 + sigma^2 = 1``."""
    return alpha * x - sigma * velocity


def vp_velocity_to_noise(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``sigma x + alpha velocity``; needs ``alpha^2 + sigma^2 = 1``."""
    return sigma * x + alpha * velocity


def vp_velocity_to_score(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-(sigma x + alpha velocity) / sigma``; needs ``alpha^2 + sigma^2 = 1``."""
    return noise_to_score(vp_velocity_to_noise(x, velocity, alpha, sigma), sigma)


def flow_velocity(clean: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """``clean - noise``."""
    return clean - noise


def flow_velocity_to_clean(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``x + (1 - t) velocity``."""
    return x + (1 - t) * velocity


def flow_velocity_to_noise(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``x - t velocity``."""
    return x - t * velocity


def flow_velocity_to_score(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``-(x - t velocity) / (1 - t)``."""
    return (t * velocity - x) / (1 - t)


def score_to_flow_velocity(x: th.Tensor, score: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``(x + (1 - t) score) / t``."""
    return (x + (1 - t) * score) / t
