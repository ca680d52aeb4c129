"""
The settings with which a run was started.

``config.yml`` and ``args.yml`` are there to be read, and people edit them. What a run goes on with, and what is published of
it, is what it was started with: the copies in the folder ``started_with`` beside them.
"""

from pathlib import Path
from typing import Any

from sb3_diffusion.files import write_atomically

from .text_files import read_yaml

FOLDER = "started_with"
FILES = ("config.yml", "args.yml")
# What may differ between the machines on which one run is continued
_OF_THE_MACHINE = {"device", "num_threads", "progress", "verbose", "resume_freq", "log_folder"}


def keep(settings: Path) -> None:
    """
    :param settings: Folder of a run's settings, which have just been written
    """
    folder = settings / FOLDER
    folder.mkdir(exist_ok=True)
    for name in FILES:
        write_atomically(folder / name, (settings / name).read_bytes())


def original(settings: Path) -> Path:
    """
    :param settings: Folder of a run's settings
    :return: Folder with the ``config.yml`` and ``args.yml`` that the run was started with: the same one for runs of earlier
        versions, which kept no copy
    """
    folder = settings / FOLDER
    return folder if all((folder / name).is_file() for name in FILES) else settings


def changes(settings: Path) -> list[str]:
    """
    :param settings: Folder of a run's settings
    :return: What was edited since the run was started, such as ``config.yml: learning_rate 0.001 (was 0.0003)``
    """
    before = original(settings)
    return [] if before == settings else [line for name in FILES for line in _changes(before / name, settings / name)]


def _changes(before: Path, now: Path) -> list[str]:
    if not now.is_file():
        return [f"{now.name} is missing"]
    try:
        old, new = read_yaml(before), read_yaml(now)
    except ValueError:  # with objects of Python in it, which are not built to be compared
        return [] if before.read_bytes() == now.read_bytes() else [f"{now.name} was edited"]
    return [
        f"{now.name}: {key} {_value(new, key, 'removed')} ({_value(old, key, 'added', 'was ')})"
        for key in sorted({*old, *new})
        if key not in _OF_THE_MACHINE and ((key in old) != (key in new) or old.get(key) != new.get(key))
    ]


def _value(settings: dict[str, Any], key: str, absent: str, prefix: str = "") -> str:
    return f"{prefix}{settings[key]!r}" if key in settings else absent
