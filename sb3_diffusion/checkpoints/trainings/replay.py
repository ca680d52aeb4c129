"""The contents of replay buffers, stored in pieces: each checkpoint adds the rows that are new."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_diffusion.checkpoints.trainings.restoration import Restoration
from sb3_diffusion.checkpoints.trainings.snapshot import Node, Snapshot
from sb3_diffusion.checkpoints.trainings.store import Checkpoint, Entry
from sb3_diffusion.data.replay import TensorReplayBuffer

_PIECE_BYTES = 64 * 2**20
_APPENDED_ONLY = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)

Piece = dict[str, Any]
"""``part``, ``start`` and ``count`` of consecutive positions of a replay buffer."""


class ReplayPieces:
    """
    The contents of a replay buffer in pieces, each with the rows that were added between two checkpoints.

    :param buffer: The buffer
    """

    def __init__(self, buffer: Any):
        self.buffer = buffer
        self._pieces: list[Piece] = []
        self._num_timesteps = 0
        self._next: tuple[list[Piece], int] = [], 0
        # other classes may change rows that they stored before
        self._appended_only = type(buffer) in _APPENDED_ONLY or isinstance(buffer, TensorReplayBuffer)

    def parts(self, num_timesteps: int, previous: Checkpoint | None) -> Iterator[tuple[str, bytes | Entry]]:
        """
        :param num_timesteps: Environment steps so far
        :param previous: The last checkpoint that was written or restored
        :return: The pieces of the next checkpoint
        """
        arrays = _rings(self.buffer)
        longest = max(1, _PIECE_BYTES // sum(array[:1].nbytes for array in arrays.values()))
        old = self._pieces if self._appended_only else []
        new: list[Piece] = []
        for start, end in self._new_ranges(num_timesteps) if old else [(0, self._n_used())]:
            for first in range(start, end, longest):
                count = min(longest, end - first)
                new.append({"part": f"replay{num_timesteps:012d}_{len(new)}.npz", "start": first, "count": count})
        pieces = self._without_overwritten([*old, *new])
        for piece in pieces:
            if piece in new:
                stream = io.BytesIO()
                rows: dict[str, Any] = {key: array[_rows(piece)] for key, array in arrays.items()}
                np.savez(stream, **rows)
                yield piece["part"], stream.getvalue()
            else:
                assert previous is not None
                yield piece["part"], previous.parts[piece["part"]]
        self._next = pieces, num_timesteps

    def _n_used(self) -> int:
        buffer = self.buffer
        return buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)

    def _new_ranges(self, num_timesteps: int) -> list[tuple[int, int]]:
        """Ranges of positions that were written since the last checkpoint."""
        buffer = self.buffer
        added = (num_timesteps - self._num_timesteps) // buffer.n_envs
        if added >= buffer.buffer_size:
            return [(0, buffer.buffer_size)]
        # with optimize_memory_usage the newest next observation lies behind the last row
        start, end = buffer.pos - added, buffer.pos + bool(buffer.optimize_memory_usage)
        return [(start, end)] if start >= 0 else [(start + buffer.buffer_size, buffer.buffer_size), (0, end)]

    def _without_overwritten(self, pieces: list[Piece]) -> list[Piece]:
        needed: list[Piece] = []
        covered = np.zeros(self.buffer.buffer_size, dtype=bool)
        for piece in reversed(pieces):
            if not covered[_rows(piece)].all():
                needed.insert(0, piece)
            covered[_rows(piece)] = True
        return needed

    def written(self) -> None:
        """Tell that the last :meth:`parts` have reached the disk."""
        self._pieces, self._num_timesteps = self._next

    def describe(self) -> Node:
        """Description of the buffer without the rows, after :meth:`parts`."""
        return {"attributes": buffer_attributes(self.buffer).node, "pieces": self._next[0]}

    def restore(self, node: Node, checkpoint: Checkpoint, num_timesteps: int) -> None:
        """
        :param node: What :meth:`describe` returned
        :param checkpoint: Where the pieces are
        :param num_timesteps: Environment steps of the checkpoint
        """
        arrays, size = _rings(self.buffer), self.buffer.buffer_size
        if mismatches := Restoration(self.buffer, node["attributes"]).mismatches:
            raise ValueError(
                f"The checkpoint is one of another replay buffer: {'; '.join(mismatches)}. Build the same replay buffer again."
            )
        if self.buffer.buffer_size != size:
            raise ValueError(
                f"The checkpoint is one of a replay buffer for {self.buffer.buffer_size} steps, not {size}; build the same."
            )
        for piece in node["pieces"]:
            with np.load(io.BytesIO(checkpoint.read(piece["part"])), allow_pickle=False) as stored:
                for key, array in arrays.items():
                    array[_rows(piece)] = stored[key]
        self._pieces, self._num_timesteps = list(node["pieces"]), num_timesteps


def _rings(buffer: Any) -> dict[str, np.ndarray]:
    """Arrays with one entry per position and environment."""
    if isinstance(buffer, TensorReplayBuffer):
        return {"rows": buffer.raw_rows}
    found = {name: value for name, value in vars(buffer).items() if _is_ring(value, buffer)}
    for name, value in vars(buffer).items():
        if isinstance(value, dict):
            found.update({f"{name}/{key}": item for key, item in value.items() if _is_ring(item, buffer)})
    return found


def _rows(piece: Piece) -> slice:
    return slice(piece["start"], piece["start"] + piece["count"])


def _is_ring(value: Any, buffer: Any) -> bool:
    shape = (buffer.buffer_size, buffer.n_envs)
    return isinstance(value, np.ndarray) and value.shape[:2] == shape and not value.dtype.hasobject


def buffer_attributes(buffer: Any) -> Snapshot:
    """
    :param buffer: A replay buffer
    :return: Description of it without its rows
    """
    tensors = isinstance(buffer, TensorReplayBuffer)

    def skip(owner: Any, name: str, value: Any) -> bool:
        if owner is not buffer:
            return False
        if name in ("env", "infos", "observation_space", "action_space") or (tensors and name.startswith("_")):
            return True
        items = value.values() if isinstance(value, dict) else [value]
        return any(_is_ring(item, buffer) for item in items)

    return Snapshot(buffer, skip=skip)


def end_episodes(buffer: Any) -> None:
    """
    Cut the unfinished episodes as if by a time limit.

    :param buffer: A replay buffer
    """
    if buffer.size() == 0:
        return
    if isinstance(buffer, HerReplayBuffer):
        buffer.truncate_last_trajectory()
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    open_ends = buffer.dones[last] == 0.0
    if buffer.handle_timeout_termination:
        buffer.timeouts[last][open_ends] = 1.0
    buffer.dones[last][open_ends] = 1.0
