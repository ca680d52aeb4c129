"""Spaces as JSON, in the form that Minari writes."""

import json
from typing import Any

import numpy as np
from gymnasium import spaces

_TYPES = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}.items()
    for bits in sizes
)


def space_from_json(text: str) -> spaces.Space:
    """
    :param text: A space as :func:`space_to_json` or Minari writes it
    :raises ValueError: If it is none, or one that no policy reads
    """
    try:
        return _read(json.loads(text))
    except (TypeError, KeyError, AttributeError, AssertionError, json.JSONDecodeError) as error:
        raise ValueError(f"{text[:200]!r} describes no space ({type(error).__name__}: {error}).") from error


def stored_space(text: str | None) -> Any:
    """
    :param text: A space as :func:`space_to_json` writes it, or nothing
    :return: The space, ``None`` for nothing
    :raises ValueError: See :func:`space_from_json`
    """
    return space_from_json(text) if text else None


def _read(form: dict[str, Any]) -> spaces.Space:
    kind = form["type"]
    if kind == "Box":
        dtype = np.dtype(_type(form["dtype"]))
        low, high = np.array(form["low"], dtype), np.array(form["high"], dtype)
        return spaces.Box(low, high, tuple(form["shape"]), dtype.type)
    if kind == "Dict":
        return spaces.Dict({key: _read(part) for key, part in form["subspaces"].items()})
    if kind == "Discrete":
        return spaces.Discrete(form["n"], start=form.get("start", 0))
    if kind == "MultiBinary":
        return spaces.MultiBinary(form["n"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(form["nvec"], start=form.get("start"))
    raise ValueError(f"A {kind} space cannot be read by a network; use Box, Dict, Discrete, MultiBinary or MultiDiscrete.")


def _type(name: str) -> str:
    if name not in _TYPES:
        raise ValueError(f"dtype={name!r} is none of {', '.join(sorted(_TYPES))}.")
    return name


def space_to_json(space: spaces.Space) -> str:
    """
    :param space: A space
    :return: The same as text
    :raises ValueError: If it is one that no policy reads
    """
    return json.dumps(_written(space))


def _written(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "subspaces": {key: _written(part) for key, part in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": np.array(space.n).tolist()}
    if isinstance(space, spaces.MultiDiscrete):
        starts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), **starts}
    raise ValueError(f"{space} cannot be written; use Box, Dict, Discrete, MultiBinary or MultiDiscrete.")
