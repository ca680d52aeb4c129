"""The commands as a user types them, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

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


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """
    :param command: A script and its command line
    :param cwd: Where
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("DISPLAY", None)
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


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
