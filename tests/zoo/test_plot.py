"""Learning curves: what is read, what is averaged, what the figure says, and what happens with damaged folders."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt
from matplotlib.image import imread

from tests.zoo.processes import check, run, script
from zoo import figures, plot


def make_run(folder: Path, returns: list[float], *, every: int = 100, offset: float = 0.0) -> Path:
    """A folder as a training leaves it: two episodes per evaluation, episodes of 50 steps."""
    folder.mkdir(parents=True)
    steps = every * np.arange(1, len(returns) + 1)
    results = np.array(returns)[:, None] + offset + np.array([-1.0, 1.0])
    np.savez(folder / "evaluations.npz", timesteps=steps, results=results, ep_lengths=np.full(results.shape, 50))
    rows = [f"{value + offset},50,{0.1 * number:.6f}" for number, value in enumerate(returns, start=1)]
    text = "\n".join(['#{"t_start": 0.0, "env_id": "Pendulum-v1"}', "r,l,t", *rows])
    (folder / "0.monitor.csv").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Three runs of SDAC and one of DACER on Pendulum, two of SDAC on a task of the DeepMind Control Suite."""
    for number, offset in enumerate([0.0, 3.0, 6.0], start=1):
        make_run(tmp_path / "logs" / "sdac" / f"Pendulum-v1_{number}", [-1000.0, -500.0, -150.0], offset=offset)
    make_run(tmp_path / "logs" / "dacer" / "Pendulum-v1_1_some-uuid", [-900.0, -450.0])
    for number in (1, 2):
        make_run(tmp_path / "logs" / "sdac" / f"dm_control-cheetah-run-v0_{number}", [10.0, 20.0 * number])
    return tmp_path / "logs"


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run the program in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["plot.py", *arguments])
    monkeypatch.setattr(plt, "show", lambda: None)
    try:
        plot.main()
    finally:
        plt.close("all")


def figure_of(logs: Path, reader: plot.Reader, **search: Any) -> Any:
    runs = plot.find_runs(logs, search.get("algos"), search.get("envs"))
    return figures.draw_panels(plot.collect(runs, reader, skip=True), reader.value)


def test_a_folder_gives_a_readable_png(logs: Path) -> None:
    folder = logs / "sdac" / "Pendulum-v1_1"
    assert check(run(script("plot"), str(folder), "--show", cwd=logs.parent)).splitlines() == [
        "Saved as curves.png",
        "No display found, nothing to show.",
    ]
    height, width, _ = imread(logs.parent / "curves.png").shape
    assert height >= 500 and width >= 900


@pytest.mark.parametrize(("name", "head"), [("a/b.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("b.pdf", b"%PDF")])
def test_the_suffix_says_the_format(name: str, head: bytes, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for _ in range(2):
        call(monkeypatch, logs.parent, "--algo", "sdac", "--env", "Pendulum-v1", "--output", name)
        pictures.append((logs.parent / name).read_bytes())
    assert pictures[0].startswith(head)
    assert pictures[0] == pictures[1]


def test_the_figure_says_what_it_shows(logs: Path) -> None:
    figure = figure_of(logs, plot.Reader("evaluations", 20))
    assert [axes.get_title() for axes in figure.axes] == ["Pendulum-v1", "dm_control-cheetah-run-v0"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "environment steps"
        assert axes.get_ylabel() == "evaluation return\n(mean over episodes)"
    caption = (
        "Thick lines: mean over runs; thin lines: single runs; bands: 95 % bootstrap interval of the mean (from 3 runs on)"
    )
    assert figure.get_supxlabel() == caption
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["DACER\n(1 run)", "SDAC\n(2 to 3 runs)"]
    figure.canvas.draw()
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    # a band for three runs, thin lines for two
    assert [len(axes.collections) for axes in figure.axes] == [1, 0]
    assert [len(axes.lines) for axes in figure.axes] == [2, 3]
    sdac = [axes.get_lines()[index].get_color() for axes, index in zip(figure.axes, (1, 0), strict=True)]
    assert sdac[0] == sdac[1]
    mean = figure.axes[0].get_lines()[1].get_xydata()
    assert mean.tolist() == [[100.0, -997.0], [200.0, -497.0], [300.0, -147.0]]
    plt.close("all")


def learn_from_data(folder: Path, updates: Any, online_steps: Any = 0, section: str = "IQL") -> None:
    """Settings of a run on data, as its training writes them."""
    folder = folder / "Pendulum-v1"
    folder.mkdir()
    values = {"zoo": {"n_timesteps": updates, "online_steps": online_steps}, section: {"dataset": "some.npz"}}
    content = {name: {key: {"value": value, "from": "x"} for key, value in items.items()} for name, items in values.items()}
    (folder / "effective.yml").write_text(yaml.safe_dump(content), encoding="utf-8")


def labels_of(logs: Path, **search: Any) -> tuple[str, list[float], str]:
    runs = plot.find_runs(logs, search.get("algos"), ["Pendulum-v1"])
    panels = plot.collect(runs, plot.Reader("evaluations", 1), skip=True)
    figure = figures.draw_panels(panels, "return", plot.phases_of(runs))
    (axes,) = figure.axes
    dotted = [np.asarray(line.get_xdata(), float) for line in axes.lines if line.get_linestyle() == ":"]
    switches = [float(xs[0]) for xs in dotted if len(set(xs)) == 1]
    caption = figure.get_supxlabel()
    plt.close(figure)
    return axes.get_xlabel(), switches, caption


def test_updates_on_data_are_no_steps(logs: Path) -> None:
    assert labels_of(logs) == ("environment steps", [], labels_of(logs)[2])
    learn_from_data(logs / "sdac" / "Pendulum-v1_1", 300)
    assert labels_of(logs, algos=["sdac"])[:2] == ("updates on data", [])


def test_the_switch_to_the_environment_is_drawn(logs: Path) -> None:
    learn_from_data(logs / "sdac" / "Pendulum-v1_1", 100, 200)
    learn_from_data(logs / "sdac" / "Pendulum-v1_2", 100, 200)
    label, switches, caption = labels_of(logs, algos=["sdac"])
    assert (label, switches) == ("updates on data, then environment steps", [100.0])
    assert "dotted: from here on in the environment" in caption


@pytest.mark.parametrize(("updates", "text"), [("many", None), (None, None), (1, "zoo: 1\n"), (1, "zoo: {n_timesteps: 1}\n")])
def test_damaged_settings_are_named(updates: Any, text: str | None, logs: Path) -> None:
    folder = logs / "sdac" / "Pendulum-v1_1"
    learn_from_data(folder, updates)
    path = folder / "Pendulum-v1" / "effective.yml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Pendulum-v1_1/Pendulum-v1/effective.yml is damaged \(.*\); leave this run out"):
        plot.phases_of([plot.identify(folder)])


def test_training_returns_are_smoothed_by_the_window_on_the_axis(logs: Path) -> None:
    figure = figure_of(logs, plot.Reader("training", 2), algos=["dacer"], envs=["Pendulum-v1"])
    assert figure.axes[0].get_ylabel() == "training return\n(mean of the last 2 episodes)"
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[50.0, -900.0], [100.0, -675.0]]
    assert figure.get_supxlabel() == "Lines: single runs"
    assert plot.Reader("training", 1).value == "training return"
    plt.close("all")


def test_several_environments_of_a_run_count_together(logs: Path) -> None:
    folder = logs / "dacer" / "Pendulum-v1_1_some-uuid"
    text = (folder / "0.monitor.csv").read_text(encoding="utf-8")
    (folder / "1.monitor.csv").write_text(text.replace("-900.0,50,0.1", "-700.0,50,0.15"), encoding="utf-8")
    curve = plot.read_training(folder, 1)
    assert curve is not None
    assert curve[0].tolist() == [50.0, 100.0, 150.0, 200.0]
    assert curve[1].tolist() == [-900.0, -700.0, -450.0, -450.0]


def test_the_cut_last_line_of_a_killed_run_is_left_out(logs: Path) -> None:
    path = logs / "dacer" / "Pendulum-v1_1_some-uuid" / "0.monitor.csv"
    path.write_text(path.read_text(encoding="utf-8") + "-42", encoding="utf-8")
    curve = plot.read_training(path.parent, 1)
    assert curve is not None
    assert curve[1].tolist() == [-900.0, -450.0]


def test_search_keeps_the_order_of_options_and_numbers(logs: Path) -> None:
    make_run(logs / "sdac" / "Pendulum-v1_10", [0.0])
    runs = plot.find_runs(logs, ["sdac", "dacer"], ["Pendulum-v1"])
    assert [run.folder.name for run in runs] == [*(f"Pendulum-v1_{n}" for n in (1, 2, 3, 10)), "Pendulum-v1_1_some-uuid"]
    # the id of an environment, or its name in folders
    for env in ("dm_control/cheetah-run-v0", "dm_control-cheetah-run-v0"):
        assert len(plot.find_runs(logs, None, [env])) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/Pendulum-v1_1"], "there is no folder nowhere/Pendulum-v1_1"),
        (["logs/sdac"], "logs/sdac is no run folder"),
        (["-f", "nowhere"], "--log-folder nowhere does not exist"),
        (["--algo", "sdac", "qsm"], "--log-folder logs has no run of qsm; train one first"),
        (["--algo", "dacer", "--env", "Hopper-v5"], "has no run of dacer on Hopper-v5"),
        (["--env", "Hopper-v5"], "--log-folder logs has no run"),
        (["--output", "curves.gif"], "--output curves.gif does not say the format; let its name end with .png, .svg, .pdf"),
        (["logs/sdac/Pendulum-v1_1", "--algo", "sdac"], "name run folders or search with --algo and --env, not both"),
        (["--window", "0"], "0 is not positive"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    arguments: list[str], message: str, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        call(monkeypatch, logs.parent, *arguments)
    assert error.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("plot.py: error: ")
    assert message in last
    assert not (logs.parent / "curves.png").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive", None])
def test_damaged_evaluations_are_named(
    content: bytes | None, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = logs / "sdac" / "Pendulum-v1_2" / "evaluations.npz"
    if content is None:
        np.savez(path, timesteps=np.arange(3), results=np.zeros((2, 5)))
    else:
        path.write_bytes(content)
    with pytest.raises(SystemExit):
        call(monkeypatch, logs.parent, "--algo", "sdac")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plot.py: error: logs/sdac/Pendulum-v1_2/evaluations.npz is damaged (")
    assert "leave this run out" in line


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_objects_in_a_file_are_not_unpickled(logs: Path, tmp_path: Path) -> None:
    path = logs / "sdac" / "Pendulum-v1_2" / "evaluations.npz"
    np.savez(path, timesteps=np.array([1]), results=np.array([[Bomb(tmp_path / "exploded")]], dtype=object))
    with pytest.raises(ValueError, match=r"evaluations\.npz is damaged"):
        plot.read_evaluations(path.parent)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("text", ["", "r,l,t\n1,2,3\n", "#{not json\nr,l,t\n1,2,3\n", '#{"t_start": 0}\nr,l,t\none,2,3\n'])
def test_damaged_monitor_files_are_named(text: str, logs: Path) -> None:
    folder = logs / "sdac" / "Pendulum-v1_2"
    (folder / "0.monitor.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"monitor\.csv of .*Pendulum-v1_2 is damaged"):
        plot.read_training(folder, 1)


def test_runs_without_data(logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    empty = logs / "sdac" / "Pendulum-v1_4"
    empty.mkdir()
    # found by a search: left out, and said so
    call(monkeypatch, logs.parent, "--algo", "sdac")
    assert capsys.readouterr().err == "logs/sdac/Pendulum-v1_4 has no evaluations.npz yet, left out\n"
    # asked for: an error
    with pytest.raises(SystemExit):
        call(monkeypatch, logs.parent, "logs/sdac/Pendulum-v1_4")
    assert "has no evaluations.npz (yet); wait for it, or try --curve training" in capsys.readouterr().err
    (empty / "0.monitor.csv").write_text('#{"t_start": 0}\nr,l,t\n', encoding="utf-8")
    with pytest.raises(SystemExit):
        call(monkeypatch, logs.parent, "logs/sdac/Pendulum-v1_4", "--curve", "training")
    assert "has no finished episode in *.monitor.csv" in capsys.readouterr().err


# -- figures ----------------------------------------------------------------------------------------------------------------


def test_runs_are_aligned_in_their_common_range() -> None:
    first = np.array([100.0, 200.0, 300.0]), np.array([1.0, 2.0, 3.0])
    second = np.array([150.0, 250.0, 400.0]), np.array([10.0, 20.0, 50.0])
    steps, values = figures.align([first, second])
    assert steps.tolist() == [150.0, 200.0, 250.0, 300.0]
    assert values.tolist() == [[1.5, 2.0, 2.5, 3.0], [10.0, 15.0, 20.0, 30.0]]
    # a run alone keeps its steps
    assert figures.align([second])[0].tolist() == [150.0, 250.0, 400.0]
    many = np.arange(5000.0), np.arange(5000.0)
    steps, values = figures.align([many, many])
    assert len(steps) == figures.MAX_POINTS
    np.testing.assert_allclose(values, np.stack([steps, steps]))
    with pytest.raises(ValueError, match="begins at step 150"):
        figures.align([(np.array([100.0]), np.array([1.0])), second])


def test_the_interval_covers_the_mean() -> None:
    values = np.random.default_rng(1).normal(size=(10, 400))
    low, high = figures.bootstrap_interval(values)
    assert np.all((low < values.mean(0)) & (values.mean(0) < high))
    # ten runs are few, so that the percentile interval covers the true mean less often than asked
    assert 0.82 < np.mean((low < 0.0) & (high > 0.0)) < 0.97
    np.testing.assert_array_equal(figures.bootstrap_interval(values)[0], low)
    same = figures.bootstrap_interval(np.ones((3, 2)))
    np.testing.assert_array_equal(same, np.ones((2, 2)))


def test_curves_differ_in_colour_or_line() -> None:
    for scheme in figures.COLOURS:
        styles = [figures.line_style(index, scheme) for index in range(28)]
        assert len({str(style) for style in styles}) == 28
        assert len({style["color"] for style in styles[:7]}) == 7


@pytest.mark.parametrize(
    ("n_runs", "text"),
    [
        ([1, 1], "Lines: single runs"),
        ([2, 1], "Thick lines: mean over runs; thin lines: single runs"),
        ([3], "Lines: mean over runs; bands: 95 % bootstrap interval of the mean (from 3 runs on)"),
    ],
)
def test_the_caption_says_what_is_drawn(n_runs: list[int], text: str) -> None:
    assert figures.caption(n_runs) == text
