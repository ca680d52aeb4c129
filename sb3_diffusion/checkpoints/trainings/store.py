"""A folder of checkpoints that survives crashes: every file is complete or absent, and damage is noticed."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_diffusion.files import write_atomically
from sb3_diffusion.numeric import integer

FORMAT = 2
"""Of the parts; 1 had another dialect in its JSON, which is still read."""
_MANIFEST = re.compile(r"checkpoint_(\d+)(?:_(\d+))?\.json")
_PART = re.compile(r".+-[0-9a-f]{16}(\.\w+)?|.+\.part")

Entry = dict[str, Any]
"""``file``, ``size`` and ``sha256`` of a part."""


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing or does not have the content that was written."""


@dataclass
class Checkpoint:
    """
    A checkpoint on disk.

    :param folder: Folder of the store
    :param step: Number of environment steps
    :param parts: Files by their names
    :param format: Number of the format in which it was written
    :param updates: Number of updates, the second clock of a training
    """

    folder: Path
    step: int
    parts: dict[str, Entry]
    format: int = FORMAT
    updates: int = 0

    def read(self, name: str) -> bytes:
        """
        :param name: Name of a part
        :return: Its content
        :raises DamagedCheckpoint: If that is not what was written
        """
        entry = self.parts[name]
        path = self.folder / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error
        if len(content) != entry["size"]:
            raise DamagedCheckpoint(f"{path} has {len(content)} bytes instead of {entry['size']}")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DamagedCheckpoint(f"the checksum of {path} is wrong")
        return content

    def verify(self) -> None:
        """
        Read every part.

        :raises DamagedCheckpoint: If one of them is not what was written
        """
        for name in self.parts:
            self.read(name)


class CheckpointStore:
    """
    Rolling checkpoints. A part that did not change since the previous checkpoint is not written again.

    The parts are written first, under names that contain their checksums; the manifest that lists them follows last.

    :param folder: Where; is created when the first checkpoint is written
    :param keep: Number of checkpoints to keep
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = integer("keep", keep, low=1)

    def save(self, step: int, parts: Iterable[tuple[str, bytes | Entry]], updates: int = 0) -> Checkpoint:
        """
        Write a checkpoint, and remove the oldest beyond ``keep``.

        :param step: Number of environment steps
        :param parts: Names, and contents or (for a part of the previous checkpoint that belongs to this one, too) entries
        :param updates: Number of updates: two checkpoints at one step, with updates in between, are two checkpoints
        :return: The checkpoint
        :raises OSError: If it cannot be written; earlier checkpoints are intact then
        """
        entries: dict[str, Entry] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in parts:
                entries[name] = self._write_part(name, content) if isinstance(content, bytes) else content
            body = {"format": FORMAT, "step": step, "updates": updates, "parts": entries}
            manifest = json.dumps({"sha256": _body_digest(body), "body": body}, indent=1).encode()
            write_atomically(self.folder / f"checkpoint_{step:012d}_{updates:012d}.json", manifest)
        finally:
            self.remove_unused()
        return Checkpoint(self.folder, step, entries, updates=updates)

    def _write_part(self, name: str, content: bytes) -> Entry:
        digest = hashlib.sha256(content).hexdigest()
        stem, suffix = os.path.splitext(name)
        path = self.folder / f"{stem}-{digest[:16]}{suffix}"
        if not path.is_file() or path.stat().st_size != len(content):
            write_atomically(path, content)
        return {"file": path.name, "size": len(content), "sha256": digest}

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """
        The newest checkpoint whose files are all intact. A question: nothing is removed, see :meth:`remove_newer`.

        :return: The checkpoint or ``None``, and one line per damaged checkpoint that is newer
        """
        problems: list[str] = []
        for manifest in self._manifests():
            try:
                checkpoint = self._open(manifest)
                checkpoint.verify()
            except DamagedCheckpoint as error:
                problems.append(f"checkpoint {_clocks(manifest)[0]} is damaged: {error}")
                continue
            return checkpoint, problems
        return None, problems

    def remove_newer(self, checkpoint: Checkpoint) -> None:
        """
        Remove the checkpoints behind one, once a training goes on from there: they would count as the newest.

        :param checkpoint: The checkpoint
        """
        for manifest in self._manifests():
            if _clocks(manifest) > (checkpoint.step, checkpoint.updates):
                manifest.unlink()
        self.remove_unused()

    def _manifests(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.folder.glob("checkpoint_*.json") if _MANIFEST.fullmatch(path.name)]
        return sorted(found, key=_clocks, reverse=True)

    def __len__(self) -> int:
        return len(self._manifests())

    def steps(self) -> list[int]:
        """Steps of the checkpoints in ascending order, whether or not they are intact."""
        return sorted(_clocks(manifest)[0] for manifest in self._manifests())

    def _open(self, manifest: Path) -> Checkpoint:
        try:
            content = json.loads(manifest.read_bytes())
            body = content["body"]
            intact = content["sha256"] == _body_digest(body)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{manifest} cannot be read ({type(error).__name__})") from error
        if not intact:
            raise DamagedCheckpoint(f"the checksum of {manifest} is wrong")
        if body["format"] not in (1, FORMAT):
            raise DamagedCheckpoint(f"{manifest} has format {body['format']}, this version reads formats 1 and {FORMAT}")
        return Checkpoint(self.folder, body["step"], body["parts"], body["format"], body.get("updates", 0))

    def remove_unused(self) -> None:
        """Remove checkpoints beyond ``keep``, and files that belong to none."""
        manifests = self._manifests()
        for manifest in manifests[self.keep :]:
            manifest.unlink()
        used: set[str] = set()
        for manifest in manifests[: self.keep]:
            with contextlib.suppress(DamagedCheckpoint):  # latest() says so
                used.update(entry["file"] for entry in self._open(manifest).parts.values())
        for path in self.folder.glob("*"):
            if path.name not in used and _PART.fullmatch(path.name):
                path.unlink()

    def clear(self) -> None:
        """Remove all checkpoints."""
        for manifest in self._manifests():
            manifest.unlink()
        self.remove_unused()


def _body_digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _clocks(manifest: Path) -> tuple[int, int]:
    """Environment steps, and updates (0 in the names that earlier versions gave)."""
    match = _MANIFEST.fullmatch(manifest.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)
