"""A training as a process of its own: start it, end it, and know how much processor time it took."""

import os
import subprocess
import time
from typing import BinaryIO

GRACE_SECONDS = 10.0
"""A training that is told to stop gets so much time before it is killed."""
POLL_SECONDS = 0.2


class TrainingProcess:
    """
    A process in a session of its own: Ctrl-C is for the runner, which stops the training and all that it has started.

    :param command: What to run
    :param log: Where its output goes
    :param threads: Threads that its libraries may use
    """

    def __init__(self, command: list[str], log: BinaryIO, threads: int):
        number = str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        self.cpu_seconds: float | None = None
        """Processor time of the process and of those it has waited for, once it has ended; unlike the time by the clock it
        does not grow with what else the machine has to do. Unknown where the system does not tell."""

    @property
    def status(self) -> int | None:
        """Exit status, ``None`` while it runs."""
        if self._process.returncode is None and hasattr(os, "wait4"):
            try:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has collected it
                return self._process.poll()
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_seconds = round(usage.ru_utime + usage.ru_stime, 1)
        return self._process.poll()

    def wait(self, seconds: float = POLL_SECONDS) -> int | None:
        """
        :param seconds: How long to wait for its end
        :return: See :attr:`status`
        """
        end = time.monotonic() + seconds
        while self.status is None and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, seconds) / 4)
        return self.status

    def end(self) -> None:
        """Make it stop. SIGTERM makes a training write a checkpoint first, from which the next attempt continues."""
        if self.status is not None:
            return
        self._process.terminate()
        if self.wait(GRACE_SECONDS) is None:
            self._process.kill()
            self.wait(GRACE_SECONDS)
