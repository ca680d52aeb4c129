"""Settings files: plain values are read, everything else is refused with a reason."""

from collections import OrderedDict
from pathlib import Path

import pytest
import yaml

from zoo.training.run_files import MAX_BYTES, read_yaml, saved_env_kwargs, write_yaml

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


def test_written_files_have_no_tags(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    content = {"b": {"c": [1, 2.5, None, True]}, "a": "ä: !!python/none"}
    write_yaml(path, content)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == content
    assert list(read_yaml(path)) == ["b", "a"]
    with pytest.raises(ValueError, match=r"config\.yml can hold plain values only"):
        write_yaml(path, {"a": Path()})
