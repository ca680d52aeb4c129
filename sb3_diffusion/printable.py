"""Text that somebody else chose, on its way to a terminal or into an error message."""

import reprlib
from typing import Any


def printable(text: Any, limit: int = 2000) -> str:
    """
    Text in which no character commands the terminal: escape sequences, line ends, and characters that change the direction
    of writing or cannot be seen become what Python writes for them, such as ``\\x1b`` and ``\\u202e``.

    :param text: Any text or object
    :param limit: Largest number of characters of the text that are kept
    """
    text = str(text)
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit])
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def quoted(value: Any, limit: int = 200) -> str:
    """
    A value as Python writes it, shortened to what fits on a line, however large or entangled it is.

    :param value: A value of a file
    :param limit: Largest number of characters
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length():,} bits"
    return printable(_SHORT.repr(value), limit)


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 4
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 8
_SHORT.maxstring = _SHORT.maxother = 160
