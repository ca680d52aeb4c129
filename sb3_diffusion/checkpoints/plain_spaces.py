"""Spaces as plain JSON, and back."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_diffusion.checkpoints.plain import NotPlain, from_plain, read_dtype, read_shape, to_plain
from sb3_diffusion.printable import quoted

MAX_ELEMENTS = 5 * 10**6
"""Largest number of entries of a space, over all its parts."""


def space_to_plain(space: spaces.Space, where: str) -> dict[str, Any]:
    """
    :param space: A space
    :param where: What it is, for the message
    :return: Its type and arguments, as standard JSON can write them
    :raises NotPlain: If the space is of another type
    """
    if type(space) is spaces.Box:
        bounds = {"low": _write_bound(space.low, where), "high": _write_bound(space.high, where)}
        return {"type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if type(space) is spaces.Discrete:
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": space.dtype.name}
    if type(space) is spaces.MultiDiscrete:
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": space.dtype.name}
    if type(space) is spaces.MultiBinary:
        return {"type": "MultiBinary", "shape": list(space.shape)}
    if type(space) is spaces.Dict:
        return {"type": "Dict", "spaces": {key: space_to_plain(part, f"{where}.{key}") for key, part in space.spaces.items()}}
    if type(space) is spaces.Tuple:
        return {"type": "Tuple", "spaces": [space_to_plain(part, f"{where}[{i}]") for i, part in enumerate(space.spaces)]}
    raise NotPlain(where, f"a space of type {type(space).__module__}.{type(space).__qualname__}")


def space_from_plain(description: Any, where: str) -> spaces.Space:
    """
    Inverse of :func:`space_to_plain`.

    :param description: What the JSON parser returned
    :param where: What it is, for the message
    :raises ValueError: If it does not describe a space
    """
    n_elements = _count_elements(description, where)
    if n_elements > MAX_ELEMENTS:
        raise ValueError(f"{where} has {n_elements:,} entries, more than the {MAX_ELEMENTS:,} allowed.")
    try:
        return _read_space(description, where)
    except (TypeError, KeyError, AssertionError, OverflowError) as error:
        raise ValueError(f"{where} does not describe a space ({quoted(error)}).") from error


def _write_bound(bound: np.ndarray, where: str) -> Any:
    # most spaces have the same bounds everywhere, and images would fill pages
    first = bound.flat[0] if bound.size else 0
    if np.all(bound == first):
        return to_plain(bound.dtype.type(first).item(), where)
    return [to_plain(item, where) for item in bound.ravel().tolist()]


def _read_bound(bound: Any, shape: tuple[int, ...], dtype: np.dtype, where: str) -> np.ndarray:
    numbers = np.array(from_plain(bound, where), dtype)
    if numbers.ndim > 1 or (numbers.ndim == 1 and numbers.size != math.prod(shape)):
        raise ValueError(f"{where} has bounds of {numbers.size} entries for the shape {shape}.")
    if np.isnan(numbers).any():
        raise ValueError(f"{where} has a bound that is not a number.")
    return np.broadcast_to(numbers, shape).copy() if numbers.ndim == 0 else numbers.reshape(shape)


def _read_space(description: Any, where: str) -> spaces.Space:
    kind = description["type"]
    if kind == "Box":
        shape, dtype = read_shape(description["shape"], where), read_dtype(description["dtype"], where)
        low, high = (_read_bound(description[key], shape, dtype, where) for key in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        dtype = read_dtype(description["dtype"], where)
        return spaces.Discrete(int(description["n"]), start=int(description["start"]), dtype=dtype.type)
    if kind == "MultiDiscrete":
        dtype = read_dtype(description["dtype"], where)
        nvec, start = (np.array(description[key], dtype) for key in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype.type, start=start)
    if kind == "MultiBinary":
        shape = read_shape(description["shape"], where)
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Dict":  # ordered: the order of the keys is that of the features
        return spaces.Dict(
            OrderedDict((key, _read_space(part, f"{where}.{key}")) for key, part in description["spaces"].items())
        )
    if kind == "Tuple":
        return spaces.Tuple([_read_space(part, f"{where}[{i}]") for i, part in enumerate(description["spaces"])])
    raise ValueError(f"{where} is of the unknown type {quoted(kind)}.")


def _count_elements(description: Any, where: str) -> int:
    if not isinstance(description, dict):
        raise ValueError(f"{where} must be a mapping that describes a space.")
    parts = description.get("spaces", [])
    if not isinstance(parts, dict | list):
        raise ValueError(f"{where} must have its parts as a mapping or a list.")
    own = math.prod(read_shape(description["shape"], where)) if "shape" in description else 0
    return own + sum(_count_elements(part, where) for part in (parts.values() if isinstance(parts, dict) else parts))
