"""Numbers for every state of a data set that took minutes to make: too large for an agent's file, kept in memory or in one."""

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch as th

from sb3_diffusion.data.stored.readers.files import checksum as digest_of
from sb3_diffusion.files import put_in_place

IN_MEMORY = 512 * 2**20
"""Bytes up to which a table is held in the memory of the learner's device; a larger one is read from its file."""


class DamagedTable(ValueError):
    """A file is missing, or does not hold what was written."""


class StateTable(NamedTuple):
    """
    Numbers of every state.

    :param values: ``(n_states, ...)`` of type float32
    :param checksum: SHA-256 of their bytes
    """

    values: th.Tensor
    checksum: str


def make_table(
    pieces: Iterable[th.Tensor], shape: Sequence[int], device: th.device, path: Path | None = None, limit: int | None = None
) -> StateTable:
    """
    Put a table together.

    :param pieces: Its rows in pieces, in their order
    :param shape: Shape of the table
    :param device: Device of what is held in memory
    :param path: File in which to keep it, whatever its size; ``None`` for one that is gone with the process, where it is large
    :param limit: Bytes up to which it is held in memory, :data:`IN_MEMORY` by default
    :return: The table
    :raises OSError: If the file cannot be written; another one of its name is left as it was
    """
    large = _is_large(shape, limit)
    if path is None and not large:
        return _in_memory(pieces, shape, device)
    if path is None:
        handle, name = tempfile.mkstemp(prefix="support-", suffix=".part")
        os.close(handle)
        part = Path(name)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        checksum = _write(part, pieces)
        if path is not None:
            put_in_place(part, path)
        values = _mapped(part if path is None else path, shape)
    finally:
        with suppress(OSError):  # while it is mapped, Windows keeps it
            part.unlink(missing_ok=True)
    return StateTable(values if large else values.to(device, copy=True), checksum)


def open_table(path: Path, shape: Sequence[int], device: th.device, checksum: str, limit: int | None = None) -> StateTable:
    """
    Take a table from its file.

    :param path: The file
    :param shape: Shape of the table
    :param device: Device of what is held in memory
    :param checksum: What its checksum was
    :param limit: Bytes up to which it is held in memory, :data:`IN_MEMORY` by default
    :return: The table
    :raises DamagedTable: If that is not what the file holds
    """
    if not path.is_file():
        raise DamagedTable(f"{path} is missing")
    if path.stat().st_size != _n_bytes(shape):
        raise DamagedTable(f"{path} has {path.stat().st_size} bytes instead of {_n_bytes(shape)}")
    try:
        found = digest_of(path)
    except OSError as error:
        raise DamagedTable(f"{path} cannot be read ({error.strerror})") from error
    if found != checksum:
        raise DamagedTable(f"the checksum of {path} is wrong")
    values = _mapped(path, shape)
    return StateTable(values if _is_large(shape, limit) else values.to(device, copy=True), checksum)


def _in_memory(pieces: Iterable[th.Tensor], shape: Sequence[int], device: th.device) -> StateTable:
    values, digest, start = th.empty(tuple(shape), device=device), hashlib.sha256(), 0
    for piece in pieces:
        values[start : start + len(piece)] = piece
        digest.update(_bytes(piece))
        start += len(piece)
    return StateTable(values, digest.hexdigest())


def _write(path: Path, pieces: Iterable[th.Tensor]) -> str:
    # written, not mapped: where the disk is full, this is an error and not the end of the process
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            content = _bytes(piece)
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


def _bytes(piece: th.Tensor) -> memoryview:
    return piece.detach().cpu().contiguous().numpy().data.cast("B")


def _mapped(path: Path, shape: Sequence[int]) -> th.Tensor:
    return th.from_file(str(path), shared=False, size=math.prod(shape), dtype=th.float32).view(tuple(shape))


def _is_large(shape: Sequence[int], limit: int | None) -> bool:
    return _n_bytes(shape) > (IN_MEMORY if limit is None else limit)


def _n_bytes(shape: Sequence[int]) -> int:
    return 4 * math.prod(shape)
