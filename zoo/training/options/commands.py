"""Commands that are printed or stored for the user to type again, quoted for the shell."""

import shlex
import sys
from pathlib import Path

ZOO = __name__.partition(".")[0]
"""The name of the package of all commands, which depends on whether the library is installed or cloned."""


def own_command() -> str:
    """The command that started this process, the options of the interpreter included."""
    return shlex.join(sys.orig_argv)


def program(name: str) -> list[str]:
    """
    How another program of the zoo is started, in the way in which this one was: as a module, or as the file beside it.

    :param name: Name of the program without ``.py``
    """
    if "-m" in sys.orig_argv:
        return ["python", "-m", f"{ZOO}.{name}"]
    return ["python", str(Path(sys.argv[0]).with_name(f"{name}.py"))]


def command(name: str, *words: object) -> str:
    """
    :param name: Name of the program without ``.py``
    :param words: Its options and their values
    """
    return shlex.join([*program(name), *map(str, words)])
