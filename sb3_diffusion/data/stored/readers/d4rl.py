"""
HDF5 files in D4RL's layout: all episodes in a row, ``observations, actions, rewards, terminals, timeouts``.

The observation after a step is that of the next row. Where an episode was cut by a time limit the next row belongs to another
episode, and that step is left out; so is the last row. Some files hold ``next_observations`` as well, with which these steps
can be kept.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffusion.data.stored.catalogue import known_file
from sb3_diffusion.data.stored.readers.files import Recorded, checksum, existing, naming
from sb3_diffusion.data.stored.readers.hdf5 import Hdf5Column, column, has, open_hdf5, text
from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.space_json import stored_space
from sb3_diffusion.data.stored.tables.columns import check_lengths, flag, flat
from sb3_diffusion.data.stored.tables.recording import Recording, begin_after, record, with_an_end
from sb3_diffusion.numeric import integer

NEEDED = ("observations", "actions", "rewards", "terminals")
LONGEST_SPACE = 1_000_000
"""Characters of a space as text."""


@contextlib.contextmanager
def open_d4rl(
    path: str | Path, *, keep_timeouts: bool = False, max_episode_steps: int | None = None, name: str | None = None
) -> Iterator[Recorded]:
    """
    :param path: The file
    :param keep_timeouts: Keep steps at which a time limit ended the episode; needs stored ``next_observations``
    :param max_episode_steps: Time limit, for files that do not say where it ended an episode
    :param name: What the data are called
    :return: What was recorded
    :raises ValueError: If the file is not what it should be
    """
    path = existing(path)
    known = known_file(path)
    if max_episode_steps is not None:
        max_episode_steps = integer("max_episode_steps", max_episode_steps, low=1)
    elif known is not None:
        max_episode_steps = known.max_episode_steps
    with naming(path), open_hdf5(path) as file:
        source = DataSource(
            "hdf5",
            name or (known.name if known else path.stem),
            str(path),
            checksum(path),
            known.env_id if known else text(file, "metadata/env_id"),
            known.reference if known else None,
        )
        texts = (text(file, f"metadata/{key}", LONGEST_SPACE) for key in ("observation_space", "action_space"))
        yield Recorded(_recording(file, keep_timeouts, max_episode_steps), source, *map(stored_space, texts))


def _recording(file: Any, keep_timeouts: bool, max_episode_steps: int | None) -> Recording:
    columns = {key: _needed(file, key) for key in NEEDED}
    optional = {key: column(file, key) for key in ("timeouts", "next_observations") if has(file, key)}
    n = check_lengths([*columns.values(), *optional.values()])
    for key in ("observations", "next_observations"):
        shape = {**columns, **optional}[key].shape if key in columns or key in optional else (n, 1)
        if len(shape) != 2:
            raise ValueError(
                f"{key} has shape {shape}, but this layout holds flat observations, (n, size), only; "
                "pass images to OfflineDataset.from_arrays."
            )
    terminated = flag(columns["terminals"])
    timeouts = flag(optional["timeouts"]) if "timeouts" in optional else _counted(terminated, max_episode_steps)
    truncated = timeouts & ~terminated
    observations, actions, rewards = columns["observations"], columns["actions"], flat(columns["rewards"])
    if keep_timeouts:
        if "next_observations" not in optional:
            raise ValueError("keep_timeouts=True needs the key next_observations, which is not there; leave it out.")
        return record(observations, actions, rewards, terminated, truncated, successors=optional["next_observations"])
    first, follows = begin_after(terminated | truncated), np.ones_like(terminated)
    follows[-1:] = False
    return Recording(
        observations,
        actions,
        rewards,
        terminated,
        truncated,
        first,
        counted=with_an_end(first, terminated | truncated),
        keep=follows & ~truncated,
        follows=follows,
    )


def _needed(file: Any, key: str) -> Hdf5Column:
    if not has(file, key):
        raise ValueError(f"there is no key {key!r}; the file has the keys {', '.join(file) or '(none)'}.")
    return column(file, key)


def _counted(terminated: np.ndarray, max_episode_steps: int | None) -> np.ndarray:
    """Where the time limit ended an episode, counted from the first row of each."""
    if max_episode_steps is None:
        raise ValueError(
            "there is no key 'timeouts', so that nobody knows where a time limit ended an episode; "
            "pass the limit of the task as max_episode_steps."
        )
    rows = np.arange(len(terminated), dtype=np.int64)
    starts = np.zeros_like(rows)
    starts[1:] = np.where(terminated[:-1], rows[1:], 0)
    age = rows - np.maximum.accumulate(starts)
    return age % max_episode_steps == max_episode_steps - 1
