"""Files of NumPy's: ours, OGBench's, and those that are none."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import OfflineDataset, load_dataset

EDGE = Path(__file__).resolve().parents[1] / "edge"
N = 3 * 4
"""Three episodes of three steps in OGBench's layout: the fourth row of each is a state only."""


def ogbench(path: Path, **changes: Any) -> Path:
    rows = np.arange(N, dtype=np.float32)
    solved = np.isin(rows, [1, 2, 6])
    arrays: dict[str, Any] = {
        "observations": np.stack([rows, -rows], axis=1),
        "actions": np.zeros((N, 5), np.float32),
        "terminals": rows % 4 == 3,
        "rewards_task1": solved - 1.0,
        "masks_task1": 1.0 - solved,
        "rewards_task2": np.full(N, -1.0),
        "masks_task2": np.ones(N),
    }
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_the_expected_view_is_a_data_set() -> None:
    data, expected = load_dataset(EDGE / "card_17_2_expected.npz"), np.load(EDGE / "card_17_2_expected.npz")
    for name in ("observations", "next_observations", "actions"):
        assert np.array_equal(getattr(data, name).numpy(), expected[name])
    assert data.episode_ids.tolist() == expected["episode_id"].tolist()
    assert data.terminated.tolist() == [False, False, True, False, False]


def test_ogbench_has_rewards_by_task(tmp_path: Path) -> None:
    data = load_dataset(ogbench(tmp_path / "cube-single-play-v0.npz"), task=1)
    assert data.observations[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert data.next_observations[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert data.rewards.tolist() == [-1, 0, 0, -1, -1, 0, -1, -1, -1]
    # the task is solved within an episode, which goes on; the recording ends without an end of the task
    assert data.terminated.tolist() == [False, True, True, False, False, True, False, False, False]
    assert data.truncated.tolist() == [False, False, False, False, False, False, False, False, True]
    assert data.episode_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.recorded_lengths.tolist() == [3, 3, 3]
    assert (data.source.name, data.source.env_id) == (
        "cube-single-play-singletask-task1-v0",
        "cube-single-singletask-task1-v0",
    )


def test_ogbenchs_own_choice_of_the_task(tmp_path: Path) -> None:
    data = load_dataset(ogbench(tmp_path / "cube-single-play-v0.npz"))
    assert data.source.name == "cube-single-play-singletask-task2-v0"
    assert not data.terminated.any()


def test_a_task_that_is_not_there(tmp_path: Path) -> None:
    path = ogbench(tmp_path / "cube-single-play-v0.npz")
    with pytest.raises(ValueError, match=r"task=3.*rewards_task1, rewards_task2.*qpos"):
        load_dataset(path, task=3)
    with pytest.raises(ValueError, match="task=9 must be at most 5"):
        load_dataset(path, task=9)
    with pytest.raises(ValueError, match="pass task"):
        load_dataset(ogbench(tmp_path / "mine.npz"))
    assert load_dataset(ogbench(tmp_path / "mine.npz"), task=1).source.env_id is None


def test_rewards_are_computed_from_the_state(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    rows = np.zeros((N, 2), np.float32)
    path = ogbench(tmp_path / "pointmaze-medium-navigate-v0.npz", rewards_task1=None, qpos=rows, actions=rows)
    data = load_dataset(path, task=1)
    assert (data.rewards == -1).all() and not data.terminated.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": None}, ["'rewards'", "observations, actions"]),
        ({"rewards": np.zeros(6)}, ["7 rows", "6"]),
        ({"observations": None}, ["'observations'"]),
        ({"actions": np.full((7, 1), 3.0)}, ["actions is 3 in row 0"]),
    ],
)
def test_wrong_files_are_refused_by_name(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "observations": np.zeros((7, 2)),
        "actions": np.zeros((7, 1)),
        "rewards": np.zeros(7),
        "terminated": np.zeros(7, bool),
    }
    path = tmp_path / "wrong.npz"
    np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
    with pytest.raises(ValueError) as refusal:
        load_dataset(path)
    assert all(word in str(refusal.value) for word in ["wrong.npz", *words]), refusal.value


def test_objects_are_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickle.load", lambda *args, **kwargs: pytest.fail("unpickled"))
    with pytest.raises(TypeError, match=r"pickled\.npz: observations holds objects"):
        load_dataset(EDGE / "pickled.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    OfflineDataset.from_arrays(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(3), [0, 0, 1]).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["observations.npy"] = members["observations.npy"].replace(b"(3, 2), ", b"(3000000000, 2), ", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"damaged|declares the shape|rows"):
        load_dataset(path)


@pytest.mark.parametrize("content", [b"", b"<html>403</html>", b"PK\x03\x04 and no more"])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"none\.npz: this is no npz file"):
        load_dataset(path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = ogbench(tmp_path / "cube-single-play-v0.npz")
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cube-single-play-v0\.npz.*damaged"):
        load_dataset(path)


def test_arrays_in_the_other_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((7, 2))
    flags = {"actions": np.zeros((7, 1)), "rewards": np.zeros(7), "terminated": np.arange(7) == 6}
    np.savez(tmp_path / "c.npz", observations=values, **flags)
    np.savez(tmp_path / "f.npz", observations=np.asfortranarray(values), **flags)
    assert th.equal(load_dataset(tmp_path / "c.npz").states, load_dataset(tmp_path / "f.npz").states)
