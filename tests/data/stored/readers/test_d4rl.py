"""D4RL's layout: every file of ``edge/`` behaves as it should, and files that nobody thought of are refused as well."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

pytest.importorskip("h5py")
import h5py

from sb3_diffusion import OfflineDataset, load_dataset
from sb3_diffusion.data.rewards import reward_transform

EDGE = Path(__file__).resolve().parents[1] / "edge"


def read(name: str, **options: Any) -> OfflineDataset:
    return load_dataset(EDGE / f"{name}.hdf5", **options)


def rows(data: OfflineDataset) -> list[float]:
    return data.observations[:, 0].tolist()


def same(one: OfflineDataset, other: OfflineDataset, atol: float = 0.0) -> None:
    for name in ("observations", "next_observations", "actions", "rewards", "terminated", "truncated", "episode_ids"):
        th.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=atol)


def write(path: Path, **changes: Any) -> Path:
    """The base file with other keys; ``None`` leaves one out."""
    with h5py.File(EDGE / "card_17_2.hdf5") as file:
        data = {key: file[key][:] for key in file} | changes
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            if value is not None:
                file[key] = value
    return path


def test_the_view_of_published_results() -> None:
    data, expected = read("card_17_2"), np.load(EDGE / "card_17_2_expected.npz")
    for name in ("observations", "actions", "next_observations"):
        assert np.array_equal(getattr(data, name).numpy(), expected[name])
    assert np.array_equal(data.rewards.numpy(), expected["rewards"][:, 0])
    assert np.array_equal(data.terminated.numpy(), expected["dones"][:, 0] > 0)
    assert np.array_equal(data.episode_ids.numpy(), expected["episode_id"])
    assert data.recorded_returns.tolist() == [1.5, 6.0]


def test_stored_successors() -> None:
    same(read("with_next_observations"), read("card_17_2"))
    data = read("with_next_observations", keep_timeouts=True)
    assert rows(data) == [0, 1, 2, 3, 4, 5, 6]
    assert data.next_observations[[2, 5]].tolist() == [[-2, -20], [-5, -50]]
    assert data.terminated.tolist() == [False, False, True, False, False, False, False]
    with pytest.raises(ValueError, match="keep_timeouts=True needs the key next_observations"):
        read("card_17_2", keep_timeouts=True)


@pytest.mark.parametrize("name", ["float64", "column_rewards", "float_flags", "with_metadata", "both_flags"])
def test_unusual_forms_are_the_same_data(name: str) -> None:
    same(read(name), read("card_17_2"))


def test_half_precision() -> None:
    data = read("float16")
    same(data, read("card_17_2"), atol=1e-3)
    assert data.observations.dtype == data.actions.dtype == th.float32


def test_limits_are_counted_where_they_are_not_stored() -> None:
    data = read("no_timeouts", max_episode_steps=4)
    assert rows(data) == [0, 1, 2, 3, 4, 5, 7]
    assert data.terminated.tolist() == [False, False, True, False, False, False, False]
    assert data.episode_ids.tolist() == [0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match=r"no key 'timeouts'.*max_episode_steps"):
        read("no_timeouts")
    with pytest.raises(ValueError, match="max_episode_steps=0"):
        read("no_timeouts", max_episode_steps=0)


def test_a_limit_is_not_counted_where_it_is_stored() -> None:
    same(read("card_17_2", max_episode_steps=2), read("card_17_2"))  # demonstrations are longer than their task allows


def test_short_episodes_are_not_joined() -> None:
    data = read("one_step_episodes")
    assert rows(data) == [0, 1, 2, 5]
    assert data.episode_ids[2] != data.episode_ids[3]


def test_equal_returns_have_no_range() -> None:
    data = read("equal_returns")
    assert data.episode_returns().tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"reward_transform='return_range_1000' divides by a range that is zero.*return 2"):
        reward_transform("return_range_1000", data)


def test_a_constant_feature_is_read() -> None:
    assert (read("constant_feature").observations[:, 1] == 3).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing_rewards", ["'rewards'", "actions, observations, terminals, timeouts"]),
        ("nan_rewards", ["rewards is nan in row 3"]),
        ("inf_observations", ["observations is inf in row 4"]),
        ("actions_out_of_box", ["actions is 1.37 in row 1", "bound 1", "clip_actions=True"]),
        ("unequal_lengths", ["7 rows", "6"]),
        ("huge_shape", ["observations", "1000000000"]),
        ("image_observations", ["(7, 4, 4, 3)", "flat observations"]),
        ("one_row", ["no transitions"]),
        ("no_rows", ["no transitions"]),
        ("all_timeouts", ["no transitions"]),
        ("truncated", ["damaged"]),
        ("not_hdf5", ["no HDF5 file", "<html>"]),
        ("outside_link", ["observations", "link into another file", "elsewhere.hdf5"]),
    ],
)
def test_wrong_files_are_refused_by_name(name: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        read(name)
    assert all(word in str(refusal.value) for word in [f"{name}.hdf5", *words]), refusal.value


def test_actions_are_clipped_where_asked() -> None:
    assert read("actions_out_of_box", clip_actions=True).actions[1, 0] == 1.0


def test_nothing_is_read_before_lengths_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_diffusion.data.stored.readers.hdf5.Hdf5Column.blocks", lambda *args: pytest.fail("read"))
    with pytest.raises(ValueError, match="7 rows"):
        read("unequal_lengths")


def test_shapes_that_all_agree_and_none_of_which_is_there(tmp_path: Path) -> None:
    path = tmp_path / "huge.hdf5"
    with h5py.File(path, "w") as file:
        for key, width in {"observations": 2, "actions": 1, "rewards": 1, "terminals": 1, "timeouts": 1}.items():
            file.create_dataset(key, shape=(10**9, width), dtype="f4", chunks=(10**6, width), compression="gzip")
    with pytest.raises(ValueError, match=r"declares the shape .1000000000, 2., but the file does not hold as much"):
        load_dataset(path)


def test_the_ways_out_of_a_file(tmp_path: Path) -> None:
    values = np.zeros((7, 2), np.float32)
    raw = tmp_path / "raw.bin"
    raw.write_bytes(values.tobytes())
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["group/observations"] = values

    def external(file: Any) -> None:
        file.create_dataset("observations", (7, 2), "f4", external=[(str(raw), 0, 56)])

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((7, 2), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "group/observations", shape=(7, 2))
        file.create_virtual_dataset("observations", layout)

    def soft_then_external(file: Any) -> None:
        file["there"] = h5py.ExternalLink("other.hdf5", "/group")
        file["observations"] = h5py.SoftLink("/there/observations")

    def endless(file: Any) -> None:
        file["observations"] = h5py.SoftLink("/observations")

    for number, make in enumerate((external, virtual, soft_then_external, endless)):
        path = write(tmp_path / f"{number}.hdf5", observations=None)
        with h5py.File(path, "a") as file:
            make(file)
        with pytest.raises(ValueError, match=r"other files|another file|without end"):
            load_dataset(path)


def test_a_link_within_the_file_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "linked.hdf5")
    with h5py.File(path, "a") as file:
        file.move("observations", "real/observations")
        file["observations"] = h5py.SoftLink("/real/observations")
    same(load_dataset(path), read("card_17_2"))


def test_objects_and_groups_are_no_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "objects.hdf5", rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", data=["a"] * 7, dtype=h5py.string_dtype())
    with pytest.raises(TypeError, match=r"objects.hdf5: rewards holds objects"):
        load_dataset(path)
    path = write(tmp_path / "group.hdf5", rewards=None, **{"rewards/values": np.zeros(7)})
    with pytest.raises(ValueError, match="rewards is a group"):
        load_dataset(path)
    path = write(tmp_path / "scalar.hdf5", rewards=np.float32(1))
    with pytest.raises(ValueError, match="rewards is a single value"):
        load_dataset(path)


def test_chunks_and_compression(tmp_path: Path) -> None:
    with h5py.File(EDGE / "card_17_2.hdf5") as file:
        data = {key: file[key][:] for key in file}
    path = tmp_path / "packed.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file.create_dataset(key, data=value, chunks=(2, *value.shape[1:]), compression="gzip")
    same(load_dataset(path), read("card_17_2"))


def test_what_a_file_says_of_itself(tmp_path: Path) -> None:
    data = load_dataset(write(tmp_path / "mine.hdf5", **{"metadata/env_id": "Hopper-v5"}))
    assert data.source.kind == "hdf5"
    assert (data.source.name, data.source.env_id, data.source.reference) == ("mine", "Hopper-v5", None)
    assert data.source.checksum and len(data.source.checksum) == 64
    known = load_dataset(write(tmp_path / "hopper_medium-v2.hdf5"))
    assert (known.source.name, known.source.env_id) == ("hopper-medium-v2", "Hopper-v4")
    assert known.source.reference is not None and known.source.reference.origin == "D4RL"
    # a name brings the limit of its task, with which old files are read
    assert len(load_dataset(write(tmp_path / "hopper_medium-v1.hdf5", timeouts=None))) == 6


def test_a_million_rows_take_little_more_than_themselves(tmp_path: Path) -> None:
    n, path = 200_000, tmp_path / "large.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((n, 17), np.float32)
        file["actions"] = np.zeros((n, 6), np.float32)
        file["rewards"] = np.zeros(n, np.float32)
        file["terminals"] = np.zeros(n, bool)
        file["timeouts"] = np.arange(n) % 1000 == 999
    read("card_17_2")  # what is imported only once
    tracemalloc.start()
    data = load_dataset(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) == n - n // 1000
    assert peak < 1.3 * 4 * n * (17 + 6 + 1)
