"""Text of strangers on its way to a terminal."""

import pytest

from sb3_diffusion.printable import printable, quoted


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Hopper-v5, für 1 €", "Hopper-v5, für 1 €"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2066\u200b\ufeff\u00ad", r"\u2066\u200b\ufeff\xad"),
        ("\x9b31m\u2028", r"\x9b31m\u2028"),
        ("\udc80\U000e0041", r"\udc80\U000e0041"),
        (ValueError("no\nsuch"), r"no\nsuch"),
    ],
)
def test_nothing_commands_the_terminal(text: object, shown: str) -> None:
    assert printable(text) == shown and printable(text).isprintable()


def test_length() -> None:
    assert printable("x" * 30, 10) == "xxxxxxxxxx... (30 characters)"
    assert len(quoted({f"key{i}": ["x" * 1000] * 1000 for i in range(1000)})) < 300
    assert len(quoted("x" * 10**6)) < 300


def test_values() -> None:
    assert quoted("it's") == '"it\'s"' and quoted(3) == "3" and quoted([1, None]) == "[1, None]"
    assert quoted("\x1b") == r"'\x1b'"
    assert quoted(10**4000) == "an integer of 13,288 bits"
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    assert len(quoted(deep)) < 100
