"""
Draw learning curves of trainings: ``python zoo/plot.py logs/sdac/Pendulum-v1_1`` (or ``python -m zoo.plot ...``).

Runs are named by their folders, or searched for: ``--algo sdac dacer --env Pendulum-v1 -f logs``. Runs of the same algorithm
on the same environment are drawn as one curve, every environment has a panel of its own.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib import rc_context
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.results_plotter import ts2xy

from sb3_diffusion.printable import printable

from .figures import Curve, Phases, check_output, draw_panels, save
from .training.options import settings
from .training.options.command_line import CommandParser
from .training.options.errors import mistakes
from .training.runs.curve import read_evaluations
from .training.runs.text_files import read_yaml

PROG = "plot.py"
RUN_FOLDER = re.compile(r"(?P<env>.+?)_(?P<number>\d+)(_.+)?")  # with --uuid, the id follows the number


@dataclass(frozen=True)
class Run:
    """
    A training.

    :param folder: Its folder
    :param algo: Name of the algorithm on the command line
    :param env: Environment as it is written in names of folders
    """

    folder: Path
    algo: str
    env: str


@dataclass(frozen=True)
class Reader:
    """
    How the curve of a run is read.

    :param kind: ``"evaluations"`` or ``"training"``
    :param window: Number of training episodes whose mean is drawn
    """

    kind: str
    window: int

    def read(self, run: Run) -> Curve | None:
        """
        :param run: The training
        :return: Its curve, ``None`` as long as it has written nothing
        :raises ValueError: If a file is damaged
        """
        return read_evaluations(run.folder) if self.kind == "evaluations" else read_training(run.folder, self.window)

    @property
    def file(self) -> str:
        """What is read."""
        return "evaluations.npz" if self.kind == "evaluations" else "finished episode in *.monitor.csv"

    @property
    def value(self) -> str:
        """What the vertical axis shows."""
        if self.kind == "evaluations":
            return "evaluation return\n(mean over episodes)"
        return f"training return\n(mean of the last {self.window} episodes)" if self.window > 1 else "training return"


def read_training(folder: Path, window: int) -> Curve | None:
    """
    :param folder: Of a run
    :param window: Number of episodes
    :return: Mean return of the last ``window`` training episodes at the end of every episode (of fewer at the start), ``None``
        if no episode has ended yet
    :raises ValueError: If a file is damaged
    """
    try:
        episodes = load_results(str(folder))
        # the last line of a run that was killed may be incomplete
        episodes = episodes.dropna(subset=["r", "l", "t"]).astype({"r": float, "l": int})
        episodes["r"] = episodes["r"].rolling(window, min_periods=1).mean()
        steps, returns = ts2xy(episodes, "timesteps")
    except LoadMonitorResultsError:
        return None
    except (OSError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"a *.monitor.csv of {folder} is damaged ({error}); leave this run out or train it again") from error
    return (steps.astype(np.float64), returns) if len(steps) else None


def identify(folder: Path) -> Run:
    """
    :param folder: ``.../<algo>/<environment>_<number>``
    :raises ValueError: If there is no such folder, or it is named differently
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name run folders such as logs/sdac/Pendulum-v1_1")
    match = RUN_FOLDER.fullmatch(folder.resolve().name)
    if match is None:
        raise ValueError(f"{folder} is no run folder; name folders such as logs/sdac/Pendulum-v1_1")
    return Run(folder, folder.resolve().parent.name, match["env"])


def find_runs(log_folder: Path, algos: Sequence[str] | None, envs: Sequence[str] | None) -> list[Run]:
    """
    :param log_folder: Folder that trainings write to
    :param algos: Only these algorithms
    :param envs: Only these environments
    :return: The runs below it, in the order of the options and of their numbers
    :raises ValueError: If there is none
    """
    if not log_folder.is_dir():
        raise ValueError(f"--log-folder {log_folder} does not exist; train first or name the folder of your runs")
    wanted = [env.replace("/", "-") for env in envs] if envs is not None else None
    runs = []
    for algo in algos or sorted(path.name for path in log_folder.iterdir()):
        found = [path for path in log_folder.joinpath(algo).glob("*_*") if path.is_dir() and RUN_FOLDER.fullmatch(path.name)]
        own = [run for run in map(identify, found) if wanted is None or run.env in wanted]
        if algos is not None and not own:
            environment = f" on {' or '.join(envs)}" if envs else ""
            raise ValueError(f"--log-folder {log_folder} has no run of {algo}{environment}; train one first")
        runs += sorted(own, key=lambda run: (run.env, _number(run)))
    if not runs:
        raise ValueError(f"--log-folder {log_folder} has no run; train first or name the folder of your runs")
    return runs


def _number(run: Run) -> int:
    match = RUN_FOLDER.fullmatch(run.folder.resolve().name)
    assert match is not None
    return int(match["number"])


def collect(runs: Sequence[Run], reader: Reader, *, skip: bool) -> dict[str, dict[str, list[Curve]]]:
    """
    :param runs: Trainings
    :param reader: What to read of them
    :param skip: Leave out, with a message, runs that have written nothing yet
    :return: Environment -> algorithm -> one curve per run
    :raises ValueError: If nothing is left, or a run may not be left out
    """
    panels: dict[str, dict[str, list[Curve]]] = {}
    for run in runs:
        curve = reader.read(run)
        if curve is not None:
            panels.setdefault(run.env, {}).setdefault(run.algo, []).append(curve)
        elif skip:
            print(f"{printable(run.folder)} has no {reader.file} yet, left out", file=sys.stderr)
        else:
            other = "training" if reader.kind == "evaluations" else "evaluations"
            raise ValueError(f"{run.folder} has no {reader.file} (yet); wait for it, or try --curve {other}")
    if not panels:
        raise ValueError(f"none of the {len(runs)} runs has {reader.file} yet; wait for the first one")
    return panels


def phases_of(runs: Sequence[Run]) -> dict[str, Phases]:
    """
    :param runs: Trainings
    :return: Environment -> what its runs counted, where they learned from data
    :raises ValueError: If the settings of a run are damaged
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for run in runs:
        path = next(run.folder.glob(f"*/{settings.FILE}"), None)
        try:
            sections = {} if path is None else settings.described(read_yaml(path))
            zoo = sections.pop("zoo", {})
            if any(section.get("dataset") for section in sections.values()):
                found.setdefault(run.env, []).append((int(zoo["n_timesteps"]), int(zoo["online_steps"])))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({printable(str(error), 200)}); leave this run out") from error
    return {
        env: Phases(frozenset(updates for updates, _ in pairs), any(steps for _, steps in pairs))
        for env, pairs in found.items()
    }


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs, instead of the next three options")
    parser.add_argument("--algo", nargs="+", help="algorithms to search runs of (default: all)")
    parser.add_argument("--env", nargs="+", help="environments to search runs on (default: all)")
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("logs"), help="where to search (default: logs)")
    parser.add_argument(
        "--curve", choices=["evaluations", "training"], default="evaluations", help="evaluations or returns during training"
    )
    parser.add_argument("--window", type=_count, default=20, help="training episodes per mean (default: 20)")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (.png, .svg or .pdf)")
    parser.add_argument("--show", action="store_true", help="open a window as well")
    args = parser.parse_args()
    if args.runs and (args.algo or args.env):
        parser.error("name run folders or search with --algo and --env, not both")
    return args


def main() -> None:
    """Read, draw, save."""
    args = parse_arguments()
    reader = Reader(args.curve, args.window)
    with mistakes(PROG, args.traceback):
        check_output(args.output)
        runs = [identify(folder) for folder in args.runs] or find_runs(args.log_folder, args.algo, args.env)
        panels = collect(runs, reader, skip=not args.runs)
        with rc_context({"svg.hashsalt": "plot"}):
            phases = phases_of(runs) if args.curve == "evaluations" else {}  # episodes of a training are steps alone
            figure = draw_panels(panels, reader.value, phases)
            save(figure, args.output)
    print(f"Saved as {args.output}")
    if args.show and matplotlib.get_backend().lower() == "agg":
        print("No display found, nothing to show.")
    elif args.show:
        plt.show()


if __name__ == "__main__":
    main()
