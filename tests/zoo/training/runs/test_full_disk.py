"""A full disk costs what cannot be written, not the training; each kind of file is said once."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.monitor import ResultsWriter

from tests.zoo.in_process import SAC, TINY, train
from zoo.training.manager import Manager
from zoo.training.runs import full_disk
from zoo.training.runs.resume import checkpoint_steps, finished
from zoo.training.tracking import CompleteTensorBoard

OPTIONS = [
    *SAC,
    "-n",
    "410",
    "--eval-freq",
    "100",
    "--save-freq",
    "100",
    "--resume-freq",
    "100",
    "-params",
    *TINY,
    "normalize:True",
]


class Disk:
    """Fails where the interface of the operating system would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.error: int | None = None
        for owner, name in (
            (os, "fsync"),
            (ResultsWriter, "write_row"),
            (CSVOutputFormat, "write"),
            (CompleteTensorBoard, "write"),
        ):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))
        monkeypatch.setattr(full_disk, "_warned", set())

    def failing(self, function: Any) -> Any:
        def write(*args: Any) -> Any:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            return function(*args)

        return write


@pytest.mark.filterwarnings("ignore:No checkpoint could be written")
def test_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    disk = Disk(monkeypatch)
    learn, save = Manager.learn, Manager.save_trained_model

    def full_while_learning(self: Manager, model: Any) -> None:
        disk.error = errno.EDQUOT
        learn(self, model)
        disk.error = None

    monkeypatch.setattr(Manager, "learn", full_while_learning)
    assert train(tmp_path, *OPTIONS) == 0
    run = tmp_path / "logs" / "sac" / "Pendulum-v1_1"
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: ")]
    lost = ["an agent of --save-freq", "best_model.zip", "evaluations.npz", "vecnormalize.pkl", "0.monitor.csv"]
    lost += ["the log of CSV", "the log of CompleteTensorBoard"]
    for what in lost:
        assert sum(f"{what} cannot be written" in line for line in warnings) == 1, what
    assert len(warnings) == len(lost)
    assert (run / "Pendulum-v1.zip").is_file() and finished(run)
    assert not list(run.glob("*.part")) and not list(run.glob("rl_model*"))

    def full_at_the_end(self: Manager, model: Any) -> None:
        disk.error = errno.ENOSPC
        save(self, model)

    monkeypatch.setattr(Manager, "learn", learn)
    monkeypatch.setattr(Manager, "save_trained_model", full_at_the_end)
    assert train(tmp_path, *OPTIONS) == 1
    run = run.with_name("Pendulum-v1_2")
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the agent could NOT be saved as {Path('logs', 'sac', run.name, 'Pendulum-v1.zip')}" in line
    assert "No space left on device" in line and "After 410 steps, continue with: python train.py --resume" in line
    assert not (run / "Pendulum-v1.zip").exists() and not finished(run) and checkpoint_steps(run)[-1] == 410
    disk.error = None
    monkeypatch.setattr(Manager, "save_trained_model", save)
    assert train(tmp_path, "--resume", str(run)) == 0
    assert (run / "Pendulum-v1.zip").is_file() and finished(run)
