"""
Two checkouts by turns in one process: ``python zoo/speed/side_by_side.py --against CHECKOUT --algo dacer``.

Differences of one or two percent are smaller than what a machine does to two processes: other cores, other memory, another
minute. So both versions of the package are loaded into this process, and update or act in pairs, each version first in every
second pair. What is printed are the median of the ratios within the pairs, here to CHECKOUT, and its quartiles; below one,
this checkout is faster.

``benchmark.py --against`` compares other programs, which cannot live in one process.
"""

import argparse
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from .machine import Load, check_load, pin, report_load
from .report import conditions
from .subject import method_names, sizes
from .timing import synchronize

HERE = Path(__file__).resolve().parents[2]
PACKAGE = "sb3_diffusion"
QUANTITIES = ("update", "action", "deterministic action")
ACTIONS = 10
"""Actions that are timed together, after one that fetches what the other side has displaced from the caches."""


class Side:
    """
    A checkout, and one algorithm of its package under measurement. What it imports, now or later, comes from there.

    :param checkout: Folder that contains the package
    :param name: Name of the algorithm
    :param args: Command line
    """

    def __init__(self, checkout: Path, name: str, args: argparse.Namespace):
        self.checkout, self.modules = checkout, dict[str, Any]()
        with self.at_work(), warnings.catch_warnings():
            # both versions register the same environments
            warnings.filterwarnings("ignore", ".*Overriding environment")
            found = importlib.import_module(PACKAGE).__file__
            if found is None or Path(found).parent != checkout / PACKAGE:
                raise ImportError(f"{PACKAGE} comes from {found}, not from {checkout}.")
            self.subject: Any = _own_copy(f"{__package__}.subject").Subject(name, args)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it, imports find this side's package; those of the others are as before afterwards."""
        others = _take_modules()
        sys.modules.update(self.modules)
        sys.path.insert(0, str(self.checkout))
        try:
            yield
        finally:
            sys.path.remove(str(self.checkout))
            self.modules = _take_modules()
            sys.modules.update(others)

    def work(self, quantity: str, count: int) -> None:
        """
        :param quantity: One of :data:`QUANTITIES`
        :param count: How often
        """
        if quantity == "update":
            self.subject.train(count)
        elif quantity == "action":
            self.subject.act(1, count)
        else:
            model, observation = self.subject.model, self.subject.observations[0]
            for _ in range(count):
                model.predict(observation, deterministic=True)


def _own_copy(name: str) -> Any:
    """A module of ours once more, bound to the version of the package that imports find now."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _take_modules() -> dict[str, Any]:
    """Modules of the version that is loaded; imports do not find them any more."""
    names = [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def by_turns(sides: Sequence[Side], quantity: str, n_pairs: int, device: str) -> list[list[float]]:
    """
    :param sides: What is compared
    :param quantity: One of :data:`QUANTITIES`
    :param n_pairs: Turns of each side
    :param device: Device to wait for
    :return: Seconds of one update or action, of every side in every turn
    """
    before, timed = (0, sides[0].subject.actor_period) if quantity == "update" else (1, ACTIONS)
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(n_pairs):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for i in order:
            with sides[i].at_work():
                if before:
                    sides[i].work(quantity, before)
                synchronize(device)
                start = time.perf_counter()
                sides[i].work(quantity, timed)
                synchronize(device)
                times[i].append((time.perf_counter() - start) / timed)
    return times


def summary(there: Sequence[float], here: Sequence[float]) -> dict[str, Any]:
    """
    :param there: Seconds per call of the other checkout, turn by turn
    :param here: Those of this one
    :return: Medians, and median and quartiles of the ratios within the turns
    """
    ratios = [ours / theirs for theirs, ours in zip(there, here, strict=True)]
    return {
        "ms_there": 1000 * median(there),
        "ms_here": 1000 * median(here),
        "ratio": median(ratios),
        "quartiles": quantiles(ratios, n=4)[::2],
    }


def compare(name: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """
    :param name: Name of the algorithm
    :param args: Command line
    :return: Quantity -> how both checkouts compare, with the load that others put on the machine meanwhile
    """
    sides = [Side(checkout, name, args) for checkout in (args.against, HERE)]
    results = {}
    for quantity in args.quantities:
        load = Load()
        there, here = by_turns(sides, quantity, args.pairs, args.device)
        results[quantity] = {**summary(there, here), "load": load.read()}
    return results


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """
    :param results: Algorithm -> quantity -> result of :func:`summary`
    :return: Markdown table
    """
    lines = ["| algorithm | quantity | there (ms) | here (ms) | ratio | quartiles |", "|---|---|---:|---:|---:|---|"]
    for name, quantities in results.items():
        for quantity, result in quantities.items():
            low, high = result["quartiles"]
            times = f"{result['ms_there']:.4g} | {result['ms_here']:.4g}"
            lines.append(f"| {name} | {quantity} | {times} | {result['ratio']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Command line; the default sizes are those of Hopper."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[sizes()]
    )
    names = method_names()
    parser.add_argument("--against", type=Path, required=True, metavar="CHECKOUT", help="folder of another version")
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument("--quantities", nargs="+", choices=QUANTITIES, default=QUANTITIES, help="what to time (default: all)")
    parser.add_argument("--pairs", type=int, default=300, help="turns of each side")
    parser.add_argument("--max-load", type=float, default=0.2, help="cores that other processes may keep busy")
    parser.add_argument("--output", type=Path, default=Path("side_by_side.json"), help="where to save everything")
    args = parser.parse_args()
    args.against = args.against.resolve()
    if args.pairs < 2:
        parser.error(f"--pairs {args.pairs}: there are no quartiles of fewer than 2 pairs")
    if not (args.against / PACKAGE / "__init__.py").is_file():
        parser.error(f"--against {str(args.against)!r} must be a folder that contains {PACKAGE}/")
    return args


def main() -> None:
    """Measure, save and print."""
    args = parse_arguments()
    check_load(args.max_load)
    cores = pin(args.threads)
    results = {}
    for name in args.algo:
        print(f"{name} ...", file=sys.stderr)
        results[name] = compare(name, args)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    report = {"machine": conditions(args), "pinned_to_cores": cores, "settings": settings, "results": results}
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nTime here to time in {args.against}: medians of {args.pairs} pairs, {args.threads} threads\n")
    print(table(results))
    report_load([result for quantities in results.values() for result in quantities.values()], args.max_load)
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
