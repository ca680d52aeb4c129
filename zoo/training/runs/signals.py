"""What signals mean to a training: it ends at a checkpoint, from which ``--resume`` continues (docs: guide/resume)."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import forkserver, resource_tracker
from types import FrameType, TracebackType
from typing import Any

from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVING: tuple[int, ...] = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
SAME_SECONDS = 1.0
"""A second signal within this time is the first one again: shells and schedulers often tell both group and process."""


class Interrupted(KeyboardInterrupt):
    """A signal ends the command now, wherever it is."""


class Signals:
    """
    While this context lasts, signals end the command in order. Its exit status is then 128 plus the number of the signal.

    A training (:meth:`listen`) is asked for a checkpoint, at which it ends; everything else is interrupted where it is, as
    Ctrl-C does. Signals that were ignored before (``nohup``) stay so.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that ends the command."""
        self._at = 0.0
        self._training: TrainingCheckpoints | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (*ENDING, *SAVING):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._end if number in ENDING else self._save)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.received = self.received or signal.SIGINT
        if self.received is not None and (kind is None or issubclass(kind, KeyboardInterrupt)):
            raise SystemExit(128 + self.received) from None

    def listen(self, training: TrainingCheckpoints | None) -> None:
        """
        :param training: What is told about signals from now on; ``None`` when the training is over
        """
        self._training = training

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
            if self._training is None:
                raise Interrupted
            self._training.request(stop=True)
            _say(f"{signal.Signals(number).name}: the training ends at the next checkpoint (Ctrl-C again: at once)")
        elif number == signal.SIGINT and time.monotonic() - self._at > SAME_SECONDS:
            raise Interrupted  # whoever sends another signal again and again has SIGKILL as well

    def _save(self, number: int, frame: FrameType | None) -> None:
        if self._training is not None:
            self._training.request(stop=False)
            _say(f"{signal.Signals(number).name}: a checkpoint is written, the training goes on")


def _say(text: str) -> None:
    """``print`` must not be entered again from a handler."""
    os.write(2, f"{text}\n".encode())


def start_worker_server() -> None:
    """
    Let worker processes be born deaf to signals: a terminal sends them to every process, and workers need seconds to start.
    """
    atexit.register(_kill_workers)
    if not hasattr(signal, "pthread_sigmask") or "forkserver" not in multiprocessing.get_all_start_methods():
        return
    resource_tracker.ensure_running()  # which would open the ears again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*ENDING, *SAVING))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers() -> None:
    """Python would send those that are left SIGTERM, to which they are deaf, and wait for them."""
    for worker in multiprocessing.active_children():
        worker.kill()


def leave_signals_to_trainer() -> None:
    """In a process that only runs environments: do nothing at a signal. The process ends when its pipe is closed."""
    for number in (*ENDING, *SAVING):
        signal.signal(number, _nothing)  # other programs that are started from here hear signals as usual
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*ENDING, *SAVING))


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
