"""What was recorded, one column per quantity, read in blocks of rows so that no second copy of it is ever in memory."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch as th

BLOCK_BYTES = 500_000
BLOCK_ROWS = 1 << 14
"""Largest size and number of rows of what is read or changed at once: small, as it comes on top of the data in memory."""


class Column(Protocol):
    """
    A quantity of every recorded step.

    ``name`` is what error messages call it; ``shape`` and ``dtype`` are known before anything is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def unit(self) -> int:
        """Blocks are multiples of so many rows, where those are stored together."""

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows from the first to the last. A block is valid until the next one is asked for.

        :param rows: Number of rows of a block; the last one may be shorter
        """


Columns = Column | dict[str, Column]
"""One column, or one for every key of Dict observations."""


class ArrayColumn:
    """
    A column that is in memory already.

    :param name: What error messages call it
    :param values: Array, tensor, or whatever NumPy makes an array of; ``(n, ...)``
    """

    unit = 1

    def __init__(self, name: str, values: Any):
        self.name = name
        self._values = values.detach().cpu().numpy() if isinstance(values, th.Tensor) else np.asarray(values)
        self.shape, self.dtype = self._values.shape, self._values.dtype
        check_type(self)
        if not self.shape:
            raise ValueError(f"{name}={self._values!r} is a single number; pass an array with one row per step.")

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """
        All rows from the first to the last.

        :param rows: Number of rows of a block; the last one may be shorter
        """
        for start in range(0, self.shape[0], rows):
            yield self._values[start : start + rows]


def check_type(column: Column) -> None:
    """
    Refuse everything but numbers, before it is read: what is no number would have to be unpickled, or means nothing.

    :param column: A column
    :raises TypeError: If it holds something else
    """
    if column.dtype.kind not in "biuf":
        held = "objects, which only unpickling reads" if column.dtype.hasobject else f"values of type {column.dtype}"
        raise TypeError(f"{column.name} holds {held}; store numbers (float32, float64, integers or bool).")


def by_key(columns: Columns) -> dict[Any, Column]:
    """
    :param columns: One column or several
    :return: The columns by their key, ``None`` where there is but one
    """
    return dict(columns) if isinstance(columns, dict) else {None: columns}


def block_rows(*columns: Column) -> int:
    """
    Number of rows of a block: within both limits for the widest column, and a multiple of what is stored together.

    :param columns: What is read side by side
    """
    width = max(int(np.prod(column.shape[1:])) * column.dtype.itemsize for column in columns)
    unit = max(column.unit for column in columns)
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, width)) // unit) * unit


def whole(column: Column) -> np.ndarray:
    """
    A narrow column, such as a flag, at once.

    :param column: The column
    :return: ``(n, ...)``
    """
    values: np.ndarray = np.empty(column.shape, column.dtype)
    start = 0
    for block in column.blocks(block_rows(column)):
        values[start : start + len(block)] = block
        start += len(block)
    return values


def flag(column: Column) -> np.ndarray:
    """
    :param column: Truth values in any form that files have: bool, integers, or 0.0 and 1.0, as ``(n,)`` or ``(n, 1)``
    :return: ``(n,)`` of type bool
    :raises ValueError: If they are something else
    """
    values = whole(flat(column))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{column.name} is {values[~np.isfinite(values)][0]} in row {_first(~np.isfinite(values))}, no flag.")
    return values.reshape(-1) > 0.5


def flat(column: Column) -> Column:
    """
    :param column: A quantity with one number per row
    :return: The same
    :raises ValueError: If it has several numbers per row
    """
    if int(np.prod(column.shape[1:])) != 1:
        raise ValueError(f"{column.name} has shape {column.shape}; one number per row, (n,) or (n, 1), is needed.")
    return column


def _first(where: np.ndarray) -> int:
    return int(np.flatnonzero(where.reshape(len(where), -1).any(1))[0])


def check_lengths(columns: list[Column]) -> int:
    """
    :param columns: All columns of a recording
    :return: Their number of rows
    :raises ValueError: If they differ in it, before anything is read
    """
    first = columns[0]
    for column in columns[1:]:
        if column.shape[0] != first.shape[0]:
            raise ValueError(
                f"{first.name} has {first.shape[0]:,} rows and {column.name} has {column.shape[0]:,}; "
                "every step needs one row in each."
            )
    return first.shape[0]
