"""Settings files: plain values are read, everything else is refused with a reason."""

from collections import OrderedDict
from pathlib import Path

import pytest
import yaml

from zoo.hub.repository import read_results
from zoo.training.runs.text_files import MAX_BYTES, read_yaml, saved_env_kwargs, write_yaml

BOMB = "!!python/object/apply:os.system ['touch {path}']"


def test_files_of_rl_zoo3_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "args.yml"
    path.write_text(yaml.dump(OrderedDict(seed=3, env_kwargs={"frame_skip": 2})), encoding="utf-8")
    assert "!!python/object/apply:collections.OrderedDict" in path.read_text(encoding="utf-8")
    assert read_yaml(path) == {"seed": 3, "env_kwargs": {"frame_skip": 2}}
    assert saved_env_kwargs(tmp_path, {"env_kwargs": {"frame_skip": 1, "width": 3}}) == {"frame_skip": 2, "width": 3}


@pytest.mark.parametrize("content", [BOMB, "policy: " + BOMB, "[" + BOMB + "]", "a: !!python/name:os.system ''"])
def test_python_tags_are_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    proof = tmp_path / "proof"
    path.write_text(content.format(path=proof), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yml is refused, line 1: .*python"):
        read_yaml(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2", "must contain a mapping of names to values, not list"),
        ("a: [1", "is not readable as YAML"),
        ("[" * 20_000, "is not readable as YAML"),
        ("!!python/object/apply:collections.OrderedDict [1, 2]", "is not readable as YAML"),
        ("a: " + "x" * MAX_BYTES, "more than"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"config.yml.*{message}"):
        read_yaml(path)


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        ("a: [" + "1," * 100_000 + "]", "more than 100,000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: " + "- " * 100 + "1", "is not readable as YAML"),
        ("- " * 100 + "1", "nested too deeply, more than 64 levels"),
        ("a: 1.0e+999999", r"the number 1.0e\+999999 is too large"),
        ("a: " + "9" * 500_000, "the integer 9{40}... .500,000 characters. has more than 20 digits"),
        ("a: 0x" + "f" * 500_000, "has more than 20 digits"),
        ("a: 0b" + "1" * 100, "has more than 20 digits"),
        ("a: 99999999999999999999", "an integer of 67 bits"),
        ("a: " + ":".join(["59"] * 100_000), "is written to the base of 60; put it into quotes"),
        ("a: 1:30.5", "is written to the base of 60"),
        ("a: 2020-01-01", "of type date, which is no plain value"),
        ("a: 2020-99-99", "is not readable as YAML"),
        ("a: !!timestamp never", "is not readable as YAML"),
        ("a: !!float never", "is not readable as YAML"),
        ("a: !!bool never", "is not readable as YAML"),
        ("a: !!binary aGk=", "of type bytes"),
        ("a: !!set {b}", "of type set"),
        ("a: " + "x" * 20_000, "a text of 20,000 characters"),
        ("a: !<tag:\u202eevil> 1", "is not readable as YAML|is refused"),
        ("a: \u202e: [", "is not readable as YAML"),
    ],
)
def test_what_costs_more_than_it_looks(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path} is ") and str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_ordinary_numbers_and_aliases(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(
        "a: &a {b: [1_000_000, 0x1f, -3, 1.0e-3, .5, -.inf, '1:30', 18446744073709551615]}\nc: *a\n"
        "d: {<<: *a, e: null}\nf: |\n  dict(\n    x=1)\n",
        encoding="utf-8",
    )
    numbers = [1_000_000, 31, -3, 1e-3, 0.5, -float("inf"), "1:30", 2**64 - 1]
    expected = {"a": {"b": numbers}, "c": {"b": numbers}, "d": {"b": numbers, "e": None}, "f": "dict(\n  x=1)\n"}
    assert read_yaml(path) == expected


@pytest.mark.parametrize(
    "content",
    ['{"a": 1e999999}', '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 5000, '{"a": "\\u001b[2J"}', "[1]", " " * 1_000_001],
    ids=range(7),
)
def test_results(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"results.json (is not readable as JSON|must contain|has 1000001 bytes)") as caught:
        read_results(tmp_path)
    assert str(caught.value).isprintable()


def test_written_files_have_no_tags(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    content = {"b": {"c": [1, 2.5, None, True]}, "a": "ä: !!python/none"}
    write_yaml(path, content)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == content
    assert list(read_yaml(path)) == ["b", "a"]
    with pytest.raises(ValueError, match=r"config\.yml can hold plain values only"):
        write_yaml(path, {"a": Path()})
