"""Names that somebody typed: whether they exist, and which one was meant."""

import difflib
import inspect
from collections.abc import Iterable
from typing import TypeVar

Value = TypeVar("Value")


def closest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """
    Names that look like a given one, whatever the case of their letters.

    :param name: A name that does not exist
    :param known: Those that do
    :param n: Largest number of results
    :param cutoff: How similar they have to be, from 0 to 1
    :return: The most similar first
    """
    names = {candidate.lower(): candidate for candidate in known}
    return [names[match] for match in difflib.get_close_matches(name.lower(), names, n=n, cutoff=cutoff)]


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """
    The end of an error message: what was meant, or what there is.

    :param name: A name that does not exist
    :param known: Those that do
    :param otherwise: What to say where none of them is similar, ``None`` to list them
    """
    names = list(known)
    if match := closest(name, names):
        return f"did you mean {match[0]}?"
    return f"known are {', '.join(names)}." if otherwise is None else otherwise


def choice(argument: str, value: Value, known: Iterable[Value]) -> Value:
    """
    :param argument: Name of the argument
    :param value: Its value
    :param known: The values that it may have
    :return: The same value
    :raises ValueError: If it is none of them
    """
    values = list(known)
    if value not in values:
        raise ValueError(f"Unknown {argument}={value!r}; known are {', '.join(map(str, values))}.")
    return value


def check_no_unknown(cls: type, unknown: Iterable[str]) -> None:
    """
    Refuse arguments that a constructor does not have.

    :param cls: The class
    :param unknown: Names of the arguments that were left over
    :raises TypeError: Naming the first of them and the closest known one
    """
    for name in unknown:
        known = list(inspect.signature(cls).parameters)
        raise TypeError(f"{cls.__name__} has no argument {name!r}; {suggest(name, known)}")
