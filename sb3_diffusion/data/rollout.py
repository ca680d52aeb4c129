"""What was done and seen since the last update, on the device of the networks, for methods that learn from nothing older."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th

Observation = Any  # a tensor, or a dictionary of tensors


class RolloutBatch(NamedTuple):
    """
    Rows of a rollout.

    :param observations: What was seen (tensor or dict of tensors)
    :param actions: What the policy answered, before it was cut off at the bounds, in normalised units; ``(batch, action_dim)``
    :param values: Values of the observations before the first update, ``(batch,)``
    :param advantages: Advantages of the actions, standardised if the method does; ``(batch,)``
    :param returns: What the values should have been, ``(batch,)``
    :param truncated: Where an episode was cut off in this step, ``(batch,)``, bool
    :param fields: What the policy that acted left to compare with, by name, ``(batch, ...)``
    """

    observations: Observation
    actions: th.Tensor
    values: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    truncated: th.Tensor
    fields: Mapping[str, th.Tensor] = MappingProxyType({})


class TensorRolloutBuffer:
    """
    The steps of one rollout. What is stored is told by the first step; everything is copied, since simulators go on using
    their tensors.

    :param n_steps: Steps of every environment
    :param n_envs: Number of environments
    :param device: Device of the networks
    """

    def __init__(self, n_steps: int, n_envs: int, device: th.device):
        self.n_steps = n_steps
        self.n_envs = n_envs
        self.device = device
        self._stored: dict[str, Any] = {}
        self.fields: dict[str, th.Tensor] = {}
        """What the policy left for every step, ``(n_steps, n_envs, ...)``."""

    @property
    def size(self) -> int:
        """Number of transitions."""
        return self.n_steps * self.n_envs

    def __getitem__(self, name: str) -> Any:
        """
        :param name: Name under which steps were stored
        :return: ``(n_steps, n_envs, ...)``
        """
        return self._stored[name]

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __setitem__(self, name: str, value: th.Tensor) -> None:
        self._stored[name] = value

    def add(self, step: int, **values: Any) -> None:
        """
        :param step: Number of the step
        :param values: What belongs to it, ``(n_envs, ...)``: tensors, or dictionaries of them
        """
        for name, value in values.items():
            if isinstance(value, Mapping):
                part = self._stored.setdefault(name, {})
                for key, item in value.items():
                    self._copy(part, key, step, item)
            else:
                self._copy(self._stored, name, step, value)

    def add_fields(self, step: int, fields: Mapping[str, th.Tensor]) -> None:
        """
        :param step: Number of the step
        :param fields: What the policy left, ``(n_envs, ...)`` each
        """
        for name, value in fields.items():
            self._copy(self.fields, name, step, value)

    def _copy(self, target: dict[str, Any], name: str, step: int, value: th.Tensor) -> None:
        if name not in target:
            target[name] = th.empty((self.n_steps, *value.shape), dtype=value.dtype, device=self.device)
        target[name][step].copy_(value, non_blocking=True)

    def rows(self, index: th.Tensor | slice) -> RolloutBatch:
        """
        :param index: Which of the flattened steps, time by time
        :return: These rows
        """

        def picked(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: picked(item) for key, item in value.items()}
            return value.flatten(0, 1)[index]

        columns = {name: picked(self._stored[name]) for name in RolloutBatch._fields[:-1]}
        return RolloutBatch(**columns, fields=picked(self.fields))

    def flat(self, name: str) -> Any:
        """
        :param name: Name under which steps were stored
        :return: All rows, time by time, ``(n_steps * n_envs, ...)``; nothing is copied
        """
        value = self._stored[name]
        if isinstance(value, Mapping):
            return {key: item.flatten(0, 1) for key, item in value.items()}
        return value.flatten(0, 1)

    def chunks(self, name: str, n_rows: int) -> Iterator[Any]:
        """
        :param name: Name under which steps were stored
        :param n_rows: Rows at a time
        :return: All rows in their order, a few at a time; nothing is copied
        """
        rows = self.flat(name)
        for start in range(0, self.size, n_rows):
            if isinstance(rows, Mapping):
                yield {key: item[start : start + n_rows] for key, item in rows.items()}
            else:
                yield rows[start : start + n_rows]

    def minibatches(self, batch_size: int, permutation: th.Tensor) -> Iterator[RolloutBatch]:
        """
        One pass over the rollout, in minibatches of equal size: what is left over is left out, other rows in every pass.

        :param batch_size: Transitions of a minibatch
        :param permutation: Order of all transitions, int64
        """
        for start in range(0, self.size - batch_size + 1, batch_size):
            yield self.rows(permutation[start : start + batch_size])
