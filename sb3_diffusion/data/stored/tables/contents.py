"""Whether the numbers of a data set can be learned from; what cannot is named with its row."""

from collections.abc import Callable, Iterator

import numpy as np
from gymnasium import spaces

from sb3_diffusion.data.stored.tables.assembly import Transitions
from sb3_diffusion.data.stored.tables.columns import BLOCK_BYTES, BLOCK_ROWS, by_key
from sb3_diffusion.data.stored.tables.recording import Recording

ROUNDING = 1e-3
"""Actions may lie outside the box by this share of half its width, and are then moved to its border."""


def check_contents(transitions: Transitions, recording: Recording, action_space: spaces.Box, clip_actions: bool) -> None:
    """
    :param transitions: What was read; its actions are clipped
    :param recording: What it was read from
    :param action_space: Action space
    :param clip_actions: Clip actions to the space instead of refusing those outside
    :raises ValueError: If a number is NaN or infinite, or an action lies outside the box
    """

    def recorded_row(row: int) -> str:
        return recording.describe(int(np.flatnonzero(recording.keep)[row]))

    def state_row(row: int) -> str:
        if row < len(transitions.rewards):
            return recorded_row(row)
        before = int(np.flatnonzero(transitions.next_index.numpy() == row)[0])
        return f"the observation after {recorded_row(before)}"

    for key, column in by_key(recording.observations).items():
        table = transitions.states[key] if isinstance(transitions.states, dict) else transitions.states
        if table.is_floating_point():
            check_finite(column.name, table.numpy(), state_row)
    check_finite(recording.rewards.name, transitions.rewards.numpy(), recorded_row)
    check_finite(recording.actions.name, transitions.actions.numpy(), recorded_row)
    _clip(recording.actions.name, transitions.actions.numpy(), action_space, clip_actions, recorded_row)


def check_finite(name: str, values: np.ndarray, row_name: Callable[[int], str]) -> None:
    """
    :param name: What the values are called
    :param values: ``(n, ...)``
    :param row_name: What to call a row
    :raises ValueError: If one is NaN or infinite
    """
    for start, block in _blocks(values):
        finite = np.isfinite(block)
        if not finite.all():
            row = int(np.argwhere(~finite)[0][0])
            value = float(block[row][~finite[row]].flat[0])
            raise ValueError(
                f"{name} is {value} in {row_name(start + row)}; only finite float32 numbers can be learned from. "
                "Leave out the episode, or repair the data."
            )


def _clip(name: str, actions: np.ndarray, space: spaces.Box, clip: bool, row_name: Callable[[int], str]) -> None:
    low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (space.low, space.high))
    width = np.where(np.isfinite(low) & np.isfinite(high), high - low, 0.0)
    slack = (ROUNDING / 2 * width).astype(np.float32)
    for start, block in _blocks(actions):
        outside = (block < low - slack) | (block > high + slack)
        if not clip and outside.any():
            row, entry = (int(number) for number in np.argwhere(outside)[0])
            value = float(block[row, entry])
            bound = float(low[entry] if value < low[entry] else high[entry])
            raise ValueError(
                f"{name} is {value:.6g} in {row_name(start + row)}, entry {entry}, which lies outside the box (bound "
                f"{bound:g}); pass clip_actions=True to clip, or the action_space that the data were recorded in."
            )
        np.clip(block, low, high, out=block)


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    # in NumPy, which has no threads: they would cost more than they bring, and take the processors of others
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, values[:1].nbytes)))
    for start in range(0, len(values), rows):
        yield start, values[start : start + rows]
