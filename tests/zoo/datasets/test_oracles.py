"""OGBench's oracles: the layout of its files, and that they do something."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ogbench")
from sb3_diffusion import load_dataset
from sb3_diffusion.data.stored.catalogue import KnownDataset, ogbench
from zoo.datasets import oracles


def known(name: str) -> KnownDataset:
    found = ogbench(name)
    assert found is not None
    return found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(oracles, "N_STEPS", 61)
    monkeypatch.setattr(oracles, "BLOCK", 1)
    return 61


def test_a_point_in_a_maze(short: int, tmp_path: Path) -> None:
    target = tmp_path / "pointmaze-medium-navigate-v0.npz"
    files = oracles.make(known("pointmaze-medium-navigate-v0"), target, n_episodes=2)
    assert [file.name for file in files] == ["pointmaze-medium-navigate-v0-val.npz", target.name]
    raw = np.load(target)
    assert raw["observations"].shape == (2 * short, 2)
    assert np.flatnonzero(raw["terminals"]).tolist() == [short - 1, 2 * short - 1]
    for task in (1, 5):
        data = load_dataset(target, task=task)
        assert len(data) == 2 * (short - 1)
        # OGBench pays for the state before the action, and the task ends where it is solved
        assert set(data.rewards.tolist()) <= {-1.0, 0.0}
        assert ((data.rewards == 0) == data.terminated).all()
    way = np.linalg.norm(np.diff(raw["observations"][:short], axis=0), axis=1)
    assert way.mean() > 0.05
    again = oracles.collect("pointmaze-medium-navigate", 2, 0, "again")
    assert np.array_equal(again["actions"], raw["actions"])


@pytest.mark.parametrize("kind", ["noisy", "play"])
def test_a_cube(kind: str, short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "TASKS", (2,))
    data = oracles.collect(f"cube-single-{kind}", 1, 0, kind)
    assert data["observations"].shape == (short, 28) and data["actions"].shape == (short, 5)
    assert np.abs(data["actions"]).max() <= 1.0
    assert {"rewards_task2", "masks_task2", "qpos"} <= data.keys()
    # the arm comes to the cube
    hand, cube = data["observations"][:, 12:15], data["observations"][:, 19:22]
    distance = np.linalg.norm(hand - cube, axis=1)
    assert distance.min() < 0.5 * distance[0]


def test_corridors_are_no_goals() -> None:
    maze = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    free, goals = oracles._cells(maze)
    assert len(free) == 5
    assert goals == [(1, 1), (1, 3), (3, 3)]
