"""Interrupted trainings of the command line end with the same files as uninterrupted ones."""

import csv
import io
import json
import os
import random
import signal
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml

from sb3_diffusion import OfflineDataset
from tests.helpers import assert_identical
from tests.zoo import processes
from tests.zoo.forks import Process
from zoo.training.options.train import parse_own_options
from zoo.training.runs import trust
from zoo.training.runs.resume import checkpoint_steps, finished, open_run, resumable

TINY = "policy_kwargs:dict(net_arch=[16],diffusion_steps=2)"
DACER = [
    "--algo",
    "dacer",
    "-params",
    "learning_starts:60",
    "buffer_size:150",
    TINY,
    "n_entropy_samples:8",
    "n_entropy_states:4",
]


def start(*arguments: str, cwd: Path) -> Process:
    return processes.start("-m", "zoo.train", *arguments, cwd=cwd)


def finish(process: Process) -> str:
    output = "".join(process.communicate(timeout=250))
    assert process.returncode == 0, output
    return output


STEPS, UPDATES = 1, 2  # which number of a checkpoint's name


def newest(run: Path, clock: int) -> int:
    """Time of the newest checkpoint; -1 before the run has its settings, 0 before it has a checkpoint."""
    times = [int(path.stem.split("_")[clock]) for path in run.glob("resume/checkpoint_*.json")]
    return max(times, default=0 if any(run.glob("*/args.yml")) else -1)


def kill_at(process: Process, run: Path, time_of_death: int, delay: float, clock: int = STEPS) -> None:
    """``kill -9`` a while after the checkpoint of a time."""
    while newest(run, clock) < time_of_death:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
    process.communicate()


def rows_without_times(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    table = list(csv.DictReader(lines[1:]))
    times = [float(row.pop("t")) for row in table]
    assert times == sorted(times), "the clock has to go on"
    return table


def saved_tensors(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        return {name: th.load(io.BytesIO(archive.read(name)), weights_only=True) for name in names}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in ("time/fps", "time/time_elapsed")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same_run(left: Path, right: Path, monitored: bool = True) -> None:
    monitors = sorted(path.name for path in left.glob("*.monitor.csv"))
    assert bool(monitors) == monitored and monitors == sorted(path.name for path in right.glob("*.monitor.csv"))
    for name in monitors:
        rows = rows_without_times(left / name)
        assert len(rows) > 1 and rows == rows_without_times(right / name)
    evaluations = [np.load(run / "evaluations.npz") for run in (left, right)]
    assert len(evaluations[0]["timesteps"]) > 1
    for key in ("timesteps", "results", "ep_lengths"):
        np.testing.assert_array_equal(evaluations[0][key], evaluations[1][key])
    for pattern in ("best_model.zip", "*-v?.zip"):
        (a,), (b,) = left.glob(pattern), right.glob(pattern)
        assert_identical(saved_tensors(a), saved_tensors(b), pattern)


def interrupted_equals_uninterrupted(
    tmp_path: Path, arguments: Sequence[str], steps: int, kills: Sequence[int], every: int, clock: int = STEPS, **same: bool
) -> None:
    options = [*arguments, "-n", str(steps), "--eval-freq", str(steps // 5), "--eval-episodes", "2", "--seed", "1"]
    options += ["--resume-freq", str(every), "-tb", "tb"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    for folder in (whole, pieces):
        folder.mkdir()
    reference = start(*options, cwd=whole)
    algo, env = options[1], options[options.index("--env") + 1].replace("/", "-")
    run = pieces / "logs" / algo / f"{env}_1"
    chance = random.Random(0)
    process = start(*options, cwd=pieces)
    for step in kills:
        kill_at(process, run, step, chance.uniform(0.0, 0.1), clock)
        assert resumable(run) and not finished(run)
        process = start("--resume", str(run), cwd=pieces)
    output = finish(process)
    assert f"Continuing {run} with its own settings" in output
    finish(reference)
    assert finished(run) and not resumable(run)
    if clock == STEPS:
        assert checkpoint_steps(run) == [steps]
    assert_same_run(whole / "logs" / algo / f"{env}_1", run, **same)
    logged = [[found for folder in (root / "tb" / env).iterdir() if (found := scalars(folder))] for root in (whole, pieces)]
    assert len(logged[1]) == 1, "one TensorBoard run"
    assert logged[0] == logged[1]


def test_killed_twice(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    interrupted_equals_uninterrupted(tmp_path, [*DACER, "--env", "Hopper-v5"], steps=400, kills=[0, 200], every=20)


def test_tensors_killed_once(tmp_path: Path) -> None:
    """All copies of an environment are one object, of which nobody keeps a monitor file."""
    settings = ["-params", "n_steps:10", "desired_kl:0.01", "policy_kwargs:dict(net_arch=[8],diffusion_steps=2)"]
    options = [
        "--algo",
        "dppo",
        "--env",
        "torch/Pendulum-v0",
        "--n-envs",
        "20",
        "--env-kwargs",
        "max_episode_length:30",
        *settings,
    ]
    interrupted_equals_uninterrupted(tmp_path, options, steps=4000, kills=[1000], every=1000, monitored=False)


@pytest.mark.expensive
@pytest.mark.timeout(1200)
def test_killed_ten_times(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    kills = sorted(random.Random(1).sample(range(1500), 10))
    interrupted_equals_uninterrupted(tmp_path, [*DACER, "--env", "Hopper-v5"], steps=1500, kills=kills, every=10)


@pytest.mark.expensive
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments",
    [
        [
            "--algo",
            "ppo",
            "--env",
            "Pendulum-v1",
            "--vec-env",
            "subproc",
            "-params",
            "n_envs:2",
            "n_steps:50",
            "normalize:True",
        ],
        ["--algo", "sac", "--env", "Pendulum-v1", "-params", "learning_starts:60", "normalize:dict(norm_obs=True)"],
    ],
    ids=["ppo in processes", "sac with normalization"],
)
def test_other_algorithms_killed(arguments: list[str], tmp_path: Path) -> None:
    interrupted_equals_uninterrupted(tmp_path, arguments, steps=1000, kills=[300, 600], every=100)


SFBC = ["net_arch:dict(pi=[16,16,16],qf=[16])", "diffusion_steps:2", "state_arch:[4]", "time_dim:4"]


@pytest.mark.expensive
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("algo", "kills"),
    [
        ("qsm", [40, 180, 310, 350]),
        ("sfbc", [20, 150, 225, 260, 330]),  # within and just behind the stages, which end at 150, 225 and 300, and online
    ],
)
def test_killed_while_learning_from_data(algo: str, kills: list[int], tmp_path: Path) -> None:
    dataset = OfflineDataset.collect(gym.make("Pendulum-v1"), None, 600, seed=0)
    dataset.save(tmp_path / "pendulum.npz")
    small = f"policy_kwargs:dict({','.join(SFBC).replace(':', '=')})" if algo == "sfbc" else TINY
    stages = ["behavior_updates:200", "critic_updates:200", "n_support:3"] if algo == "sfbc" else []
    arguments = ["--algo", algo, "--env", "Pendulum-v1", "--dataset", str(tmp_path / "pendulum.npz"), "--online-steps", "600"]
    params = ["-params", "buffer_size:900", "batch_size:16", "learning_starts:5", *stages, small]
    interrupted_equals_uninterrupted(tmp_path, [*arguments, *params], steps=300, kills=kills, every=10, clock=UPDATES)


def write_run(folder: Path, **arguments: Any) -> Path:
    """The files of a run as rl-zoo3 writes them, tags included."""
    run = folder / "logs" / "sac" / "Pendulum-v1_1"
    settings = run / "Pendulum-v1"
    settings.mkdir(parents=True)
    defaults: dict[str, Any] = {
        "algo": "sac",
        "env": "Pendulum-v1",
        "seed": 3,
        "resume_freq": -1,
        "uuid": False,
        "tensorboard_log": "",
    }
    tag = "!!python/object/apply:collections.OrderedDict"
    pairs = [[key, value] for key, value in {**defaults, **arguments}.items()]
    (settings / "args.yml").write_text(
        f"{tag}\n- {yaml.safe_dump(pairs, default_flow_style=True, width=10**6)}", encoding="utf-8"
    )
    hyperparams = "- - - policy\n    - MlpPolicy\n  - - train_freq\n    - !!python/tuple\n      - 1\n      - episode\n"
    (settings / "config.yml").write_text(f"{tag}\n{hyperparams}", encoding="utf-8")
    trust.mark(run)
    return run


def test_settings_come_from_the_run(tmp_path: Path) -> None:
    arguments = {"env_kwargs": {"g": 9.0}, "n_timesteps": 500, "gym_packages": ["one", "two"], "progress": True}
    folder = write_run(tmp_path, hyperparams={"gamma": 0.9}, **arguments)
    run = open_run(folder)
    assert run.hyperparams == {"policy": "MlpPolicy", "train_freq": (1, "episode")}
    assert run.command_line() == [
        f"--log-folder={tmp_path / 'logs'}",
        "--algo=sac",
        "--env=Pendulum-v1",
        "--seed=3",
        "--env-kwargs",
        "g:9.0",
        "--n-timesteps=500",
        "--gym-packages",
        "one",
        "two",
        "--progress",
    ]


def test_options_of_training_are_separated() -> None:
    options, rest = parse_own_options(["--algo", "sac", "--resume-freq", "5", "-n", "7"])
    assert (options.resume, options.resume_freq, rest) == (None, 5, ["--algo", "sac", "-n", "7"])


def test_states_of_a_run(tmp_path: Path) -> None:
    assert not resumable(tmp_path / "nothing") and not finished(tmp_path / "nothing")
    run = write_run(tmp_path)
    assert resumable(run), "it begins again"
    (run / "Pendulum-v1" / "finished.json").write_text("{}")
    assert finished(run) and not resumable(run)
    assert not resumable(write_run(tmp_path / "never", resume_freq=0))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("missing folder", "there is no folder"),
        ("missing settings", "0 files */args.yml instead of one"),
        ("python tag", "args.yml is refused, line 1: could not determine a constructor for the tag"),
        ("old", "was not written by a version that can resume; start the training again."),
        ("never", "was trained with --resume-freq 0 and has no checkpoints"),
        ("options", "--resume takes all settings from the run; remove --seed=3"),
        ("damaged", "is intact: checkpoint 10 is damaged: "),
    ],
)
def test_errors_have_one_line(
    harm: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from zoo import train

    run = write_run(tmp_path, resume_freq=0 if harm == "never" else -1)
    options = ["-n", "5", "--seed=3"] if harm == "options" else ["--device", "cpu", "-P"]
    settings = run / "Pendulum-v1" / "args.yml"
    if harm == "missing folder":
        run = tmp_path / "nowhere"
    elif harm == "missing settings":
        settings.unlink()
    elif harm == "python tag":
        settings.write_text("!!python/object/apply:os.system ['touch attacked']")
    elif harm == "old":
        settings.write_text("{algo: sac, env: Pendulum-v1, seed: 1}")
    elif harm == "damaged":
        (run / "resume").mkdir()
        (run / "resume" / "checkpoint_000000000010.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(run), *options])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        train.main()
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: error: ") and message in lines[0]
    assert not (tmp_path / "attacked").exists()


def test_finished_run_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo import train

    run = write_run(tmp_path)
    (run / "Pendulum-v1" / "finished.json").write_text(json.dumps({"num_timesteps": 500}))
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(run)])
    train.main()
    assert capsys.readouterr().out == f"{run} is finished, there is nothing to continue; -n N trains on to N steps in total.\n"
