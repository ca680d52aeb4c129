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
from pathlib import Path
from typing import NoReturn

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .benchmarking.cell_worker import Outcome
from .benchmarking.cells import Cell, Settings, expand, plan
from .benchmarking.grid import LocalRunner, RayRunner, Runner, run_cells, summary
from .training.options.command_line import CommandParser, parse_assignment
from .training.options.errors import fail, refuse
from .training.options.registry import check_algorithm, check_environment, import_packages

PROG = "benchmark.py"
NEEDED = 'install what is missing with: pip install -c constraints.txt -e ".[benchmark]"'


def make_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    folder = CommandParser(add_help=False)
    folder.add_argument("-f", "--folder", type=Path, default=Path("logs/benchmark"), help="folder of the benchmark")

    default = Settings()
    run = commands.add_parser("run", parents=[folder], help="train what has no result yet")
    run.set_defaults(function=run_command)
    run.add_argument("--algos", nargs="+", required=True, help="algorithms")
    run.add_argument("--envs", nargs="+", required=True, help="environments")
    run.add_argument("--seeds", nargs="+", type=int, required=True, help="seeds")
    training = run.add_argument_group("training", "passed on to train.py")
    training.add_argument("-n", "--n-timesteps", type=int, help="steps (default: those of the settings)")
    training.add_argument("--eval-freq", type=int, default=default.eval_freq, help="evaluate every so many steps")
    training.add_argument("--eval-episodes", type=int, default=default.eval_episodes, help="episodes of an evaluation")
    training.add_argument("--n-eval-envs", type=int, default=default.n_eval_envs, help="environments of an evaluation")
    training.add_argument("--num-threads", type=int, default=default.threads, help="threads of one training")
    training.add_argument("--device", default=default.device, help="PyTorch device")
    training.add_argument("-params", "--hyperparams", nargs="+", default=[], help="overwrite settings, key:value")
    training.add_argument("--env-kwargs", nargs="+", default=[], help="arguments of the environments, key:value")
    training.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")
    execution = run.add_argument_group("execution")
    execution.add_argument("--jobs", type=int, help="trainings at a time (default: processors / threads)")
    execution.add_argument("--retries", type=int, default=2, help="how often a failed training is started again")
    execution.add_argument("--ray-address", help="Ray cluster to train on, 'auto' for the one of this machine")
    execution.add_argument("--ray-gpus", type=float, default=0.0, help="graphics cards of one training on the cluster")

    report = commands.add_parser("report", parents=[folder], help="make tables, figures and a page of the results")
    report.set_defaults(function=report_command)
    report.add_argument("-o", "--output", type=Path, help="folder of the report (default: report/ in that of the benchmark)")
    report.add_argument("--title", default="Benchmark", help="heading of the page")
    report.add_argument("--max-video-mb", type=float, default=5.0, help="larger videos are not put into the page")
    return parser


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """
    :param args: Command line
    :return: The grid
    :raises ValueError: If a name or a number makes no sense
    """
    import_packages(args.gym_packages)
    for algo in args.algos:
        check_algorithm(algo)
    for env in args.envs:
        check_environment(env)
    if min(args.seeds) < 0:
        raise ValueError(f"--seeds {min(args.seeds)} is negative; seeds are 0, 1, 2, ...")
    least = {"n_timesteps": 1, "eval_freq": 1, "eval_episodes": 1, "n_eval_envs": 1, "num_threads": 1, "jobs": 1, "retries": 0}
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"--{name.replace('_', '-')} {value} is too small; give at least {minimum}.")
    for word in (*args.hyperparams, *args.env_kwargs):
        parse_assignment(word)
    settings = Settings(
        n_timesteps=args.n_timesteps,
        eval_freq=args.eval_freq,
        eval_episodes=args.eval_episodes,
        n_eval_envs=args.n_eval_envs,
        threads=args.num_threads,
        device=args.device,
        params=tuple(args.hyperparams),
        env_kwargs=tuple(args.env_kwargs),
        gym_packages=tuple(args.gym_packages),
    )
    return expand(args.folder.resolve(), args.algos, args.envs, args.seeds, settings)


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
            jobs = args.jobs or max(1, (os.cpu_count() or 1) // args.num_threads)
            runner = LocalRunner(jobs, args.retries)
            where = f"{jobs} at a time"
        plan(cells)
    except ModuleNotFoundError as error:
        fail(PROG, f"{error}; {NEEDED}" if error.name == "jsonschema" else str(error))
    except Exception as error:
        refuse(PROG, error, args.traceback)
    print(f"{len(cells)} trainings, {where}, in {args.folder}", flush=True)
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
        folder = [] if args.folder == Path("logs/benchmark") else ["-f", str(args.folder)]
        print(f"Make a report with: {shlex.join(['python', sys.argv[0], 'report', *folder])}")
    return 0 if len(finished) == len(cells) else 1


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def report_command(args: argparse.Namespace) -> int:
    """
    :param args: Command line
    :return: Exit status
    """
    try:
        from .benchmarking.report import make_report
    except ModuleNotFoundError as error:
        fail(PROG, f"{error}; {NEEDED}")
    try:
        page = make_report(args.folder, args.output or args.folder / "report", args.title, args.max_video_mb)
    except Exception as error:
        refuse(PROG, error, args.traceback)
    print(f"Saved as {page}")
    return 0


def main() -> int:
    """Run the command."""
    args = make_parser().parse_args()
    return int(args.function(args))


if __name__ == "__main__":
    raise SystemExit(main())
