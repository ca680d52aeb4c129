"""From recorded steps to tensors: each observation is kept once, in a table of states, and read once, block by block."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_diffusion.data.stored.tables.columns import BLOCK_ROWS, Column, Columns, block_rows
from sb3_diffusion.data.stored.tables.entries import Entry
from sb3_diffusion.data.stored.tables.recording import Recording


class Transitions(NamedTuple):
    """
    What an :class:`~sb3_diffusion.data.stored.dataset.OfflineDataset` keeps; see there.

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

    return Transitions(
        states={key: table(entry, key) for key, entry in entries.items()} if isinstance(entries, dict) else table(entries),
        next_index=th.from_numpy(layout.next_index()),
        actions=_gathered(layout, recording.actions, (int(np.prod(recording.actions.shape[1:])),)),
        rewards=_gathered(layout, recording.rewards, ()),
        terminated=th.from_numpy(recording.terminated[keep]),
        truncated=th.from_numpy(recording.truncated[keep]),
        episode_ids=th.from_numpy(_episode_ids(recording)),
    )


class _Block(NamedTuple):
    """What becomes of some rows of a recording."""

    rows: slice
    keep: np.ndarray  # transitions
    lead: np.ndarray  # no transitions, but their observations follow one
    apart: np.ndarray  # transitions whose observation afterwards is no row


class _Layout:
    """Where the observations of a recording stand in the table; all masks are made block by block."""

    def __init__(self, recording: Recording):
        self._recording = recording
        self.n = self.n_lead = self.n_apart = 0
        for block in self.blocks():
            self.n += int(np.count_nonzero(block.keep))
            self.n_lead += int(np.count_nonzero(block.lead))
            self.n_apart += int(np.count_nonzero(block.apart))
        self.size = self.n + self.n_lead + self.n_apart

    def block(self, start: int, end: int) -> _Block:
        keep, follows = self._recording.keep, self._recording.follows
        lead = np.zeros(min(end, len(keep)) - start, dtype=bool)
        lead[1:] = (keep[start:end] & follows[start:end])[:-1]
        lead[:1] = start > 0 and keep[start - 1] and follows[start - 1]
        has_successors = self._recording.successors is not None
        apart = keep[start:end] & ~follows[start:end] if has_successors else np.zeros_like(lead)
        return _Block(slice(start, start + len(lead)), keep[start:end], lead & ~keep[start:end], apart)

    def blocks(self) -> Iterator[_Block]:
        for start in range(0, len(self._recording.keep), BLOCK_ROWS):
            yield self.block(start, start + BLOCK_ROWS)

    def next_index(self) -> np.ndarray:
        """Row of the table that follows each transition."""
        index = np.empty(self.n, np.int64)
        n, n_lead, n_apart = 0, self.n, self.n + self.n_lead
        for block in self.blocks():
            # place of each row in the table, and of the first row behind the block
            following = self.block(block.rows.stop, block.rows.stop + 1)
            keep, lead = np.r_[block.keep, following.keep], np.r_[block.lead, following.lead]
            place = np.where(keep, n + np.cumsum(keep), n_lead + np.cumsum(lead)) - 1
            follows, count = self._recording.follows[block.rows], int(np.count_nonzero(block.keep))
            # nobody reads what follows the end of a task: the row itself stands for it
            own = np.where(follows, np.r_[place, 0][1 : len(follows) + 1], place[: len(follows)])
            own[block.apart] = n_apart + np.arange(np.count_nonzero(block.apart))
            index[n : n + count] = own[block.keep]
            n, n_lead, n_apart = n + count, n_lead + int(block.lead.sum()), n_apart + int(block.apart.sum())
        return index


def _episode_ids(recording: Recording) -> np.ndarray:
    """Numbers of the episodes that have a transition, from 0 without gaps."""
    ids = np.empty(int(np.count_nonzero(recording.keep)), np.int64)
    place, begun, episode, last = 0, 0, -1, -1
    for start in range(0, len(recording.keep), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        numbers = begun + np.cumsum(recording.first[rows])
        begun, numbers = int(numbers[-1]), numbers[recording.keep[rows]]
        if len(numbers):
            ids[place : place + len(numbers)] = episode + np.cumsum(np.diff(numbers, prepend=last) != 0)
            place += len(numbers)
            episode, last = int(ids[place - 1]), int(numbers[-1])
    return ids


def _column(columns: Columns | None, key: str | None) -> Any:
    return columns[key] if isinstance(columns, dict) and key is not None else columns


def _table(layout: _Layout, entry: Entry, before: Column, after: Column | None) -> th.Tensor:
    table: np.ndarray = np.empty((layout.size, *entry.shape), entry.dtype)
    own, lead, apart = np.split(table, [layout.n, layout.n + layout.n_lead])
    _fill(layout, entry, before, keep=own, lead=lead)
    if after is not None and layout.n_apart:
        _fill(layout, entry, after, apart=apart)
    return th.from_numpy(table)


def _gathered(layout: _Layout, column: Column, shape: tuple[int, ...]) -> th.Tensor:
    rows: np.ndarray = np.empty((layout.n, *shape), np.float32)
    _fill(layout, Entry(shape, np.float32, False), column, keep=rows)
    return th.from_numpy(rows)


def _fill(layout: _Layout, entry: Entry, column: Column, **targets: np.ndarray) -> None:
    """Read a column once, and put the rows that each mask of a block chooses into its target."""
    places, start = dict.fromkeys(targets, 0), 0
    for block in column.blocks(block_rows(column)):
        block, masks = entry.stored(block), layout.block(start, start + len(block))
        for name, target in targets.items():
            chosen = getattr(masks, name)
            place, count = places[name], int(np.count_nonzero(chosen))
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                target[place : place + count] = block if count == len(block) else block[chosen]
            places[name] = place + count
        start += len(block)
