"""
OGBench's ``.npz`` files: ``observations, actions, terminals``, where the last row of an episode is a state without a step,
and rewards that depend on the task.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffusion.data.stored import catalogue
from sb3_diffusion.data.stored.readers.files import Recorded, checksum, existing, naming, require
from sb3_diffusion.data.stored.readers.npz import Npz, open_archive
from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.tables.columns import ArrayColumn, Column, check_lengths, flag, flat, whole
from sb3_diffusion.data.stored.tables.recording import Recording, begin_after, with_an_end
from sb3_diffusion.numeric import integer, optional


def has_ogbench_layout(path: Path) -> bool:
    """
    :param path: An ``.npz`` file
    :return: Whether it is one of OGBench's, whose rewards have to be chosen or computed
    """
    with naming(path), open_archive(path) as npz:
        keys = set(npz.keys)
    return {"observations", "actions", "terminals"} <= keys and "rewards" not in keys


@contextlib.contextmanager
def open_ogbench(path: str | Path, *, task: int | None = None, name: str | None = None) -> Iterator[Recorded]:
    """
    :param path: The file
    :param task: Number of the task whose rewards are used, from 1 on; by default OGBench's own choice
    :param name: Name of the data set, if it is not that of the file
    :return: What was recorded
    :raises ValueError: If the file is not what it should be
    """
    path, task = existing(path), optional(integer, "task", task, 1, 5)
    known = catalogue.ogbench(name or path.stem, task)
    if known is None and task is None:
        raise ValueError(f"{path} is not named as OGBench's data sets are, so that its task is unknown; pass task.")
    task = known.task if known else task
    with naming(path), open_archive(path) as npz:
        observations, actions, last = npz.column("observations"), npz.column("actions"), npz.column("terminals")
        rewards, solved = _task(npz, task, known.env_id if known else None)
        check_lengths([observations, actions, last, rewards])
        ends = flag(last)
        first, steps = begin_after(ends), ~ends
        steps[-1:] = False  # a file that was cut: the last state has no successor either
        cut = np.zeros_like(ends)
        cut[:-1] = ends[1:]
        recording = Recording(
            observations,
            actions,
            rewards,
            terminated=solved,
            truncated=cut & ~solved,
            first=first,
            counted=with_an_end(first, ends) & steps,
            keep=steps,
            follows=steps.copy(),
        )
        source = DataSource(
            "ogbench", known.name if known else name or path.stem, str(path), checksum(path), known.env_id if known else None
        )
        yield Recorded(recording, source)


def _task(npz: Npz, task: int | None, env_id: str | None) -> tuple[Column, np.ndarray]:
    """Rewards of a task, and where it is solved; that, and not the end of a recording, is where nothing follows."""
    if f"rewards_task{task}" in npz.keys:
        return flat(npz.column(f"rewards_task{task}")), ~flag(npz.column(f"masks_task{task}"))
    if env_id is None or "qpos" not in npz.keys:
        stored = [key for key in npz.keys if key.startswith("rewards_task")]
        raise ValueError(
            f"there are no rewards of task={task}: the file holds {', '.join(stored) or 'no rewards'}, and others "
            "are computed from the key qpos and the environment only."
        )
    require("ogbench", "ogbench", f"Computing the rewards of task={task}")
    relabel = require("ogbench.relabel_utils", "ogbench", "").relabel_dataset
    gym = require("gymnasium", "ogbench", "")
    data: dict[str, Any] = {key: whole(npz.column(key)) for key in ("qpos", "button_states") if key in npz.keys}
    env = gym.make(env_id)
    try:
        relabel(env_id, env, data)
    finally:
        env.close()
    return ArrayColumn(f"rewards of task {task}", data["rewards"]), np.asarray(data["masks"]) < 0.5
