"""Replay buffers of Stable-Baselines3 and of this library."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_diffusion.data.stored.readers.files import Recorded
from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.tables.columns import check_type
from sb3_diffusion.data.stored.tables.recording import begin_after, ended, record


class PiecesColumn:
    """
    Pieces of arrays, one after the other.

    :param name: What error messages call it
    :param pieces: Views, none of which is copied
    """

    unit = 1

    def __init__(self, name: str, pieces: list[np.ndarray]):
        self.name, self._pieces = name, pieces
        self.shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
        self.dtype = pieces[0].dtype
        check_type(self)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows from the first to the last.

        :param rows: Number of rows of a block; the last one may be shorter
        """
        starts = np.cumsum([0, *map(len, self._pieces)])
        for low in range(0, self.shape[0], rows):
            parts = [
                piece[max(0, low - start) : max(0, low + rows - start)]
                for piece, start in zip(self._pieces, starts[:-1], strict=True)
                if start < low + rows and start + len(piece) > low
            ]
            yield self._change(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _change(self, block: np.ndarray) -> np.ndarray:
        return block


class ActionsColumn(PiecesColumn):
    """
    Actions of a replay buffer, which holds them between -1 and 1, in the units of the environment.

    :param pieces: Views
    :param space: Action space
    """

    def __init__(self, pieces: list[np.ndarray], space: spaces.Box):
        super().__init__("actions", pieces)
        self._low, self._high = space.low.reshape(-1), space.high.reshape(-1)
        self.shape, self._shape = (self.shape[0], *space.shape), space.shape

    def _change(self, block: np.ndarray) -> np.ndarray:
        scaled = self._low + 0.5 * (block + 1.0) * (self._high - self._low)
        return scaled.reshape(len(block), *self._shape)


def read_replay_buffer(buffer: Any, *, name: str | None = None, env_id: str | None = None) -> Recorded:
    """
    :param buffer: The buffer, as a model has it
    :param name: What the data are called
    :param env_id: Environment that they come from
    :return: What was recorded, each environment's stream in one piece, oldest step first
    :raises TypeError: If it is no buffer
    :raises ValueError: If it is empty, or holds no real-valued actions
    """
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(
            f"buffer={str(buffer)[:200]!r} is no replay buffer. A saved one is a pickle, which runs whatever is in it when "
            "it is read, and is never opened here; load it with model.load_replay_buffer(path) if you trust it, and pass "
            "model.replay_buffer. OfflineDataset.save() writes files that are safe to read."
        )
    if not isinstance(buffer.action_space, spaces.Box):
        raise ValueError(f"The action space {buffer.action_space} of the buffer is no Box; these methods choose real numbers.")
    oldest, count = _stored(buffer)
    if count < 1:
        raise ValueError("The replay buffer is empty; collect steps first.")

    def pieces(array: np.ndarray, shift: int = 0) -> list[np.ndarray]:
        first, size = (oldest + shift) % buffer.buffer_size, buffer.buffer_size
        bounds = [(first, min(first + count, size)), (0, max(0, first + count - size))]
        return [array[low:high, env] for env in range(buffer.n_envs) for low, high in bounds if high > low]

    def observations(title: str, arrays: Any, shift: int = 0) -> Any:
        if isinstance(arrays, dict):
            return {key: PiecesColumn(f"{title}[{key!r}]", pieces(array, shift)) for key, array in arrays.items()}
        return PiecesColumn(title, pieces(arrays, shift))

    before = observations("observations", buffer.observations)
    if buffer.optimize_memory_usage:
        after = observations("next_observations", buffer.observations, 1)
    else:
        after = observations("next_observations", buffer.next_observations)
    dones, cut = (np.concatenate(pieces(array)) > 0.5 for array in (buffer.dones, buffer.timeouts))
    # a stream ends where that of the next environment begins
    borders = dones.copy()
    borders[count - 1 :: count] = True
    first = begin_after(borders)
    recording = record(
        before,
        ActionsColumn(pieces(buffer.actions), buffer.action_space),
        PiecesColumn("rewards", pieces(buffer.rewards)),
        dones & ~cut,
        cut,
        first=first,
        successors=after,
    )
    recording.counted = ended(first, dones)
    if buffer.full:  # the first episode of a stream has lost its beginning
        episodes = np.cumsum(first)
        recording.counted &= ~np.isin(episodes, episodes[::count])
    source = DataSource("replay_buffer", name or "replay buffer", env_id=env_id)
    return Recorded(recording, source, buffer.observation_space, buffer.action_space)


def _stored(buffer: ReplayBuffer) -> tuple[int, int]:
    """Position of the oldest step, and number of steps of each environment."""
    if not buffer.full:
        return 0, buffer.pos
    if buffer.optimize_memory_usage:  # the newest observation has taken the place of the oldest one
        return (buffer.pos + 1) % buffer.buffer_size, buffer.buffer_size - 1
    return buffer.pos, buffer.buffer_size
