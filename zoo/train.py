"""
Train an agent: ``python zoo/train.py --algo dacer --env Hopper-v5`` (or ``python -m zoo.train ...``).

The options are those of rl-zoo3 (``--help`` lists them); the default settings are in ``hyperparams/<algo>.yml``.
An interrupted run continues with ``python zoo/train.py --resume logs/dacer/Hopper-v5_1``.

Options and names are checked before PyTorch and rl-zoo3 are imported.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .training.options.errors import mistakes
from .training.options.registry import check_names
from .training.options.settings import read_entries
from .training.options.train import make_parser, parse_options, parse_own_options

PROG = "train.py"

if __name__ == "__mp_main__":  # a worker process, which imports the main module again
    from sb3_diffusion.envs import quiet_mujoco

    quiet_mujoco()


def main() -> None:
    """Read the options, check the names, train."""
    own, arguments = parse_own_options(sys.argv[1:])
    if {"-h", "--help"} & set(arguments):
        make_parser().parse_args(["--help"])
    run = None
    with mistakes(PROG, own.traceback):
        if own.resume is not None:
            from .training.runs.resume import continue_run

            continued = continue_run(own.resume, own.resume_freq, arguments, own.trust_remote_code)
            if continued is None:
                print(f"{own.resume} is finished, there is nothing to continue; -n N trains on to N steps in total.")
                return
            run, arguments = continued
        args = parse_options(arguments)
        if own.dry_run and args.optimize_hyperparameters:
            raise ValueError("--dry-run shows the settings of one training; leave out -optimize")
        check_names(args.algo, args.env, args.gym_packages)
        if args.conf_file is not None and args.conf_file.endswith((".yml", ".yaml")):
            read_entries(args.conf_file)

        from sb3_diffusion.envs import quiet_mujoco

        from .training.runs.signals import Signals
        from .training.session import train  # takes seconds
        from .training.tracking import check_tracking

        check_tracking(PROG, arguments)
        quiet_mujoco()
    with Signals() as signals:
        train(PROG, args, own, run, signals)


if __name__ == "__main__":
    main()
