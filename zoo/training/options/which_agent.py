"""The options that say which agent of the user's own is meant; read before anything slow is imported."""

import argparse
from typing import Any, Literal

Which = Literal["last", "best", "last checkpoint"] | int
"""The agent at the end, the one with the best evaluation, the newest of ``--save-freq``, or that of a number of steps."""


def add_options(parser: argparse.ArgumentParser, verb: str) -> Any:
    """
    Add the options that say which agent of the user's own is meant.

    :param parser: Parser of a command
    :param verb: What the command does with an agent
    :return: The group of those that exclude each other
    """
    parser.add_argument("-f", "--folder", default="logs", help="log folder")
    number = "number of the run, with -uuid <number>_<uuid> (0: the newest that has an agent, -1: no run folder)"
    parser.add_argument("--exp-id", type=_exp_id, default=0, help=number)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help=f"{verb} the best model instead of the last")
    which.add_argument("--load-checkpoint", type=int, help=f"{verb} the checkpoint of this number of steps")
    which.add_argument("--load-last-checkpoint", action="store_true", help=f"{verb} the last checkpoint")
    return which


def chosen(args: argparse.Namespace) -> Which:
    """
    :param args: Result of a parser with :func:`add_options`
    """
    if args.load_best:
        return "best"
    if args.load_last_checkpoint:
        return "last checkpoint"
    return "last" if args.load_checkpoint is None else args.load_checkpoint


def _exp_id(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
