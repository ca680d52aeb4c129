"""Arrays of an HDF5 file as columns: nothing outside the file is followed, nothing is read before its shape is known."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffusion.data.stored.readers.files import require
from sb3_diffusion.data.stored.tables.columns import check_type

DEEPEST_LINK = 8
"""Links within a file are followed so many times."""


class Hdf5Column:
    """
    An array of an HDF5 file.

    :param name: What error messages call it
    :param dataset: The array
    """

    def __init__(self, name: str, dataset: Any):
        self.name, self._dataset = name, dataset
        if dataset.shape is None or not dataset.shape:
            raise ValueError(f"{name} is a single value; one row per step is needed.")
        self.shape, self.dtype = tuple(dataset.shape), np.dtype(dataset.dtype)
        check_type(self)
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} keeps its numbers in other files; a file of data must not reach outside itself.")
        self._check_complete()
        self.unit = dataset.chunks[0] if dataset.chunks else 1

    def _check_complete(self) -> None:
        """What is declared has to be there: a few bytes can declare any size, and HDF5 would invent the numbers."""
        if 0 in self.shape:
            return
        stored = self._dataset.id.get_num_chunks() if self._dataset.chunks else self._dataset.id.get_storage_size()
        declared = int(np.prod(self.shape)) * self.dtype.itemsize
        if self._dataset.chunks:
            declared = int(np.prod([-(-n // size) for n, size in zip(self.shape, self._dataset.chunks, strict=True)]))
        if stored < declared:
            raise ValueError(
                f"{self.name} declares the shape {self.shape}, but the file does not hold as much; "
                "it was not completely written, get it again."
            )

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows from the first to the last.

        :param rows: Number of rows of a block; the last one may be shorter
        """
        # into the same memory, again and again: what is freed and asked for anew leaves holes behind
        buffer = np.empty((min(rows, self.shape[0]), *self.shape[1:]), self.dtype)
        for start in range(0, self.shape[0], rows):
            block = buffer[: self.shape[0] - start]
            self._dataset.read_direct(block, np.s_[start : start + len(block)])
            yield block


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """
    :param path: The file
    :return: The open file
    :raises ValueError: If it is none
    """
    h5py = require("h5py", "offline", "Reading HDF5 files")
    with path.open("rb") as raw:
        head = raw.read(64)
    if not h5py.is_hdf5(path):
        begins = f"begins with {head[:30]!r}" if head else "is empty"
        raise ValueError(
            f"this is no HDF5 file (it {begins}); a server that refuses leaves such files behind, download it again."
        )
    # without a cache: chunks are read once, and its buffers would lie scattered between the data
    with h5py.File(path, "r", rdcc_nbytes=0) as file:
        yield file


def column(file: Any, key: str) -> Hdf5Column:
    """
    :param file: An open file, or a group of it
    :param key: Path of an array within
    :return: The array, unread
    :raises KeyError: If there is nothing
    :raises ValueError: If it is somewhere else, or no array
    """
    found = find(file, key)
    if not hasattr(found, "dtype"):
        raise ValueError(f"{key} is a group and no array; it has the keys {', '.join(found) or '(none)'}.")
    return Hdf5Column(key, found)


def text(file: Any, key: str, longest: int = 500) -> str | None:
    """
    :param file: An open file
    :param key: Path of a short text within
    :param longest: What is longer ends there
    :return: The text, ``None`` if there is none
    """
    try:
        found = find(file, key)
    except (KeyError, ValueError):
        return None
    if getattr(found, "shape", None) != () or require("h5py", "offline", "").check_string_dtype(found.dtype) is None:
        return None
    return str(found.asstr()[()])[:longest]


def has(file: Any, key: str) -> bool:
    """
    :param file: An open file
    :param key: Path within
    :return: Whether there is something, be it only a link
    """
    return file.get(key, getlink=True) is not None


def find(group: Any, key: str, depth: int = DEEPEST_LINK) -> Any:
    """
    :param group: An open file, or a group of it
    :param key: Path of something within
    :param depth: Links are followed so many times
    :return: What stands there
    :raises KeyError: If there is nothing
    :raises ValueError: If the way leads out of the file
    """
    h5py = require("h5py", "offline", "Reading HDF5 files")
    for part in [part for part in key.split("/") if part]:
        link = group.get(part, getlink=True)
        if link is None:
            raise KeyError(key)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(
                f"{key} is a link into another file, {link.filename!r}; a file of data must not reach outside itself."
            )
        if isinstance(link, h5py.SoftLink):
            if depth == 0:
                raise ValueError(f"{key} is a link that leads to links without end; store the array itself.")
            group = find(group.file if link.path.startswith("/") else group, link.path, depth - 1)
        else:
            group = group[part]
    return group
