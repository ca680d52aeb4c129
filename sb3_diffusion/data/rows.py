"""How the fields of a transition lie side by side in one row of memory."""

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

_TORCH_TYPES = {
    np.dtype(name): getattr(th, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "uint16", "uint32", "uint64")
}


def columns_of(row: np.dtype) -> list[tuple[th.dtype, list[str], list[int]]]:
    """
    :param row: Type of a row
    :return: Per type: names and widths of the pieces of a row, as ``split`` wants them; ``<`` and ``>`` hold the other types
    """
    columns: list[tuple[th.dtype, list[str], list[int]]] = []
    names = list(row.names or ())
    for dtype in dict.fromkeys(row[name].base for name in names):
        own = [name for name in names if row[name].base == dtype]
        widths = [math.prod(row[name].shape) for name in own]
        start = row.fields[own[0]][1] // dtype.itemsize  # type: ignore[index]
        rest = row.itemsize // dtype.itemsize - start - sum(widths)
        columns.append((_TORCH_TYPES[dtype], ["<", *own, ">"], [start, *widths, rest]))
    return columns


def shaped(field: th.Tensor, shape: tuple[int, ...]) -> th.Tensor:
    """
    :param field: A field of a batch of rows ``(batch, size)``
    :param shape: Shape of one of its values
    :return: The same ``(batch, *shape)``
    """
    return field if len(shape) == 1 else field.view(len(field), *shape)


def as_stored(value: Any, space: spaces.Space, target: np.ndarray) -> np.ndarray:
    """
    :param value: Observations of the environments
    :param space: Their space
    :param target: Array that they will be written to, one position more in front
    :return: The same in its shape
    """
    # one number per environment has to become a column; other shapes are left to NumPy, which refuses a transposed image
    value = np.asarray(value)
    return value.reshape(target.shape[1:]) if isinstance(space, spaces.Discrete) else value


def storage_type(space: spaces.Space) -> np.dtype:
    """
    :param space: A space
    :return: Type in which its values are kept: float32 where that of the space is float64
    """
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float32) if dtype == np.float64 else dtype
