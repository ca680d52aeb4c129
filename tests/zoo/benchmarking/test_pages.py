"""The pages of the documentation say of a benchmark what its files say: seeds, intervals, failures, and what is missing."""

import csv
import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from tests.zoo.benchmarking.test_export import finish
from tests.zoo.processes import ROOT
from zoo.benchmarking.cells import plan, write
from zoo.benchmarking.description import read_description
from zoo.benchmarking.export import export

DOCS = ROOT / "docs"
ENV = "rlzoo/hopper-mixed-v0"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The extension of Sphinx."""
    pytest.importorskip("sphinx")
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return importlib.import_module("benchmark_results")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Results: three seeds of BC, one of IQL beside a failure, two of D-QL, a failure of EDP, nothing of FQL."""
    root, data = tmp_path / "results", tmp_path / "data"
    data.mkdir()
    content = {
        "title": "Offline",
        "question": "Who is best?",
        "algorithms": {
            "bc": None,
            "iql": {"beta": {"value": 3.0, "why": "it is usual"}},
            "dql": None,
            "edp": None,
            "fql": None,
        },
        "environments": [ENV, "dapg/door-human-v0"],
        "seeds": [0, 1, 2],
        "budget": 40,
        "evaluation": {"every": 20, "episodes": 2},
    }
    (data / "small.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    grid = read_description(data / "small.yml").cells(root)
    cells = {(entry.algo, entry.seed): entry for entry in grid if entry.env == ENV}
    for (algo, seed), mean in {
        ("bc", 0): 1.0,
        ("bc", 1): 2.0,
        ("bc", 2): 6.0,
        ("iql", 0): -3.0,
        ("dql", 0): 5.0,
        ("dql", 2): 6.0,
    }.items():
        finish(cells[algo, seed], mean)
    for key in (("iql", 1), ("edp", 0)):
        plan([cells[key]])
        failure = {"started": "x", "seconds": 1.0, "resumed": False, "error": "the training ended with exit status 1"}
        write(cells[key].folder, "attempts", [failure])
    export(root, data / "small", grid)
    (data / "small" / "data.csv").write_text(
        f"environment,return,score\n{ENV},4,14.8\ndapg/door-human-v0,1,\n", encoding="utf-8"
    )
    return data


def rows(table: str) -> dict[str, list[str]]:
    """First cell of each row -> the others."""
    lines = [[word.strip() for word in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("|")]
    return {first: others for first, *others in lines}


def test_leaderboard(pages: ModuleType, data: Path) -> None:
    text = pages.leaderboard(pages.Grid(data, "small"))
    table = {name.partition(" <")[0].removeprefix("{doc}`"): cells for name, cells in rows(text).items()}
    assert table["Method"] == [f"`{ENV}`, score", "CPU minutes of a training"]
    assert table["Mean of the data"] == ["14.8", ""]
    assert table["BC"][0].startswith("30.0 [1")
    assert table["BC"][0].endswith("] (3 seeds)")
    assert table["IQL"] == ["\N{MINUS SIGN}30.0 (1 seed, 1 failed, no interval)", "1.0"]
    assert table["D-QL"] == ["55.0 (2 seeds, no interval)", "1.0"]
    assert table["EDP"] == ["failed (1 of 3)", ""]
    assert table["FQL"] == ["missing", ""]
    assert "Nothing has been trained yet on `dapg/door-human-v0`" in text


def test_a_leaderboard_says_how_many_episodes_were_solved(pages: ModuleType, data: Path) -> None:
    runs = data / "small" / "runs.csv"
    text = runs.read_text(encoding="utf-8")
    (scale,) = {row["scale"] for row in csv.DictReader(text.splitlines())} - {""}
    runs.write_text(text.replace(f",{scale},", ",success,"), encoding="utf-8")
    about = data / "small" / "data.csv"
    about.write_text(f"environment,return,score\n{ENV},-979.1,\ndapg/door-human-v0,1,\n", encoding="utf-8")
    table = rows(pages.leaderboard(pages.Grid(data, "small")))
    assert table["Method"][0] == f"`{ENV}`, % solved"
    assert table["Mean of the data"][0] == ""


def test_returns_without_a_result_are_no_numbers(pages: ModuleType, data: Path) -> None:
    lines = pages.returns(pages.Grid(data, "small")).splitlines()
    (fql,) = (line for line in lines if "/fql>" in line and ENV in line)
    assert [word.strip() for word in fql.strip("|").split("|")][2:] == ["missing", "missing", "", "", ""]
    (behaviour,) = (line for line in lines if "/bc>" in line and ENV in line)
    assert "3.0 [" in behaviour
    assert behaviour.count(" [") == 3, "three seeds have an interval, also of the mean over the training"
    assert behaviour.endswith("] | 1.0 |")  # a minute of processor time


def test_every_training_and_every_problem_is_named(pages: ModuleType, data: Path) -> None:
    grid = pages.Grid(data, "small")
    listed = pages.trainings(grid)
    assert listed.count("`0123456`") == 6
    assert f"`--algos dql --envs {ENV} --seeds 2`" in listed
    assert "| 10.0 ± 10.0 | 1.0 | 1.5 |" in listed  # score, processor time, clock
    problems = pages.problems(grid)
    assert "Of 30 trainings: 6 with a result, 2 failed, 22 not done yet or under way." in problems
    assert f"* IQL on `{ENV}`, seed 1: failed, the training ended with exit status 1" in problems


def test_protocol(pages: ModuleType, data: Path) -> None:
    text = pages.protocol(pages.Grid(data, "small"))
    assert "Budget: 40 updates per training." in text
    assert "2 deterministic episodes every 20" in text
    assert "* Differs from `hyperparams/`, IQL: `beta: 3.0` (it is usual)." in text
    assert "Commit: `0123456`." in text
    assert "`rlzoo/hopper/mixed-v0` (checksum `0123456789ab`), evaluated in Hopper-v5" in text


def test_scores_with_the_other_noise(pages: ModuleType, data: Path, tmp_path: Path) -> None:
    before = pages.Grid(data, "small")
    assert not any("noise" in text(before) for text in (pages.returns, pages.trainings, pages.protocol))
    cells = read_description(data / "small.yml").cells(tmp_path / "results")
    (cell,) = (entry for entry in cells if (entry.algo, entry.env, entry.seed) == ("bc", ENV, 0))
    (cell.folder / "result.json").unlink()
    finish(cell, 1.0, other=0.5)
    export(tmp_path / "results", data / "small", cells)
    grid = pages.Grid(data, "small")
    header, _, *lines = pages.returns(grid).splitlines()
    assert "| Mean | Mean with fresh noise | Best evaluation | Mean of all evaluations |" in header
    (behaviour,) = (line for line in lines if "/bc>" in line and ENV in line)
    assert "| 0.5 | 3.0 |" in behaviour
    assert "| Return | With fresh noise | Score |" in pages.trainings(grid) and "| 1.0 ± 1.0 | 0.5 ± 2.0 |" in pages.trainings(
        grid
    )
    assert "have fixed noise" in pages.protocol(grid)


def test_files_of_another_grid_are_refused(pages: ModuleType, data: Path) -> None:
    path = data / "small.yml"
    path.write_text(path.read_text(encoding="utf-8").replace("- 2\n", "- 3\n"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"small/runs.csv has other trainings than small.yml; export the results again"):
        pages.Grid(data, "small")
    shutil.rmtree(data / "small")
    with pytest.raises(ValueError, match=r"lacks small/runs.csv, small/means.csv, small/curves.csv"):
        pages.Grid(data, "small")


def test_figures_in_both_colour_schemes(pages: ModuleType, data: Path, tmp_path: Path) -> None:
    grid = pages.Grid(data, "small")
    drawings = {}
    for scheme in ("light", "dark"):
        path = tmp_path / f"{scheme}.svg"
        pages.draw_curves(grid.curves, list(grid.description.algorithms), scheme, path)
        drawings[scheme] = path.read_text(encoding="utf-8")
    assert drawings["light"] != drawings["dark"]
    assert drawings["light"].count('<g id="axes_') == 3  # methods with a curve; nothing is drawn in the fourth place


@pytest.mark.parametrize("name", [path.parent.name for path in sorted((DOCS / "data" / "benchmark").glob("*/runs.csv"))])
def test_results_of_the_documentation(pages: ModuleType, name: str) -> None:
    grid = pages.Grid(DOCS / "data" / "benchmark", name)
    for run in grid.done:
        assert all(run[key] for key in ("commit", "torch", "command", "final_return", "final_std"))
        assert run["seconds"] or int(run["attempts"]) > 1  # what a killed attempt took is not known
        assert f"--seed {run['seed']} " in run["command"]
    for row in grid.means:
        own = [run for run in grid.done if (run["algorithm"], run["environment"]) == (row["algorithm"], row["environment"])]
        assert len(own) == int(row["n_done"])
        if own:
            mean = sum(float(run["final_return"]) for run in own) / len(own)
            assert float(row["final_mean"]) == pytest.approx(mean, rel=1e-4)
        assert bool(row["final_low"]) == (len(own) >= 3)


def test_grids_with_their_questions(pages: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    grids = importlib.import_module("grids_table")
    content = yaml.safe_load((data / "small.yml").read_text(encoding="utf-8"))
    (data / "later.yml").write_text(yaml.safe_dump(content | {"question": "And then?"}), encoding="utf-8")
    table = rows(grids.grids_text(data, ["later", "small"]))
    assert table["`later.yml`"] == ["And then?", "0 of 30"]
    assert table["`small.yml`"] == ["Who is best?", "6 of 30"]
    with pytest.raises(ValueError, match=r"^later: the list and the files"):
        grids.grids_text(data, ["small"])
    with pytest.raises(ValueError, match=r"^never: the list"):
        grids.grids_text(data, ["later", "small", "never"])


def test_the_reference_beside(pages: ModuleType, data: Path) -> None:
    curve = ["algorithm,environment,seed,timesteps,mean_return,std_return,n_episodes,cpu_seconds,commit,versions"]
    for seed, returns in enumerate((1.5, 2.5, 5.5)):
        curve += [
            f"{algo},{ENV},{seed},{step},{value},0,2,1,abc,jax 1"
            for algo in ("bc", "dql")
            for step, value in ((20, 99), (40, returns))
        ]
    (data / "small" / "reference.csv").write_text("\n".join(curve) + "\n", encoding="utf-8")
    grid = pages.Grid(data, "small")
    names = {algo: algo for algo in grid.description.algorithms}
    text = pages.beside_reference(grid.done, grid.curves, grid.reference, names)
    lines = [[word.strip() for word in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    table = {(name, what): others for name, what, *others in lines[2:]}
    assert {name for name, _ in table} == {"bc", "dql"}, "methods without runs on either side have no row"
    assert table["bc", "at the end"][1].endswith("(3 seeds)")
    assert "no difference found" in table["bc", "at the end"][0], "the seeds are the same but for half a unit"
    assert table["bc", "all evaluations"][2].startswith("51.1 "), "of (99 + 1.5) / 2 and its like"
    assert table["bc", "all evaluations"][0] == "the reference is better"
    assert "fewer than 3 seeds" in table["dql", "at the end"][0]
    assert "abc" in text and "jax 1" in text


def test_a_difference_is_said_of_the_better_side(pages: ModuleType) -> None:
    beside = importlib.import_module("beside_reference")
    difference, interval = beside.compare(np.array([10.0, 11.0, 12.0]), np.array([1.0, 2.0, 3.0]))
    assert difference == pytest.approx(9.0)
    assert interval is not None and interval[0] > 0.0
    assert beside.verdict(interval) == "ours is better"
    assert beside.verdict((-3.0, -1.0)) == "the reference is better"
    assert "2,000 could hide" in beside.verdict((-2000.0, 1.0))


def test_fresh_noise_is_what_stands_beside_the_reference(pages: ModuleType) -> None:
    beside = importlib.import_module("beside_reference")
    both = {"algorithm": "qsm", "environment": ENV, "final_return": "1"}
    runs = [both | {"other_noise": "fresh", "other_return": "2"}, both | {"other_noise": "", "other_return": ""}]
    assert list(beside.our_returns(runs, "qsm", ENV)) == [2.0, 1.0]


def test_variants_share_the_panel_of_their_algorithm(pages: ModuleType, tmp_path: Path) -> None:
    figure = importlib.import_module("variants_figure")
    names = figure.families(read_description(DOCS / "data" / "benchmark" / "questions.yml"))
    assert list(names) == ["sac", "qsm", "dacer", "sdac"]
    assert names["qsm"][:2] == ["qsm", "qsm-10-steps"]
    assert [figure.label(name, "qsm") for name in names["qsm"][:2]] == ["as in the settings", "10 steps"]
    common = {"environment": "HalfCheetah-v5", "std_return": "0", "n_episodes": "1"}
    curves = [
        {**common, "algorithm": algo, "seed": str(seed), "timesteps": str(step), "mean_return": str(step * seed)}
        for algo in ("sac", "qsm", "qsm-10-steps", "dacer-linear")
        for seed in range(3)
        for step in (5, 10)
    ]
    reference = [row for row in curves if row["algorithm"] == "qsm"]
    figure.draw_variants(curves, names, "dark", tmp_path / "figure.svg", reference)
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    drawn = [word for word in ("QSM", "DACER", "SDAC", "10 steps", "linear", "SAC (SB3)") if f"<!-- {word} -->" in text]
    assert drawn == ["QSM", "DACER", "10 steps", "linear", "SAC (SB3)"], "no panel without a line"
    assert text.count("<!-- the reference implementation -->") == 1
