"""Losses of critics that predict a distribution of returns."""

import warnings

import torch as th
from torch.nn import functional as F

from sb3_diffusion.core.reporting.metrics import Metrics

LARGEST_CLIPPED_SHARE = 0.1
"""Share of a categorical target outside the support from which on there is a warning; untrained critics, whose mass is
everywhere, lose a few per cent at the ends."""


def dsac_loss(
    mean: th.Tensor,
    std: th.Tensor,
    target_mean: th.Tensor,
    target_sample: th.Tensor,
    running_std: th.Tensor,
    half_squared_error: bool = False,
    bias: float = 0.1,
    huber_delta: float = 50.0,
) -> th.Tensor:
    r"""
    Loss of a Gaussian critic with variance-based clipping and gradient adjustment (DSAC-T, https://arxiv.org/abs/2310.05858).

    :param mean: Predicted means ``(n_critics, batch)``
    :param std: Predicted standard deviations ``(n_critics, batch)``
    :param target_mean: Bellman target of the mean ``(batch,)``
    :param target_sample: Bellman target of a sampled return ``(batch,)``
    :param running_std: Running mean of the predicted standard deviations, scalar
    :param half_squared_error: Let the variance approach half of the squared error, as the reference implementation does
    :param bias: Keeps the denominators away from zero
    :param huber_delta: Where the loss becomes linear
    :return: Loss per critic and transition ``(n_critics, batch)``
    """
    fixed_mean, fixed_std = mean.detach(), std.detach().clamp(min=1e-6)
    # the sample may not lie further than three running standard deviations from the prediction
    bounded = fixed_mean + (target_sample - fixed_mean).clamp(-3.0 * running_std, 3.0 * running_std)
    squared_error = F.huber_loss(fixed_mean, bounded, reduction="none", delta=huber_delta)
    if not half_squared_error:
        squared_error = 2.0 * squared_error
    ratio = (running_std.square() / (fixed_std.square() + bias)).clamp(0.1, 10.0)
    mean_term = F.huber_loss(mean, target_mean.expand_as(mean), reduction="none", delta=huber_delta)
    std_term = std * (fixed_std.square() - squared_error) / (fixed_std + bias)
    return ratio * (mean_term + std_term)


def categorical_loss(log_probs: th.Tensor, target: th.Tensor, entropy_coef: float = 0.0) -> th.Tensor:
    """
    Cross entropy of a categorical critic and its target, less a part of the entropy of the prediction.

    :param log_probs: Predicted log probabilities of the atoms ``(n_critics, batch, n_atoms)``
    :param target: Target probabilities ``(batch, n_atoms)``
    :param entropy_coef: Weight of the entropy, which keeps predictions from becoming certain
    :return: Loss per critic and transition ``(n_critics, batch)``
    """
    return ((entropy_coef * log_probs.exp() - target) * log_probs).sum(-1)


def clipped_shares(probabilities: th.Tensor, target_atoms: th.Tensor, support: th.Tensor) -> Metrics:
    """
    How much of a categorical target lies outside the support.

    :param probabilities: Masses of the target atoms ``(batch, m)``
    :param target_atoms: Values ``(batch, m)``
    :param support: Values that the critics can represent, in increasing order
    :return: Mean shares ``"below_v_min"`` and ``"above_v_max"``
    """
    return {
        "below_v_min": (probabilities * (target_atoms < support[0])).sum(-1).mean(),
        "above_v_max": (probabilities * (target_atoms > support[-1])).sum(-1).mean(),
    }


def warn_if_clipped(shares: dict[str, float], v_min: float, v_max: float, n_updates: int) -> bool:
    """
    Warn if a notable part of the targets lies outside the support.

    :param shares: Means of what :func:`clipped_shares` returned; other entries are ignored
    :param v_min: Smallest value that the critics can represent
    :param v_max: Largest value
    :param n_updates: Number of the update, for the message
    :return: Whether there was a reason to
    """
    for name, bound, value, change in (("below_v_min", "v_min", v_min, "Lower"), ("above_v_max", "v_max", v_max, "Raise")):
        if shares.get(name, 0.0) > LARGEST_CLIPPED_SHARE:
            warnings.warn(
                f"The returns leave the support of the critics: {shares[name]:.0%} of their target distribution lies "
                f"{name.split('_')[0]} {bound}={value} and is cut off there (update {n_updates}). "
                f"{change} {bound}, or scale the rewards; train/{name} shows the share.",
                stacklevel=2,
            )
            return True
    return False
