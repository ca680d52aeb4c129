"""Training on data from the command line: names, phases, interruption, scores, search, publication."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

from sb3_diffusion import OfflineDataset, load_agent
from sb3_diffusion.data.stored.catalogue import KNOWN, ogbench
from sb3_diffusion.data.stored.source import DataSource, ReferenceScores
from sb3_diffusion.data.stored.tasks import dataset_of, environment_name, register_data_task
from tests.zoo.in_process import train
from zoo.benchmarking.cells import check
from zoo.hub.model_card import model_card
from zoo.hub.publication import _data_facts
from zoo.training.options.registry import entries_for, task_of
from zoo.training.score import score_of

SCALED = DataSource("arrays", "pendulum", reference=ReferenceScores(-1200.0, -150.0))
SMALL = ["buffer_size:500", "batch_size:8", "learning_starts:5", "policy_kwargs:dict(net_arch=[8],diffusion_steps=2)"]
COMMON = ["--algo", "qsm", "--device", "cpu", "--seed", "1", "--eval-episodes", "1", "--verbose", "0", "--eval-freq", "8"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random actions in Pendulum, as a file."""
    folder = tmp_path_factory.mktemp("data")
    dataset = OfflineDataset.collect(gym.make("Pendulum-v1"), None, 300, seed=0)
    dataset.save(folder / "pendulum.npz")
    return folder / "pendulum.npz"


def newest(folder: Path) -> Path:
    return max((folder / "logs" / "qsm").iterdir(), key=lambda path: path.stat().st_mtime)


def run(folder: Path, data: Path, *options: str) -> Path:
    folder.mkdir(exist_ok=True)
    arguments = [*COMMON, "--env", "Pendulum-v1", "--dataset", str(data), "-n", "24", *options, "-params", *SMALL]
    assert train(folder, *arguments) == 0
    return newest(folder)


def test_a_run_learns_from_data_then_online_and_tells_of_both(
    tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, data_file, "--online-steps", "16")
    final = json.loads((folder / "final_evaluation.json").read_text())
    assert final["offline_updates"] == 24 and final["timesteps"] == final["budget"] == 40
    assert final["dataset"]["n_transitions"] == 300 and final["task"] == "Pendulum-v1"
    check({**final, **score_of(SimpleNamespace(dataset=SimpleNamespace(source=SCALED)), [-500.0])}, "final", folder)
    # updates on the data, then steps: one curve
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [8, 16, 24, 32, 40]
    out = capsys.readouterr().out
    assert "Evaluation after 24 updates on data and 16 steps" in out
    agent: Any = load_agent(folder / "Pendulum-v1.zip", device="cpu")
    assert agent.dataset_identity == final["dataset"] and agent.dataset is None
    arguments = yaml.unsafe_load((folder / "Pendulum-v1" / "args.yml").read_text())
    assert arguments["dataset"] == str(data_file) and arguments["online_steps"] == 16


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_a_file_that_says_no_bounds_has_those_of_the_task(suffix: str, tmp_path: Path, data_file: Path) -> None:
    with np.load(data_file) as file:
        columns = {name: file[name] for name in file.files if name != "metadata"}
    path = tmp_path / f"plain{suffix}"
    if suffix == ".npz":
        np.savez(path, **columns)
    else:
        h5py = pytest.importorskip("h5py")
        names = {"terminated": "terminals", "truncated": "timeouts"}
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[names.get(name, name)] = values
    assert np.abs(columns["actions"]).max() > 1.5  # of a box of 2
    assert (run(tmp_path, path) / "Pendulum-v1.zip").is_file()


def test_a_file_of_another_task_is_refused(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMMON, "--env", "InvertedPendulum-v5", "--dataset", str(data_file), "-n", "24"]
    assert train(tmp_path, *arguments) == 2
    assert f"contradicts {data_file}, whose actions are in Box(-2.0, 2.0, (1,), float32)" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [10, 30], ids=["on data", "online"])
def test_an_interrupted_run_goes_on(tmp_path: Path, data_file: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.training.callbacks import Ownership

    options = ("--online-steps", "16", "--resume-freq", "4")
    whole = load_agent(run(tmp_path / "whole", data_file, *options) / "Pendulum-v1.zip", device="cpu")
    calls = []

    def stop(callback: Ownership) -> bool:
        calls.append(0)
        if len(calls) == steps:
            raise OSError("the power failed")
        return True

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(Ownership, "_on_step", stop)
        run(tmp_path / "cut", data_file, *options)
    folder = newest(tmp_path / "cut")
    assert not (folder / "Pendulum-v1.zip").exists()
    assert train(tmp_path / "cut", "--resume", str(folder)) == 0
    resumed = load_agent(folder / "Pendulum-v1.zip", device="cpu")
    for name, value in whole.policy.state_dict().items():
        np.testing.assert_array_equal(resumed.policy.state_dict()[name], value, err_msg=name)


def test_a_finished_run_is_not_extended(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, data_file, "--eval-freq", "-1")
    assert train(tmp_path, "--resume", str(folder), "-n", "50") == 2
    assert "learned from data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--online-steps", "5"], ["--online-steps 5", "--dataset"]),
        (["--dataset", "hopper-medum-v2"], ["hopper-medum-v2", "hopper-medium-v2"]),
        (["--dataset", "nowhere.hdf5"], ["nowhere.hdf5"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *COMMON, "--env", "Pendulum-v1", "-n", "5", *arguments, "-params", *SMALL) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and all(word in error for word in words), error
    assert not (tmp_path / "logs").exists()


def test_algorithms_of_others_do_not_learn_from_data(
    tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--algo", "sac", "--env", "Pendulum-v1", "-n", "5", "--dataset", str(data_file)]
    assert train(tmp_path, *arguments) == 2
    assert "sac does not learn from data" in capsys.readouterr().err


def test_a_file_that_is_missing_is_named_with_the_command_that_fetches_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setenv("SB3_DIFFUSION_DATA", str(tmp_path))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert train(tmp_path, *COMMON, "--env", "hopper-medium-v2", "-n", "5", "-params", *SMALL) == 2
    error = capsys.readouterr().err
    assert "hopper_medium-v2.hdf5" in error and "python zoo/data.py download hopper-medium-v2" in error


# -- names -----------------------------------------------------------------------------------------------------------------


def test_the_name_of_data_is_an_environment() -> None:
    pytest.importorskip("mujoco")
    assert register_data_task("hopper-medium-v2") == "hopper-medium-v2"
    env = gym.make("hopper-medium-v2")
    assert env.observation_space.shape == (11,) and env.unwrapped.__class__.__name__ == "HopperEnv"
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[3] in (True, False)
    env.close()
    assert register_data_task("rlzoo/hopper/mixed-v0") == "rlzoo/hopper-mixed-v0" == environment_name("rlzoo/hopper/mixed-v0")
    assert task_of("rlzoo/hopper-mixed-v0") == "Hopper-v5" and task_of("Pendulum-v1") == "Pendulum-v1"
    assert dataset_of("antmaze-umaze-v2") is None and register_data_task("Pendulum-v1") is None


def test_entries_of_the_data_come_first() -> None:
    assert entries_for("hopper-medium-v2", "Hopper-v5") == ["hopper-medium-v2", "Hopper-v5"]
    assert entries_for("rlzoo/hopper/mixed-v0", "rlzoo/hopper-mixed-v0")[0] == "rlzoo/hopper/mixed-v0"
    assert entries_for("my.hdf5", "Hopper-v5") == ["Hopper-v5"] == entries_for("", "Hopper-v5")


@pytest.mark.parametrize(
    ("dataset", "env_id"),
    [
        ("cube-single-noisy-singletask-task2-v0", "cube-single-noisy-singletask-task2-v0"),
        ("cube-single-noisy-v0", "cube-single-singletask-task3-v0"),
        ("ogbench/cube-single-noisy-v0", "cube-single-singletask-task2-v0"),
        ("cube-single-noisy-singletask-task5-v0-val", "cube-single-noisy-singletask-task5-v0-val"),
        ("", "cube-single-noisy-singletask-v0"),
    ],
)
def test_data_for_several_tasks_have_one_entry(dataset: str, env_id: str) -> None:
    assert "cube-single-noisy-v0" in entries_for(dataset, env_id)


def test_entries_for_data_are_reached() -> None:
    """Every entry that is named like data is what a training from these data takes."""
    found = 0
    for path in Path("hyperparams").glob("*.yml"):
        for entry in yaml.safe_load(path.read_text("utf-8")):
            known = KNOWN.get(entry) or ogbench(entry)
            if known is not None:
                found += 1
                assert entry in entries_for(known.name, known.env_id or "Mine-v0"), (path, entry)
                assert known.env_id is None or entry in entries_for("", environment_name(known.name)), (path, entry)
    assert found > 300


# -- what is published -----------------------------------------------------------------------------------------------------


def test_a_card_names_the_data_and_the_score() -> None:
    numbers = {"checksum": "ab" * 32, "n_transitions": 5, "n_episodes": 2}
    identity = {"name": "hopper-medium-v2", "env_id": "Hopper-v4", **numbers}
    model = SimpleNamespace(_n_offline_updates=1000, dataset_identity=identity)
    training = {"timesteps": 0, "unit": "environment steps", "seed": 0, **_data_facts(model)}
    evaluation = {
        "is_deterministic": True,
        "mean_reward": 3000.0,
        "std_reward": 1.0,
        "mean_length": 1.0,
        "n_eval_episodes": 1,
        "seed": 0,
    }
    facts = {
        "algorithm": "qsm",
        "class": "QSM",
        "env_id": "hopper-medium-v2",
        "training": training,
        "evaluations": [evaluation],
        "versions": {},
    }
    card = model_card(facts, {}, {"algo": "qsm", "env": "hopper-medium-v2", "dataset": "hopper-medium-v2"}, None)
    assert "92.8" in card and "1000 updates on data" in card and "abab" in card and "Not part of this repository" in card
    assert "--dataset hopper-medium-v2" in card


def test_a_search_learns_from_data(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMMON, "--env", "Pendulum-v1", "--dataset", str(data_file), "-n", "10", "-optimize", "--n-trials", "1"]
    more = ["--n-evaluations", "1", "--n-startup-trials", "0", "--no-optim-plots", "--pruner", "none", "--sampler", "random"]
    assert train(tmp_path, *arguments, *more, "-params", *SMALL, "gradient_steps:0") == 0
    assert "Trial" in (text := capsys.readouterr().out) or "Study" in text
