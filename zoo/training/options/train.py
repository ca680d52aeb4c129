"""
The options of ``train.py``: those of rl-zoo3 under their names and with their defaults, and a few of our own.

They are read here, before rl-zoo3 is imported, so that a mistake costs no time and is one line.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .command_line import Assignments, CommandParser, truth, whole_number
from .registry import complete_names

RESUME_EVERY = 10_000
RESUME_SHARE = 0.02
MAX_SEED = 2**32 - 1
PRETRAIN_UPDATES = 10_000
OWN = ("resume", "resume_freq", "dry_run", "traceback", "trust_remote_code")
"""What rl-zoo3 does not know; not stored with the arguments of a run."""


def parse_own_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """
    :param argv: Command line of the training without the program
    :return: The options that rl-zoo3 does not have, and the other words
    """
    parser = CommandParser(add_help=False, allow_abbrev=False, prog="train.py")
    _add_own_options(parser)
    return parser.parse_known_args(argv)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """
    :param argv: Command line without what :func:`parse_own_options` takes
    :return: The arguments of rl-zoo3
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    complete_names(args)
    for name in OWN:
        if getattr(args, name) != parser.get_default(name):  # abbreviated, or it would not have come this far
            parser.error(f"write the option --{name.replace('_', '-')} in full")
        delattr(args, name)
    _check(parser, args)
    return args


def default_options() -> dict[str, Any]:
    """The arguments of an empty command line."""
    return vars(make_parser().parse_args([]))


def make_parser() -> CommandParser:
    """The complete parser, which also writes the help."""
    parser = CommandParser(
        prog="train.py",
        add_help=False,
        description="Train an agent: python zoo/train.py --algo dacer --env Hopper-v5",
        epilog="The settings of an algorithm are in hyperparams/<algo>.yml; -params overwrites them.",
    )
    parser.add_argument("-h", "--help", action="help", help="show this help")
    _add_training(parser)
    _add_data(parser)
    _add_evaluation(parser)
    _add_settings(parser)
    _add_own_options(parser)
    _add_search(parser)
    _add_tracking(parser)
    return parser


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resume, try, explain")
    group.add_argument("--resume", metavar="RUN", help="continue the run with this log folder, such as logs/dacer/Hopper-v5_1")
    group.add_argument(
        "--resume-freq",
        metavar="N",
        type=whole_number(0),
        help="store all that --resume needs every N steps, 0 for never "
        f"(default: every {RESUME_EVERY} steps, less often if that took more than {100 * RESUME_SHARE:g}%% of the time)",
    )
    group.add_argument("--dry-run", action="store_true", help="build the agent, print all settings and their origin, and stop")
    group.add_argument("--traceback", action="store_true", help="show where an error comes from")
    group.add_argument("--trust-remote-code", action="store_true", help="let the files of --resume and -i run code of others")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    every = {-1: "the default"}
    group.add_argument("--algo", help="algorithm")
    group.add_argument("--env", help="environment id")
    group.add_argument(
        "-n", "--n-timesteps", type=whole_number(1, {-1: "those of the settings"}), default=-1, help="number of steps"
    )
    seed = whole_number(0, {-1: "a random one"})
    group.add_argument("--seed", type=seed, default=-1, help="seed of everything (default: a random one)")
    group.add_argument("--device", default="auto", help="PyTorch device: auto, cpu, cuda, cuda:1, ...")
    group.add_argument("--num-threads", type=whole_number(1, every), default=-1, help="threads of PyTorch")
    group.add_argument(
        "--n-envs", type=whole_number(1), metavar="N", help="environments at once (default: as in the settings)"
    )
    group.add_argument("--vec-env", choices=["dummy", "subproc"], default="dummy", help="environments here, or in processes")
    group.add_argument("-i", "--trained-agent", default="", metavar="FILE", help="start from this agent (.zip)")
    # without effect in rl-zoo3's releases since the offline HER buffer
    group.add_argument("--truncate-last-trajectory", type=truth, default=True, help="of a HER buffer that is loaded")
    group.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    group.add_argument("--verbose", type=whole_number(0), default=1, help="0 for no output")
    interval = whole_number(1, {-1: "the default", -2: "never"})
    group.add_argument("--log-interval", type=interval, default=-1, help="episodes (rollouts) between two lines of the log")
    group.add_argument("-f", "--log-folder", default="logs", help="where runs are written (default: logs)")
    group.add_argument("-tb", "--tensorboard-log", default="", help="folder for TensorBoard (default: that of the run)")
    group.add_argument("-uuid", "--uuid", action="store_true", help="put a unique id into the name of the run")
    group.add_argument("--save-freq", type=whole_number(), default=-1, help="save the agent every so many steps (-1: never)")
    group.add_argument("--save-replay-buffer", action="store_true", help="save the replay buffer with the agent")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("learning from data")
    group.add_argument(
        "--dataset",
        default="",
        metavar="FILE_OR_NAME",
        help="learn from these data; -n counts updates then, unless the method is on-policy. --env may be left out where the "
        "data have a name, and --env hopper-medium-v2 stands for both",
    )
    group.add_argument(
        "--pretrain-updates",
        type=whole_number(1),
        default=PRETRAIN_UPDATES,
        metavar="N",
        help="of on-policy methods, which imitate the data first and then learn for -n steps (default: 10,000)",
    )
    group.add_argument(
        "--online-steps", type=whole_number(0), default=0, metavar="N", help="afterwards go on for N steps of the environment"
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval-freq", type=whole_number(), default=25000, help="evaluate every so many steps (-1: never)")
    group.add_argument("--eval-episodes", type=whole_number(0), default=5, help="episodes of an evaluation")
    copies = "environments of an evaluation (default: 1; of environments that speak tensors one for each episode, at most 16)"
    group.add_argument("--n-eval-envs", type=whole_number(1), default=1, help=copies)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    words: dict[str, Any] = {"nargs": "+", "action": Assignments, "metavar": "KEY:VALUE"}
    group.add_argument("-params", "--hyperparams", **words, help="overwrite settings: learning_rate:1e-4 batch_size:512")
    group.add_argument("-conf", "--conf-file", metavar="FILE", help="settings, instead of those in hyperparams/ (.yml, .py)")
    group.add_argument("--env-kwargs", **words, help="arguments of the environment")
    group.add_argument("--eval-env-kwargs", **words, help="those of the evaluation's environment, if they differ")
    group.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search for hyperparameters")
    group.add_argument("-optimize", "--optimize-hyperparameters", action="store_true", help="search instead of training")
    group.add_argument("--n-trials", type=whole_number(1), default=500, help="trials of this process")
    group.add_argument("--max-total-trials", type=whole_number(1), help="trials of all processes, instead")
    group.add_argument("--n-jobs", type=whole_number(1), default=1, help="trials at a time")
    group.add_argument("--sampler", choices=["random", "tpe", "auto"], default="tpe", help="what proposes a trial")
    group.add_argument("--pruner", choices=["halving", "median", "none"], default="median", help="what stops a bad trial")
    group.add_argument("--n-startup-trials", type=whole_number(0), default=10, help="random trials before the sampler's")
    group.add_argument("--n-evaluations", type=whole_number(1), help="evaluations of a trial")
    group.add_argument("--optimization-log-path", help="folder for the best agent and the evaluations of every trial")
    group.add_argument("--no-optim-plots", action="store_true", help="no picture of the search")
    group.add_argument("--storage", help="database of the study: sqlite:///study.db, or a journal, study.log")
    group.add_argument("--study-name", help="name of the study")
    group.add_argument("--trial-id", type=whole_number(0), help="train with the settings of this trial")


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Weights & Biases")
    group.add_argument("--track", action="store_true", help="log there as well")
    group.add_argument("--wandb-project-name", default="sb3", help="project (default: sb3)")
    group.add_argument("--wandb-entity", help="team")
    group.add_argument("--wandb-group", help="group of runs")
    group.add_argument("-tags", "--wandb-tags", nargs="+", default=[], help="tags of the run")


def _check(parser: CommandParser, args: argparse.Namespace) -> None:
    """What an option needs of another one, and of the files that it names."""
    missing = [f"--{name}" for name in ("algo", "env") if not getattr(args, name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        parser.error(f"{' and '.join(missing)} {verb} missing; for example: --algo dacer --env Hopper-v5")
    if args.pretrain_updates != PRETRAIN_UPDATES and not args.dataset:
        parser.error(f"--pretrain-updates {args.pretrain_updates} imitate data, and --dataset is missing")
    if args.online_steps and not args.dataset:
        parser.error(f"--online-steps {args.online_steps} follow on data, and --dataset is missing; -n is for steps alone")
    if args.seed > MAX_SEED:
        parser.error(f"--seed {args.seed} is too large; give at most {MAX_SEED}")
    if args.eval_freq > 0 and args.eval_episodes == 0:
        parser.error(
            f"--eval-episodes 0 gives --eval-freq {args.eval_freq} nothing to do; --eval-freq -1 is for no evaluation"
        )
    _check_files(parser, args)
    if args.trained_agent and args.optimize_hyperparameters:
        parser.error("-optimize trains from scratch and -i does not; leave one of the two out")
    if args.trial_id is not None and not (args.storage and args.study_name):
        parser.error(f"--trial-id {args.trial_id} needs --storage and --study-name, which say whose trial it is")


def _check_files(parser: CommandParser, args: argparse.Namespace) -> None:
    agent, config = args.trained_agent, args.conf_file
    if agent and not Path(agent).is_file():
        hint = f"; did you mean {agent}.zip?" if Path(f"{agent}.zip").is_file() else ""
        parser.error(f"-i {agent}: there is no such file{hint or ', give the archive of an agent, such as best_model.zip'}")
    if agent and Path(agent).suffix != ".zip":
        parser.error(f"-i {agent}: the file of an agent ends in .zip")
    if config and Path(config).suffix in (".yml", ".yaml", ".py") and not Path(config).is_file():
        parser.error(f"--conf-file {config}: there is no such file")
    for option, folder in {"-f": args.log_folder, "-tb": args.tensorboard_log}.items():
        blocked = next((path for path in (Path(folder), *Path(folder).parents) if path.exists() and not path.is_dir()), None)
        if blocked is not None:
            parser.error(f"{option} {folder}: {blocked} is a file, not a folder")
