"""Do one cell of a benchmark: train in a process of its own, try again after a failure, write the result once."""

import json
import os
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import Timeout, lock_descriptor

from ..lease import lease, owner_of
from ..provenance import cpu_name, git_commit, package_versions
from ..training.ending import FINAL_EVALUATION
from ..training.runs.folders import run_folders
from ..training.runs.resume import drop_checkpoints, finished, resumable
from .cells import FORMAT, Cell, CellFileError, check, read, read_result, write
from .training_process import TrainingProcess

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TAIL_LINES = 15


class Stopped(Exception):
    """The runner shall stop, or the cell belongs to another one by now."""


@dataclass(frozen=True)
class Outcome:
    """
    What became of a cell.

    :param state: ``"done"``, ``"present"`` (had a result before), ``"failed"``, ``"busy"`` (another runner does it) or
        ``"stopped"``
    :param text: One line, and the end of the log for a failure
    """

    state: str
    text: str

    @property
    def has_result(self) -> bool:
        """Whether there is a result now."""
        return self.state in ("done", "present")


def work(cell: Cell, *, retries: int, wait: bool, stop: Callable[[], bool] = lambda: False, train: Path = TRAIN) -> Outcome:
    """
    Do a cell, unless it has a result or somebody else is doing it.

    :param cell: The cell
    :param retries: How often a failed training is started again
    :param wait: Wait for somebody else's result instead of leaving the cell alone
    :param stop: Tells whether to stop
    :param train: The training script
    """
    if not (cell.folder / "cell.json").is_file():
        return Outcome("failed", f"{cell.folder} does not exist on this machine; --folder has to be on a shared file system")
    if has_result(cell):
        return Outcome("present", "has a result")
    lock = lease(cell.folder / "cell.lease")
    try:
        # the lock of a dead owner is removed by the first try and taken by the second
        lock.acquire(timeout=-1 if wait else 1.0, cancel_check=stop)
    except Timeout:
        return Outcome("stopped" if stop() else "busy", f"is being done by {owner_of(lock)}")
    try:
        if has_result(cell):  # the one that was doing it has finished
            return Outcome("present", "has a result")
        return _try(cell, retries, stop, lambda: lock.compromise is not None, train)
    except Stopped:
        return Outcome("stopped", "was stopped") if stop() else Outcome("busy", "was taken over by somebody else")
    except OSError as error:
        return Outcome("failed", f"failed because {error}")
    finally:
        lock.release()


def has_result(cell: Cell) -> bool:
    """
    :param cell: The cell
    :return: Whether it has a result; a damaged one counts as none
    """
    try:
        read_result(cell.folder)
    except (CellFileError, FileNotFoundError):
        return False
    return True


def _try(cell: Cell, retries: int, told: Callable[[], bool], lost: Callable[[], bool], train: Path) -> Outcome:
    def stop() -> bool:
        return told() or lost()

    damaged = cell.folder / "result.json"
    if damaged.is_file():
        print(f"{cell}: {damaged} is damaged, the cell is done again (the file is kept as result.damaged)", flush=True)
        damaged.replace(damaged.with_suffix(".damaged"))
    attempts, fresh, tail = _read_attempts(cell), False, ""
    for _ in range(retries + 1):
        with cell.log.open("ab") as log:
            _wait_for_orphan(cell, log, stop)
            command, resumed = training_command(cell, train, fresh=fresh)
            attempt: dict[str, Any] = {"started": _now(), "seconds": None, "resumed": resumed, "error": None}
            attempts.append(attempt)
            write(cell.folder, "attempts", attempts)
            start = log.tell()
            try:
                status = _train(cell, command, log, attempt, stop)
            except Stopped:
                if not lost():  # the files of a cell that is lost are somebody else's
                    write(cell.folder, "attempts", attempts)
                raise
        try:
            if status != 0:
                raise CellFileError(f"the training ended with {_describe(status)}")
            result = collect(cell) | {"attempts": attempts}
            if stop():  # the cell may belong to somebody else by now
                raise Stopped
            write(cell.folder, "result", result)
            _forget_checkpoints(cell)
        except CellFileError as error:
            attempt["error"] = str(error)
        write(cell.folder, "attempts", attempts)
        if attempt["error"] is None:
            returns = result["final"]["returns"]
            number = f"{np.mean(returns):.2f} +/- {np.std(returns):.2f} over {len(returns)} episodes"
            return Outcome("done", f"final return {number}, {sum(a['seconds'] or 0 for a in attempts):.0f} s")
        tail = _tail(cell.log, start)
        print(f"{cell}: {attempt['error']}", flush=True)
        fresh = resumed  # what could not be continued begins anew
    text = f"failed {retries + 1} times, the last time because {attempts[-1]['error']}; log: {cell.log}"
    return Outcome("failed", f"{text}\n{tail}".rstrip())


def _read_attempts(cell: Cell) -> list[dict[str, Any]]:
    try:
        return read(cell.folder, "attempts")
    except (FileNotFoundError, CellFileError):  # it is only a record of what happened
        return []


def training_command(cell: Cell, train: Path, *, fresh: bool = False) -> tuple[list[str], bool]:
    """
    What has to be run for a cell. A training that was interrupted is continued, otherwise the folder is emptied.

    :param cell: The cell
    :param train: The training script
    :param fresh: Begin anew in any case
    :return: The command, empty if the training has finished, and whether it continues an earlier one
    """
    folder = run_folder(cell)
    if folder is not None and not fresh:
        if finished(folder):
            return [], True
        if resumable(folder):
            return [sys.executable, str(train), "--resume", str(folder)], True
    shutil.rmtree(cell.folder / "run", ignore_errors=True)
    return [sys.executable, str(train), *cell.options(), "-f", str(cell.folder / "run")], False


def _forget_checkpoints(cell: Cell) -> None:
    """A finished run keeps its replay buffer, for those who want to extend it; nobody extends a cell, and there are many."""
    folder = run_folder(cell)
    if folder is not None:
        drop_checkpoints(folder)


def run_folder(cell: Cell) -> Path | None:
    """
    :param cell: The cell
    :return: Log folder of its training, ``None`` if there is none yet
    """
    folders = run_folders(cell.folder / "run" / cell.trained, cell.env)
    return folders[0] if folders else None


def _wait_for_orphan(cell: Cell, log: BinaryIO, stop: Callable[[], bool]) -> None:
    """
    A training outlives a runner that is killed. It has inherited the log file, and with it the lock on that file, so that
    nobody starts a second training in the same folder; its work is not lost.
    """
    said = False
    try:
        while not lock_descriptor(log.fileno(), blocking=False):
            if not said:
                print(f"{cell}: waiting for a training whose runner has died", flush=True)
                said = True
            if stop():
                raise Stopped
            time.sleep(0.5)
    except OSError:  # a file system without locks
        return


def _train(cell: Cell, command: list[str], log: BinaryIO, attempt: dict[str, Any], stop: Callable[[], bool]) -> int:
    """
    :param command: What to run, empty if nothing is left to be done
    :param attempt: Is told the time that it took, whatever becomes of it
    :return: Exit status
    """
    if not command:
        attempt |= {"seconds": 0.0, "cpu_seconds": 0.0}
        return 0
    log.write(f"=== {_now()} {' '.join(command)}\n".encode())
    log.flush()
    print(f"{cell}: training, output in {cell.log}", flush=True)
    begin, process = time.monotonic(), TrainingProcess(command, log, cell.settings.threads)
    try:
        while (status := process.wait()) is None:
            if stop():
                raise Stopped
    finally:
        process.end()
        attempt |= {"seconds": round(time.monotonic() - begin, 1), "cpu_seconds": process.cpu_seconds}
    return status


def collect(cell: Cell) -> dict[str, Any]:
    """
    Read what a finished training has left.

    :param cell: The cell
    :return: Content of ``result.json``, except for the attempts
    :raises CellFileError: If anything is missing; the message says what
    """
    folder = run_folder(cell)
    if folder is None:
        raise CellFileError(f"the training left no folder in {cell.folder / 'run'}")
    try:
        final = json.loads((folder / FINAL_EVALUATION).read_text(encoding="utf-8"))
        check(final, "final", folder / FINAL_EVALUATION)
        curve = _read_curve(folder / "evaluations.npz")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CellFileError(f"the training left no readable evaluations in {folder}: {error}") from None
    if final["timesteps"] < final["budget"]:
        raise CellFileError(f"the training ended after {final['timesteps']} of {final['budget']} steps")
    if not curve:  # every evaluation was due before the first update
        curve = [{key: final[key] for key in ("timesteps", "returns", "lengths")}]
    return {
        "format": FORMAT,
        "cell": cell.describe(),
        "command": cell.command,
        "final": final,
        "curve": curve,
        "versions": package_versions(),
        "commit": git_commit(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
    }


def _read_curve(path: Path) -> list[dict[str, Any]]:
    """What the evaluations during a training have left; without a file there were none."""
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as evaluations:
        columns = [evaluations[name].tolist() for name in ("timesteps", "results", "ep_lengths")]
    return [dict(zip(("timesteps", "returns", "lengths"), row, strict=True)) for row in zip(*columns, strict=True)]


def _tail(log: Path, start: int) -> str:
    """The last lines of what was written since ``start``."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 20_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
