"""What all readers of files do: look whether there is one, know it again, say in every error which one it was."""

import contextlib
import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gymnasium import spaces

from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.tables.recording import Recording


class Recorded(NamedTuple):
    """
    What a reader yields; the columns may be read as long as its file is open.

    :param recording: What was recorded
    :param source: Where it comes from
    :param observation_space: Observation space, if it is known
    :param action_space: Action space, if it is known
    """

    recording: Recording
    source: DataSource
    observation_space: spaces.Space | None = None
    action_space: Any = None

    def within(self, action_space: spaces.Box | None) -> "Recorded":
        """
        :param action_space: Bounds of the actions, ``None`` for those that the file says
        :return: The same with these bounds
        :raises ValueError: If the file says others
        """
        if action_space is None:
            return self
        if self.action_space not in (None, action_space):
            raise ValueError(
                f"action_space={action_space} contradicts {self.source.path}, whose actions are in {self.action_space}; leave "
                "it out, or take the environment that the data are from."
            )
        return self._replace(action_space=action_space)


def existing(path: str | Path) -> Path:
    """
    :param path: A file
    :return: The same
    :raises FileNotFoundError: If there is none
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(f"There is no file {file}; check the path, or pass the name of a known data set.")
    if not file.is_file():
        raise ValueError(f"{file} is no file; pass the path of a file of data.")
    return file


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """
    Errors say which file they are about.

    :param path: The file
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: its contents do not fit into memory ({error}).") from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); get it again.") from error


def checksum(*paths: Path) -> str:
    """
    :param paths: Files
    :return: SHA-256 of their contents, one after the other
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def require(module: str, extra: str, what: str) -> ModuleType:
    """
    :param module: A package that is not always there
    :param extra: The extra that brings it
    :param what: What it is needed for
    :return: The package
    :raises ImportError: If it is not installed
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(f"{what} needs {module}; install it with: pip install 'sb3_diffusion[{extra}]'") from error
