"""
Train an agent: ``python zoo/train.py --algo dacer --env Hopper-v5`` (or ``python -m zoo.train ...``).

All options are those of rl-zoo3 (``--help`` lists them); the default settings are in ``hyperparams/<algo>.yml``.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import rl_zoo3.train

from sb3_diffusion.envs import quiet_mujoco

from .manager import Manager
from .registry import check_command_line, register_algorithms
from .tracking import check_tracking

quiet_mujoco()  # at module level, so that worker processes (which import the main module again) are quiet too


def main() -> None:
    """Check the names, let rl-zoo3 do the rest."""
    register_algorithms()
    check_command_line("train.py", sys.argv[1:])
    check_tracking("train.py", sys.argv[1:])
    rl_zoo3.train.ExperimentManager = Manager  # type: ignore[misc]  # rl-zoo3's own extension point
    rl_zoo3.train.train()


if __name__ == "__main__":
    main()
