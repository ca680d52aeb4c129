"""Trainings in several processes, one for each GPU: who this process is, and what all of them know together."""

from collections.abc import Iterable

import torch as th
from torch import distributed, nn


def n_processes() -> int:
    """Number of processes that train together, 1 where none was asked for."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if n_processes() > 1 else 0


def average(tensors: Iterable[th.Tensor]) -> None:
    """
    Replace tensors by their means over all processes, in one exchange.

    :param tensors: Floating-point tensors of one device, of the same shapes everywhere
    """
    found = list(tensors)
    if n_processes() == 1 or not found:
        return
    flat = th.cat([tensor.flatten() for tensor in found])
    distributed.all_reduce(flat)
    flat /= n_processes()
    start = 0
    for tensor in found:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


def share_weights(module: nn.Module) -> None:
    """
    Let all processes have the weights and buffers of the first one.

    :param module: A network
    """
    if n_processes() == 1:
        return
    with th.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor, 0)


def all_agree(answer: bool, device: th.device) -> bool:
    """
    :param answer: What this process says
    :param device: Where processes exchange tensors
    :return: Whether all of them say yes
    """
    if n_processes() == 1:
        return answer
    votes = th.tensor(float(answer), device=device)
    distributed.all_reduce(votes, distributed.ReduceOp.MIN)
    return bool(votes)


def moments(values: th.Tensor, axis: int | None = None) -> tuple[th.Tensor, th.Tensor]:
    """
    Mean and variance (of the population) of what all processes have, as many values each.

    :param values: Values of this process
    :param axis: Axis over which they are taken, ``None`` for all
    :return: Mean and variance
    """
    variance, mean = th.var_mean(values, axis, correction=0)  # type: ignore[call-overload]
    if n_processes() == 1:
        return mean, variance
    own = mean.clone()
    average([mean])
    spread = variance + (own - mean).square()
    average([spread])
    return mean, spread
