"""A benchmark does every cell once, whatever happens meanwhile."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.forks import Process
from tests.zoo.processes import check, run, script, start
from zoo.benchmark import make_cells
from zoo.benchmarking.cell_worker import Outcome, training_command, work
from zoo.benchmarking.cells import Cell, CellFileError, Settings, expand, lease, plan, read, read_result
from zoo.benchmarking.grid import LocalRunner, RayRunner, run_cells, summary

FAKE = Path(__file__).with_name("fake_train.py")
SHORT = Settings(n_timesteps=40, eval_freq=20, eval_episodes=2)
DRIVER = """
import signal
import sys
from pathlib import Path
from zoo.benchmarking.cells import Settings, expand, plan
from zoo.benchmarking.grid import LocalRunner, run_cells
signal.signal(signal.SIGINT, signal.default_int_handler)  # is switched off in what a shell starts in the background
root, train, jobs, params, seeds = sys.argv[1:]
settings = Settings(n_timesteps=40, eval_freq=20, eval_episodes=2, params=tuple(params.split()))
cells = expand(Path(root), ["sac"], ["Pendulum-v1"], range(int(seeds)), settings)
plan(cells)
try:
    outcomes = run_cells(LocalRunner(int(jobs), 0, Path(train)), cells, lambda cell, outcome: print(outcome.text, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(0 if all(outcome.has_result for outcome in outcomes.values()) else 1)
"""


def one_cell(root: Path, *params: str) -> Cell:
    (cell,) = expand(root, ["sac"], ["Pendulum-v1"], [0], replace(SHORT, params=params))
    plan([cell])
    return cell


def fake(cell: Cell, retries: int = 0, **options: Any) -> Outcome:
    return work(cell, retries=retries, wait=False, train=FAKE, **options)


def starts(cell: Cell) -> list[str]:
    path = cell.folder / "starts"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def driver() -> Iterator[Callable[..., Process]]:
    """Starts runners in processes of their own."""
    processes: list[Process] = []

    def start_runner(root: Path, *, jobs: int, params: str, seeds: int) -> Process:
        processes.append(start("-c", DRIVER, str(root), str(FAKE), str(jobs), params, str(seeds), cwd=root))
        return processes[-1]

    yield start_runner
    for process in processes:
        process.kill()
        process.communicate()


# -- the grid --------------------------------------------------------------------------------------------------------------


def test_grid_has_every_combination_once(tmp_path: Path) -> None:
    cells = expand(tmp_path, ["sac", "qsm", "sac"], ["Pendulum-v1", "toy/rings-v0"], [1, 0, 1], SHORT)
    assert len(cells) == len(set(cells)) == 8
    assert [cell.seed for cell in cells] == [1] * 4 + [0] * 4
    assert cells[2].folder == tmp_path / "sac" / "toy-rings-v0" / "seed-1"
    assert len({cell.folder for cell in cells}) == 8


def test_settings_reach_the_command_line(tmp_path: Path) -> None:
    settings = Settings(500, 100, 3, 2, 4, "cpu", ("a:1", "b:[1, 2]"), ("g:9.8",), ("some_package",))
    cell = Cell(tmp_path, "qsm", "Pendulum-v1", 7, settings)
    assert cell.command == (
        "python zoo/train.py --algo qsm --env Pendulum-v1 --seed 7 -n 500 --eval-freq 100 --eval-episodes 3 --n-eval-envs 2 "
        "--num-threads 4 --device cpu -params a:1 'b:[1, 2]' --env-kwargs g:9.8 --gym-packages some_package"
    )


def test_evaluations_are_counted_in_frames_unless_they_are_not(tmp_path: Path) -> None:
    def frequencies(**settings: Any) -> list[tuple[str, int | None]]:
        cells = expand(tmp_path, ["qsm"], ["Hopper-v5", "dm_control/cheetah-run-v0"], [0], Settings(**settings))
        assert all(f"--eval-freq {cell.settings.eval_freq}" in cell.command for cell in cells)
        return [(cell.env, cell.settings.eval_freq) for cell in cells]

    assert frequencies() == [("Hopper-v5", 10_000), ("dm_control/cheetah-run-v0", 5_000)]
    assert frequencies(eval_freq=300) == [("Hopper-v5", 300), ("dm_control/cheetah-run-v0", 300)]
    (cell,) = expand(tmp_path, ["qsm"], ["dm_control/cheetah-run-v0"], [0], Settings())
    plan([cell])
    assert read(cell.folder, "cell")["settings"]["eval_freq"] == 5_000


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    cell = one_cell(tmp_path)
    with pytest.raises(ValueError, match=r"started with n_timesteps 40 \(not 80\); give another --folder"):
        plan([replace(cell, settings=replace(SHORT, n_timesteps=80)), replace(cell, seed=5)])
    assert not (tmp_path / "sac" / "Pendulum-v1" / "seed-5").exists()  # nothing was planned
    plan([cell, replace(cell, seed=5)])
    assert read(tmp_path / "sac" / "Pendulum-v1" / "seed-5", "cell")["seed"] == 5


def test_two_environments_never_share_a_folder(tmp_path: Path) -> None:
    plan(expand(tmp_path, ["sac"], ["toy/rings-v0"], [0], SHORT))
    with pytest.raises(ValueError, match="environment toy/rings-v0"):
        plan(expand(tmp_path, ["sac"], ["toy-rings-v0"], [0], SHORT))


# -- one cell --------------------------------------------------------------------------------------------------------------


def test_result_says_how_it_came_about_and_is_never_done_again(tmp_path: Path) -> None:
    cell = one_cell(tmp_path)
    assert fake(cell).state == "done"
    result = read_result(cell.folder)
    assert result["command"] == cell.command
    assert result["cell"]["seed"] == 0
    assert [point["timesteps"] for point in result["curve"]] == [20, 40]
    assert len(result["final"]["returns"]) == 2
    assert {"python", "torch", "stable-baselines3"} <= set(result["versions"])
    (attempt,) = result["attempts"]
    assert attempt["error"] is None
    assert attempt["cpu_seconds"] > 0  # what imports NumPy takes some
    before = (cell.folder / "result.json").read_bytes()
    assert fake(cell).state == "present"
    assert starts(cell) == ["new"]
    assert (cell.folder / "result.json").read_bytes() == before


def test_failures_are_tried_again_in_an_empty_folder(tmp_path: Path) -> None:
    cell = one_cell(tmp_path, "crash:2")
    outcome = fake(cell, retries=2)
    assert outcome.state == "done"
    assert starts(cell) == ["new", "new", "new"]
    errors = [attempt["error"] for attempt in read_result(cell.folder)["attempts"]]
    assert errors == ["the training ended with exit status 3"] * 2 + [None]


def test_failures_are_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    cell = one_cell(tmp_path, "crash:9")
    outcome = fake(cell, retries=1)
    assert outcome.state == "failed"
    assert outcome.text.startswith("failed 2 times, the last time because the training ended with exit status 3; log: ")
    assert str(cell.log) in outcome.text
    assert outcome.text.endswith("the last words <script>")
    assert not (cell.folder / "result.json").exists()
    assert "failed 2 times" in summary({cell: outcome})
    assert "0 of 1" in summary({cell: outcome})


def test_failed_training_is_resumed_then_begun_anew(tmp_path: Path) -> None:
    cell = one_cell(tmp_path, "crash:2", "resume:1")
    assert fake(cell, retries=2).state == "done"
    assert starts(cell) == ["new", "resumed", "new"]
    assert [attempt["resumed"] for attempt in read_result(cell.folder)["attempts"]] == [False, True, False]


def test_finished_training_without_result_is_only_read(tmp_path: Path) -> None:
    cell = one_cell(tmp_path)
    fake(cell)
    (cell.folder / "result.json").unlink()
    assert fake(cell).state == "done"
    assert starts(cell) == ["new"]


def test_training_without_evaluations_has_its_end_as_curve(tmp_path: Path) -> None:
    """Evaluations that were due before the first update are not made."""
    cell = one_cell(tmp_path)
    fake(cell)
    (cell.folder / "result.json").unlink()
    (evaluations,) = cell.folder.glob("run/**/evaluations.npz")
    evaluations.unlink()
    assert fake(cell).state == "done"
    result = read_result(cell.folder)
    assert result["curve"] == [{key: result["final"][key] for key in ("timesteps", "returns", "lengths")}]


def test_unfinished_budget_is_no_result(tmp_path: Path) -> None:
    outcome = fake(one_cell(tmp_path, "short:1"))
    assert outcome.state == "failed"
    assert "ended after 20 of 40 steps" in outcome.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not readable as JSON"),
        (b'{"format": 1', "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b'{"format": 1}', "is a required property"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b'{"format": 1e999}', "1e999 is too large"),
    ],
)
def test_damaged_results_are_noticed_and_done_again(tmp_path: Path, content: bytes, reason: str) -> None:
    cell = one_cell(tmp_path)
    path = cell.folder / "result.json"
    path.write_bytes(content)
    with pytest.raises(CellFileError, match=reason) as caught:
        read_result(cell.folder)
    assert str(path) in str(caught.value)
    assert fake(cell).state == "done"
    read_result(cell.folder)
    assert (cell.folder / "result.damaged").read_bytes() == content


def test_result_of_another_cell_does_not_count(tmp_path: Path) -> None:
    cell = one_cell(tmp_path)
    fake(cell)
    result = json.loads((cell.folder / "result.json").read_text(encoding="utf-8"))
    result["cell"]["seed"] = 1
    (cell.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(CellFileError, match="result of another cell"):
        read_result(cell.folder)


def test_folder_that_this_machine_does_not_see(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "sac", "Pendulum-v1", 0, SHORT)
    assert "has to be on a shared file system" in fake(cell).text


# -- locks -----------------------------------------------------------------------------------------------------------------


def test_cell_of_a_living_owner_is_left_alone_then_waited_for(tmp_path: Path) -> None:
    cell = one_cell(tmp_path, "wait:1")
    outcomes: list[Outcome] = []
    first = threading.Thread(target=lambda: outcomes.append(fake(cell)))
    first.start()
    until(lambda: starts(cell) == ["new"])
    busy = fake(cell)
    assert busy.state == "busy"
    assert f"process {os.getpid()}" in busy.text
    second = threading.Thread(target=lambda: outcomes.append(work(cell, retries=0, wait=True, train=FAKE)))
    second.start()
    (cell.folder / "go").touch()
    first.join()
    second.join()
    assert sorted(outcome.state for outcome in outcomes) == ["done", "present"]
    assert starts(cell) == ["new"]


def test_lock_of_a_silent_owner_elsewhere_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.lease.LEASE_SECONDS", 10.0)
    cell = one_cell(tmp_path)
    path = cell.folder / "cell.lease"
    lock = lease(path)
    with lock:
        assert lock.owner is not None
        marker, host = path.read_text(encoding="utf-8"), lock.owner.hostname
    path.write_text(marker.replace(host, "another-machine"), encoding="utf-8")
    assert fake(cell).state == "busy"
    assert work(cell, retries=0, wait=True, train=FAKE).state == "done"


def test_two_runners_share_the_work(tmp_path: Path, driver: Callable[..., Process]) -> None:
    runners = [driver(tmp_path, jobs=2, params="", seeds=3) for _ in range(2)]
    assert [runner.wait() for runner in runners] == [0, 0]
    cells = expand(tmp_path, ["sac"], ["Pendulum-v1"], range(3), SHORT)
    assert [starts(cell) for cell in cells] == [["new"]] * 3
    for cell in cells:
        read_result(cell.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be killed this way")
def test_training_of_a_killed_runner_is_not_started_twice(
    tmp_path: Path, driver: Callable[..., Process], capfd: pytest.CaptureFixture[str]
) -> None:
    cell = one_cell(tmp_path, "wait:1")
    runner = driver(tmp_path, jobs=1, params="wait:1", seeds=1)
    until(lambda: starts(cell) == ["new"])
    runner.kill()
    runner.wait()
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(work(cell, retries=0, wait=True, train=FAKE)))
    thread.start()
    until(lambda: "waiting for a training whose runner has died" in capfd.readouterr().out)
    (cell.folder / "go").touch()
    thread.join()
    assert [outcome.state for outcome in outcomes] == ["done"]
    assert starts(cell) == ["new"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are different")
def test_ctrl_c_ends_the_trainings_and_the_next_runner_continues(tmp_path: Path, driver: Callable[..., Process]) -> None:
    cells = expand(tmp_path, ["sac"], ["Pendulum-v1"], range(3), replace(SHORT, params=("wait:1", "resume:1")))
    runner = driver(tmp_path, jobs=2, params="wait:1 resume:1", seeds=3)
    until(lambda: all(list(cell.folder.glob("run/*/*/*/config.yml")) for cell in cells[:2]))
    runner.send_signal(signal.SIGINT)
    assert runner.wait() == 130
    for cell in cells[:2]:
        (attempt,) = read(cell.folder, "attempts")
        assert attempt["cpu_seconds"] > 0  # what has been spent is known, though there is no result
        assert attempt["seconds"] > 0
    for cell in cells:
        assert not (cell.folder / "cell.lease").exists()
        (cell.folder / "go").touch()
    assert driver(tmp_path, jobs=2, params="wait:1 resume:1", seeds=3).wait() == 0
    assert [starts(cell) for cell in cells] == [["new", "resumed"], ["new", "resumed"], ["new"]]


# -- the command -----------------------------------------------------------------------------------------------------------


def test_real_trainings_and_report(tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    tiny = ["-n", "300", "--eval-freq", "150", "--eval-episodes", "2", "-f", str(folder), "--jobs", "2"]
    params = ["-params", "learning_starts:100", "batch_size:16", "policy_kwargs:dict(net_arch=[16])"]
    grid = ["run", "--algos", "sac", "qsm", "--envs", "toy/rings-v0", "--seeds", "3"]
    printed = check(run(script("benchmark"), *grid, *tiny, *params, cwd=tmp_path))
    assert "[2/2]" in printed
    assert "1 of 1" in printed
    for algo in ("sac", "qsm"):
        stored = read_result(folder / algo / "toy-rings-v0" / "seed-3")
        assert [point["timesteps"] for point in stored["curve"]] == [150, 300]
        assert stored["final"]["timesteps"] == stored["final"]["budget"] == 300
    check(run(script("benchmark"), "report", "-f", str(folder), cwd=tmp_path))
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "2 of 2 planned runs" in page
    assert "toy/rings-v0" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algos", "sca"], "unknown algorithm 'sca'; did you mean sac?"),
        (["--envs", "Pendulum-v"], "unknown environment 'Pendulum-v'; did you mean Pendulum-v1?"),
        (["--seeds", "-1"], "--seeds -1 is negative"),
        (["--jobs", "0"], "--jobs 0 is too small; give at least 1."),
        (["--n-timesteps", "0"], "--n-timesteps 0 is too small; give at least 1."),
        (["-params", "gamma=0.9"], "'gamma=0.9' is not of the form key:value"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.benchmark import make_parser

    grid = ["--algos", "sac", "--envs", "Pendulum-v1", "--seeds", "0", "-f", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "run", *grid, *arguments])
    with pytest.raises(ValueError) as caught:
        make_cells(make_parser().parse_args())
    assert message in str(caught.value)


def test_report_without_benchmark(tmp_path: Path) -> None:
    result = run(script("benchmark"), "report", "-f", str(tmp_path / "nothing"), cwd=tmp_path)
    assert result.returncode == 2
    assert "holds no benchmark; make one with: python zoo/benchmark.py run" in result.stderr
    assert "Traceback" not in result.stderr


def test_ray_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r'--ray-address needs Ray; install it with: .*"\.\[ray\]"'):
        RayRunner("auto", 0)


def test_ray_is_not_imported_otherwise(tmp_path: Path) -> None:
    code = "import sys, zoo.benchmark; sys.exit('ray' in sys.modules)"
    assert run("-c", code, cwd=tmp_path).returncode == 0


def test_continued_run_has_a_short_command(tmp_path: Path) -> None:
    cell = one_cell(tmp_path, "crash:1", "resume:1")
    fake(cell)
    words, resumed = training_command(cell, FAKE)
    assert resumed
    assert words[2:] == ["--resume", str(cell.folder / "run" / "sac" / "Pendulum-v1_1")]
    words, resumed = training_command(cell, FAKE, fresh=True)
    assert not resumed
    assert not (cell.folder / "run").exists()


def test_failing_cells_make_the_runner_report(tmp_path: Path) -> None:
    cells = expand(tmp_path, ["sac"], ["Pendulum-v1"], range(3), replace(SHORT, params=("crash:1",)))
    plan(cells)
    seen: list[tuple[Cell, str]] = []
    outcomes = run_cells(LocalRunner(3, 0, FAKE), cells, lambda cell, outcome: seen.append((cell, outcome.state)))
    assert sorted(seen, key=str) == sorted(((cell, "failed") for cell in cells), key=str)
    assert set(outcomes) == set(cells)
