"""
Measure the algorithms: ``python zoo/speed/benchmark.py`` (or ``python -m zoo.speed.benchmark``).

For every algorithm: updates per second (``train()`` on a filled replay buffer), milliseconds per action for one and for many
observations (``predict()`` as during training), memory, and the share of the machine's own matrix-product speed that the
update reaches. Every algorithm lives in a process of its own, so that peak memory is its own; the processes take turns, so
that a disturbance of the machine hits all of them. Figures are medians over the turns.

``--against "<command>"`` measures another implementation in the same turns, on the same cores, and shows ratios. The command
answers requests line by line (docs: guide/speed); ``--serve`` makes this script such a command.
"""

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from .external import External, ExternalError
from .machine import Load, check_load, pin, report_load
from .report import compare, comparison_table, conditions, merge, summarize, table
from .subject import Subject, method_names, peak_memory, sizes

SIZES = ("obs_dim", "action_dim", "batch_size", "width", "diffusion_steps", "n_particles")


def _start(name: str, args: argparse.Namespace) -> None:
    Subject.current = Subject(name, args)


def _arguments() -> dict[str, Any]:
    return Subject.current.arguments()


def _measure() -> dict[str, float]:
    return Subject.current.measure()


def _finish() -> dict[str, float]:
    return Subject.current.finish()


class Contest:
    """
    The algorithms of this library, and those of another one beside them, each in a process of its own.

    :param args: Command line
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        context = multiprocessing.get_context("spawn")
        self.processes = {
            name: ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_start, initargs=(name, args))
            for name in args.algo
        }
        self.rivals: dict[str, External] = {}
        self.rival: dict[str, Any] | None = None

    def __enter__(self) -> "Contest":
        try:
            if self.args.against:
                self._start_rivals()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for rival in self.rivals.values():
            rival.close()
        for process in self.processes.values():
            process.shutdown()

    def _start_rivals(self) -> None:
        names = self.args.algo
        while names:
            name, *names = names
            self.rivals[name] = rival = External(self.args.against, self.args.threads, self.args.timeout)
            if self.rival is None:
                self.rival = {"command": self.args.against, **rival.describe()}
                names = [other for other in names if other in self.rival["algorithms"]]
                if name not in self.rival["algorithms"]:
                    self.rivals.pop(name).close()

    def run(self) -> dict[str, dict[str, Any]]:
        """
        Measure in turns.

        :return: Medians and single turns of every algorithm
        """
        ours: dict[str, list[dict[str, Any]]] = {name: [] for name in self.processes}
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name in self.rivals}
        settings = {key: getattr(self.args, key) for key in (*SIZES, "device", "threads", "seconds")}
        load = Load()
        for turn in range(self.args.repetitions):
            for name, process in self.processes.items():
                sides = ["ours"] if name not in self.rivals else ["ours", "theirs"]
                for side in sides if turn % 2 == 0 else reversed(sides):  # neither is always the first
                    load.read()
                    if side == "ours":
                        ours[name].append({**process.submit(_measure).result(), "load": load.read()})
                    else:
                        request = {**settings, "arguments": process.submit(_arguments).result()}
                        theirs[name].append({**self.rivals[name].measure(name, request), "load": load.read()})
                print(f"turn {turn + 1}/{self.args.repetitions}: {name}", file=sys.stderr)
        results = {}
        for name, process in self.processes.items():
            results[name] = summarize(ours[name], process.submit(_finish).result())
            if name in self.rivals:
                results[name]["against"] = compare(ours[name], theirs[name])
        return results


def serve(args: argparse.Namespace) -> None:
    """
    Be the other side of ``--against``: answer requests until the input ends.

    :param args: Command line; the sizes come with the requests
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not look like an answer
    subject: Subject | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["request"] == "describe":
            versions = conditions(args)["versions"]
            answer = {"name": f"sb3_diffusion ({args.execution})", "versions": versions, "algorithms": args.algo}
        else:
            if subject is None:
                known = {key: value for key, value in request["settings"].items() if key in vars(args)}
                subject = Subject(request["algorithm"], argparse.Namespace(**{**vars(args), **known}))
            answer = {**subject.measure(), "peak_memory_mib": peak_memory(subject.args.device)}
        print(json.dumps(answer), file=answers, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Command line; the default sizes are those of Hopper."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[sizes()]
    )
    names = method_names()
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns per algorithm")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per measurement of the update")
    parser.add_argument("--against", metavar="COMMAND", help="another implementation, to measure in the same turns")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that COMMAND may take for one answer")
    parser.add_argument("--max-load", type=float, default=0.2, help="cores that other processes may keep busy")
    parser.add_argument("--serve", action="store_true", help="be such a COMMAND: answer requests on the standard input")
    parser.add_argument("--merge", action="store_true", help="keep what the output holds of other algorithms")
    parser.add_argument("--output", type=Path, default=Path("benchmark_speed.json"), help="where to save everything")
    return parser.parse_args()


def main() -> None:
    """Measure, save and print."""
    args = parse_arguments()
    if args.serve:
        return serve(args)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "serve", "merge")}
    report: dict[str, Any] = {"machine": conditions(args), "settings": settings, "results": {}}
    cores: list[int] = []
    if args.against:
        check_load(args.max_load)
        cores = pin(args.threads)
    try:
        with Contest(args) as contest:
            if contest.rival is not None:
                report["against"] = {**contest.rival, "pinned_to_cores": cores}
            if args.merge:
                merge(args.output, report)  # complain before the work, not after it
            results = report["results"] = contest.run()
    except ExternalError as error:
        sys.exit(f"benchmark.py: {error}")
    if args.merge:
        report = merge(args.output, report)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{report['machine']['cpu']}, {args.threads} threads, device {args.device}, batch {args.batch_size}\n")
    print(table(results))
    if contest.rival is not None:
        print(f"\nOurs against {contest.rival['name']} (median of the ratios of {args.repetitions} turns)\n")
        print(comparison_table(results))
    sides = [side for result in results.values() for side in (result, result.get("against")) if side]
    report_load([turn for side in sides for turn in side["turns"]], args.max_load)
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
