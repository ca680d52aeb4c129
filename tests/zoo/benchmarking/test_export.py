"""What the documentation shows is what the folders hold: intervals, costs, and every training without a result."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zoo.benchmarking.cells import Cell, Settings, plan, read, write
from zoo.benchmarking.export import export
from zoo.benchmarking.export import exported as exported_cells
from zoo.benchmarking.scores import interquartile_mean, read_benchmark

SETTINGS = Settings(n_timesteps=40, eval_freq=20, eval_episodes=2)
Row = dict[str, str]


def cell(root: Path, algo: str, seed: int) -> Cell:
    return Cell(root, algo, "rlzoo/hopper-mixed-v0", seed, SETTINGS)


def finish(cell: Cell, mean: float, scores: bool = True, other: float | None = None, **attempt: Any) -> None:
    """Let a cell have a result with two episodes, and two with the other noise."""
    plan([cell])
    first = {"started": "2026-01-01T00:00:00+00:00", "seconds": 90.0, "cpu_seconds": 60.0, "resumed": False, "error": None}
    final: dict[str, Any] = {"timesteps": 40, "budget": 40, "deterministic": True, "lengths": [10, 10]}
    final["returns"] = [mean - 1.0, mean + 1.0]
    if other is not None:
        again = {"evaluation_noise": "fresh", "returns": [other - 2.0, other + 2.0], "lengths": [9, 9]}
        final |= {"evaluation_noise": "fixed", "other_noise": again}
    if scores:
        final |= {"scale": "rlzoo", "low": 0.0, "high": 10.0, "scores": [10 * (mean - 1.0), 10 * (mean + 1.0)]}
        final |= {"dataset": {"name": "rlzoo/hopper/mixed-v0", "checksum": "0123456789abcdef"}, "task": "Hopper-v5"}
    result = {
        "format": 1,
        "cell": cell.describe(),
        "command": cell.command,
        "final": final,
        "curve": [{"timesteps": 40, "returns": [mean], "lengths": [10]}],
        "attempts": [{**first, **attempt}],
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789",
        "machine": {"cpu": "test", "cores": 2},
    }
    write(cell.folder, "result", result)


def exported(folder: Path, name: str) -> list[Row]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def grid(tmp_path: Path) -> list[Cell]:
    """Three seeds of one algorithm, one of another, which failed once and is missing once."""
    cells = [cell(tmp_path, algo, seed) for seed in range(3) for algo in ("bc", "iql")]
    for entry in cells:
        if entry.algo == "bc":
            finish(entry, [1.0, 2.0, 6.0][entry.seed])
    finish(cells[1], 3.0)
    plan([cells[3]])
    write(cells[3].folder, "attempts", [{"started": "x", "seconds": 1.0, "resumed": False, "error": "exit\nstatus 1"}])
    return cells


def test_means_have_intervals_from_three_seeds_on(grid: list[Cell], tmp_path: Path) -> None:
    behaviour, iql = exported(export(tmp_path, tmp_path / "out", grid), "means")
    assert (behaviour["n_planned"], behaviour["n_done"], behaviour["n_failed"]) == ("3", "3", "0")
    assert (float(behaviour["final_mean"]), float(behaviour["score_mean"])) == (3.0, 30.0)
    assert 1.0 <= float(behaviour["final_low"]) < 3.0 < float(behaviour["final_high"]) <= 6.0
    assert float(behaviour["final_iqm"]) == interquartile_mean([1.0, 2.0, 6.0])  # type: ignore[arg-type]
    assert 10.0 <= float(behaviour["score_low"]) < 30.0 < float(behaviour["score_high"]) <= 60.0
    assert (iql["n_done"], iql["n_failed"], float(iql["score_mean"])) == ("1", "1", 30.0)
    assert [iql[key] for key in ("final_low", "final_high", "score_low", "score_high", "iqm_low", "iqm_high")] == [""] * 6


def test_runs_say_where_they_are_from(grid: list[Cell], tmp_path: Path) -> None:
    rows = exported(export(tmp_path, tmp_path / "out", grid), "runs")
    assert [(row["algorithm"], row["seed"], row["state"]) for row in rows] == [
        ("bc", "0", "done"),
        ("iql", "0", "done"),
        ("bc", "1", "done"),
        ("iql", "1", "failed"),
        ("bc", "2", "done"),
        ("iql", "2", "missing"),
    ]
    assert rows[0]["commit"] == "0123456"
    assert rows[0]["torch"] == "2.13.0"
    assert rows[0]["command"] == grid[0].command
    assert (rows[0]["dataset"], rows[0]["checksum"], rows[0]["task"]) == ("rlzoo/hopper/mixed-v0", "0123456789ab", "Hopper-v5")
    assert (rows[0]["score"], rows[0]["score_std"], rows[0]["scale"]) == ("10", "10", "rlzoo")
    assert (float(rows[0]["seconds"]), float(rows[0]["cpu_seconds"])) == (90.0, 60.0)
    assert (rows[3]["problem"], rows[3]["final_return"], rows[3]["commit"]) == ("exit status 1", "", "")
    assert rows[5]["problem"] == "not planned yet"


def test_what_a_training_cost_is_unknown_where_an_attempt_does_not_say_it(tmp_path: Path) -> None:
    finish(cell(tmp_path, "bc", 0), 1.0, cpu_seconds=None)
    (row,) = exported(export(tmp_path, tmp_path / "out"), "runs")
    assert (row["seconds"], row["cpu_seconds"]) == ("90", "")
    state = read_benchmark(tmp_path)[0]
    assert (state.spent("seconds"), state.spent("cpu_seconds")) == (90.0, None)


def test_scores_with_the_other_noise_stand_behind_the_columns_of_before(grid: list[Cell], tmp_path: Path) -> None:
    (tmp_path / "bc" / "rlzoo-hopper-mixed-v0" / "seed-0" / "result.json").unlink()
    finish(grid[0], 5.0, other=4.0)
    folder = export(tmp_path, tmp_path / "out", grid)
    first, _, old, *_ = exported(folder, "runs")
    assert list(first)[-5:] == ["command", "evaluation_noise", "other_noise", "other_return", "other_std"]
    assert [first[key] for key in list(first)[-4:]] == ["fixed", "fresh", "4", "2"]
    assert (first["final_return"], old["final_return"]) == ("5", "2")
    assert [old[key] for key in list(old)[-4:]] == [""] * 4  # a result of before
    behaviour, iql = exported(folder, "means")
    assert (behaviour["other_mean"], iql["other_mean"]) == ("4", "")
    assert list(behaviour)[-1] == "other_mean"


def test_without_a_scale_there_is_no_score(tmp_path: Path) -> None:
    finish(cell(tmp_path, "bc", 0), 1.0, scores=False)
    (row,) = exported(export(tmp_path, tmp_path / "out"), "means")
    assert (row["score_mean"], row["final_mean"]) == ("", "1")


def test_the_same_results_give_the_same_files(grid: list[Cell], tmp_path: Path) -> None:
    first, second = (export(tmp_path, tmp_path / name, grid) for name in ("one", "two"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_results_of_other_settings_are_no_part_of_a_grid(tmp_path: Path) -> None:
    done = cell(tmp_path, "bc", 0)
    finish(done, 1.0)
    other = replace(done, settings=replace(SETTINGS, n_timesteps=80))
    with pytest.raises(
        ValueError, match=r"seed-0 was trained with other settings than those of the grid; give its own --folder"
    ):
        read_benchmark(tmp_path, [other])
    assert read(done.folder, "cell") == done.describe()


def elsewhere(cells: list[Cell], root: Path) -> list[Cell]:
    """The same grid on a machine that has none of the results."""
    return [replace(entry, root=root) for entry in cells]


def test_results_of_several_machines_add_up(grid: list[Cell], tmp_path: Path) -> None:
    folder = export(tmp_path, tmp_path / "out", grid)
    before = {name: (folder / f"{name}.csv").read_bytes() for name in ("runs", "means", "curves")}
    other = elsewhere(grid, tmp_path / "other")
    export(tmp_path / "other", folder, other)  # has nothing to add
    assert {name: (folder / f"{name}.csv").read_bytes() for name in before} == before
    finish(other[5], 5.0)
    finish(other[0], 9.0)  # trained here too: the result of the folder counts
    rows = exported(export(tmp_path / "other", folder, other), "runs")
    assert [(row["algorithm"], row["seed"], row["final_return"]) for row in rows] == [
        ("bc", "0", "9"),
        ("iql", "0", "3"),
        ("bc", "1", "2"),
        ("iql", "1", ""),  # failed on the first machine
        ("bc", "2", "6"),
        ("iql", "2", "5"),
    ]
    curves = [(row["algorithm"], row["seed"], row["mean_return"]) for row in exported(folder, "curves")]
    assert curves == [(row["algorithm"], row["seed"], row["final_return"]) for row in rows if row["final_return"]]
    behaviour, iql = exported(folder, "means")
    assert (float(behaviour["final_mean"]), float(iql["final_mean"]), iql["n_done"]) == (pytest.approx(17 / 3), 4.0, "2")


def test_a_failure_replaces_a_result_of_before(grid: list[Cell], tmp_path: Path) -> None:
    folder = export(tmp_path, tmp_path / "out", grid)
    (other,) = elsewhere(grid[:1], tmp_path / "other")
    plan([other])
    write(other.folder, "attempts", [{"started": "x", "seconds": 1.0, "resumed": False, "error": "diverged"}])
    (row,) = exported(export(tmp_path / "other", folder, [other]), "runs")
    assert (row["state"], row["problem"]) == ("failed", "diverged")


def test_what_is_exported_is_known(grid: list[Cell], tmp_path: Path) -> None:
    folder = export(tmp_path, tmp_path / "out", grid)
    other = elsewhere(grid, tmp_path / "other")
    assert exported_cells(folder, other) == [other[index] for index in (0, 1, 2, 4)]
    assert exported_cells(tmp_path / "nothing", other) == []


def test_results_of_other_settings_are_not_kept(grid: list[Cell], tmp_path: Path) -> None:
    folder = export(tmp_path, tmp_path / "out", grid)
    before = (folder / "runs.csv").read_bytes()
    other = [replace(entry, settings=replace(SETTINGS, n_timesteps=80)) for entry in elsewhere(grid, tmp_path / "other")]
    with pytest.raises(
        ValueError, match=r"runs.csv has a result of bc rlzoo/hopper-mixed-v0 seed 0 with other settings: .*-n 40"
    ):
        export(tmp_path / "other", folder, other)
    assert (folder / "runs.csv").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"algorithm,seed\nbc,0\n", b"\xff\xfe\x00", b'a,b\n"1,2\n'])
def test_a_file_that_is_no_table_is_named(grid: list[Cell], tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "runs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"runs.csv is (not readable as csv|no table of this benchmark)"):
        export(tmp_path / "other", folder, elsewhere(grid, tmp_path / "other"))
    assert (folder / "runs.csv").read_bytes() == content
