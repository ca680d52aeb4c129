"""The scripts as a user runs them, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3 import TD3

from sb3_diffusion import DACER, load_agent

from .processes import ROOT, TINY, check, run, script

COMMANDS = sorted(
    str(path.relative_to(ROOT / "zoo").with_suffix(""))
    for path in (ROOT / "zoo").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text("utf-8")
)


OTHER_NOISE: tuple[list[str], list[str]] = ([], ["--evaluation-noise", "fresh"])


def test_train_then_enjoy(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    tiny = ["policy_kwargs:dict(net_arch=[16],diffusion_steps=2)", "n_entropy_samples:8", "n_entropy_states:4"]
    short = ["--env-kwargs", "max_episode_steps:50"]
    out = check(run(script("train"), "--algo", "dacer", "--env", "HalfCheetah-v5", *short, *TINY, *tiny, cwd=tmp_path))
    protocol = r"mean reward \S+ \+/- \S+ over 1 deterministic episodes with fixed noise\nWith fresh noise: \S+ \+/- "
    assert re.search(r"Evaluation after 60 steps: " + protocol, out)
    final = json.loads((tmp_path / "logs" / "dacer" / "HalfCheetah-v5_1" / "final_evaluation.json").read_text())
    assert final["evaluation_noise"] == "fixed" and final["other_noise"]["evaluation_noise"] == "fresh"
    assert len(final["returns"]) == len(final["other_noise"]["returns"]) == 1
    assert final["returns"] != final["other_noise"]["returns"]
    folder = tmp_path / "logs" / "dacer" / "HalfCheetah-v5_1"
    assert (folder / "HalfCheetah-v5.zip").is_file()
    assert (folder / "best_model.zip").is_file()
    assert (folder / "0.monitor.csv").is_file()
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [60]  # 30 is before the first update
    assert "No update before step 41 of 60" in out
    assert {"config.yml", "args.yml", "command.txt"} <= {path.name for path in (folder / "HalfCheetah-v5").iterdir()}
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()
    for name in ("HalfCheetah-v5", "best_model"):
        assert type(load_agent(folder / f"{name}.zip")) is DACER

    # the command that training printed
    command = re.search(r"Watch it with: python (.*)", out)
    assert command
    enjoy = run(*command.group(1).split(), "-n", "50", cwd=tmp_path)
    lines = check(enjoy).splitlines()
    assert "No display found, running without rendering (--no-render hides this message)." in lines
    assert lines[-2].startswith("Mean reward: ")
    assert lines[-1] == "Mean episode length: 50.00 +/- 0.00"
    # deterministic by default, so the same seed gives the same episode
    same, fresh = ([*command.group(1).split(), "-n", "50", "--no-render", "--verbose", "0", *more] for more in OTHER_NOISE)
    assert check(run(*same, cwd=tmp_path)).splitlines()[-2] == lines[-2] != check(run(*fresh, cwd=tmp_path)).splitlines()[-2]
    assert "settotalmass" not in enjoy.stdout + enjoy.stderr
    many = run(*same, "--n-action-candidates", "4", cwd=tmp_path)
    assert check(many).splitlines()[-2] != lines[-2]


def test_dm_control_as_module(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    args = ["--algo", "sac", "--env", "dm_control/cheetah-run-v0", *TINY, "policy_kwargs:dict(net_arch=[16])"]
    result = run("-m", "zoo.train", *args, cwd=tmp_path)
    out = check(result)
    assert "settotalmass" not in out + result.stderr
    folder = tmp_path / "logs" / "sac" / "dm_control-cheetah-run-v0_1"
    assert (folder / "dm_control-cheetah-run-v0.zip").is_file()
    command = re.search(r"Watch it with: python (-m zoo.enjoy .*)", out)
    assert command
    enjoy = check(run(*command.group(1).split(), "-n", "500", "--no-render", cwd=tmp_path))
    assert enjoy.splitlines()[-1] == "Mean episode length: 500.00 +/- 0.00"
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, tmp_path: Path) -> None:
    """A percent sign in a help text is enough to break it."""
    assert "usage:" in check(run(script(command), "--help", cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--algo", "dacr", "--env", "Hopper-v5"), "unknown algorithm 'dacr'; did you mean dacer?"),
        (("train", "--algo", "dacer", "--env", "Hoper-v5"), "unknown environment 'Hoper-v5'; did you mean Hopper-v5?"),
        (("enjoy", "--algo", "dacer", "--env", "MountainCarContinuous-v0"), "train an agent first with"),
    ],
)
def test_wrong_names_end_with_status_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(script(arguments[0]), *arguments[1:], cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_saved_settings_are_those_of_the_file(tmp_path: Path) -> None:
    out = check(run(script("train"), "--algo", "td3", "--env", "Pendulum-v1", *TINY, cwd=tmp_path))
    assert "rl_zoo3" not in out.split("Loading hyperparameters from: ")[1].splitlines()[0]
    config = tmp_path / "logs" / "td3" / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml"
    saved = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader)
    assert saved["policy_kwargs"] == {"net_arch": [64, 64], "activation_fn": "relu"}
    assert saved["learning_starts"] == 40
    agent = load_agent(config.parents[1] / "Pendulum-v1.zip")
    assert type(agent) is TD3 and agent.num_timesteps == 60


def test_a_reader_that_goes_away_is_no_mistake(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, script("data"), "list"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, timeout=120, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
