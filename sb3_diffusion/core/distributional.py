"""Losses of critics that predict a distribution of returns."""

import torch as th
from torch.nn import functional as F


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
