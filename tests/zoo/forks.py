"""
One process that has imported the libraries of others, and forks of it that run commands.

A fork is a process like any other: it has a working folder, an environment, an exit status and files for what it prints, it
imports all that is ours anew, and it can be interrupted and killed. Only the seconds until PyTorch, Stable-Baselines3 and
rl-zoo3 are imported are paid once.
"""

import contextlib
import importlib
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = (
    "matplotlib.pyplot",
    "mujoco",
    "optuna",
    "rl_zoo3.exp_manager",
    "stable_baselines3",
    "torch._dynamo",  # the first optimizer of a process imports it
    "torch.utils.tensorboard",
)
"""What takes long to import; dm_control is not among them, because importing it changes what MuJoCo prints."""
POLL_SECONDS = 0.02


class Fork:
    """
    A command that runs.

    :param forks: Where it was started
    :param command: What stands behind ``python``
    :param pid: Number of the process
    :param printed: Path of the files with what it prints, but for their suffixes
    """

    def __init__(self, forks: "Forks", command: tuple[str, ...], pid: int, printed: Path):
        self.forks, self.command, self.pid, self.printed = forks, command, pid, printed

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the number of a signal that ended it, ``None`` while it runs."""
        return self.forks.statuses.get(self.pid)

    def poll(self) -> int | None:
        """
        :return: Its exit status, ``None`` while it runs
        """
        self.forks.listen(0.0)
        return self.returncode

    def wait(self, timeout: float = 200.0) -> int:
        """
        :param timeout: Seconds until it is killed
        :return: Exit status
        """
        end = time.monotonic() + timeout
        while (status := self.returncode) is None:
            self.forks.listen(1.0)
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.command, timeout)
        return status

    def communicate(self, timeout: float = 200.0) -> tuple[str, str]:
        """
        :param timeout: Seconds until it is killed
        :return: What it has written to its standard streams
        """
        self.wait(timeout)
        return self.printed.with_suffix(".out").read_text("utf-8"), self.printed.with_suffix(".err").read_text("utf-8")

    def send_signal(self, number: int) -> None:
        """
        :param number: The signal; nothing happens if the command has ended
        """
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[str]


class Forks:
    """
    The process that is forked. On systems where a process that has loaded much cannot always be forked, commands begin anew.

    :param variables: Its environment, which libraries read when they are imported
    """

    def __init__(self, variables: Mapping[str, str]):
        self.statuses: dict[int, int] = {}
        self.started: list[int] = []
        self._unread = b""
        self._folder = tempfile.TemporaryDirectory()
        self._process: Any = None
        if sys.platform == "linux":
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen([sys.executable, __file__], env=variables, cwd=self._folder.name, **pipes)

    def start(self, *command: str, cwd: Path, variables: Mapping[str, str]) -> Process:
        """
        :param command: What stands behind ``python``: a script and its options, ``-m`` and a module, ``-c`` and a program
        :param cwd: Where
        :param variables: Its environment
        """
        if self._process is None:
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return subprocess.Popen(
                [sys.executable, *command], cwd=cwd, env=variables, text=True, start_new_session=True, **pipes
            )
        printed = Path(self._folder.name) / str(len(self.started))
        order = {"command": command, "cwd": str(cwd), "printed": str(printed), "variables": dict(variables)}
        before = len(self.started)
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        while len(self.started) == before:
            self.listen(1.0)
        return Fork(self, command, self.started[-1], printed)

    def listen(self, seconds: float) -> None:
        """
        Hear what has started and ended.

        :param seconds: How long to wait for something
        """
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], seconds)[0]:
            return
        data = os.read(descriptor, 65536)
        assert data, "the process that is forked has ended"
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            pid, *status = map(int, line.split())
            if status:
                self.statuses[pid] = status[0]
            else:
                self.statuses.pop(pid, None)  # numbers of processes come round
                self.started.append(pid)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(30)
            self._process.stdout.close()
        self._folder.cleanup()


def say_what_ended(running: set[int]) -> None:
    """
    :param running: Numbers of the forks; those that have ended are taken out
    """
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.discard(pid)
            os.write(1, b"%d %d\n" % (pid, os.waitstatus_to_exitcode(status)))


def serve() -> dict[str, Any] | None:
    """
    Fork for every line of standard input, and say which forks have ended.

    :return: In a fork, what it shall do; ``None`` in this process, when nothing more comes
    """
    unread, running = b"", set[int]()
    while True:
        ready = select.select([0], [], [], POLL_SECONDS if running else None)[0]
        say_what_ended(running)
        if not ready:
            continue
        data = os.read(0, 65536)
        if not data:
            return None
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                return json.loads(line)  # type: ignore[no-any-return]
            running.add(pid)
            os.write(1, b"%d\n" % pid)


def become(order: dict[str, Any]) -> None:
    """
    Run a command as a fresh interpreter would.

    :param order: See :meth:`Forks.start`
    """
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["variables"])
    written = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    paths = (os.devnull, os.O_RDONLY), (f"{order['printed']}.out", written), (f"{order['printed']}.err", written)
    for stream, (path, flags) in enumerate(paths):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.setsid()  # what ends it ends those that it has started, and nobody else
    # a shell starts what it sends to the background with interrupts ignored, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    np.random.seed()
    first, *rest = order["command"]
    sys.orig_argv = [sys.executable, first, *rest]
    if first == "-m":
        sys.argv, sys.path[0] = rest, order["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = [first, *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    task = serve()
    if task is not None:
        become(task)  # the way out of a fork is that of any program: an exit status, or a traceback
