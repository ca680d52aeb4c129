"""The numbers of a training: the same keys in the csv file, in TensorBoard and in Weights & Biases."""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.zoo.processes import ROOT, check, run, script
from zoo.training.manager import Manager
from zoo.training.options.registry import register_algorithms
from zoo.training.tracking import check_tracking

register_algorithms()

# one episode and one evaluation, four updates
SETTINGS = {"learning_starts": 10, "buffer_size": 300, "train_freq": 50, "batch_size": 8}
POLICY = {"net_arch": [8], "diffusion_steps": 2}
COMMAND = [
    *(
        "--algo",
        "qsm",
        "--env",
        "Pendulum-v1",
        "-n",
        "210",
        "--eval-freq",
        "205",
        "--eval-episodes",
        "1",
        "--log-interval",
        "1",
    ),
    *("-params", *(f"{key}:{value}" for key, value in SETTINGS.items()), f"policy_kwargs:{POLICY}".replace(" ", "")),
]


def read_csv(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each key of ``progress.csv``."""
    with (folder / "progress.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        key: [(int(row["time/total_timesteps"]), float(row[key])) for row in rows if row[key]]
        for row in rows[:1]
        for key in row
    }


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each scalar of the event files."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}


def train(tmp_path: Path, **options: Any) -> Path:
    """Train in this process, and return the folder of the run."""
    defaults: dict[str, Any] = {"n_timesteps": 210, "eval_freq": 205, "n_eval_episodes": 1, "log_interval": 1, "verbose": 0}
    hyperparams = {**SETTINGS, "policy_kwargs": POLICY}
    manager = Manager(
        argparse.Namespace(), "qsm", "Pendulum-v1", str(tmp_path / "logs"), hyperparams=hyperparams, **(defaults | options)
    )
    result = manager.setup_experiment()
    assert result is not None
    manager.learn(result[0])
    return Path(manager.save_path)


def test_csv_and_tensorboard_are_written_without_a_flag(tmp_path: Path) -> None:
    folder = train(tmp_path)
    table, events = read_csv(folder), read_tensorboard(folder)
    expected = {"rollout/ep_rew_mean", "eval/mean_reward", "train/critic_loss", "train/n_updates", "time/fps", "time/episodes"}
    assert expected <= set(table)
    assert set(events) == set(table)
    for key, points in table.items():
        assert [step for step, _ in events[key]] == [step for step, _ in points], key
        for (_, value), (_, written) in zip(points, events[key], strict=True):
            assert math.isclose(value, written, rel_tol=1e-6), key


def test_tensorboard_has_a_folder_of_its_own_if_asked(tmp_path: Path) -> None:
    folders = [train(tmp_path, tensorboard_log=str(tmp_path / "tb"), n_timesteps=4, eval_freq=2) for _ in range(2)]
    for number, folder in enumerate(folders, start=1):
        assert (folder / "progress.csv").is_file()
        assert not list(folder.glob("events.*"))
        assert set(read_tensorboard(tmp_path / "tb" / "Pendulum-v1" / f"QSM_{number}")) == set(read_csv(folder))


STAND_IN = '''
"""What rl-zoo3 uses of wandb; its documentation says that ``sync_tensorboard`` uploads all that TensorBoard is given."""
import json
from pathlib import Path
from types import SimpleNamespace

from torch.utils.tensorboard import SummaryWriter

keys = set()

def init(*, sync_tensorboard, config, **options):
    assert sync_tensorboard
    add_scalar = SummaryWriter.add_scalar

    def recorded(self, tag, *args, **kwargs):
        keys.add(tag)
        Path("wandb_keys.json").write_text(json.dumps(sorted(keys)))
        return add_scalar(self, tag, *args, **kwargs)

    SummaryWriter.add_scalar = recorded
    Path("wandb_config.json").write_text(json.dumps({**options, "algo": config["algo"], "seed": config["seed"]}))
    return SimpleNamespace(config=SimpleNamespace(setdefaults=lambda values: None))
'''


def test_weights_and_biases_is_given_the_same_keys(tmp_path: Path) -> None:
    """A stand-in of the package, so that the test runs without it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(STAND_IN, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    options = ["--track", "--wandb-project-name", "mine", "--seed", "3"]
    command = [sys.executable, script("train"), *COMMAND, *options]
    check(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250))
    folder = tmp_path / "logs" / "qsm" / "Pendulum-v1_1"
    keys = json.loads((tmp_path / "wandb_keys.json").read_text(encoding="utf-8"))
    assert set(keys) == set(read_csv(folder)) == set(read_tensorboard(folder))
    config = json.loads((tmp_path / "wandb_config.json").read_text(encoding="utf-8"))
    assert (config["project"], config["algo"], config["seed"]) == ("mine", "qsm", 3)
    assert not (tmp_path / "runs").exists()


def wandb_records(data: bytes) -> Iterator[bytes]:
    """
    Records of a file of wandb: blocks of 32 KiB behind a header of 7 bytes; each part of a record has a checksum (4 bytes), a
    length (2) and a kind (1: whole, 2: first, 3: middle, 4: last).
    """
    position, record = 7, b""
    while position < len(data):
        if (rest := -position % 32768) and rest < 7:
            position += rest
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_an_offline_run_of_weights_and_biases_has_the_same_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    check(run(script("train"), *COMMAND, "--track", cwd=tmp_path))
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    keys: set[str] = set()
    for data in wandb_records(path.read_bytes()):
        record = Record.FromString(data)
        keys |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    folder = tmp_path / "logs" / "qsm" / "Pendulum-v1_1"
    own = {"_step", "_timestamp", "_runtime", "global_step"}
    assert keys - own == set(read_csv(folder)) == set(read_tensorboard(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--track"], "--track needs the package wandb, which is not installed; install the extra"),
        (["--track", "-tb", "somewhere"], "leave out --tensorboard-log somewhere"),
    ],
)
def test_tracking_that_cannot_work_is_explained(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if "-tb" in options else None)
    check_tracking("train.py", options[1:])
    with pytest.raises(SystemExit) as error:
        check_tracking("train.py", options)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ")
    assert message in line
