"""What was recorded, and which of its steps are transitions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sb3_diffusion.data.stored.tables.columns import Column, Columns, block_rows, by_key


def _row(row: int) -> str:
    return f"row {row}"


@dataclass
class Recording:
    """
    Steps in the order in which they were taken.

    :param observations: Observations before the step
    :param actions: Actions
    :param rewards: Rewards
    :param terminated: Whether the task ended with the step, ``(n,)``
    :param truncated: Whether the episode was cut after the step, ``(n,)``; false where the task ended
    :param first: Whether the row begins an episode, ``(n,)``
    :param counted: Which rows are steps of an episode whose end was recorded, ``(n,)``
    :param keep: Which steps become transitions, ``(n,)``
    :param follows: Whether the observation of the next row is the one after this step, ``(n,)``
    :param successors: Observations after the step, where they were recorded; used where ``follows`` is false
    :param describe: What error messages call a row
    """

    observations: Columns
    actions: Column
    rewards: Column
    terminated: np.ndarray
    truncated: np.ndarray
    first: np.ndarray
    counted: np.ndarray
    keep: np.ndarray
    follows: np.ndarray
    successors: Columns | None = None
    describe: Callable[[int], str] = _row


def record(
    observations: Columns,
    actions: Column,
    rewards: Column,
    terminated: np.ndarray,
    truncated: np.ndarray,
    *,
    first: np.ndarray | None = None,
    successors: Columns | None = None,
) -> Recording:
    """
    Every step becomes a transition whose observation afterwards is known, or that ended the task.

    :param observations: Observations before the step
    :param actions: Actions
    :param rewards: Rewards
    :param terminated: Whether the task ended with the step, ``(n,)``
    :param truncated: Whether the episode was cut after the step, ``(n,)``
    :param first: Whether the row begins an episode; by default a new one begins after every end
    :param successors: Observations after the step
    """
    truncated = truncated & ~terminated
    first = begin_after(terminated | truncated) if first is None else first
    within = np.zeros_like(terminated)
    np.logical_not(first[1:], out=within[:-1])
    if successors is None:
        follows = within & ~truncated
        keep = follows | terminated
    else:
        follows = within & same_as_next(observations, successors)
        keep = np.ones_like(follows)
    counted = with_an_end(first, terminated | truncated)
    return Recording(observations, actions, rewards, terminated, truncated, first, counted, keep, follows, successors)


def begin_after(ends: np.ndarray) -> np.ndarray:
    """
    :param ends: Whether a row is the last one of its episode, ``(n,)``
    :return: Whether a row is the first one
    """
    first = np.ones_like(ends)
    first[1:] = ends[:-1]
    return first


def numbered(episodes: np.ndarray) -> np.ndarray:
    """
    :param episodes: Number of the episode of each row
    :return: Whether a row is the first one of its episode
    :raises ValueError: If the rows of an episode are not consecutive
    """
    first = np.ones(len(episodes), dtype=bool)
    first[1:] = episodes[1:] != episodes[:-1]
    starts = np.flatnonzero(first)
    _, unique = np.unique(episodes[starts], return_index=True)
    if len(unique) < len(starts):
        row = int(starts[np.setdiff1d(np.arange(len(starts)), unique)[0]])
        raise ValueError(
            f"episode_ids={episodes[row]} begins again in row {row}; the rows of an episode have to be consecutive, "
            "in the order in which they were taken."
        )
    return first


def with_an_end(first: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    :param first: Whether a row begins an episode
    :param ends: Whether an episode ended with the row
    :return: Whether the row belongs to an episode whose end was recorded; only the last one may go on
    """
    counted = np.ones_like(ends)
    if len(ends) and not ends[-1]:
        counted[np.flatnonzero(first)[-1] :] = False
    return counted


def ended(first: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    :param first: Whether a row begins an episode
    :param ends: Whether an episode ended with the row
    :return: Whether the row belongs to an episode whose last row is an end; with several streams, each may go on
    """
    last = np.flatnonzero(np.r_[first[1:], True])
    return np.repeat(ends[last], np.diff(np.r_[-1, last]))


def same_as_next(observations: Columns, successors: Columns) -> np.ndarray:
    """
    :param observations: Observations before every step
    :param successors: Observations after it
    :return: Whether the observation after a step is that of the next row, ``(n,)``; false in the last row
    """
    columns, following_columns = by_key(observations), by_key(successors)
    shapes, following_shapes = ({key: part.shape for key, part in side.items()} for side in (columns, following_columns))
    if shapes != following_shapes:
        raise ValueError(
            f"next_observations have the shapes {following_shapes}, and observations {shapes}; pass the same form."
        )
    same = np.ones(next(iter(columns.values())).shape[0], dtype=bool)
    same[-1:] = False
    for key, before in columns.items():
        after = following_columns[key]
        rows, last, start = block_rows(before, after), None, 0
        for block, following in zip(before.blocks(rows), after.blocks(rows), strict=True):
            # as they will be stored
            block, following = block.astype(np.float32, copy=False), following.astype(np.float32, copy=False)
            if last is not None:
                same[start - 1] &= bool(np.array_equal(last, block[0]))
            equal = (following[:-1] == block[1:]).all(axis=tuple(range(1, block.ndim)))
            same[start : start + len(equal)] &= equal
            last, start = following[-1].copy(), start + len(block)
    return same


def recorded_episodes(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """
    :param recording: What was recorded
    :return: Returns (float64) and lengths (int64) of the complete episodes
    """
    counted, start, bounds = recording.counted, 0, np.flatnonzero(recording.first)
    returns, lengths = np.zeros(len(bounds)), np.zeros(len(bounds), np.int64)
    for block in recording.rewards.blocks(block_rows(recording.rewards)):
        mask = counted[start : start + len(block)]
        # an episode may go on in the next block
        episode = int(np.searchsorted(bounds, start, side="right")) - 1
        cuts = np.r_[0, bounds[episode + 1 : int(np.searchsorted(bounds, start + len(block)))] - start]
        sums = np.add.reduceat(np.where(mask, block.reshape(-1), 0.0), cuts, dtype=np.float64)
        returns[episode : episode + len(sums)] += sums
        lengths[episode : episode + len(sums)] += np.add.reduceat(mask, cuts, dtype=np.int64)
        start += len(block)
    return returns[lengths > 0], lengths[lengths > 0]
