"""``zoo/speed/scaling.py``: laws, merging, and a run with a few points."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.processes import check, run, script
from zoo.speed.scaling import LINES, POWERS, TASKS, default_particles, fit, merge, points


@pytest.mark.parametrize("power", [1, 2])
def test_law_of_exact_points(power: int) -> None:
    found = [{"value": x, "ms": 3.0 + 0.5 * x**power} for x in (1, 4, 16, 64)]
    law = fit(found, "ms", power)
    assert law == {
        "a": pytest.approx(3.0),
        "b": pytest.approx(0.5),
        "power": power,
        "error": pytest.approx(0.0, abs=1e-9),
    }


def test_law_weighs_relative_errors() -> None:
    # an outlier of 10 % at the slow end must not bend the law at the fast end
    found = [{"value": x, "ms": float(x)} for x in (1, 2, 4, 8)] + [{"value": 1000, "ms": 1100.0}]
    law = fit(found, "ms", 1)
    assert law["a"] + law["b"] == pytest.approx(1.0, rel=0.05)
    assert 0.0 < law["error"] < 0.1


def test_points_of_particles_are_multiples_of_the_default() -> None:
    assert default_particles("sdac") == 500
    assert points("sdac", "n_particles") == (62, 125, 250, 500, 1000)
    assert default_particles("qsm") is None
    assert points("qsm", "n_particles") == ()
    assert points("qsm", "diffusion_steps") == LINES["diffusion_steps"]


def test_lines_fit_together() -> None:
    assert set(POWERS) < set(LINES)
    assert LINES["task"] == tuple(TASKS)


def test_merge_keeps_other_lines_and_drops_unused_runs(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    merge(path, "qsm", "width", {"points": [1]}, {"machine": "old"})
    merge(path, "qsm", "batch_size", {"points": [2]}, {"machine": "old"})
    report = merge(path, "sdac", "width", {"points": [3]}, {"machine": "new"})
    assert report["runs"] == [{"machine": "old"}, {"machine": "new"}]
    assert report["results"]["qsm"]["batch_size"] == {"run": 0, "points": [2]}
    assert report["results"]["sdac"]["width"] == {"run": 1, "points": [3]}
    # both lines of the old run are measured again
    merge(path, "qsm", "width", {"points": [4]}, {"machine": "new"})
    report = merge(path, "qsm", "batch_size", {"points": [5]}, {"machine": "new"})
    assert report["runs"] == [{"machine": "new"}]
    assert report["results"] == {
        "qsm": {"width": {"run": 0, "points": [4]}, "batch_size": {"run": 0, "points": [5]}},
        "sdac": {"width": {"run": 0, "points": [3]}},
    }
    assert json.loads(path.read_text(encoding="utf-8")) == report


def test_command(tmp_path: Path) -> None:
    lines = ["--lines", "action_dim", "n_particles", "n_envs", "task", "--largest", "3", "--env", "Pendulum-v1"]
    effort = ["--repetitions", "1", "--seconds", "0.01", "--device", "cpu", "--output", "scaling.json"]
    check(run(script("speed/scaling"), "--algo", "qsm", *lines, *effort, cwd=tmp_path))
    report: dict[str, Any] = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    found = report["results"]["qsm"]
    assert set(found) == {"action_dim", "n_envs", "task"}  # QSM has no particles
    assert [point["value"] for point in found["action_dim"]["points"]] == [3]
    assert [point["value"] for point in found["n_envs"]["points"]] == [1, 2]
    assert [point["value"] for point in found["task"]["points"]] == list(TASKS)
    for point in found["n_envs"]["points"]:
        rates = [point[f"env_steps_per_second_{mode}"] for mode in ("random", "acting", "training")]
        assert all(rate > 0 for rate in rates)
    assert found["task"]["points"][0]["ms_per_update"] > 0
    assert report["runs"][0]["settings"]["env"] == "Pendulum-v1"
