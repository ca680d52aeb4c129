"""Data by name: what names mean, and what is said where a file or a name is missing."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_diffusion import OfflineDataset, load_dataset, normalized_score
from sb3_diffusion.data.stored.catalogue import KNOWN, find, known_file, locate, ogbench, places
from sb3_diffusion.data.stored.space_json import space_from_json, space_to_json

EDGE = Path(__file__).resolve().parent / "edge"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SB3_DIFFUSION_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(EDGE / "card_17_2.hdf5", path)
    return path


@pytest.mark.parametrize(
    ("name", "file", "env_id", "low", "high"),
    [
        ("hopper-medium-v2", "d4rl/hopper_medium-v2.hdf5", "Hopper-v4", -20.272305, 3234.3),
        ("halfcheetah-medium-replay-v2", "d4rl/halfcheetah_medium_replay-v2.hdf5", "HalfCheetah-v4", -280.178953, 12135.0),
        ("walker2d-medium-expert-v2", "d4rl/walker2d_medium_expert-v2.hdf5", "Walker2d-v4", 1.629008, 4592.3),
        ("door-human-v1", "d4rl/door-human-v1.hdf5", "AdroitHandDoor-v1", -56.512833, 2880.5693087298737),
        ("rlzoo/hopper/mixed-v0", "rlzoo/hopper/mixed-v0.hdf5", "Hopper-v5", 17.0, 3071.4),
        ("dapg/door-human-v0", "dapg/door-human-v0.hdf5", "AdroitHandDoor-v1", -56.5, 794.1),
    ],
)
def test_everything_follows_from_a_name(name: str, file: str, env_id: str, low: float, high: float, folder: Path) -> None:
    path = put(folder / file)
    data = load_dataset(name)
    assert (data.source.name, data.source.env_id, data.source.path) == (name, env_id, str(path))
    assert data.source.reference is not None
    assert (data.source.reference.low, data.source.reference.high, data.source.reference.scale) == (low, high, 100.0)
    assert load_dataset(path).source == data.source  # and from the name of a file
    assert load_dataset(path, name="other").source.name == "other"


def test_where_the_packages_of_others_keep_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(folder / "home" / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5")
    assert locate(find("hopper-medium-v2")) == path
    other = put(folder / "there" / "hopper_medium-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(other.parent))
    assert locate(find("hopper-medium-v2")) == other
    own = put(folder / "d4rl" / "hopper_medium-v2.hdf5")
    assert locate(find("hopper-medium-v2")) == own


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "hopper-medium-v2",
            ["hopper_medium-v2.hdf5", "SB3_DIFFUSION_DATA", "http://", "zoo/data.py download hopper-medium-v2"],
        ),
        ("rlzoo/walker2d/single-v0", ["single-v0.hdf5", "zoo/data.py make rlzoo/walker2d/single-v0"]),
        ("dapg/door-human-v0", ["door-human-v0.hdf5", "door-human-v1"]),
        (
            "cube-single-noisy-singletask-task2-v0",
            ["cube-single-noisy-v0.npz", "https://", "data.py download cube-single-noisy", "data.py make cube-single-noisy"],
        ),
    ],
)
def test_a_missing_file_says_how_to_get_it(name: str, words: list[str], folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as refusal:
        load_dataset(name)
    places_named = [str(place) for place in places(ogbench(name) or find(name))]
    assert all(word in str(refusal.value) for word in [name, *words, *places_named]), refusal.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hoper-medium-v2", "did you mean hopper-medium-v2"),
        ("data.csv", "no name of a data set"),
        ("no such thing", "data.py list"),
    ],
)
def test_what_is_no_name_and_no_file(name: str, words: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_dataset(name)


@pytest.mark.parametrize("given", [5, None, ["hopper-medium-v2"], b"file.npz"])
def test_what_is_neither_a_name_nor_a_path(given: Any) -> None:
    with pytest.raises(TypeError, match=f"no name or path of data but a {type(given).__name__}"):
        load_dataset(given)


@pytest.mark.parametrize(
    ("returns", "reference", "words"),
    [
        ("hopper-medium-v2", [1000.0], "reference"),  # the other way round
        ("hopper-medium-v2", "hopper-medium-v2", "returns"),
        (1.0, 5.0, "reference=5.0"),
        (1.0, (1.0,), "reference"),
        (["a"], (0.0, 1.0), "returns"),
    ],
)
def test_scores_of_what_is_no_return_or_no_scale(returns: Any, reference: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        normalized_score(returns, reference)


def test_a_path_to_nothing(folder: Path) -> None:
    for name in ("nothing.hdf5", "nothing.npz"):
        with pytest.raises(FileNotFoundError, match=f"There is no file .*{name}"):
            load_dataset(folder / name)
    with pytest.raises(FileNotFoundError, match="looked for"):
        load_dataset(folder)


def test_options_are_those_of_the_reader(folder: Path) -> None:
    with pytest.raises(TypeError, match="from_d4rl_hdf5, which has no option 'keep_timeout'; did you mean keep_timeouts"):
        load_dataset(put(folder / "mine.hdf5"), keep_timeout=True)


def test_no_two_names_have_one_file() -> None:
    files = [known.file for known in KNOWN.values()]
    assert len(set(files)) == len(files)
    for known in KNOWN.values():
        assert known_file(Path("/somewhere") / known.file) is known


def test_names_of_ogbench() -> None:
    known = ogbench("ogbench/puzzle-4x4-play-v0")
    assert known is not None
    assert known.name == "puzzle-4x4-play-singletask-task4-v0"
    assert known.env_id == "puzzle-4x4-singletask-task4-v0"
    assert known.file == "ogbench/puzzle-4x4-play-v0.npz"
    validation = ogbench("pointmaze-medium-navigate-singletask-task2-v0-val")
    assert validation is not None and validation.file == "ogbench/pointmaze-medium-navigate-v0-val.npz"
    assert ogbench("cube-single-navigate-v0") is None and ogbench("hopper-medium-v2") is None
    with pytest.raises(ValueError, match="task=1 contradicts"):
        ogbench("cube-single-noisy-singletask-task2-v0", 1)


def test_the_environments_exist() -> None:
    gym = pytest.importorskip("gymnasium")
    for name in ("hopper-medium-v2", "halfcheetah-medium-v2", "walker2d-medium-v2", "rlzoo/hopper/mixed-v0"):
        assert gym.spec(find(name).env_id) is not None


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(0, 255, (3, 4, 4), np.uint8),
        spaces.Discrete(4, start=1),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 3]),
        spaces.MultiDiscrete([3, 4]),
        spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(2)}),
    ],
)
def test_spaces_as_text(space: spaces.Space) -> None:
    assert space_from_json(space_to_json(space)) == space


@pytest.mark.parametrize("text", ["", "[]", '{"type": "Box"}', '{"type": "Text"}', '{"type": "Box", "dtype": "object"}'])
def test_texts_that_are_no_space(text: str) -> None:
    with pytest.raises(ValueError):
        space_from_json(text)


def test_data_of_ones_own_have_no_score(tmp_path: Path) -> None:
    data = OfflineDataset.from_arrays(np.zeros((2, 1)), np.zeros((2, 1)), [1, 1], [0, 1])
    assert load_dataset(data.save(tmp_path / "mine.npz")).source.reference is None
