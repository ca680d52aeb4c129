"""Where the steps of a chain were clipped, recovered from its states: what a training by backpropagation has to know."""

from typing import NamedTuple

import torch as th

from sb3_diffusion.kernels.structures import CompiledStep

NEAR = 1.0 - 1e-3
"""Estimates are recovered with rounding errors: how much of the way to a bound counts as being there."""


class WatchedSamples(NamedTuple):
    """
    The end of a chain and what has happened on its way.

    :param samples: Last states, not clamped; differentiable
    :param states: All states, starting noise first, constants ``(steps + 1, *shape)``
    :param cut_off: Share of the coordinates of all steps at which clipping has cut off the gradient of the step's prediction;
        ``None`` where the states do not tell
    """

    samples: th.Tensor
    states: th.Tensor
    cut_off: th.Tensor | None


def share_of_states(states: th.Tensor, low: float, high: float) -> th.Tensor:
    """
    For a chain that clips its states.

    :param states: All states ``(steps + 1, ...)``
    :param low: Lower bound
    :param high: Upper bound
    :return: Share of the coordinates behind the start that lie on a bound, scalar
    """
    ends = states[1:]
    return ((ends <= low) | (ends >= high)).mean(dtype=th.float32)


def share_of_estimates(states: th.Tensor, draws: th.Tensor | None, coefficients: th.Tensor) -> th.Tensor:
    """
    For a chain whose next state is made of the clipped estimate of the clean sample, the state and noise.

    :param states: All states ``(steps + 1, ...)``
    :param draws: Standard normal noise of the first steps ``(n_noisy, ...)``
    :param coefficients: The steps ``(steps, ...)``, see :class:`~sb3_diffusion.kernels.structures.CompiledStep`
    :return: Share of the coordinates whose estimate lies on a bound, scalar
    """
    step = CompiledStep(*coefficients.view(*coefficients.shape, *(1 for _ in states.shape[1:])).unbind(1))  # type: ignore[arg-type]
    estimates: th.Tensor = states[1:] - states[:-1] * step.state
    if draws is not None:
        noise_std: th.Tensor = step.noise_std  # type: ignore[assignment]
        estimates[: len(draws)].addcmul_(draws, noise_std[: len(draws)], value=-1.0)
    return ((estimates <= step.low * NEAR) | (estimates >= step.high * NEAR)).mean(dtype=th.float32)
