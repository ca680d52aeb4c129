"""``zoo/speed/side_by_side.py``: two versions of the package in one process, without one seeing the other."""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.zoo.processes import ROOT
from zoo.speed import side_by_side
from zoo.speed.side_by_side import ACTIONS, Side, by_turns, summary, table

TINY = ["--batch-size", "8", "--width", "16", "--diffusion-steps", "2", "--threads", "1", "--device", "cpu", "--pairs", "2"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Another folder with the package."""
    (tmp_path / "sb3_diffusion").symlink_to(ROOT / "sb3_diffusion")
    return tmp_path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Function that runs the command in this process, whose cores stay what they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "pin", lambda count: [])
    monkeypatch.setattr(side_by_side, "check_load", lambda limit: None)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["side_by_side.py", *arguments])
        side_by_side.main()

    return run


def place(side: Side, module: str = "sb3_diffusion") -> Path:
    """The file that a side imports a module from."""
    with side.at_work():
        return Path(str(importlib.import_module(module).__file__))


def test_each_side_keeps_to_its_version(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("sb3_diffusion")}
    paths = list(sys.path)
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--against", str(checkout), *TINY])
    args = side_by_side.parse_arguments()
    there, here = Side(checkout, "qsm", args), Side(ROOT, "qsm", args)
    assert place(there).is_relative_to(checkout) and place(here).is_relative_to(ROOT)
    late = "sb3_diffusion.best_of_n.sfbc"  # imported when the other side is there already
    assert late not in there.modules and place(there, late).is_relative_to(checkout)
    models = [side.subject.model for side in (there, here)]
    assert type(models[0]).__name__ == type(models[1]).__name__ == "QSM" and type(models[0]) is not type(models[1])
    after = {name: module for name, module in sys.modules.items() if name.startswith("sb3_diffusion")}
    assert after == before and sys.path == paths
    times = by_turns([there, here], "deterministic action", 2, "cpu")
    assert all(seconds > 0.0 for side in times for seconds in side)


def test_sides_take_turns() -> None:
    calls: list[tuple[str, str, int]] = []

    class Fake:
        subject = SimpleNamespace(actor_period=3)

        def __init__(self, name: str):
            self.name, self.working = name, False

        @contextmanager
        def at_work(self) -> Iterator[None]:
            self.working = True
            yield
            self.working = False

        def work(self, quantity: str, count: int) -> None:
            assert self.working
            calls.append((self.name, quantity, count))

    sides: Any = [Fake("there"), Fake("here")]
    times = by_turns(sides, "update", 3, "cpu")
    assert [len(side) for side in times] == [3, 3]
    assert [call[0] for call in calls] == ["there", "here", "here", "there", "there", "here"]
    assert {call[2] for call in calls} == {3}  # whole periods: every turn trains the actor as often
    calls.clear()
    by_turns(sides, "action", 1, "cpu")
    assert calls == [("there", "action", 1), ("there", "action", ACTIONS), ("here", "action", 1), ("here", "action", ACTIONS)]


def test_ratios_are_those_of_pairs() -> None:
    """A machine that is ten times slower in some turns disturbs both sides, and not the ratio."""
    there = [0.001, 0.010, 0.001, 0.010, 0.001]
    here = [1.5 * seconds for seconds in there]
    result = summary(there, here)
    assert result["ratio"] == pytest.approx(1.5) and result["quartiles"] == pytest.approx([1.5, 1.5])
    assert result["ms_there"] == pytest.approx(1.0) and result["ms_here"] == pytest.approx(1.5)
    assert "| dqn | update | 1 | 1.5 | 1.500 | 1.500 to 1.500 |" in table({"dqn": {"update": result}})


def test_the_command(command: Any, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--against", str(checkout), "--algo", "qsm", "--quantities", "update", "action", *TINY)
    printed = capsys.readouterr()
    assert f"Time here to time in {checkout}" in printed.out and "| qsm | update |" in printed.out
    assert "Overriding environment" not in printed.err
    report = json.loads(Path("side_by_side.json").read_text(encoding="utf-8"))
    assert set(report["results"]["qsm"]) == {"update", "action"}
    assert report["results"]["qsm"]["update"]["ratio"] > 0.0 and report["settings"]["against"] == str(checkout)


@pytest.mark.parametrize(("arguments", "said"), [(["--pairs", "1"], "--pairs 1"), (["--against", "nowhere"], "nowhere")])
def test_mistakes(command: Any, checkout: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command("--against", str(checkout), *arguments)
    assert end.value.code == 2 and said in capsys.readouterr().err
