"""What was recorded, and which of its steps are transitions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sb3_diffusion.data.columns import Column, Columns, block_rows, by_key


@dataclass
class Recording:
    """
    Steps in the order in which they were taken.

    :param observations: Observations before the step
    :param actions: Actions
    :param rewards: Rewards
    :param terminated: Whether the task ended with the step, ``(n,)``
    :param truncated: Whether the episode was cut after the step, ``(n,)``; false where the task ended
    :param episodes: Number of the episode, constant within it and different from its neighbours', ``(n,)``
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
    episodes: np.ndarray
    counted: np.ndarray
    keep: np.ndarray
    follows: np.ndarray
    successors: Columns | None = None
    describe: Callable[[int], str] = "row {}".format


def record(
    observations: Columns,
    actions: Column,
    rewards: Column,
    terminated: np.ndarray,
    truncated: np.ndarray,
    *,
    episodes: np.ndarray | None = None,
    successors: Columns | None = None,
) -> Recording:
    """
    Every step becomes a transition whose observation afterwards is known, or that ended the task.

    :param observations: Observations before the step
    :param actions: Actions
    :param rewards: Rewards
    :param terminated: Whether the task ended with the step, ``(n,)``
    :param truncated: Whether the episode was cut after the step, ``(n,)``
    :param episodes: Number of the episode; by default a new one begins after every end
    :param successors: Observations after the step
    :raises ValueError: If a number of an episode appears in two places
    """
    truncated = truncated & ~terminated
    if episodes is None:
        episodes = episode_numbers(terminated | truncated)
    else:
        check_together(episodes)
    within = np.zeros_like(terminated)
    within[:-1] = episodes[1:] == episodes[:-1]
    follows = within & ~truncated
    keep = follows | terminated
    if successors is not None:
        follows = within & same_as_next(observations, successors)
        keep = np.ones_like(follows)
    counted = with_an_end(episodes, terminated | truncated)
    return Recording(observations, actions, rewards, terminated, truncated, episodes, counted, keep, follows, successors)


def with_an_end(episodes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    :param episodes: Number of the episode of each row
    :param ends: Whether an episode ended with the row
    :return: Whether the row belongs to an episode whose end was recorded; only the last one may go on
    """
    return np.ones_like(ends) if not len(ends) or ends[-1] else episodes != episodes[-1]


def ended(episodes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    :param episodes: Number of the episode of each row
    :param ends: Whether an episode ended with the row
    :return: Whether the row belongs to an episode whose last row is an end; with several streams, each may go on
    """
    last = np.flatnonzero(np.r_[episodes[1:] != episodes[:-1], True])
    return np.repeat(ends[last], np.diff(np.r_[-1, last]))


def episode_numbers(ends: np.ndarray) -> np.ndarray:
    """
    :param ends: Whether a row is the last one of its episode, ``(n,)``
    :return: Number of the episode of each row
    """
    numbers = np.zeros(len(ends), np.int32 if len(ends) < 2**31 else np.int64)
    np.cumsum(ends[:-1], out=numbers[1:])
    return numbers


def check_together(episodes: np.ndarray) -> None:
    """
    :param episodes: Number of the episode of each row
    :raises ValueError: If the rows of an episode are not consecutive
    """
    starts = np.flatnonzero(np.r_[True, episodes[1:] != episodes[:-1]][: len(episodes)])
    _, first = np.unique(episodes[starts], return_index=True)
    if len(first) < len(starts):
        row = int(starts[np.setdiff1d(np.arange(len(starts)), first)[0]])
        raise ValueError(
            f"episode_ids={episodes[row]} begins again in row {row}; the rows of an episode have to be consecutive, "
            "in the order in which they were taken."
        )


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
            same[start : start + len(block) - 1] &= (following[:-1] == block[1:]).reshape(len(block) - 1, -1).all(1)
            last, start = following[-1].copy(), start + len(block)
    return same


def recorded_episodes(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """
    :param recording: What was recorded
    :return: Returns (float64) and lengths (int64) of the complete episodes
    """
    episodes, counted, start = recording.episodes, recording.counted, 0
    bounds = np.flatnonzero(np.r_[True, episodes[1:] != episodes[:-1]][: len(episodes)])
    returns = np.zeros(len(bounds))
    for block in recording.rewards.blocks(block_rows(recording.rewards)):
        values = block.reshape(-1) * counted[start : start + len(block)].astype(np.float64)
        # an episode may go on in the next block
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        cuts = bounds[first + 1 : int(np.searchsorted(bounds, start + len(block)))] - start
        sums = np.add.reduceat(values, np.r_[0, cuts])
        returns[first : first + len(sums)] += sums
        start += len(block)
    lengths = np.add.reduceat(counted.astype(np.int64), bounds) if len(bounds) else np.zeros(0, np.int64)
    return returns[lengths > 0], lengths[lengths > 0]
