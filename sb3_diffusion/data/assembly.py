"""From recorded steps to tensors: each observation is kept once, in a table of states, and read once, block by block."""

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_diffusion.data.columns import Column, Columns, block_rows
from sb3_diffusion.data.entries import Entry
from sb3_diffusion.data.recording import Recording


class Transitions(NamedTuple):
    """
    What an :class:`~sb3_diffusion.data.dataset.OfflineDataset` keeps; see there.

    :param states: Observations of the transitions, then those that only follow one
    :param next_index: Row of that table which follows each transition
    :param actions: Actions
    :param rewards: Rewards
    :param terminated: Whether the task ended
    :param truncated: Whether the episode was cut
    :param episode_ids: Number of the episode
    """

    states: th.Tensor | dict[str, th.Tensor]
    next_index: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    episode_ids: th.Tensor


def assemble(recording: Recording, entries: Entry | dict[str, Entry]) -> Transitions:
    """
    :param recording: What was recorded
    :param entries: How its observations are stored
    :return: Its transitions
    """
    layout, keep = _Layout(recording), recording.keep

    def table(entry: Entry, key: str | None = None) -> th.Tensor:
        return _table(layout, entry, _column(recording.observations, key), _column(recording.successors, key))

    width = int(np.prod(recording.actions.shape[1:]))
    return Transitions(
        states={key: table(entry, key) for key, entry in entries.items()} if isinstance(entries, dict) else table(entries),
        next_index=th.from_numpy(layout.next_index),
        actions=_gathered(recording.actions, Entry((width,), np.float32, False), keep),
        rewards=_gathered(recording.rewards, Entry((), np.float32, False), keep),
        terminated=th.from_numpy(recording.terminated[keep]),
        truncated=th.from_numpy(recording.truncated[keep]),
        episode_ids=th.from_numpy(_without_gaps(recording.episodes[keep])),
    )


def _without_gaps(episodes: np.ndarray) -> np.ndarray:
    ids = np.zeros(len(episodes), np.int64)
    np.cumsum(episodes[1:] != episodes[:-1], out=ids[1:])
    return ids


class _Layout:
    """Where the observations of a recording stand in the table."""

    def __init__(self, recording: Recording):
        keep, follows = recording.keep, recording.follows
        self.keep = keep
        # rows that are no transition, but whose observation follows one
        self.lead = np.zeros_like(keep)
        self.lead[1:] = (keep & follows)[:-1]
        self.lead &= ~keep
        # transitions whose observation afterwards is no row
        self.apart = keep & ~follows if recording.successors is not None else np.zeros_like(keep)
        self.n, self.n_lead, self.n_apart = (int(np.count_nonzero(rows)) for rows in (keep, self.lead, self.apart))
        self.size = self.n + self.n_lead + self.n_apart
        self.next_index = self._next_index(follows)

    def _next_index(self, follows: np.ndarray) -> np.ndarray:
        place = np.empty(len(self.keep) + 1, np.int32 if self.size < 2**31 else np.int64)
        place[:-1][self.keep] = np.arange(self.n, dtype=place.dtype)
        place[:-1][self.lead] = np.arange(self.n, self.n + self.n_lead, dtype=place.dtype)
        # nobody reads what follows the end of a task: the row itself stands for it
        index = np.where(follows, place[1:], place[:-1])
        index[self.apart] = np.arange(self.n + self.n_lead, self.size, dtype=place.dtype)
        return index[self.keep].astype(np.int64)


def _column(columns: Columns | None, key: str | None) -> Any:
    return columns[key] if isinstance(columns, dict) and key is not None else columns


def _table(layout: _Layout, entry: Entry, before: Column, after: Column | None) -> th.Tensor:
    table: np.ndarray = np.empty((layout.size, *entry.shape), entry.dtype)
    own, lead, apart = np.split(table, [layout.n, layout.n + layout.n_lead])
    _fill(entry, before, (own, layout.keep), (lead, layout.lead))
    if after is not None and layout.n_apart:
        _fill(entry, after, (apart, layout.apart))
    return th.from_numpy(table)


def _gathered(column: Column, entry: Entry, keep: np.ndarray) -> th.Tensor:
    rows: np.ndarray = np.empty((int(np.count_nonzero(keep)), *entry.shape), entry.dtype)
    _fill(entry, column, (rows, keep))
    return th.from_numpy(rows)


def _fill(entry: Entry, column: Column, *parts: tuple[np.ndarray, np.ndarray]) -> None:
    """Read a column once, and put the rows that each mask chooses into its target."""
    places, start = [0] * len(parts), 0
    for block in column.blocks(block_rows(column)):
        block = entry.stored(block)
        for index, (target, mask) in enumerate(parts):
            chosen = mask[start : start + len(block)]
            count = int(np.count_nonzero(chosen))
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                target[places[index] : places[index] + count] = block if count == len(block) else block[chosen]
            places[index] += count
        start += len(block)
