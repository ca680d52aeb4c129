"""
Minari's data sets: a folder with one group of arrays per episode, in which observations have one row more than actions.

HDF5 is read with h5py alone. Arrow, Parquet and images, which are kept as JPEG, are read by Minari's own package.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_diffusion.data.stored.readers.files import Recorded, checksum, naming, require
from sb3_diffusion.data.stored.readers.hdf5 import column, find, open_hdf5
from sb3_diffusion.data.stored.source import DataSource, ReferenceScores
from sb3_diffusion.data.stored.space_json import space_from_json
from sb3_diffusion.data.stored.tables.columns import check_type
from sb3_diffusion.data.stored.tables.recording import Recording, begin_after

PREFIX = "minari:"
_DEEPEST = 3


class Episode(NamedTuple):
    """
    Arrays of an episode of ``T`` steps, anything with a shape and a type that can be sliced.

    :param name: What error messages call it
    :param observations: ``(T + 1, ...)``, or a dictionary of such
    :param actions: ``(T, ...)``
    :param rewards: ``(T,)``
    :param terminations: ``(T,)``
    :param truncations: ``(T,)``
    """

    name: str
    observations: Any
    actions: Any
    rewards: Any
    terminations: Any
    truncations: Any


class EpisodesColumn:
    """
    A quantity of all episodes, one after the other, each with one row more than it has steps.

    :param name: What error messages call it
    :param episodes: All episodes, as often as asked for
    :param lengths: Number of steps of each
    :param quantity: Its parts in an episode, which are joined if they are several
    """

    unit = 1

    def __init__(
        self,
        name: str,
        episodes: Callable[[], Iterator[Episode]],
        lengths: np.ndarray,
        quantity: Callable[[Episode], Sequence[Any]],
    ):
        self.name, self._episodes, self._lengths, self._quantity = name, episodes, lengths, quantity
        parts = quantity(next(episodes()))
        self.dtype = np.result_type(*(np.dtype(part.dtype) for part in parts))
        tail = tuple(parts[0].shape[1:]) if len(parts) == 1 else (sum(int(np.prod(part.shape[1:])) for part in parts),)
        self.shape = (int(lengths.sum()) + len(lengths), *tail)
        check_type(self)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows, episode by episode.

        :param rows: Not used: an episode is never large
        """
        for episode, length in zip(self._episodes(), self._lengths, strict=True):
            parts = [np.asarray(part[:]) for part in self._quantity(episode)]
            for part in parts:
                if len(part) not in (length, length + 1):
                    raise ValueError(
                        f"{self.name} of {episode.name} has {len(part):,} rows, but the episode {length:,} steps."
                    )
            block = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
            if block.shape[1:] != self.shape[1:]:
                raise ValueError(
                    f"{self.name} of {episode.name} has shape {block.shape}, in other episodes (n, *{self.shape[1:]})."
                )
            yield block
            if len(block) == length:  # there is nothing in the last row, and nobody reads it
                yield np.zeros_like(block[:1])


def dataset_folder(id_or_path: str | Path) -> Path:
    """
    :param id_or_path: Id such as ``"mujoco/hopper/medium-v0"``, with ``minari:`` before it or not, or the folder itself
    :return: The folder
    :raises FileNotFoundError: If there is none, saying how to get it
    """
    name = str(id_or_path).removeprefix(PREFIX)
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    for folder in (Path(name).expanduser(), root / name):
        if (folder / "data").is_dir():
            return folder
    raise FileNotFoundError(
        f"The Minari data set {name} was looked for as {root / name} (set MINARI_DATASETS_PATH to another root). "
        f"It is downloaded by: python zoo/data.py download {PREFIX}{name}."
    )


@contextlib.contextmanager
def open_minari(
    id_or_path: str | Path,
    *,
    observation_keys: Sequence[str] | None = None,
    concatenate: bool = False,
    name: str | None = None,
) -> Iterator[Recorded]:
    """
    :param id_or_path: Id or folder
    :param observation_keys: Keys of Dict observations that are read, in this order; by default all
    :param concatenate: Join the keys to one vector
    :param name: What the data are called
    :return: What was recorded
    :raises ValueError: If the data are not what they should be
    """
    folder = dataset_folder(id_or_path)
    data = folder / "data"
    with naming(folder), contextlib.ExitStack() as stack:
        form = _metadata(data)
        space = space_from_json(form["observation_space"]) if "observation_space" in form else None
        actions = space_from_json(form["action_space"]) if "action_space" in form else None
        if form.get("data_format", "hdf5") == "hdf5" and not _has_images(space):
            file = stack.enter_context(open_hdf5(data / "main_data.hdf5"))
            names = _episode_names(file)
            episodes, lengths = _hdf5_episodes(file, names)
        else:
            episodes, lengths = _with_package(data)
        if not len(lengths):
            raise ValueError("there are no episodes, and so no transitions.")
        before, space = _observations(episodes, lengths, space, observation_keys, concatenate)
        low, high = form.get("ref_min_score"), form.get("ref_max_score")
        source = DataSource(
            "minari",
            name or str(form.get("dataset_id") or folder.name),
            str(folder),
            checksum(*sorted(path for path in data.rglob("*") if path.is_file())),
            _env_id(form),
            None if low is None or high is None else ReferenceScores(float(low), float(high), 1.0, "Minari"),
        )
        yield Recorded(_recording(episodes, lengths, before), source, space, actions)


def _metadata(data: Path) -> dict[str, Any]:
    """What is known of the data; until release 0.4 it was kept in the file of the data."""
    if (data / "metadata.json").is_file():
        form = json.loads((data / "metadata.json").read_text(encoding="utf-8"))
        if not isinstance(form, dict):
            raise ValueError("metadata.json holds no object.")
        return form
    with open_hdf5(data / "main_data.hdf5") as file:
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}


def _env_id(form: dict[str, Any]) -> str | None:
    for key in ("eval_env_spec", "env_spec"):
        with contextlib.suppress(TypeError, ValueError, KeyError):
            return str(json.loads(form[key])["id"])
    return None


def _recording(episodes: Callable[[], Iterator[Episode]], lengths: np.ndarray, observations: Any) -> Recording:
    steps = np.ones(int(lengths.sum()) + len(lengths), dtype=bool)
    last = np.cumsum(lengths + 1) - 1
    steps[last] = False

    def numeric(name: str) -> EpisodesColumn:
        return EpisodesColumn(name, episodes, lengths, lambda episode: [getattr(episode, name)])

    def flags(name: str) -> np.ndarray:
        return np.concatenate([block.reshape(len(block)) for block in numeric(name).blocks(0)]) > 0.5

    def describe(row: int) -> str:
        number = int(np.searchsorted(last, row))
        return f"episode {number}, step {row - (last - lengths)[number]}"

    terminated = flags("terminations")
    return Recording(
        observations,
        numeric("actions"),
        numeric("rewards"),
        terminated,
        flags("truncations") & ~terminated,
        begin_after(~steps),
        counted=steps,
        keep=steps,
        follows=steps.copy(),
        describe=describe,
    )


# -- observations ----------------------------------------------------------------------------------------------------------


def _observations(
    episodes: Callable[[], Iterator[Episode]],
    lengths: np.ndarray,
    space: spaces.Space | None,
    keys: Sequence[str] | None,
    concatenate: bool,
) -> tuple[Any, spaces.Space | None]:
    """Columns of the observations, and their space."""
    first = next(episodes()).observations
    if not isinstance(first, dict):
        if keys is not None or concatenate:
            raise ValueError(
                "observation_keys and concatenate are for Dict observations, which these are not; leave them out."
            )
        return EpisodesColumn("observations", episodes, lengths, lambda episode: [episode.observations]), space
    keys = list(first) if keys is None else list(keys)
    for key in keys:
        if key not in first:
            raise ValueError(f"observation_keys={keys} has {key!r}, but the observations have the keys {', '.join(first)}.")
        if isinstance(first[key], dict):
            raise ValueError(
                f"observations[{key!r}] is a dictionary itself, which no policy reads; choose other observation_keys."
            )
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    if concatenate:
        joined = EpisodesColumn("observations", episodes, lengths, lambda episode: [episode.observations[key] for key in keys])
        return joined, _joined_space([parts.get(key) for key in keys])
    columns = {key: EpisodesColumn(f"observations/{key}", episodes, lengths, _entry(key)) for key in keys}
    return columns, spaces.Dict({key: parts[key] for key in keys}) if parts else None


def _entry(key: str) -> Callable[[Episode], Sequence[Any]]:
    return lambda episode: [episode.observations[key]]


def _joined_space(parts: list[Any]) -> spaces.Space | None:
    if not all(isinstance(part, spaces.Box) for part in parts):
        return None
    low, high = (np.concatenate([np.float32(getattr(part, bound)).reshape(-1) for part in parts]) for bound in ("low", "high"))
    return spaces.Box(low, high, dtype=np.float32)


def _has_images(space: spaces.Space | None) -> bool:
    """Whether Minari keeps an observation as a compressed picture."""
    if isinstance(space, spaces.Dict):
        return any(map(_has_images, space.values()))
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


# -- HDF5 ------------------------------------------------------------------------------------------------------------------


def _episode_names(file: Any) -> list[str]:
    numbers = [key.removeprefix("episode_") for key in file if key.startswith("episode_")]
    # as text, episode_10 comes before episode_2
    return [f"episode_{number}" for number in sorted(numbers, key=int)]


def _hdf5_episodes(file: Any, names: list[str]) -> tuple[Callable[[], Iterator[Episode]], np.ndarray]:
    lengths = [column(file, f"{name}/rewards").shape[0] for name in names]
    return lambda: (_hdf5_episode(file, name) for name in names), np.array(lengths, np.int64)


def _hdf5_episode(file: Any, name: str) -> Episode:
    arrays = (_Slices(column(file, f"{name}/{key}")) for key in ("actions", "rewards", "terminations", "truncations"))
    return Episode(name, _hdf5_observations(file, f"{name}/observations", _DEEPEST), *arrays)


def _hdf5_observations(file: Any, key: str, depth: int) -> Any:
    found = find(file, key)
    if hasattr(found, "keys") and depth:
        return {part: _hdf5_observations(file, f"{key}/{part}", depth - 1) for part in found}
    return _Slices(column(file, key))


class _Slices:
    """A column that is read when it is sliced."""

    def __init__(self, source: Any):
        self._source, self.shape, self.dtype = source, source.shape, source.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return next(itertools.chain(self._source.blocks(max(1, self.shape[0])), [np.empty(self.shape, self.dtype)]))[rows]


# -- other formats ---------------------------------------------------------------------------------------------------------


def _with_package(data: Path) -> tuple[Callable[[], Iterator[Episode]], np.ndarray]:
    require("minari", "minari", "Reading this Minari data set")
    storage = require("minari.dataset.minari_storage", "minari", "").MinariStorage.read(data)
    numbers = range(storage.total_episodes)
    lengths = [metadata["total_steps"] for metadata in storage.get_episode_metadata(numbers)]

    def episodes() -> Iterator[Episode]:
        for number, episode in zip(numbers, storage.get_episodes(numbers), strict=True):
            arrays = (np.asarray(episode[key]) for key in ("actions", "rewards", "terminations", "truncations"))
            yield Episode(f"episode {number}", episode["observations"], *arrays)

    return episodes, np.array(lengths, np.int64)
