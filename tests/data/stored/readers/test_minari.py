"""Minari's data sets, as its own package writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

pytest.importorskip("h5py")
pytest.importorskip("minari")
import h5py
import minari
from minari.data_collector.episode_buffer import EpisodeBuffer

from sb3_diffusion import OfflineDataset, load_dataset, normalized_score

BOX, DICT = (
    spaces.Box(-np.inf, np.inf, (2,), np.float64),
    spaces.Dict(
        {
            "achieved_goal": spaces.Box(-1e3, 1e3, (2,), np.float64),
            "observation": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        }
    ),
)
LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
"""More than ten: as text, episode_10 comes before episode_2."""


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


def numbers(episode: int, length: int, width: int) -> np.ndarray:
    return 100.0 * episode + np.arange(length + 1)[:, None] + np.linspace(0, 0.5, width)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def write(space: spaces.Space, data_format: str = "hdf5") -> Path:
        buffers = []
        for episode, length in enumerate(LENGTHS):
            widths = (
                {key: int(np.prod(part.shape or ())) for key, part in space.items()}
                if isinstance(space, spaces.Dict)
                else None
            )
            observations: Any = numbers(episode, length, 2)
            if widths:
                observations = {key: numbers(episode, length, width) for key, width in widths.items()}
            last = np.arange(length) == length - 1
            buffers.append(
                EpisodeBuffer(
                    id=episode,
                    observations=observations,
                    actions=np.full((length, 1), episode / 20, np.float32),
                    rewards=np.arange(length) + 0.5,
                    terminations=last & (episode % 2 == 0),
                    truncations=last & (episode % 2 == 1),
                    infos={},
                )
            )
        minari.create_dataset_from_buffers(
            "toy/point/test-v0",
            buffers,
            observation_space=space,
            action_space=spaces.Box(-1, 1, (1,), np.float32),
            data_format=data_format,
        )
        folder = tmp_path / "toy" / "point" / "test-v0"
        metadata = json.loads((folder / "data" / "metadata.json").read_text())
        # Minari keeps them only together with an environment
        (folder / "data" / "metadata.json").write_text(json.dumps({**metadata, "ref_min_score": 0.5, "ref_max_score": 2.5}))
        return folder

    return write


def check(data: OfflineDataset) -> None:
    assert data.n_episodes == len(LENGTHS)
    assert data.episode_lengths().tolist() == LENGTHS == data.recorded_lengths.tolist()
    assert len(data) == sum(LENGTHS)
    observations = data.states if isinstance(data.states, th.Tensor) else data.states["achieved_goal"]
    expected = np.concatenate([numbers(episode, length, 2)[:-1] for episode, length in enumerate(LENGTHS)])
    np.testing.assert_array_equal(observations[: len(data), :2], expected.astype(np.float32))
    following = np.concatenate([numbers(episode, length, 2)[1:] for episode, length in enumerate(LENGTHS)])
    np.testing.assert_array_equal(observations[data.next_index][:, :2], following.astype(np.float32))
    last = np.cumsum(LENGTHS) - 1
    assert np.flatnonzero(data.terminated).tolist() == last[0::2].tolist()
    assert np.flatnonzero(data.truncated).tolist() == last[1::2].tolist()
    np.testing.assert_allclose(data.recorded_returns, [length**2 / 2 for length in LENGTHS])


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_every_step_with_its_true_successor(data_format: str, make: Any) -> None:
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    folder = make(BOX, data_format)
    for place in ("minari:toy/point/test-v0", folder, str(folder)):
        data = load_dataset(place)
        check(data)
        assert data.source.name == "toy/point/test-v0"
        assert data.action_space == spaces.Box(-1, 1, (1,), np.float32)
    # Minari's own scale, from 0 to 1
    assert normalized_score([0.5, 1.5, 2.5], data).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_dict_observations(data_format: str, make: Any) -> None:
    if data_format == "arrow":
        pytest.importorskip("pyarrow")
    folder = make(DICT, data_format)
    data = load_dataset(folder)
    check(data)
    assert data.observation_space == DICT
    one = load_dataset(folder, observation_keys=["observation"])
    assert list(one.states) == ["observation"]
    joined = load_dataset(folder, observation_keys=["achieved_goal", "observation"], concatenate=True)
    check(joined)
    assert joined.observation_space.shape == (5,)
    assert th.equal(joined.states, th.cat([data.states["achieved_goal"], data.states["observation"]], 1))
    with pytest.raises(ValueError, match=r"'goal'.*achieved_goal, observation"):
        load_dataset(folder, observation_keys=["goal"])


def test_options_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="observation_keys and concatenate are for Dict observations"):
        load_dataset(make(BOX), concatenate=True)


def test_without_reference_scores(make: Any) -> None:
    folder = make(BOX)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    del metadata["ref_min_score"]
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="toy/point/test-v0 has no reference scores"):
        normalized_score(1.0, load_dataset(folder))


def test_files_of_old_releases(make: Any) -> None:
    folder = make(BOX)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file.attrs.update({key: value for key, value in metadata.items() if isinstance(value, str | int | float)})
    (folder / "data" / "metadata.json").unlink()
    data = load_dataset(folder)
    check(data)
    assert data.source.reference is not None and data.source.reference.high == 2.5


def test_a_bad_number_is_named_by_its_episode(make: Any) -> None:
    folder = make(BOX)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_5/rewards"][7] = np.nan
    with pytest.raises(ValueError, match="rewards is nan in episode 5, step 7"):
        load_dataset(folder)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_5/rewards"][7] = 0
        del file["episode_3/observations"]
        file["episode_3/observations"] = h5py.ExternalLink("other.hdf5", "/observations")
    with pytest.raises(ValueError, match="episode_3/observations is a link into another file"):
        load_dataset(folder)


def test_lengths_that_disagree(make: Any) -> None:
    folder = make(BOX)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2/actions"]
        file["episode_2/actions"] = np.zeros((2, 1), np.float32)
    with pytest.raises(ValueError, match="actions of episode_2 has 2 rows, but the episode 4 steps"):
        load_dataset(folder)


def test_a_missing_data_set_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"MINARI_DATASETS_PATH.*data.py download minari:mujoco/hopper/medium-v0"):
        load_dataset("minari:mujoco/hopper/medium-v0")
