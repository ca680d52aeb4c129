"""The training command in this process, where starting one takes no seconds."""

import sys
from pathlib import Path

import pytest

from zoo import train as script

SAC = ["--algo", "sac", "--env", "Pendulum-v1", "--device", "cpu", "--seed", "1", "--eval-episodes", "1", "--verbose", "0"]
TINY = ["learning_starts:60", "buffer_size:500", "batch_size:8", "policy_kwargs:dict(net_arch=[8])"]


def train(cwd: Path, *arguments: str) -> int:
    """
    Type ``train.py ...``.

    :param cwd: Where
    :param arguments: The options
    :return: Exit status
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["train.py", *arguments])
        patch.setattr(sys, "orig_argv", ["python", "train.py", *arguments])
        try:
            script.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
