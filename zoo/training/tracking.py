"""Where a training writes its numbers: csv, TensorBoard and, by way of the latter, Weights & Biases; the keys are the same."""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stable_baselines3
from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from typing_extensions import override

from .options.commands import own_command
from .options.errors import fail
from .runs.full_disk import GuardedLogger


class CompleteTensorBoard(TensorBoardOutputFormat):
    """TensorBoard with all numbers. Stable-Baselines3 leaves some to the csv file, such as ``time/total_timesteps``."""

    @override
    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        super().write(key_values, dict.fromkeys(key_excluded, ()), step)


def make_logger(folder: Path, tensorboard_folder: Path, verbose: int = 1) -> Logger:
    """
    :param folder: Of the run, for ``progress.csv``
    :param tensorboard_folder: For the event file of TensorBoard
    :param verbose: 1 to print the numbers as well
    """
    folder.mkdir(parents=True, exist_ok=True)
    formats: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if verbose > 0 else []
    formats += [CSVOutputFormat(str(folder / "progress.csv")), CompleteTensorBoard(str(tensorboard_folder))]
    # a resumed training looks for its event files in the folder of the logger
    return GuardedLogger(str(tensorboard_folder), formats)


def check_tracking(prog: str, argv: Sequence[str]) -> None:
    """
    Stop with one line and exit status 2 if ``--track`` cannot work.

    :param prog: Name of the program, for the message
    :param argv: Command line without the program; other options are left to the program's own parser
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--track", action="store_true")
    parser.add_argument("-tb", "--tensorboard-log")
    args, _ = parser.parse_known_args(argv)
    if not args.track:
        return
    if importlib.util.find_spec("wandb") is None:
        fail(prog, '--track needs the package wandb, which is not installed; install the extra: pip install -e ".[tracking]"')
    if args.tensorboard_log is not None:
        where = f"leave out --tensorboard-log {args.tensorboard_log}"
        fail(prog, f"--track reads TensorBoard's files in the folder of the run; {where}")


def start_tracking(args: argparse.Namespace, hyperparams: dict[str, Any]) -> None:
    """
    Open a run of Weights & Biases, which from then on reads whatever TensorBoard is given.

    :param args: Command line
    :param hyperparams: Settings of the run
    """
    import wandb

    wandb.init(
        name=f"{args.env}__{args.algo}__{args.seed}__{int(time.time())}",
        project=args.wandb_project_name,
        entity=args.wandb_entity,
        group=args.wandb_group,
        tags=[*args.wandb_tags, f"v{stable_baselines3.__version__}"],
        config={**vars(args), "command": own_command(), "saved_hyperparams": dict(hyperparams)},
        sync_tensorboard=True,
        monitor_gym=True,
        save_code=True,
    )
