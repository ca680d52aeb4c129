"""The folder of a run: which ones there are, how a new one is claimed, who holds it."""

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLease
from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings

from ...lease import Taken, living_owner, take

LOCK = "run.lease"
_WORTH = re.compile(r".+\.zip|evaluations\.npz|final_evaluation\.json|replay_buffer\.pkl")
"""What a training leaves after its first steps; a folder without any of it holds nothing that a new start would not write."""


@dataclass(frozen=True)
class Name:
    """
    Name of a run's folder: ``Hopper-v5_3``, or with ``-uuid`` ``Hopper-v5_3_1b4e28ba-...``.

    :param env: Environment, as it is written in names of files
    :param number: Number of the run
    :param suffix: What follows the number
    """

    env: str
    number: int
    suffix: str = ""

    def __str__(self) -> str:
        return f"{self.env}_{self.exp_id}"

    @property
    def exp_id(self) -> str:
        """Value of ``--exp-id`` that means this run."""
        return f"{self.number}{self.suffix}"

    @staticmethod
    def parse(name: str, env: str) -> "Name | None":
        """
        :param name: Name of a folder
        :param env: Environment
        :return: ``None`` if that is no run in this environment
        """
        match = re.fullmatch(re.escape(env) + r"_(\d+)(_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?", name)
        return None if match is None else Name(env, int(match[1]), match[2] or "")


def run_folders(parent: str | Path, env_id: str) -> list[Path]:
    """
    :param parent: Folder of an algorithm, such as ``logs/dacer``
    :param env_id: Environment
    :return: Folders of its runs, with and without ``-uuid``, the newest first
    """
    env = str(EnvironmentName(env_id))
    found = [
        (name.number, path.stat().st_mtime, path)
        for path in Path(parent).glob("*_*")
        if (name := Name.parse(path.name, env)) is not None and path.is_dir()
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


@dataclass
class RunFolder:
    """
    A run's folder that belongs to this process until :meth:`release`.

    :param path: The folder
    :param made: Folders that were made for it, the innermost first; empty for the folder of an earlier run
    """

    path: Path
    made: list[Path] = field(default_factory=list)
    _lock: SoftFileLease | None = None

    @classmethod
    def claim(cls, parent: str | Path, env_id: str, suffix: str = "") -> "RunFolder":
        """
        Make the folder of a new run. Of several processes that do so at once each gets one of its own.

        :param parent: Folder of the algorithm
        :param env_id: Environment
        :param suffix: What follows the number, see :class:`Name`
        """
        parent = Path(parent)
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        env, path = str(EnvironmentName(env_id)), None
        while path is None:
            names = [Name.parse(entry.name, env) for entry in parent.iterdir()]
            last = max((name.number for name in names if name is not None), default=0)
            path = make(parent, str(Name(env, last + 1, suffix)))
        folder = cls(path, [path, *made])
        folder._hold()
        return folder

    @classmethod
    def reopen(cls, path: str | Path) -> "RunFolder":
        """
        Hold the folder of an earlier run, to go on in it.

        :param path: The folder
        :raises ValueError: If a living process holds it; the message names the process
        """
        folder = cls(Path(path))
        folder._hold()
        return folder

    def _hold(self) -> None:
        try:
            self._lock = take(self.path / LOCK)
        except Taken as owner:
            raise ValueError(
                f"{self.path} is being trained by {owner}; stop that training first, or wait for its end."
            ) from None
        except OSError as error:
            raise ValueError(f"{self.path} cannot be locked ({error}); a training needs to write there.") from None

    @property
    def lost(self) -> bool:
        """Whether another process has taken this one for dead, and goes on in its place."""
        compromise = None if self._lock is None else self._lock.compromise
        return compromise is not None and compromise.reason == "owner-changed"

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Let go, and remove the folder again if this process made it and nothing in it is of worth."""
        self.release()
        if not self.made or not self.path.is_dir():
            return
        if any(_WORTH.fullmatch(path.name) for path in self.path.rglob("*")):
            return
        for path in sorted(self.path.rglob("*"), reverse=True):  # what is inside a folder comes before it
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        with contextlib.suppress(OSError):  # somebody else's run may be in there by now
            for folder in self.made:
                folder.rmdir()


def owner(path: str | Path) -> str | None:
    """
    :param path: Folder of a run
    :return: The process that is training in it, in words; ``None`` if there is none
    """
    return living_owner(Path(path, LOCK))


def make(parent: Path, name: str) -> Path | None:
    """
    :param parent: An existing folder
    :param name: Name of a new folder in it
    :return: The folder, ``None`` if somebody else was faster
    """
    path = parent / name
    try:
        os.mkdir(path)
    except FileExistsError:
        return None
    return path
