"""What an update changes in place, so that a CUDA graph finds it: learning rates, and copies that lag behind."""

import torch as th
from torch import nn


@th.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """
    Move a copy of a network towards it, ``target = tau * source + (1 - tau) * target``; 1 copies.

    Running statistics (batch normalisation in a features extractor) are measured, not learned: copied as they are.

    :param target: The copy
    :param source: The network, of the same structure
    :param tau: Between 0 and 1
    """
    th._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)


def set_learning_rate(optimizer: th.optim.Optimizer, learning_rate: float) -> None:
    """
    Set the learning rate, in place where a CUDA graph reads it from a tensor.

    :param optimizer: The optimizer
    :param learning_rate: New value
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], th.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
