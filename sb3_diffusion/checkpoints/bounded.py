"""What plain data of a stranger may consist of: how deep, how many, which numbers."""

import math
from collections.abc import Iterator
from typing import Any

from sb3_diffusion.printable import printable, quoted

MAX_DEPTH = 64
"""Largest number of lists and mappings around a value."""
MAX_INTEGER = 2**64
"""Integers are smaller in magnitude: what an array of numbers can hold."""
MAX_TEXT = 10_000
"""Largest number of characters of a text."""


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
