"""Data sets from arrays, what they answer, and how they are kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion import OfflineDataset, load_dataset

TERMINATED, TRUNCATED = np.isin(np.arange(7), 2), np.isin(np.arange(7), 5)


def steps(**changes: Any) -> dict[str, Any]:
    """Seven steps that can be followed by eye: the task ends in row 2, a limit strikes in row 5, the last episode goes on."""
    rows = np.arange(7, dtype=np.float32)
    arrays = {
        "observations": np.stack([rows, 10 * rows], axis=1),
        "actions": (rows / 10 - 0.3)[:, None],
        "rewards": rows / 2,
        "terminated": TERMINATED,
        "truncated": TRUNCATED,
    }
    return {**arrays, **changes}


def successors() -> np.ndarray:
    after = steps()["observations"] + np.array([1, 10], np.float32)
    after[[2, 5]] = [[-2, -20], [-5, -50]]
    return after


def test_without_successors_the_next_row_follows() -> None:
    data = OfflineDataset.from_arrays(**steps())
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert data.next_observations[[0, 1, 3, 4], 0].tolist() == [1, 2, 4, 5]
    assert data.terminated.tolist() == [False, False, True, False, False]
    assert not data.truncated.any()
    assert data.episode_ids.tolist() == [0, 0, 0, 1, 1]
    assert data.episode_lengths().tolist() == [3, 2]
    assert data.episode_returns().tolist() == [1.5, 3.5]
    # what was recorded goes on for a step that is no transition, and only the last episode has no end
    assert data.recorded_returns.tolist() == [1.5, 6.0]
    assert data.recorded_lengths.tolist() == [3, 3]


def test_with_successors_every_step_is_a_transition() -> None:
    data = OfflineDataset.from_arrays(**steps(), next_observations=successors())
    assert len(data) == 7
    assert th.equal(data.next_observations, th.from_numpy(successors()))
    assert data.truncated.tolist() == TRUNCATED.tolist()
    assert data.episode_ids.tolist() == [0, 0, 0, 1, 1, 1, 2]
    # each observation once: seven, and the three that no row holds
    assert data.states.shape == (10, 2)
    assert data.observations.data_ptr() == data.states.data_ptr()


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_the_size_of_the_blocks_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    ends = generator.random(50) < 0.2
    arrays: dict[str, Any] = {
        "observations": generator.standard_normal((50, 3)),
        "actions": generator.uniform(-1, 1, (50, 2)),
        "rewards": generator.standard_normal(50),
        "terminated": ends & (generator.random(50) < 0.5),
        "truncated": ends,
    }
    after = np.roll(arrays["observations"], -1, 0)
    after[ends] += 1
    whole = [OfflineDataset.from_arrays(**arrays), OfflineDataset.from_arrays(**arrays, next_observations=after)]
    for module in ("columns", "assembly", "contents"):
        monkeypatch.setattr(f"sb3_diffusion.data.stored.tables.{module}.BLOCK_ROWS", block)
    pieces = [OfflineDataset.from_arrays(**arrays), OfflineDataset.from_arrays(**arrays, next_observations=after)]
    for one, other in zip(whole, pieces, strict=True):
        assert one.identity() == other.identity()
        np.testing.assert_allclose(one.recorded_returns, other.recorded_returns, rtol=1e-12)
        assert one.recorded_lengths.tolist() == other.recorded_lengths.tolist()
    assert th.equal(pieces[1].next_observations, th.from_numpy(after).float())


def test_episode_ids_say_where_an_episode_ends() -> None:
    data = OfflineDataset.from_arrays(**steps(truncated=None), episode_ids=[4, 4, 4, 9, 9, 2, 2])
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 5]
    assert data.episode_ids.tolist() == [0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match=r"episode_ids=4 begins again in row 5.*consecutive"):
        OfflineDataset.from_arrays(**steps(), episode_ids=[4, 4, 4, 9, 9, 4, 4])


def test_a_task_that_ends_within_an_episode_does_not_end_it() -> None:
    data = OfflineDataset.from_arrays(**steps(truncated=None), episode_ids=np.zeros(7, int))
    assert data.n_episodes == 1
    assert data.next_observations[2, 0] == 3


@pytest.mark.parametrize("wrap", [np.asarray, np.float64, th.as_tensor, np.ndarray.tolist], ids=lambda wrap: wrap.__name__)
def test_numbers_of_any_form(wrap: Any) -> None:
    arrays = {name: wrap(value) for name, value in steps().items()}
    data = OfflineDataset.from_arrays(**arrays)
    assert data.identity() == OfflineDataset.from_arrays(**steps()).identity()
    assert {data.states.dtype, data.actions.dtype, data.rewards.dtype} == {th.float32}


def test_columns_are_flattened() -> None:
    data = OfflineDataset.from_arrays(**steps(rewards=steps()["rewards"][:, None], terminated=TERMINATED[:, None]))
    assert data.rewards.shape == data.terminated.shape == (5,)
    assert OfflineDataset.from_arrays(**steps(observations=np.arange(7.0))).observations.shape == (5, 1)
    assert OfflineDataset.from_arrays(**steps(actions=np.linspace(-1, 1, 7))).actions.shape == (5, 1)


def test_the_arrays_of_the_user_stay_theirs() -> None:
    arrays = steps(actions=np.full((7, 1), 1.0005, np.float32))
    data = OfflineDataset.from_arrays(**arrays)
    assert (data.actions == 1).all()  # a rounding error is moved to the border
    assert (arrays["actions"] == np.float32(1.0005)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": steps()["actions"][:-1]}, ["observations has 7 rows", "actions has 6"]),
        ({"rewards": np.zeros((7, 2))}, ["rewards has shape (7, 2)", "one number per row"]),
        ({"rewards": np.where(np.arange(7) == 3, np.nan, 1.0)}, ["rewards is nan in row 3"]),
        ({"observations": np.where(np.arange(7)[:, None] == 4, [np.inf, 1.0], 0.0)}, ["observations is inf in row 4"]),
        ({"observations": np.full((7, 2), 1e300)}, ["observations is inf in row 0"]),
        ({"actions": np.where(np.arange(7)[:, None] == 1, 1.37, 0.0)}, ["1.37 in row 1", "bound 1", "clip_actions=True"]),
        ({"actions": np.where(np.arange(7)[:, None] == 4, -2.0, 0.0)}, ["-2 in row 4", "bound -1"]),
        ({"terminated": np.zeros(7), "truncated": np.ones(7)}, ["no transitions", "7 recorded steps"]),
        (
            {"observations": np.zeros((0, 2)), "actions": np.zeros((0, 1)), "rewards": [], "terminated": [], "truncated": []},
            ["no tr"],
        ),
        ({"next_observations": np.zeros((7, 3))}, ["next_observations", "(7, 3)"]),
        ({"terminated": np.full(7, np.nan)}, ["terminated is nan in row 0"]),
        ({"observation_space": spaces.Box(-1, 1, (3,))}, ["observations has shape (7, 2)", "(3,)"]),
        ({"observation_space": spaces.Box(0, 255, (2,), np.uint8)}, ["float32", "uint8"]),
        ({"observation_space": spaces.Dict({"x": spaces.Box(-1, 1, (2,))})}, ["no keys", "x"]),
        ({"action_space": spaces.Box(-1, 1, (3,))}, ["actions has shape (7, 1)", "(3,)"]),
    ],
)
def test_wrong_arrays_are_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        OfflineDataset.from_arrays(**steps(**changes))
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": np.array([{"a": 1}] * 7)}, ["observations", "objects"]),
        ({"rewards": np.array(["1"] * 7)}, ["rewards", "<U1"]),
        ({"rewards": np.zeros(7, complex)}, ["rewards", "complex"]),
        ({"actions": np.zeros((7, 1), int)}, ["actions", "int64", "action_space"]),
        ({"action_space": spaces.Discrete(3)}, ["action_space=Discrete(3)", "Box"]),
    ],
)
def test_wrong_types_are_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as refusal:
        OfflineDataset.from_arrays(**steps(**changes))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_row_that_is_left_out_is_not_looked_at() -> None:
    rewards = steps()["rewards"].copy()
    rewards[6] = np.nan  # nothing follows it
    assert len(OfflineDataset.from_arrays(**steps(rewards=rewards))) == 5


def test_an_observation_that_only_follows_is_looked_at() -> None:
    after = successors()
    after[5] = np.nan
    with pytest.raises(ValueError, match="observations is nan in the observation after row 5"):
        OfflineDataset.from_arrays(**steps(), next_observations=after)


def test_actions_are_clipped_where_asked() -> None:
    space = spaces.Box(np.array([-2.0], np.float32), np.array([0.1], np.float32))
    data = OfflineDataset.from_arrays(**steps(), action_space=space, clip_actions=True)
    np.testing.assert_allclose(data.actions[:, 0], [-0.3, -0.2, -0.1, 0.0, 0.1], atol=1e-6)
    assert data.action_space == space


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (7, 40, 36, 3), np.uint8)


def test_images_have_their_channels_first() -> None:
    data = OfflineDataset.from_arrays(**steps(observations=images()))
    assert data.states.dtype == th.uint8
    assert data.observation_space == spaces.Box(0, 255, (3, 40, 36), np.uint8)
    assert th.equal(data.observations, th.from_numpy(images()[:5]).permute(0, 3, 1, 2))
    first = OfflineDataset.from_arrays(**steps(observations=images().transpose(0, 3, 1, 2)))
    assert th.equal(first.states, data.states)


def test_dict_observations_keep_their_keys(tmp_path: Path) -> None:
    observations = {"vector": steps()["observations"], "camera": images()}
    data = OfflineDataset.from_arrays(**steps(observations=observations))
    assert isinstance(data.observation_space, spaces.Dict)
    assert set(data.states) == {"vector", "camera"} == set(data.observation_space.spaces)
    assert data.next_observations["vector"][:, 0].tolist() == [1, 2, 2, 4, 5]
    assert data.next_observations["camera"].shape == (5, 3, 40, 36)
    again = load_dataset(data.save(tmp_path / "data.npz"))
    assert again.observation_space == data.observation_space
    assert th.equal(again.next_observations["camera"], data.next_observations["camera"])
    with pytest.raises(ValueError, match="flat observations only"):
        data.save(tmp_path / "data.hdf5")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]
    vector = observations["vector"].copy()
    vector[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"observations\['vector'\] is inf in row 3"):
        OfflineDataset.from_arrays(**steps(observations={**observations, "vector": vector}))


def test_discrete_observations_are_columns() -> None:
    data = OfflineDataset.from_arrays(**steps(observations=np.arange(7)), observation_space=spaces.Discrete(7))
    assert data.observations.tolist() == [[0], [1], [2], [3], [4]]
    assert data.observation_space == spaces.Discrete(7)


def test_identity_is_plain_and_changes_with_the_data() -> None:
    data = OfflineDataset.from_arrays(**steps(), env_id="Hopper-v4", name="mine")
    identity = data.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {key: identity[key] for key in ("kind", "name", "n_transitions", "n_episodes", "env_id")} == {
        "kind": "arrays",
        "name": "mine",
        "n_transitions": 5,
        "n_episodes": 2,
        "env_id": "Hopper-v4",
    }
    for name in ("observations", "actions", "rewards"):
        other = OfflineDataset.from_arrays(**steps(**{name: steps()[name] * 0.5}), env_id="Hopper-v4", name="mine")
        assert other.identity()["checksum"] != identity["checksum"]


def test_moving() -> None:
    data = OfflineDataset.from_arrays(**steps())
    assert data.to("cpu") is data
    elsewhere = data.to("meta")
    assert elsewhere.observations.device.type == elsewhere.actions.device.type == "meta"
    assert data.rewards.device.type == "cpu"


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_what_is_saved_is_read_again(suffix: str, tmp_path: Path) -> None:
    if suffix == ".hdf5":
        pytest.importorskip("h5py")
    data = OfflineDataset.from_arrays(**steps(), next_observations=successors(), env_id="Hopper-v4", name="mine")
    path = data.save(tmp_path / "folder" / f"data{suffix}")
    again = load_dataset(path, **({} if suffix == ".npz" else {"keep_timeouts": True}))
    for name in ("observations", "next_observations", "actions", "rewards", "terminated", "episode_ids"):
        assert th.equal(getattr(again, name), getattr(data, name)), name
    assert again.source.env_id == "Hopper-v4"
    assert len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_files_keep_the_box_of_the_actions(suffix: str, tmp_path: Path) -> None:
    if suffix == ".hdf5":
        pytest.importorskip("h5py")
    box, observations = spaces.Box(-3.0, 2.0, (1,)), spaces.Box(-100.0, 100.0, (2,))
    data = OfflineDataset.from_arrays(
        **steps(actions=steps()["actions"] * 1.9), action_space=box, observation_space=observations, clip_actions=True
    )
    path = data.save(tmp_path / f"data{suffix}")
    again = load_dataset(path)
    assert (again.action_space, again.observation_space) == (box, observations)
    assert load_dataset(path, action_space=box).action_space == box
    with pytest.raises(
        ValueError, match=r"action_space=Box\(-1.0, 1.0, .* contradicts .*data.*, whose actions are in Box\(.*; leave it out"
    ):
        load_dataset(path, action_space=spaces.Box(-1.0, 1.0, (1,)))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_the_box_is_told_where_the_file_has_none(suffix: str, tmp_path: Path) -> None:
    columns, path = steps(actions=np.full((7, 1), 1.5, np.float32)), tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, key in {"terminated": "terminals", "truncated": "timeouts"}.items():
                columns[key] = columns.pop(name, np.zeros(7, dtype=bool))
            for key, values in columns.items():
                file[key] = values
    with pytest.raises(ValueError, match="pass clip_actions=True to clip, or the action_space"):
        load_dataset(path)
    box = spaces.Box(-2.0, 2.0, (1,))
    assert load_dataset(path, action_space=box).action_space == box


def test_a_box_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = OfflineDataset.from_arrays(**steps()).save(tmp_path / "data.hdf5")
    with h5py.File(path, "a") as file:
        del file["metadata/action_space"]
        file["metadata/action_space"] = "{'type': 'Box'}"
    with pytest.raises(ValueError, match=r"data.hdf5: .* describes no space"):
        load_dataset(path)


def test_an_episode_that_goes_on_in_another_file_is_not_joined(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    cut = OfflineDataset.from_arrays(**steps())  # row 4 is followed by an observation that begins no row
    again = load_dataset(cut.save(tmp_path / "data.hdf5"))
    assert again.observations[:, 0].tolist() == [0, 1, 2, 3]
    assert again.next_observations[3, 0] == 4


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.csv does not say the format.*\.npz, \.hdf5"):
        OfflineDataset.from_arrays(**steps()).save(tmp_path / "data.csv")


def test_the_representation_names_the_data() -> None:
    text = repr(OfflineDataset.from_arrays(**steps(), name="mine\x1b[31m"))
    assert "5 transitions, 2 episodes" in text
    assert "\x1b" not in text
