"""Data sets as files that any program reads, and no program runs."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gymnasium import spaces

from sb3_diffusion.data.stored.readers.files import require
from sb3_diffusion.data.stored.readers.npz import METADATA
from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.space_json import space_to_json
from sb3_diffusion.files import put_in_place

Columns = dict[str, np.ndarray]


def write(
    columns: Columns, source: DataSource, observation_space: spaces.Space, action_space: spaces.Space, path: Path
) -> Path:
    """
    :param columns: The transitions
    :param source: Where they come from
    :param observation_space: Observation space
    :param action_space: Action space
    :param path: The file
    :return: The file
    :raises ValueError: If the suffix is unknown, or the format cannot hold the data
    """
    check_suffix(path)
    texts = {
        "name": source.name,
        "env_id": source.env_id,
        "reference": source.reference,
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        WRITERS[path.suffix](columns, texts, partial)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_suffix(path: Path) -> None:
    """
    :param path: A file that is to be written
    :raises ValueError: If its name does not say a format that is known
    """
    if path.suffix not in WRITERS:
        raise ValueError(f"{path} does not say the format; let its name end with {', '.join(WRITERS)}.")


def _npz(columns: Columns, texts: Mapping[str, object], path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **columns, **{METADATA: np.array(json.dumps(texts))})  # type: ignore[arg-type]


def _hdf5(columns: Columns, texts: Mapping[str, object], path: Path) -> None:
    h5py = require("h5py", "offline", "Writing HDF5 files")
    if "observations" not in columns or columns["observations"].ndim != 2:
        raise ValueError("This layout holds flat observations only; let the name end with .npz.")
    names = {"terminated": "terminals", "truncated": "timeouts"}
    # episodes have no numbers in this layout: the end of each is one of the two flags
    ids = columns["episode_ids"]
    last = np.r_[ids[1:] != ids[:-1], True]
    columns = {**columns, "truncated": (columns["truncated"] | last) & ~columns["terminated"]}
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if name != "episode_ids":
                file.create_dataset(names.get(name, name), data=values, compression="gzip", shuffle=True)
        for name, text in texts.items():
            if isinstance(text, str):
                file[f"metadata/{name}"] = text


WRITERS: dict[str, Callable[[Columns, Mapping[str, object], Path], None]] = {".npz": _npz, ".hdf5": _hdf5, ".h5": _hdf5}
"""Suffix -> how it is written."""
