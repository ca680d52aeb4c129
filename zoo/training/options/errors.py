"""What a user sees of an error: one line with the cause, and exit status 2, the same for every command."""

import contextlib
import dis
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from sb3_diffusion.printable import printable

PACKAGES = (__name__.partition(".")[0], "sb3_diffusion")
"""Where our own messages come from; the zoo has another name once it is installed."""

LONGEST = 1000
_RAISE = dis.opmap["RAISE_VARARGS"]


def fail(prog: str, message: str) -> NoReturn:
    """
    :param prog: Name of the program
    :param message: What is wrong, with the value and the remedy
    """
    print(f"{prog}: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(2)


def one_line(text: str) -> str:
    """
    :param text: Any text, also one that a file or a server has sent
    :return: The same without line breaks and without characters that a terminal obeys
    """
    return printable(" ".join(text.split()), LONGEST)


@contextlib.contextmanager
def mistakes(prog: str, show_traceback: bool = False) -> Iterator[None]:
    """
    Whatever goes wrong inside becomes one line. Meant for what happens before the work begins (before the first step of a
    training), where nearly every error is one of the command line, and nothing is lost but the place of a bug:
    ``--traceback`` shows that. Once the work has begun, exceptions are none of a user's mistakes and keep their traceback.

    :param prog: Name of the program
    :param show_traceback: Print the traceback as well
    """
    try:
        yield
    except Exception as error:
        refuse(prog, error, show_traceback)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What is printed inside appears at the end, and not at all after an error, so that a mistake is nothing but its line."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield
    print(text.getvalue(), end="", flush=True)


def refuse(prog: str, error: Exception, show_traceback: bool) -> NoReturn:
    """
    The same for an exception that was caught. A reader that went away is no mistake: no line, and the status of a program
    that the signal of such a pipe ends.

    :param prog: Name of the program
    :param error: The exception
    :param show_traceback: Print the traceback as well
    """
    if isinstance(error, BrokenPipeError):  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is written there at the end
        raise SystemExit(128 + signal.SIGPIPE)
    if show_traceback:
        traceback.print_exception(error)
    fail(prog, explain(error))


def explain(error: Exception) -> str:
    """
    :param error: Any exception
    :return: The message of a ``raise`` of this project, which names cause and remedy; that of anybody else's with its type
    """
    text = str(error) or "(no message)"
    return text if _is_ours(error) else f"{type(error).__name__}: {text}; --traceback shows where"


def _is_ours(error: Exception) -> bool:
    """Whether a statement ``raise`` of this project raised it, and neither other code nor an operation that failed."""
    origin = error.__traceback__
    while origin is not None and origin.tb_next is not None:
        origin = origin.tb_next
    if origin is None:
        return False
    package = str(origin.tb_frame.f_globals.get("__package__") or "").partition(".")[0]
    return package in PACKAGES and origin.tb_frame.f_code.co_code[origin.tb_lasti] == _RAISE
