"""
Train an agent: ``python zoo/train.py --algo dacer --env Hopper-v5`` (or ``python -m zoo.train ...``).

The options are those of rl-zoo3 (``--help`` lists them); the default settings are in ``hyperparams/<algo>.yml``.
An interrupted run continues with ``python zoo/train.py --resume logs/dacer/Hopper-v5_1``.
"""

import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import rl_zoo3.train

from sb3_diffusion.envs import quiet_mujoco

from .training.manager import Manager
from .training.registry import check_command_line, fail, register_algorithms
from .training.resume import continue_run, option_parser, parse_options
from .training.signals import Signals
from .training.tracking import check_tracking

PROG = "train.py"

quiet_mujoco()  # at module level, so that worker processes (which import the main module again) are quiet too


def main() -> None:
    """Check the names, let rl-zoo3 do the rest."""
    options, arguments = parse_options(sys.argv[1:])
    if {"-h", "--help"} & set(arguments):
        option_parser().print_help()
    run = None
    if options.resume is not None:
        try:
            continued = continue_run(options.resume, options.resume_freq, arguments)
        except ValueError as error:
            fail(PROG, str(error))
        if continued is None:
            print(f"{options.resume} is finished, there is nothing to continue; -n N trains on to N steps in total.")
            return
        run, arguments = continued
    register_algorithms()
    check_command_line(PROG, arguments)
    check_tracking(PROG, arguments)
    every = -1 if options.resume_freq is None else options.resume_freq
    # rl-zoo3's own extension point
    with Signals() as signals:
        manager = partial(Manager, run=run, resume_freq=every, signals=signals)
        rl_zoo3.train.ExperimentManager = manager  # type: ignore[misc, assignment]
        sys.argv[1:] = arguments
        rl_zoo3.train.train()


if __name__ == "__main__":
    main()
