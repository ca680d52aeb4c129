"""What plain data of a stranger may consist of."""

import datetime
import json
from typing import Any

import pytest

from sb3_diffusion.checkpoints.tagged_json import check_bounded, finite, parse_json


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"key": value}
    return value


def test_ordinary_data() -> None:
    check_bounded({"a": [1, -2.5, None, True, "text"], "b": (2**63, -(2**63)), "c": float("inf")}, 20)
    check_bounded(nested(64))
    check_bounded("two\nlines", control=True)


@pytest.mark.parametrize(
    "value, message",
    [
        (nested(65), "nested too deeply, more than 64"),
        (nested(10**5), "nested too deeply"),
        ([0] * 101, "more than 100 values"),
        ({i: i for i in range(51)}, "more than 100 values"),
        (10**4000, "an integer of 13,288 bits"),
        ({"a": [-(2**64)]}, "an integer of 65 bits"),
        ("x" * 10_001, "a text of 10,001 characters"),
        ({"\x1b[2J": 1}, r"cannot be printed, '\\x1b\[2J'"),
        (["\u202e"], r"cannot be printed, '\\u202e'"),
        (datetime.date(2020, 1, 1), "of type date, which is no plain value"),
        ({1, 2}, "of type set"),
        (b"x", "of type bytes"),
    ],
)
def test_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bounded(value, 100)


def test_aliases_count_as_often_as_they_are_met() -> None:
    laughs: Any = ["ha"] * 10
    for _ in range(30):
        laughs = [laughs] * 10
    with pytest.raises(ValueError, match="more than 1,000 values"):
        check_bounded(laughs, 1000)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested too deeply"):
        check_bounded(loop)


def test_numbers_that_become_infinite() -> None:
    assert finite("1e308") == 1e308
    for text in ("1e309", "-1e999999", "9" * 400 + ".0"):
        with pytest.raises(ValueError, match="is too large"):
            finite(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1e999999}',
        '{"a": ' + "9" * 10**6 + "}",
        '{"a": ' + "9" * 100 + "}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 10**5,
        "[" * 100 + "]" * 100,
        json.dumps([0] * 300_000),
        '{"a": "\\u001b[2J"}',
        '{"\\u202e": 1}',
        '"\\ud800"',
        "{",
        "",
    ],
    ids=range(14),
)
def test_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"^file: x is (refused|not standard JSON|nested too deeply)") as caught:
        parse_json(text, "file: x")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
