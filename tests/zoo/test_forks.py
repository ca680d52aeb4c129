"""Forks are processes like those that a user starts."""

import signal
import sys
import time
from pathlib import Path

import pytest

from .processes import run, start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are not forked elsewhere")


def test_a_fork_has_a_life_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "yes")
    monkeypatch.setattr(sys, "argv", ["something", "else"])
    program = (
        "import os, sys; print(os.getcwd(), os.environ['OF_THIS_TEST'], sys.argv, __name__, 'sb3_diffusion' in sys.modules)"
    )
    first = run("-c", program, "word", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"{tmp_path} yes ['-c', 'word'] __main__ False\n"
    numbers = [run("-c", "import numpy; print(numpy.random.random())", cwd=tmp_path).stdout for _ in range(2)]
    assert numbers[0] != numbers[1]  # no seed is inherited


@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a sentence')", 1, "a sentence\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
    ],
)
def test_its_end_is_that_of_a_program(program: str, status: int, error: str, tmp_path: Path) -> None:
    result = run("-c", program, cwd=tmp_path)
    assert result.returncode == status and result.stderr.endswith(error)


def test_it_can_be_interrupted_while_others_run(tmp_path: Path) -> None:
    program = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(100)"
    first, second = (start("-c", program, name, cwd=tmp_path) for name in ("first", "second"))
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in first.communicate()[1]
    assert second.poll() is None
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == -signal.SIGTERM
