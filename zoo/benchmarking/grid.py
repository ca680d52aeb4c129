"""Do the cells of a benchmark: in processes of this machine, or as tasks of a Ray cluster."""

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from .cell_worker import TRAIN, Outcome, work
from .cells import Cell

Report = Callable[[Cell, Outcome], None]
"""Is told about every cell as soon as its outcome is known."""


class Runner(Protocol):
    """What executes cells."""

    def run(self, cells: Sequence[Cell], *, wait: bool, report: Report) -> None:
        """
        :param cells: The cells
        :param wait: Wait for cells that somebody else is doing
        :param report: See :data:`Report`
        """


class LocalRunner:
    """
    Trainings on this machine.

    :param jobs: How many at a time
    :param retries: How often a failed training is started again
    :param train: The training script
    """

    def __init__(self, jobs: int, retries: int, train: Path = TRAIN):
        self.jobs, self.retries, self.train = jobs, retries, train
        self._stop = threading.Event()

    def run(self, cells: Sequence[Cell], *, wait: bool, report: Report) -> None:
        """See :class:`Runner`."""
        options: dict[str, Any] = {"retries": self.retries, "wait": wait, "stop": self._stop.is_set, "train": self.train}
        with ThreadPoolExecutor(self.jobs) as pool:  # the threads only wait for processes
            futures = {pool.submit(work, cell, **options): cell for cell in cells}
            try:
                for future in as_completed(futures):
                    report(futures[future], future.result())
            except BaseException:  # Ctrl-C above all; the pool waits until the threads have ended their trainings
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class RayRunner:
    """
    Trainings on a Ray cluster, whose machines share the folder of the benchmark and have the library installed.

    :param address: Address of the cluster, ``"auto"`` for the one that this machine belongs to
    :param retries: How often a failed training is started again, and a task whose machine was lost
    :param gpus: Graphics cards of a training; a fraction shares one
    :param train: The training script
    :raises ValueError: If Ray is not installed or the cluster does not answer
    """

    def __init__(self, address: str, retries: int, gpus: float = 0.0, train: Path = TRAIN):
        try:
            import ray
        except ImportError:
            raise ValueError('--ray-address needs Ray; install it with: pip install -c constraints.txt -e ".[ray]"') from None
        self.ray, self.retries, self.gpus, self.train = ray, retries, gpus, train
        # the tasks import this package; the root of a clone is not a folder that Python searches
        path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        try:
            _knock(address)
            ray.init(address=address, runtime_env={"env_vars": path}, logging_level=logging.WARNING)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"--ray-address {address}: no Ray cluster answers there ({reason})") from None

    def run(self, cells: Sequence[Cell], *, wait: bool, report: Report) -> None:
        """See :class:`Runner`."""
        ray = self.ray
        # a task that is lost with its machine is started on another one, where the cell continues from its last checkpoint
        task = ray.remote(max_retries=self.retries)(work)
        options = {"retries": self.retries, "wait": wait, "train": self.train}
        pending = {
            task.options(name=str(cell), num_cpus=cell.settings.threads, num_gpus=self.gpus).remote(cell, **options): cell
            for cell in cells
        }
        try:
            while pending:
                for reference in ray.wait(list(pending), num_returns=1)[0]:
                    report(pending.pop(reference), self._outcome(reference))
        except BaseException:
            for reference in pending:
                ray.cancel(reference)  # raises KeyboardInterrupt in the task, which ends its training
            ray.wait(list(pending), num_returns=len(pending), timeout=30.0)
            raise

    def _outcome(self, reference: Any) -> Outcome:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return Outcome("failed", f"failed because Ray lost the task {self.retries + 1} times: {error}")


def _knock(address: str) -> None:
    """Ray tries for minutes to reach a machine on which nothing answers."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10.0).close()


def run_cells(runner: Runner, cells: Sequence[Cell], report: Report) -> dict[Cell, Outcome]:
    """
    Do the cells. Those that somebody else is doing are left for the end, and then waited for.

    :param runner: What executes them
    :param cells: The cells
    :param report: See :data:`Report`
    :return: What became of every cell
    """
    outcomes: dict[Cell, Outcome] = {}

    def note(cell: Cell, outcome: Outcome) -> None:
        outcomes[cell] = outcome
        report(cell, outcome)

    runner.run(cells, wait=False, report=note)
    busy = [cell for cell in cells if outcomes[cell].state == "busy"]
    if busy:
        runner.run(busy, wait=True, report=note)
    return outcomes


def summary(outcomes: dict[Cell, Outcome]) -> str:
    """
    :param outcomes: What became of every cell
    :return: A table of the results per algorithm and environment, and the failures
    """
    algos, envs = (list(dict.fromkeys(names)) for names in zip(*((cell.algo, cell.env) for cell in outcomes), strict=True))
    planned = Counter((cell.algo, cell.env) for cell in outcomes)
    done = Counter((cell.algo, cell.env) for cell, outcome in outcomes.items() if outcome.has_result)
    rows = [["results", *envs]]
    rows += [[algo, *(f"{done[algo, env]} of {planned[algo, env]}" for env in envs)] for algo in algos]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{cell}: {outcome.text}" for cell, outcome in outcomes.items() if not outcome.has_result]
    return "\n".join(lines)
