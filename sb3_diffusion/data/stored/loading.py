"""One function for all data: by name, by id or by file."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_diffusion.data.stored.catalogue import KNOWN, find, locate, ogbench
from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.data.stored.readers.minari import PREFIX
from sb3_diffusion.data.stored.readers.ogbench import has_ogbench_layout
from sb3_diffusion.names import suggest

HDF5 = (".hdf5", ".h5", ".hdf")


def load_dataset(name_or_path: str | Path, **options: Any) -> OfflineDataset:
    """
    Data by name (``"hopper-medium-v2"``, ``"rlzoo/hopper/mixed-v0"``, ``"cube-single-noisy-singletask-task2-v0"``), by the id
    of Minari (``"minari:mujoco/hopper/medium-v0"``), or by the path of a file (D4RL's layout in ``.hdf5``, ours or OGBench's
    in ``.npz``) or of a folder of Minari's. Nothing is downloaded.

    :param name_or_path: Name, id or path
    :param options: Arguments of the class method of :class:`~sb3_diffusion.data.stored.dataset.OfflineDataset` that reads the
        form
    :return: The data
    :raises TypeError: If it is neither a text nor a path
    :raises FileNotFoundError: If a file is missing, saying where it was looked for and how to get it
    :raises ValueError: If there is no such name, or the file is not what it should be
    """
    if not isinstance(name_or_path, str | Path):
        raise TypeError(
            f"{str(name_or_path)[:100]!r} is no name or path of data but a {type(name_or_path).__name__}; pass one, or an "
            "OfflineDataset where a dataset is asked for (OfflineDataset.from_arrays makes one of arrays)."
        )
    text = str(name_or_path)
    if text.startswith(PREFIX):
        return _read(OfflineDataset.from_minari, text, options)
    if not isinstance(name_or_path, Path) and (text in KNOWN or ogbench(text, options.get("task"))):
        return _by_name(text, options)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _read(OfflineDataset.from_minari, path, options)
    if path.suffix in HDF5:
        return _read(OfflineDataset.from_d4rl_hdf5, path, options)
    if path.suffix == ".npz":
        reader = OfflineDataset.from_ogbench if path.is_file() and has_ogbench_layout(path) else OfflineDataset.from_npz
        return _read(reader, path, options)
    if path.suffix == ".pkl":
        raise ValueError(
            f"{path} is a pickle, which runs whatever is in it when it is read, and is never opened here. Load a replay "
            "buffer with model.load_replay_buffer(path) if you trust it, and pass model.replay_buffer to "
            "OfflineDataset.from_replay_buffer."
        )
    raise ValueError(
        f"{text!r} is no name of a data set, no id ({PREFIX}...), no file ({', '.join(HDF5)}, .npz) and no folder; "
        f"{suggest(text, KNOWN, 'python zoo/data.py list shows the names.')}"
    )


def _by_name(name: str, options: dict[str, Any]) -> OfflineDataset:
    known = ogbench(name, options.get("task")) or find(name)
    path = locate(known)
    if known.kind == "ogbench":
        return _read(OfflineDataset.from_ogbench, path, {**options, "name": known.name, "task": known.task})
    return _read(OfflineDataset.from_d4rl_hdf5, path, {"name": known.name, **options})


def _read(reader: Callable[..., OfflineDataset], source: Any, options: dict[str, Any]) -> OfflineDataset:
    known = [
        name for name, parameter in inspect.signature(reader).parameters.items() if parameter.kind == parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{source} is read by OfflineDataset.{reader.__name__}, which has no option {name!r}; {suggest(name, known)}"
            )
    return reader(source, **options)
