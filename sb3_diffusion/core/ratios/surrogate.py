"""The clipped surrogate of proximal policy optimisation, for whatever has a ratio of densities."""

import torch as th

from sb3_diffusion.core.reporting.metrics import Metrics

MAX_LOG_RATIO = 20.0
"""Exponents of ratios are limited to this: the density of many dimensions overflows long after it has been clipped."""


def clipped_surrogate(log_ratio: th.Tensor, advantages: th.Tensor, clip_range: th.Tensor | float) -> tuple[th.Tensor, Metrics]:
    """
    ``-mean min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)`` (Schulman et al. 2017, eq. 7).

    :param log_ratio: Logarithm of how much likelier the actions have become
    :param advantages: Advantages, which broadcast against it
    :param clip_range: How far ratios may be from one; a number, or one for each entry
    :return: Loss, and the share of ratios beyond the range
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low, high = 1.0 - clip_range, 1.0 + clip_range
    clipped = th.maximum(th.minimum(ratio, high), low) if isinstance(high, th.Tensor) else ratio.clamp(low, high)  # type: ignore[arg-type]
    loss = -th.minimum(ratio * advantages, clipped * advantages).mean()
    outside = ((ratio.detach() - 1.0).abs() > clip_range).float().mean()
    return loss, {"policy_gradient_loss": loss.detach(), "clip_fraction": outside}


def asymmetric_surrogate(
    log_ratio: th.Tensor, advantages: th.Tensor, clip_range: th.Tensor | float
) -> tuple[th.Tensor, Metrics]:
    """
    :func:`clipped_surrogate` where advantages are positive, and where they are not a penalty that pulls ratios back:
    ``-mean (ratio * A - |A| (ratio - 1)^2 / (2 clip))``, which is smallest at ``1 - clip`` (Yi et al. 2026).

    :param log_ratio: Logarithm of how much likelier the actions have become
    :param advantages: Advantages, which broadcast against it
    :param clip_range: How far ratios may be from one
    :return: Loss, and the share of ratios beyond the range
    """
    ratio = log_ratio.exp()
    clipped = th.minimum(ratio * advantages, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages)  # type: ignore[arg-type]
    penalized = ratio * advantages - advantages.abs() / (2.0 * clip_range) * (ratio - 1.0).square()
    loss = -th.where(advantages < 0.0, penalized, clipped).mean()
    outside = ((ratio.detach() - 1.0).abs() > clip_range).float().mean()
    return loss, {"policy_gradient_loss": loss.detach(), "clip_fraction": outside}


def divergence_estimate(log_ratio: th.Tensor) -> th.Tensor:
    """
    An estimate of the Kullback-Leibler divergence from the policy that acted, from its own actions: the mean of
    ``ratio - 1 - log ratio``, which is never negative (the estimator "k3" of Schulman 2020).

    :param log_ratio: Logarithm of how much likelier the actions have become
    """
    bounded = log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (bounded.expm1() - bounded).mean()
