"""A signal ends a training at a checkpoint, and the command with the status that it is due."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.checkpoints.trainings.store import CheckpointStore
from tests.helpers import assert_identical
from tests.zoo.in_process import SAC, TINY, train
from tests.zoo.processes import ROOT
from zoo.training.callbacks import Evaluation
from zoo.training.runs import signals as module
from zoo.training.runs.resume import checkpoint_steps, finished
from zoo.training.runs.signals import Interrupted, Signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are different")


class Training(TrainingCheckpoints):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.requests: list[bool] = []

    def request(self, *, stop: bool) -> None:
        self.requests.append(stop)


@pytest.fixture(autouse=True)
def hearing() -> Iterator[None]:
    """Signals that were ignored before stay so, and a shell or a scheduler may have started the tests deaf to some."""
    ways: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, way) for number, way in ways.items()}
    yield
    for number, way in before.items():
        signal.signal(number, way)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_without_a_training_it_ends_at_once(number: int) -> None:
    with pytest.raises(SystemExit) as end, Signals():
        signal.raise_signal(number)
        pytest.fail("goes on")
    assert end.value.code == 128 + number


def test_a_training_is_asked_to_end() -> None:
    training = Training()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, Signals() as signals:
        signals.listen(training)
        for number in (
            signal.SIGTERM,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGINT,
        ):  # the last one comes too soon to be meant
            signal.raise_signal(number)
        signals.listen(None)
        signal.raise_signal(signal.SIGTERM)  # while the agent is saved
    assert training.requests == [True] and end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_again_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with pytest.raises(SystemExit) as end, Signals() as signals:
        signals.listen(Training())
        signal.raise_signal(signal.SIGINT)
        now[0] += 2.0
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130


def test_usr1_saves_and_goes_on() -> None:
    training = Training()
    with Signals() as signals:
        signal.raise_signal(signal.SIGUSR1)  # there is nothing to save yet
        signals.listen(training)
        signal.raise_signal(signal.SIGUSR1)
    assert training.requests == [False]


def test_ignored_signals_stay_ignored_and_errors_pass() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(ZeroDivisionError), Signals() as signals:
        signals.received = signal.SIGTERM
        raise ZeroDivisionError


def saved_policy(archive: Path) -> Any:
    with zipfile.ZipFile(archive) as members:
        return th.load(io.BytesIO(members.read("policy.pth")), weights_only=True)


def test_signals_of_all_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """While the first steps are random, during an evaluation (twice), and in the one at the end."""
    options = [*SAC, "-n", "160", "--eval-freq", "40", "--resume-freq", "1000", "-params", *TINY, "normalize:True"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    assert train(whole, *options) == 0
    assert "Watch it with" in capfd.readouterr().out
    run = pieces / "logs" / "sac" / "Pendulum-v1_1"
    evaluate, at = Evaluation._on_step, {30: [signal.SIGINT], 80: [signal.SIGTERM, signal.SIGTERM]}

    def interrupted(self: Evaluation) -> bool:
        for number in at.pop(self.num_timesteps, []):
            signal.raise_signal(number)
        return evaluate(self)

    monkeypatch.setattr(Evaluation, "_on_step", interrupted)
    assert train(pieces, *options) == 130
    for step, status in ((30, 143), (80, 0)):
        output = capfd.readouterr()
        where = run if step > 30 else Path("logs", "sac", "Pendulum-v1_1")
        assert f"After {step} steps, continue with: python train.py --resume {where}" in output.out
        assert "the training ends at the next checkpoint" in output.err and "Traceback" not in output.err
        assert checkpoint_steps(run)[-1] == step and not finished(run) and not (run / "final_evaluation.json").exists()
        checkpoint, _ = CheckpointStore(run / "resume").latest()
        assert checkpoint is not None
        stored = th.load(io.BytesIO(checkpoint.read("parameters.pt")), weights_only=True)
        assert_identical(saved_policy(run / "Pendulum-v1.zip"), stored["policy"])
        if status == 0:
            break
        assert train(pieces, "--resume", str(run)) == status
    end = {1: signal.SIGTERM}
    evaluate_end = module_ending().evaluate

    def at_the_end(self: Any, *args: Any) -> None:
        if end:
            signal.raise_signal(end.pop(1))
        evaluate_end(self, *args)

    monkeypatch.setattr(module_ending(), "evaluate", at_the_end)
    assert train(pieces, "--resume", str(run)) == 143
    assert "The evaluation at the end was interrupted; repeat it with" in capfd.readouterr().out
    assert not finished(run) and checkpoint_steps(run)[-1] == 160
    assert train(pieces, "--resume", str(run)) == 0 and finished(run)
    same = whole / "logs" / "sac" / "Pendulum-v1_1"
    for name in ("Pendulum-v1.zip", "best_model.zip"):
        assert_identical(saved_policy(run / name), saved_policy(same / name), name)
    assert (run / "final_evaluation.json").read_bytes() == (same / "final_evaluation.json").read_bytes()
    assert (run / "evaluations.npz").stat().st_size == (same / "evaluations.npz").stat().st_size


def module_ending() -> Any:
    from zoo.training.ending import Ending

    return Ending


def module_manager() -> Any:
    from zoo.training.manager import Manager

    return Manager


def test_before_the_first_step_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_manager(), "create_callbacks", lambda self: signal.raise_signal(signal.SIGTERM))
    assert train(tmp_path, *SAC, "-n", "40", "-params", *TINY) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.expensive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_environments_in_processes_hear_it_too(number: int, tmp_path: Path) -> None:
    """What a terminal or a scheduler sends reaches the whole group."""
    options = [*SAC, "-n", "100000", "--vec-env", "subproc", "-params", *TINY, "n_envs:2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.train", *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = tmp_path / "logs" / "sac" / "Pendulum-v1_1"
    while not checkpoint_steps(run):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output and "--resume" in output
    assert (run / "Pendulum-v1.zip").is_file()
