"""Learning rates that a divergence of policies adapts."""

from collections.abc import Iterable

import torch as th

_FACTOR = 1.5


@th.no_grad()
def adapt_learning_rates(
    optimizers: Iterable[th.optim.Optimizer], divergence: th.Tensor, desired: float, bounds: tuple[float, float]
) -> None:
    """
    The rule of rsl_rl: slower by 1.5 where the policy has moved more than twice as far as desired, faster by 1.5 where less
    than half as far; at no move at all, which only happens before the first step, as before. Nothing waits for a device on
    which the rates are tensors.

    :param optimizers: Optimizers whose rates are adapted
    :param divergence: How far the policy has moved from the one that acted, a scalar
    :param desired: How far it should
    :param bounds: Smallest and largest rate
    """
    slower = divergence > 2.0 * desired
    faster = (divergence > 0.0) & (divergence < 0.5 * desired)
    factor = th.where(slower, 1.0 / _FACTOR, th.where(faster, _FACTOR, 1.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, th.Tensor):
                rate.mul_(factor.to(rate.device)).clamp_(*bounds)
            else:
                group["lr"] = min(max(rate * float(factor), bounds[0]), bounds[1])


def rates_as_tensors(optimizers: Iterable[th.optim.Optimizer], device: th.device) -> None:
    """
    Keep the rates where the networks are, so that adapting them asks nothing of the host.

    :param optimizers: Optimizers of networks on an accelerator
    :param device: The accelerator
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], th.Tensor):
                group["lr"] = th.tensor(group["lr"], device=device)
