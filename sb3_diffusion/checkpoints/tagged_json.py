"""
The JSON of all our files: one dialect, and bounds on what a stranger's may consist of.

Numbers, strings, lists and mappings are themselves; everything else is a mapping with a key that begins with a colon, its
tag, such as ``{":tuple": [1, "step"]}`` or ``{":float": "nan"}``. Further tags belong to those who write them: ``plain.py``
has arguments, which are built from a file, ``trainings`` states, which are put into what is there. The text is standard
JSON.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from sb3_diffusion.printable import printable, quoted

MAX_DEPTH = 64
"""Largest number of lists and mappings around a value."""
MAX_INTEGER = 2**64
"""Integers are smaller in magnitude: what an array of numbers can hold."""
MAX_TEXT = 10_000
"""Largest number of characters of a text."""
MAX_VALUES = 200_000
"""Largest number of values in a JSON file: bounds of observations that all differ are the most that an agent has."""


# -- the dialect -----------------------------------------------------------------------------------------------------------


def tag_of(value: Any) -> str | None:
    """
    :param value: Anything
    :return: The tag of a tagged value, ``None`` if it is none
    """
    return next((key for key in value if key.startswith(":")), None) if isinstance(value, dict) else None


def write_float(value: float) -> float | dict[str, str]:
    """
    :param value: Any number
    :return: The number, tagged where standard JSON has no form for it
    """
    return value if math.isfinite(value) else {":float": repr(value)}


def read_float(text: Any, where: str) -> float:
    """
    :param text: What the tag ``:float`` is for
    :param where: Name of the value, for the message
    :return: The number
    """
    if text not in ("inf", "-inf", "nan"):
        raise ValueError(f"{where} is {quoted(text)}, which must be inf, -inf or nan.")
    return float(text)


def write_mapping(
    items: Iterable[tuple[Any, Any]], write_key: Callable[[Any], Any], write_item: Callable[[Any, Any], Any]
) -> Any:
    """
    :param items: Keys and items of a mapping
    :param write_key: How to write a key that is no text
    :param write_item: How to write an item, given its key, too
    :return: A mapping; its pairs, tagged, if there are other keys than texts, or one that looks like a tag
    """
    items = list(items)
    if all(type(key) is str and not key.startswith(":") for key, _ in items):
        return {key: write_item(key, item) for key, item in items}
    return {":items": [[write_key(key), write_item(key, item)] for key, item in items]}


# -- with arrays beside ------------------------------------------------------------------------------------------------------


def encode(node: Any) -> tuple[bytes, bytes]:
    """
    Write a tagged value that contains arrays, which would be long as text.

    :param node: The value
    :return: The JSON text, and the arrays one behind the other; in the text is an ``offset`` in the place of their ``values``
    """
    pieces: list[bytes] = []
    offset = 0

    def visit(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, np.ndarray):
            pieces.append(value.tobytes())
            entry = {":array": {"dtype": value.dtype.str, "shape": list(value.shape), "offset": offset}}
            offset += value.nbytes
            return entry
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        return [visit(item) for item in value] if isinstance(value, list) else value

    return json.dumps(visit(node), allow_nan=False).encode(), b"".join(pieces)


def decode(text: bytes, arrays: bytes, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """
    :param text: First result of :func:`encode`
    :param arrays: Second result of :func:`encode`
    :param convert: What makes this dialect of an older one
    :return: The value
    """

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [visit(item) for item in value]
        if not isinstance(value, dict):
            return value
        parts = value.get(":array")
        if parts is not None and "offset" in parts:
            shape = tuple(parts["shape"])
            count = int(np.prod(shape, dtype=np.int64))
            return np.frombuffer(arrays, np.dtype(parts["dtype"]), count, parts["offset"]).reshape(shape)
        return {key: visit(item) for key, item in value.items()}

    return visit(convert(json.loads(text)))


# -- from strangers ----------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes, where: str) -> Any:
    """
    :param text: Standard JSON: without NaN, infinities or numbers that become one, no key twice
    :param where: File and member, for the messages
    :return: Its value
    :raises ValueError: If it is anything else, or exceeds the bounds of :func:`check_bounded`
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        value = json.loads(text, parse_constant=refuse, parse_float=finite, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; the file is damaged or hostile, do not use it.") from None
    except ValueError as error:
        raise ValueError(f"{where} is not standard JSON ({printable(error)}); the file is damaged.") from None
    try:
        check_bounded(value, MAX_VALUES)
    except ValueError as error:
        raise ValueError(f"{where} is refused: {error}; the file is damaged or hostile, do not use it.") from None
    return value


def check_bounded(value: Any, max_values: int | None = None, control: bool = False) -> None:
    """
    Refuse plain data that costs more to work with than it looks, or that would command a terminal when it is shown.

    :param value: Lists, mappings, texts, numbers
    :param max_values: Largest number of values; those of which an alias makes several count as often as they are met
    :param control: Whether texts may have characters that cannot be printed, such as line ends
    :raises ValueError: Saying what was met; the caller adds the name of the file
    """
    n_values = 0
    stack = [iter([value])]
    while stack:
        for item in stack[-1]:
            n_values += 1
            if max_values is not None and n_values > max_values:
                raise ValueError(f"it has more than {max_values:,} values")
            parts = _parts(item)
            if parts is None:
                _check_leaf(item, control)
            elif len(stack) > MAX_DEPTH:
                raise ValueError(f"it is nested too deeply, more than {MAX_DEPTH} levels")
            else:
                stack.append(parts)
                break
        else:
            stack.pop()


def _parts(item: Any) -> Iterator[Any] | None:
    if isinstance(item, dict):
        return (part for pair in item.items() for part in pair)
    return iter(item) if isinstance(item, list | tuple) else None


def _check_leaf(item: Any, control: bool) -> None:
    if isinstance(item, str):
        if len(item) > MAX_TEXT:
            raise ValueError(f"it has a text of {len(item):,} characters, more than {MAX_TEXT:,}")
        if not control and not item.isprintable():
            raise ValueError(f"it has a text with characters that cannot be printed, '{printable(item, 100)}'")
    elif isinstance(item, bool) or item is None:
        return
    elif isinstance(item, int):
        if abs(item) >= MAX_INTEGER:
            raise ValueError(f"it has an integer of {item.bit_length():,} bits, more than 64")
    elif not isinstance(item, float):
        raise ValueError(f"it has {quoted(item)} of type {type(item).__name__}, which is no plain value")


def finite(text: str) -> float:
    """
    A number with a decimal point or an exponent.

    :param text: How it is written
    :raises ValueError: If it is too large for a floating-point number, which Python takes for infinity
    """
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {printable(text, 40)} is too large")
    return value
