"""The commands as a user types them, each in a process of its own."""

import atexit
import functools
import os
import subprocess
from pathlib import Path

from tests.zoo.forks import Forks, Process

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "-n",
    "60",
    "--eval-freq",
    "30",
    "--eval-episodes",
    "1",
    "--seed",
    "1",
    "-params",
    "learning_starts:40",
    "buffer_size:200",
]


def user_environment() -> dict[str, str]:
    """Environment of a user without a display."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("DISPLAY", None)
    return environment


@functools.cache
def forks() -> Forks:
    """The process whose forks are the commands of this session."""
    opened = Forks(user_environment())
    atexit.register(opened.close)
    return opened


def start(*command: str, cwd: Path) -> Process:
    """
    :param command: What stands behind ``python``
    :param cwd: Where
    """
    return forks().start(*command, cwd=cwd, variables=user_environment())


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """
    :param command: What stands behind ``python``, such as a script and its command line
    :param cwd: Where
    """
    process = start(*command, cwd=cwd)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(command, process.wait(), out, err)


def script(name: str) -> str:
    """
    :param name: A command, such as ``train`` or ``speed/shares``
    """
    return str(ROOT / "zoo" / f"{name}.py")


def check(result: subprocess.CompletedProcess[str]) -> str:
    """
    :param result: Of a process that should have succeeded
    :return: What it printed
    """
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
