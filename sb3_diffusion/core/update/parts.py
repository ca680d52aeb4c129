"""
One update as a list of parts: each has a loss, the network that gets the gradient, and an optimizer that steps. A training on
stored data is a list of stages, each of which trains some of the parts.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.core.reporting.metrics import Metrics

Loss = Callable[[Any], tuple[th.Tensor, Metrics]]
"""Function of a batch of transitions, or of rows of a rollout."""


class Part(NamedTuple):
    """
    What an update trains at once.

    :param name: ``"critic"``, ``"actor"``, ``"value"``, ...: prefix of its loss in the logs, key of its learning rate
    :param loss: Function of a batch, the method of the algorithm that reads like the paper; returns a scalar and further
        quantities to log
    :param network: Network of the policy whose parameters get the gradient; its attribute ``optimizer`` steps
    :param every: Updates between two of its steps
    :param then: What follows every step, before the next part's loss: the move of an average that the next part asks
    :param before: What comes between its loss and its step, with what the loss logged: a rate that depends on it
    """

    name: str
    loss: Loss
    network: nn.Module
    every: int = 1
    then: Callable[[], None] | None = None
    before: Callable[[Metrics], None] | None = None

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the network."""
        return self.network.optimizer  # type: ignore[return-value]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Stage(NamedTuple):
    """
    A part of a training on stored data, such as learning the behaviour before its critics.

    :param name: ``"behavior"``, ``"critic"``, ...
    :param parts: Names of the parts that it trains
    :param updates: Its share: ``learn_offline`` divides its updates among the stages in proportion to these numbers
    :param prepare: What happens before its first update and may take minutes, such as drawing actions for every state. It may
        leave quantities of the transitions in ``prepared``, or of all states in ``state_tables``, which then come with every
        batch. It is repeated where it was interrupted, and in the middle of the stage where a checkpoint lacks its tables
    :param batch_size: Transitions per update, ``None`` for the algorithm's
    """

    name: str
    parts: tuple[str, ...]
    updates: int
    prepare: Callable[[], object] | None = None
    batch_size: int | None = None


def divided(total: int, shares: Sequence[int]) -> list[int]:
    """
    :param total: Number of updates
    :param shares: Proportions of the stages
    :return: Updates of each stage, ``total`` together
    """
    bounds = [round(total * sum(shares[:end]) / max(1, sum(shares))) for end in range(len(shares) + 1)]
    return [end - start for start, end in pairwise(bounds)]


def due_parts(parts: Sequence[Part], n_updates: int) -> tuple[str, ...]:
    """
    :param parts: Parts of an update
    :param n_updates: Number of the update, the first one is 1
    :return: Names of those that this update trains
    """
    return tuple(part.name for part in parts if n_updates % part.every == 0)
