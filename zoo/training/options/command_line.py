"""Parts of the commands' parsers: errors of one line, ``key:value`` words, numbers with a least value."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from sb3_diffusion.names import suggest

from .errors import fail
from .expressions import is_name_of_class, parse

KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")
PLAIN_TEXT = re.compile(r"[A-Za-z_/~.][\w./~+:-]*")
NUMBER = re.compile(r"\.\d+([eE][+-]?\d+)?")
SCHEDULE = re.compile(r"lin_[\d.eE+-]+")
WORDS = {"true": True, "false": False, "null": None, "none": None}


class CommandParser(argparse.ArgumentParser):
    """
    Parser of a command. Unlike argparse's it reports an error in one line, and suggests an option for one that is unknown.

    :param kwargs: Arguments of ``argparse.ArgumentParser``
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs})
        if kwargs.get("add_help", True):
            self.add_argument("--traceback", action="store_true", help="show where an error comes from")

    @override
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            hint = suggest(options[0] if options else "", self._option_string_actions, "--help lists the options.")
            self.error(f"unrecognised: {' '.join(unknown)}; {hint}")
        return known

    @override
    def error(self, message: str) -> NoReturn:
        fail(self.prog, message)


class Assignments(argparse.Action):
    """
    Collects ``key:value`` words in a dictionary. A value is written as in rl-zoo3, or it is plain text, which needs no
    quotes: ``batch_size:512 learning_rate:lin_3e-4 policy_kwargs:dict(activation_fn=nn.ReLU)``. A key may name one member of a
    dictionary, ``policy_kwargs.n_critics:4``.
    """

    @override
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            assigned = dict(map(parse_assignment, values))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if self.dest != "hyperparams" and (dotted := [key for key in assigned if "." in key]):
            raise argparse.ArgumentError(self, f"{dotted[0]} is no name of an argument; give the argument itself, key:value")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **assigned})


def parse_assignment(word: str) -> tuple[str, Any]:
    """
    :param word: ``key:value``
    :raises ValueError: If it is nothing of that form
    """
    key, _, text = word.partition(":")
    if not KEY.fullmatch(key) or not text.strip():
        raise ValueError(f"{word!r} is not of the form key:value, such as learning_rate:1e-4")
    try:
        return key, evaluate(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def evaluate(text: str) -> Any:
    """
    :param text: What stands behind the colon
    :return: The value, or the text itself if it is a word, a dotted name, a path or a schedule
    :raises ValueError: If it is neither
    """
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if SCHEDULE.fullmatch(text):  # to Python, lin_3e-4 is a difference
        return text
    if PLAIN_TEXT.fullmatch(text) and not NUMBER.fullmatch(text) and not is_name_of_class(text):
        return text
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no value ({error})") from None


def whole_number(least: float = -math.inf, special: dict[int, str] | None = None) -> Callable[[str], int]:
    """
    Type of an option that is a number.

    :param least: Smallest value, if there is one
    :param special: Smaller values that mean something else
    """
    others = "".join(f", or {value} for {meaning}" for value, meaning in (special or {}).items())

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least and value not in (special or {}):
            raise argparse.ArgumentTypeError(f"{value} is too small; give at least {least}{others}")
        return value

    return convert


def truth(text: str) -> bool:
    """
    Type of an option that is true or false.

    :param text: The word
    """
    value = WORDS.get(text.lower())
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return value
