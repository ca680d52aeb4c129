"""
Compare algorithms on environments over seeds: ``python zoo/benchmark.py run ...``, then ``python zoo/benchmark.py report``.

``run`` trains every combination in a process and a folder of its own. It may be interrupted, repeated, extended and started
several times at once: what has a result is never done again. ``report`` makes tables, figures and one HTML page of the
results.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .benchmarking.cell_worker import Outcome, has_result
from .benchmarking.cells import EVAL_FRAMES, Cell, Settings, expand, plan
from .benchmarking.description import check_changes, read_description
from .benchmarking.grid import LocalRunner, RayRunner, Runner, run_cells, summary
from .training.options.command_line import CommandParser, parse_assignment
from .training.options.errors import fail, refuse
from .training.options.registry import check_algorithm, check_environment, import_packages

PROG = "benchmark.py"
FOLDER = Path("logs/benchmark")
OPTIONS = {
    "n_timesteps": "n_timesteps",
    "eval_freq": "eval_freq",
    "eval_episodes": "eval_episodes",
    "n_eval_envs": "n_eval_envs",
    "num_threads": "threads",
    "device": "device",
    "hyperparams": "params",
    "env_kwargs": "env_kwargs",
    "gym_packages": "gym_packages",
}
"""Options of the command line, and what they are called among the settings of a cell."""
LEAST = {"n_timesteps": 1, "eval_freq": 1, "eval_episodes": 1, "n_eval_envs": 1, "num_threads": 1, "jobs": 1, "retries": 0}
NEEDED = 'install what is missing with: pip install -c constraints.txt -e ".[benchmark]"'


def make_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = CommandParser(add_help=False)
    common.add_argument("--grid", type=Path, help="YAML file that describes the grid, such as those of docs/data/benchmark")
    common.add_argument(
        "-f", "--folder", type=Path, help=f"folder of the benchmark (default: {FOLDER}, or one named as --grid)"
    )

    default = Settings()
    run = commands.add_parser("run", parents=[common], help="train what has no result yet")
    run.set_defaults(function=run_command)
    grid = run.add_argument_group("grid", "with --grid: the part of it that is to be done")
    grid.add_argument("--algos", nargs="+", help="algorithms")
    grid.add_argument("--envs", nargs="+", help="environments")
    grid.add_argument("--seeds", nargs="+", type=int, help="seeds")
    training = run.add_argument_group("training", "passed on to train.py; with --grid the file says all this")
    training.add_argument("-n", "--n-timesteps", type=int, help="steps (default: those of the settings)")
    every = f"evaluate every so many steps (default: {EVAL_FRAMES:,} frames, half as many steps of dm_control)"
    training.add_argument("--eval-freq", type=int, help=every)
    training.add_argument("--eval-episodes", type=int, help=f"episodes of an evaluation (default: {default.eval_episodes})")
    training.add_argument("--n-eval-envs", type=int, help=f"environments of an evaluation (default: {default.n_eval_envs})")
    training.add_argument("--num-threads", type=int, help=f"threads of one training (default: {default.threads})")
    training.add_argument("--device", help=f"PyTorch device (default: {default.device})")
    training.add_argument("-params", "--hyperparams", nargs="+", help="overwrite settings, key:value")
    training.add_argument("--env-kwargs", nargs="+", help="arguments of the environments, key:value")
    training.add_argument("--gym-packages", nargs="+", help="packages that register environments or algorithms")
    execution = run.add_argument_group("execution")
    known = "folder of numbers that `report --export` wrote, such as docs/data/benchmark; what has a result there is left out"
    execution.add_argument("--exported", type=Path, help=known)
    execution.add_argument("--dry-run", action="store_true", help="only say what would be done")
    execution.add_argument("--jobs", type=int, help="trainings at a time (default: processors / threads)")
    execution.add_argument("--retries", type=int, default=2, help="how often a failed training is started again")
    execution.add_argument("--ray-address", help="Ray cluster to train on, 'auto' for the one of this machine")
    execution.add_argument("--ray-gpus", type=float, default=0.0, help="graphics cards of one training on the cluster")

    report = commands.add_parser("report", parents=[common], help="make tables, figures and a page of the results")
    report.set_defaults(function=report_command)
    report.add_argument("-o", "--output", type=Path, help="folder of the report (default: report/ in that of the benchmark)")
    report.add_argument("--export", type=Path, help="folder that gets the numbers as csv, such as docs/data/benchmark")
    report.add_argument("--title", help="heading of the page (default: that of --grid)")
    report.add_argument("--max-video-mb", type=float, default=5.0, help="larger videos are not put into the page")
    return parser


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """
    :param args: Command line
    :return: The grid
    :raises ValueError: If a name or a number makes no sense
    """
    for name, minimum in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"{_option(name)} {value} is too small; give at least {minimum}.")
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.grid is not None:
        return _described_cells(args, given)
    if args.exported is not None:
        raise ValueError(f"--exported {args.exported} needs a --grid; the numbers of each grid are in a folder with its name.")
    if missing := [name for name in ("algos", "envs", "seeds") if getattr(args, name) is None]:
        raise ValueError(f"{_option(missing[0])} is missing; name algorithms, environments and seeds, or give a --grid.")
    if min(args.seeds) < 0:
        raise ValueError(f"--seeds {min(args.seeds)} is negative; seeds are 0, 1, 2, ...")
    for word in (*given.get("hyperparams", ()), *given.get("env_kwargs", ())):
        parse_assignment(word)
    values: dict[str, Any] = {
        OPTIONS[name]: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    settings = Settings(**values)
    _check_names(settings, args.algos, args.envs)
    return expand(_folder(args).resolve(), args.algos, args.envs, args.seeds, settings)


def _described_cells(args: argparse.Namespace, given: dict[str, Any]) -> list[Cell]:
    if given:
        name = next(iter(given))
        raise ValueError(f"{_option(name)} is said by the file of --grid; change it there, or leave --grid out.")
    description = read_description(args.grid).only(args.algos, args.envs, args.seeds)
    _check_names(description.settings, description.trained, description.environments)
    check_changes(description)
    cells = description.cells(_folder(args).resolve())
    return cells if args.exported is None else _without_exported(cells, args.exported / args.grid.stem)


def _without_exported(cells: list[Cell], folder: Path) -> list[Cell]:
    try:
        from .benchmarking.export import exported
    except ModuleNotFoundError as error:
        fail(PROG, f"{error}; {NEEDED}")
    known = exported(folder, cells)
    if len(known) == len(cells):
        raise ValueError(
            f"--exported {folder} has a result of all {len(cells)} trainings; without --exported they are done again."
        )
    print(f"{len(known)} of {len(cells)} trainings have a result in {folder}")
    return [cell for cell in cells if cell not in known]


def _check_names(settings: Settings, algos: Iterable[str], envs: Iterable[str]) -> None:
    import_packages(settings.gym_packages)
    for algo in algos:
        check_algorithm(algo)
    for env in envs:
        check_environment(env)


def _folder(args: argparse.Namespace) -> Path:
    folder: Path = args.folder or (FOLDER if args.grid is None else FOLDER / args.grid.stem)
    return folder


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def run_command(args: argparse.Namespace) -> int:
    """
    :param args: Command line
    :return: Exit status
    """
    try:
        cells = make_cells(args)
        runner: Runner
        if args.ray_address is not None:
            runner = RayRunner(args.ray_address, args.retries, args.ray_gpus)
            where = f"on the Ray cluster {args.ray_address}"
        else:
            jobs = args.jobs or max(1, (os.cpu_count() or 1) // cells[0].settings.threads)
            runner = LocalRunner(jobs, args.retries)
            where = f"{jobs} at a time"
        if args.dry_run:
            return _say(cells)
        plan(cells)
    except ModuleNotFoundError as error:
        fail(PROG, f"{error}; {NEEDED}" if error.name == "jsonschema" else str(error))
    except Exception as error:
        refuse(PROG, error, args.traceback)
    print(f"{len(cells)} trainings, {where}, in {_folder(args)}", flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    finished: set[Cell] = set()

    def report(cell: Cell, outcome: Outcome) -> None:
        finished.update([cell] if outcome.has_result else [])
        print(f"[{len(finished)}/{len(cells)}] {cell}: {outcome.text}", flush=True)

    try:
        outcomes = run_cells(runner, cells, report)
    except KeyboardInterrupt:
        print(f"\nInterrupted; {len(finished)} of {len(cells)} trainings have a result. Continue with the same command:")
        print(f"  python {shlex.join(sys.argv)}")
        return 130
    print(f"\n{summary(outcomes)}")
    if len(finished) == len(cells):
        folder = [] if args.folder is None else ["-f", str(args.folder)]
        grid = [] if args.grid is None else ["--grid", str(args.grid)]
        print(f"Make a report with: {shlex.join(['python', sys.argv[0], 'report', *grid, *folder])}")
    return 0 if len(finished) == len(cells) else 1


def _say(cells: list[Cell]) -> int:
    """What would be done, in its order."""
    done = [cell for cell in cells if has_result(cell)]
    for cell in cells:
        print(f"{cell}: {'has a result' if cell in done else cell.command}")
    print(f"\n{len(done)} of {len(cells)} trainings have a result, in {cells[0].root}")
    return 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def report_command(args: argparse.Namespace) -> int:
    """
    :param args: Command line
    :return: Exit status
    """
    try:
        from .benchmarking.export import export
        from .benchmarking.report import make_report
    except ModuleNotFoundError as error:
        fail(PROG, f"{error}; {NEEDED}")
    try:
        folder = _folder(args)
        grid = None if args.grid is None else read_description(args.grid)
        heading = args.title or ("Benchmark" if grid is None else grid.title)
        cells = [] if grid is None else grid.cells(folder.resolve())
        page = make_report(folder, args.output or folder / "report", heading, args.max_video_mb, cells)
        if args.export is not None:
            name = folder.resolve().name if args.grid is None else args.grid.stem
            print(f"Exported as {export(folder, args.export / name, cells)}")
        print(f"Saved as {page}", flush=True)
    except Exception as error:
        refuse(PROG, error, args.traceback)
    return 0


def main() -> int:
    """Run the command."""
    args = make_parser().parse_args()
    return int(args.function(args))


if __name__ == "__main__":
    raise SystemExit(main())
