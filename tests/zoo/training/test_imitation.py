"""On-policy training that begins at demonstrations, from the command line."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_diffusion import OfflineDataset, load_agent
from tests.zoo.in_process import train
from zoo.hub.model_card import training_command
from zoo.training.callbacks import Ownership

COMMON = ["--algo", "dppo", "--env", "Pendulum-v1", "--device", "cpu", "--seed", "1", "--verbose", "0", "--eval-episodes", "1"]
SMALL = ["n_steps:8", "n_envs:2", "n_minibatches:2", "n_epochs:1", "policy_kwargs:dict(net_arch=[8],diffusion_steps=3)"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    OfflineDataset.collect(gym.make("Pendulum-v1"), None, 300, seed=0).save(path)
    return path


def arguments(data: Path, *options: str) -> list[str]:
    length = ["-n", "64", "--eval-freq", "-1", "--pretrain-updates", "5", "--dataset", str(data)]
    return [*COMMON, *length, *options, "-params", *SMALL, "finetune_steps:2"]


def agent_of(folder: Path) -> Any:
    return load_agent(next((folder / "logs" / "dppo").iterdir()) / "Pendulum-v1.zip", device="cpu")


def test_a_clone_is_tuned(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, *arguments(data_file)) == 0
    assert "5 updates of the imitation are done" in capsys.readouterr().out
    agent = agent_of(tmp_path)
    assert agent._n_pretraining_updates == 5 and agent.num_timesteps == 64
    # its statistics are those of the data
    assert float(agent.actor.features_extractor.count) == 300


def test_an_interrupted_tuning_does_not_imitate_again(
    tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--resume-freq", "16")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert train(tmp_path / "whole", *arguments(data_file, *options)) == 0
    calls: list[int] = []

    def stop(callback: Ownership) -> bool:
        calls.append(0)
        if len(calls) == 20:
            raise OSError("the power failed")
        return True

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(Ownership, "_on_step", stop)
        train(tmp_path / "cut", *arguments(data_file, *options))
    capsys.readouterr()
    assert train(tmp_path / "cut", "--resume", str(next((tmp_path / "cut" / "logs" / "dppo").iterdir()))) == 0
    assert "imitation" not in capsys.readouterr().out
    whole, resumed = (agent_of(tmp_path / name).policy.state_dict() for name in ("whole", "cut"))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.parametrize("options", [["--online-steps", "5"], ["-optimize", "--n-trials", "1"]])
def test_options_that_have_no_meaning(
    tmp_path: Path, data_file: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *arguments(data_file, *options)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and options[0] in error and "on-policy" in error


def test_the_length_of_the_imitation_is_told(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, *arguments(data_file, "--dry-run")) == 0
    assert re.search(r"pretrain_updates\W+5\b.*--pretrain-updates", capsys.readouterr().out)
    args = {"algo": "dppo", "env": "Pendulum-v1", "pretrain_updates": 5}
    assert "--pretrain-updates 5" in training_command({**args, "dataset": "data.npz"})
    assert "--pretrain-updates" not in training_command(args)


@pytest.mark.parametrize("algo", ["dppo", "sdac"])
def test_there_is_nothing_to_imitate(tmp_path: Path, algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--algo", algo, "--env", "Pendulum-v1", "--pretrain-updates", "5") == 2
    assert capsys.readouterr().err.strip().endswith("--pretrain-updates 5 imitate data, and --dataset is missing")


def test_other_methods_do_not_imitate_first(tmp_path: Path, data_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--algo", "dql", "--env", "Pendulum-v1", "--dataset", str(data_file), "--pretrain-updates", "5"]
    assert train(tmp_path, *options) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "--pretrain-updates are for on-policy methods; dql learns from data" in error
    assert not list(tmp_path.iterdir())
