"""What the documentation's measurements rest on: their rows, and the answers that they take to be known."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The measurements on a bandit."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the module puts folders there
    return importlib.import_module("questions")


def test_rows_are_replaced_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    rows = importlib.import_module("rows").Rows(tmp_path / "rows.csv", ["name", "gain"], ["value"])
    assert {"name": "a", "gain": 2**0.5} not in rows
    rows.put({"name": "a", "gain": 2**0.5, "value": 1}, {"name": "b", "gain": 1.0})
    rows.put({"name": "a", "gain": 2**0.5, "value": 1 / 3})
    assert {"name": "a", "gain": 2**0.5} in rows
    assert {"name": "a", "gain": 1.0} not in rows
    assert (tmp_path / "rows.csv").read_text() == "name,gain,value\na,1.4142,0.33333\nb,1,\n"


def test_the_law_of_a_coordinate(questions: ModuleType) -> None:
    law = questions.ExactLaw(1.0)
    # two normal lobes, hardly cut off: the entropies of the choice and of a lobe add up
    choice = -sum(share * math.log(share) for share in questions.SHARES)
    assert law.entropy == pytest.approx(choice + 0.5 * math.log(2 * math.pi * math.e * questions.WIDTH**2), abs=0.01)
    # a sample of a lobe lies a square of the normal deviation below its top
    tops = sum(share * math.log(share) for share in questions.SHARES)
    assert law.value == pytest.approx(tops - 0.5, abs=0.01)


def test_distance_and_value_of_samples(questions: ModuleType) -> None:
    law, rng = questions.ExactLaw(1.0), np.random.default_rng(0)
    exact = rng.choice(law.axis, size=(50_000, 3), p=law.mass)
    assert law.distance(exact) < 0.01
    assert law.relative_value(exact) == pytest.approx(1.0, abs=0.01)
    uniform = rng.uniform(-1.0, 1.0, size=(50_000, 3))
    assert law.relative_value(uniform) == pytest.approx(0.0, abs=0.02)
    assert law.distance(uniform) > 0.1
    # Wasserstein: what is moved by a tenth is a tenth away
    assert law.distance(exact + 0.1) == pytest.approx(0.1, abs=0.01)


def test_a_short_measurement_is_not_made_twice(
    questions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.csv"
    command = ["questions.py", "--algo", "qsm", "--action-dims", "2", "3", "--seeds", "0", "--output", str(output)]
    short = ["--updates", "3", "--random-steps", "20", "--batch-size", "8", "--width", "8", "--samples", "50"]
    monkeypatch.setattr(sys, "argv", [*command, *short])
    questions.main()
    assert len(output.read_text().splitlines()) == 3
    assert capsys.readouterr().out
    questions.main()
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, *short, "--variants", "2 steps", "linear", "SimBa", "--action-dims", "8"])
    questions.main()
    rows = list(questions.Rows(output, questions.KEY, questions.FIELDS).read().values())
    assert [(row["variant"], row["action_dim"]) for row in rows[2:]] == [("2 steps", "8"), ("linear", "8"), ("SimBa", "8")]
    assert len({row["value"] for row in rows}) == 5, "they are different policies"
    for over, shown in (("action_dim", rows[:2]), ("variant", rows[2:])):
        questions.draw(shown, over, "dark", tmp_path / f"{over}.svg")
        assert (tmp_path / f"{over}.svg").stat().st_size > 1_000


def test_measurements_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    table = importlib.import_module("bandit_table").bandit_table
    common = {"algorithm": "qsm", "n_particles": "0", "variant": "default", "action_dim": "8", "cpu_seconds": "3.4"}
    rows = [{**common, "value": str(value)} for value in (0.5, 1.0, 1.75)]
    rows += [{**common, "variant": "linear", "value": "-1"}, {**common, "action_dim": "2", "value": "2"}]
    rows += [{**common, "algorithm": "sdac", "n_particles": "64", "value": "3"}]
    minus = "\N{MINUS SIGN}"
    changed = table(rows, "variant", "value").splitlines()
    assert changed[0] == "| Method | 20 steps, cosine, MLP | linear |"
    assert changed[2:] == [f"| QSM | 1.08 (0.50 to 1.75) | {minus}1.00 (one seed) |"], "SDAC was not changed"
    growing = table(rows, "action_dim", "cpu_seconds").splitlines()
    assert growing[2:] == ["| QSM | 3 (3 to 3) | 3 (one seed) |", "| SDAC, 64 particles | 3 (one seed) | not measured |"]
