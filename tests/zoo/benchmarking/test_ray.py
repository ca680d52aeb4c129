"""A benchmark on a real Ray cluster of two nodes on this machine, one of which is killed half-way."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zoo.benchmarking.cell_worker import Outcome
from zoo.benchmarking.cells import Cell, Settings, expand, lease, plan, read_result
from zoo.benchmarking.grid import RayRunner, run_cells

FAKE = Path(__file__).with_name("fake_train.py")
N_CELLS, N_BEFORE = 6, 2


@pytest.fixture
def ray() -> ModuleType:
    return pytest.importorskip("ray", reason='Ray is not installed (pip install -e ".[ray]")')


@pytest.fixture
def cluster(ray: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one node with one processor."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def starts(cell: Cell) -> list[str]:
    path = cell.folder / "starts"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.expensive
@pytest.mark.timeout(900)
def test_killed_node(ray: ModuleType, cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    settings = Settings(n_timesteps=40, eval_freq=20, eval_episodes=2, params=("wait:1", "resume:1"))
    cells = expand(tmp_path, ["sac", "td3"], ["Pendulum-v1"], range(N_CELLS // 2), settings)
    plan(cells)
    for cell in cells[:N_BEFORE]:
        (cell.folder / "go").touch()
    runner = RayRunner(cluster.address, 2, train=FAKE)
    assert len([entry for entry in ray.nodes() if entry["Alive"]]) == 2
    killed: list[Cell] = []

    def kill_half_way() -> None:
        waiting = [cell for cell in cells if not (cell.folder / "go").exists()]
        # both nodes are in the middle of a training
        until(lambda: sum(bool(starts(cell)) for cell in waiting) == 2)
        owners = {cell: owner.pid for cell in waiting if (owner := lease(cell.folder / "cell.lease").owner) is not None}
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: not all(alive(process) for process in owners.values()))
        killed.extend(cell for cell, process in owners.items() if not alive(process))
        with contextlib.suppress(ProcessLookupError):  # on a machine that is gone, the training is gone as well
            os.kill(int((killed[0].folder / "pid").read_text(encoding="utf-8")), signal.SIGKILL)
        for cell in waiting:
            (cell.folder / "go").touch()

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    reported: list[tuple[Cell, str]] = []

    def report(cell: Cell, outcome: Outcome) -> None:
        print(cell, outcome.state, outcome.text)
        reported.append((cell, outcome.state))

    outcomes = run_cells(runner, cells, report)
    killer.join()
    assert len(killed) == 1
    assert set(outcomes) == set(cells)
    assert all(outcome.has_result for outcome in outcomes.values())
    # every cell was trained once, and that of the killed node was continued
    assert [starts(cell) for cell in cells if cell not in killed] == [["new"]] * (N_CELLS - 1)
    assert starts(killed[0]) == ["new", "resumed"]
    assert sum(state == "done" for _, state in reported) == N_CELLS
    results = sorted(tmp_path.glob("*/*/seed-*/result.json"))
    assert results == sorted(cell.folder / "result.json" for cell in cells)
    for cell in cells:
        assert read_result(cell.folder)["cell"]["seed"] == cell.seed


def test_no_cluster_there(ray: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster answers there"):
        RayRunner("127.0.0.1:1", 0)
