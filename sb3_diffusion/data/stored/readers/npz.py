"""NumPy's ``.npz`` files: read array by array and block by block, and never unpickled."""

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sb3_diffusion.data.stored.readers.files import Recorded, checksum, existing, naming
from sb3_diffusion.data.stored.source import DataSource, ReferenceScores
from sb3_diffusion.data.stored.space_json import stored_space
from sb3_diffusion.data.stored.tables.columns import Column, check_lengths, check_type, flag, flat, whole
from sb3_diffusion.data.stored.tables.recording import numbered, record

NAMES = {
    "actions": ("actions",),
    "rewards": ("rewards",),
    "terminated": ("terminated", "terminals", "dones"),
    "truncated": ("truncated", "timeouts"),
    "episode_ids": ("episode_ids", "episode_id"),
}
"""Quantity -> keys under which files keep it."""

METADATA = "metadata"
"""Key of a JSON text with spaces and environment."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzColumn:
    """
    An array of an ``.npz`` file.

    :param name: What error messages call it
    :param archive: The open file
    """

    unit = 1

    def __init__(self, name: str, archive: zipfile.ZipFile):
        self.name, self._archive = name, archive
        with self._open() as member:
            self.shape, self._fortran, self.dtype = self._header(member)
            start = member.tell()
        check_type(self)
        if not self.shape:
            raise ValueError(f"{name} is a single value; one row per step is needed.")
        held = archive.getinfo(f"{name}.npy").file_size - start
        if held != int(np.prod(self.shape)) * self.dtype.itemsize:
            raise ValueError(f"{name} declares the shape {self.shape}, but the file holds {held:,} bytes of it; get it again.")

    def _open(self) -> Any:
        return self._archive.open(f"{self.name}.npy")

    def _header(self, member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{self.name} is an array of version {version} of NumPy's format; store plain numbers.")
        return _HEADERS[version](member)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows from the first to the last.

        :param rows: Number of rows of a block; the last one may be shorter
        """
        with self._open() as member:
            self._header(member)
            if self._fortran:  # column by column: there is no way to read some rows only
                values = self._read(member, self.shape[::-1]).T
                for start in range(0, self.shape[0], rows):
                    yield values[start : start + rows]
                return
            for start in range(0, self.shape[0], rows):
                yield self._read(member, (min(rows, self.shape[0] - start), *self.shape[1:]))

    def _read(self, member: BinaryIO, shape: tuple[int, ...]) -> np.ndarray:
        block = np.empty(shape, self.dtype)
        view, done = memoryview(block.reshape(-1).view(np.uint8).data), 0
        while done < len(view):
            count = member.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"{self.name} ends early")
            done += count
        return block


class Npz:
    """
    An ``.npz`` file.

    :param archive: The open file
    """

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self.keys = [name.removesuffix(".npy") for name in archive.namelist()]

    def column(self, key: str) -> NpzColumn:
        """
        :param key: Key of an array
        :raises ValueError: If there is none, or it holds something else than numbers
        """
        if key not in self.keys:
            raise ValueError(f"there is no key {key!r}; the file has the keys {', '.join(self.keys) or '(none)'}.")
        return NpzColumn(key, self._archive)

    def metadata(self) -> dict[str, Any]:
        """What this library wrote beside the arrays; empty for other files."""
        if METADATA not in self.keys or self._archive.getinfo(f"{METADATA}.npy").file_size > 1_000_000:
            return {}
        with self._archive.open(f"{METADATA}.npy") as member:
            text = np.lib.format.read_array(member, allow_pickle=False)
        form = json.loads(str(text)) if text.dtype.kind == "U" else None
        return form if isinstance(form, dict) else {}


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Npz]:
    """
    :param path: The file
    :raises ValueError: If it is none
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as raw:
            head = raw.read(30)
        raise ValueError(f"this is no npz file (it {f'begins with {head!r}' if head else 'is empty'}); get it again.")
    try:
        with zipfile.ZipFile(path) as archive:
            yield Npz(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"the file is damaged ({error}); get it again.") from error


@contextlib.contextmanager
def open_npz(path: str | Path, *, name: str | None = None) -> Iterator[Recorded]:
    """
    :param path: The file: ``observations`` (or ``observations/<key>`` for each key), ``actions``, ``rewards``,
        ``terminated``, and maybe ``truncated``, ``next_observations`` and ``episode_ids``
    :param name: What the data are called
    :return: What was recorded
    :raises ValueError: If the file is not what it should be
    """
    path = existing(path)
    with naming(path), open_archive(path) as npz:
        form = npz.metadata()
        found = {quantity: _first(npz, keys) for quantity, keys in NAMES.items()}
        for quantity in ("actions", "rewards", "terminated"):
            if found[quantity] is None:
                npz.column(quantity)
        before, after = _observations(npz, "observations"), _observations(npz, "next_observations")
        if before is None:
            npz.column("observations")
        sides = [side for columns in (before, after) for side in _each(columns)]
        check_lengths([*sides, *(column for column in found.values() if column is not None)])
        terminated, truncated, ids = (found[quantity] for quantity in ("terminated", "truncated", "episode_ids"))
        ended = flag(terminated)
        recording = record(
            before,
            found["actions"],
            flat(found["rewards"]),
            ended,
            np.zeros_like(ended) if truncated is None else flag(truncated),
            first=None if ids is None else numbered(whole(flat(ids)).reshape(-1)),
            successors=after,
        )
        reference = ReferenceScores(*form["reference"]) if form.get("reference") else None
        source = DataSource(
            "npz", name or form.get("name") or path.stem, str(path), checksum(path), form.get("env_id"), reference
        )
        yield Recorded(recording, source, *(stored_space(form.get(key)) for key in ("observation_space", "action_space")))


def _first(npz: Npz, keys: tuple[str, ...]) -> Any:
    return next((npz.column(key) for key in keys if key in npz.keys), None)


def _observations(npz: Npz, name: str) -> Any:
    if name in npz.keys:
        return npz.column(name)
    return {key.partition("/")[2]: npz.column(key) for key in npz.keys if key.startswith(f"{name}/")} or None


def _each(columns: Any) -> list[Column]:
    return [] if columns is None else list(columns.values()) if isinstance(columns, dict) else [columns]
