"""Transitions that somebody has collected, as tensors."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from typing_extensions import Self

from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.writing import write
from sb3_diffusion.printable import printable

Observations = Any
"""A tensor, or a dictionary of tensors for Dict spaces."""


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """
    Transitions in the order in which they were recorded.

    Observations stand in a table in which each is kept once: those of the ``n`` transitions, then those that only follow a
    transition; ``next_index`` says which row follows. This takes about half of the memory of two separate tables.

    :param observation_space: Observation space
    :param action_space: Action space
    :param states: The table, ``(n + m, ...)`` of type float32, or uint8 for images; a dictionary of such for Dict spaces
    :param next_index: Row of the table that follows each transition, ``(n,)`` of type int64
    :param actions: Actions in the units of the environment, ``(n, action_dim)``
    :param rewards: Rewards as the environment paid them, ``(n,)``
    :param terminated: Whether the task ended, so that the value of what follows is 0, ``(n,)``
    :param truncated: Whether the episode was cut, which says nothing about the value of what follows, ``(n,)``
    :param episode_ids: Number of the episode, from 0 without gaps; rows of an episode are consecutive and in order, ``(n,)``
    :param source: Where the data come from
    :param recorded_returns: Returns of the complete recorded episodes, those rows included that are no transitions
    :param recorded_lengths: Their lengths
    """

    observation_space: spaces.Space
    action_space: spaces.Box
    states: Observations
    next_index: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    episode_ids: th.Tensor
    source: DataSource
    recorded_returns: np.ndarray
    recorded_lengths: np.ndarray

    # -- what is in it ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observations(self) -> Observations:
        """Observations before each transition: a view of the table."""
        return _each(self.states, lambda table: table[: len(self)])

    @property
    def next_observations(self) -> Observations:
        """Observations after each transition: a copy. Where the task ended, they mean nothing."""
        return _each(self.states, lambda table: table[self.next_index])

    @property
    def n_episodes(self) -> int:
        """Number of episodes that have a transition."""
        return int(self.episode_ids[-1]) + 1

    def episode_returns(self) -> th.Tensor:
        """
        Returns of the transitions of each episode, ``(n_episodes,)`` of type float64. See ``recorded_returns`` for what the
        agents that collected the data earned: a reader may have to leave out the last step of an episode.
        """
        returns = th.zeros(self.n_episodes, dtype=th.float64, device=self.rewards.device)
        return returns.index_add_(0, self.episode_ids, self.rewards.double())

    def episode_lengths(self) -> th.Tensor:
        """Numbers of transitions of each episode, ``(n_episodes,)`` of type int64."""
        return th.bincount(self.episode_ids, minlength=self.n_episodes)

    def identity(self) -> dict[str, Any]:
        """What an agent keeps of the data that it learned from: plain values, by which they are known again."""
        return {
            "kind": self.source.kind,
            "name": self.source.name,
            "checksum": self.source.checksum or self._digest(),
            "n_transitions": len(self),
            "n_episodes": self.n_episodes,
            "env_id": self.source.env_id,
        }

    def _digest(self) -> str:
        """Instead of the checksum of a file."""
        digest = hashlib.sha256()
        tables = self.states.values() if isinstance(self.states, dict) else [self.states]
        for tensor in (*tables, self.next_index, self.actions, self.rewards, self.terminated, self.episode_ids):
            digest.update(tensor.cpu().numpy())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({printable(self.source.name)!r}: {len(self):,} transitions, {self.n_episodes:,} episodes, "
            f"observations {self.observation_space}, actions {self.action_space})"
        )

    # -- where it is ------------------------------------------------------------------------------------------------

    def to(self, device: th.device | str) -> Self:
        """
        :param device: Device
        :return: The data there; the same object if they are there already
        """
        if self.rewards.device == th.empty(0, device=device).device:
            return self
        names = ("next_index", "actions", "rewards", "terminated", "truncated", "episode_ids")
        moved = {name: getattr(self, name).to(device) for name in names}
        return dataclasses.replace(self, states=_each(self.states, lambda table: table.to(device)), **moved)

    def save(self, path: str | Path) -> Path:
        """
        Write the data to a file that any program reads, and no program runs.

        :param path: The file; ``.npz``, or ``.hdf5`` in D4RL's layout, which holds flat observations only
        :return: The file
        :raises ValueError: If the suffix is another one, or the format cannot hold the data
        """
        return write(self.columns(), self.source, self.observation_space, self.action_space, Path(path))

    def columns(self) -> dict[str, np.ndarray]:
        """The transitions as arrays; Dict observations have a column ``observations/<key>`` for every key."""
        tensors: dict[str, th.Tensor] = {}
        for name, tables in (("observations", self.observations), ("next_observations", self.next_observations)):
            for key, table in tables.items() if isinstance(tables, dict) else [(None, tables)]:
                tensors[name if key is None else f"{name}/{key}"] = table
        for name in ("actions", "rewards", "terminated", "truncated", "episode_ids"):
            tensors[name] = getattr(self, name)
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _each(tables: Observations, change: Callable[[th.Tensor], th.Tensor]) -> Observations:
    return {key: change(table) for key, table in tables.items()} if isinstance(tables, dict) else change(tables)
