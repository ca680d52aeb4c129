"""Numbers that users pass: of the right kind and within their range, or an error that names argument, value and remedy."""

import reprlib
import sys
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch as th

MAX_STEPS = 10_000
"""Longest chain that is built, ten times the longest in use: a step costs a pass of the network, and a table's entry."""

Number = TypeVar("Number")


def optional(check: Callable[..., Number], name: str, value: Any, *bounds: Any, **settings: Any) -> Number | None:
    """
    :param check: :func:`integer` or :func:`real`
    :param name: Name of the argument
    :param value: What was passed, maybe ``None``
    :param bounds: Arguments of the check
    :param settings: Arguments of the check
    :return: ``None`` if that was passed, else what the check returns
    """
    return None if value is None else check(name, value, *bounds, **settings)


def integer(name: str, value: Any, low: int | None = None, high: int | None = None, remedy: str = "") -> int:
    """
    :param name: Name of the argument
    :param value: What was passed; numbers of NumPy and PyTorch count, ``bool`` does not
    :param low: Smallest value
    :param high: Largest value
    :param remedy: What to do about a value out of range
    :return: The value as an ``int``
    :raises TypeError: If it is no integer
    :raises ValueError: If it is out of range
    """
    number = _plain(value)
    if isinstance(number, float) and number.is_integer():
        raise TypeError(f"{name}={number} must be an integer; pass {name}={int(number)}.")
    if not isinstance(number, int):
        raise TypeError(f"{name}={reprlib.repr(value)} must be an integer, not {_kind(value)}{_hint(remedy)}.")
    if low is not None and number < low:
        raise ValueError(f"{name}={number} must be at least {low}{_hint(remedy)}.")
    if high is not None and number > high:
        raise ValueError(f"{name}={number} must be at most {high}{_hint(remedy)}.")
    return number


def real(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    remedy: str = "",
) -> float:
    """
    :param name: Name of the argument
    :param value: What was passed; numbers of NumPy and PyTorch count, ``bool`` does not
    :param low: Smallest value
    :param high: Largest value
    :param above: The value has to be larger than this
    :param below: The value has to be smaller than this
    :param remedy: What to do about a value out of range
    :return: The value as a ``float`` (an ``int`` if it was one)
    :raises TypeError: If it is no number
    :raises ValueError: If it is NaN, infinite or out of range
    """
    number = _plain(value)
    if number is None:
        raise TypeError(f"{name}={reprlib.repr(value)} must be a number, not {_kind(value)}{_hint(remedy)}.")
    fits = abs(number) <= sys.float_info.max and not (
        (low is not None and number < low)
        or (high is not None and number > high)
        or (above is not None and number <= above)
        or (below is not None and number >= below)
    )
    if not fits:
        raise ValueError(f"{name}={number} must be {_range(low, high, above, below)}{_hint(remedy)}.")
    return number


def widths(name: str, value: Any) -> list[int]:
    """
    :param name: Name of the argument
    :param value: What was passed: a sequence of widths of hidden layers, which may be empty
    :return: The widths
    :raises TypeError: If it is no sequence of integers
    :raises ValueError: If one of them is not positive
    """
    sequence = isinstance(value, Sequence | np.ndarray | th.Tensor) and getattr(value, "ndim", 1) > 0
    if isinstance(value, str | bytes) or not sequence:
        raise TypeError(f"{name}={reprlib.repr(value)} must be a list of widths such as [256, 256], not {_kind(value)}.")
    return [integer(f"{name}[{index}]", width, low=1) for index, width in enumerate(value)]


def _plain(value: Any) -> float | None:
    """The ``int`` or ``float`` of whatever is a number, ``None`` for everything else."""
    if isinstance(value, np.ndarray | th.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else None


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def _hint(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


def _range(low: float | None, high: float | None, above: float | None = None, below: float | None = None) -> str:
    smallest, largest = (above if low is None else low), (below if high is None else high)
    if smallest is None and largest is None:
        return "finite"
    if largest is None:
        return f"at least {low}" if above is None else "positive" if above == 0 else f"larger than {above}"
    if smallest is None:
        return f"at most {high}" if below is None else f"smaller than {below}"
    if above is None and below is None:
        return f"between {low} and {high}"
    left, right = "[" if above is None else "(", "]" if below is None else ")"
    return f"in {left}{smallest}, {largest}{right}"
