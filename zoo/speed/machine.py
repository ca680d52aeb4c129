"""The machine under a benchmark: its cores, and what other processes do on them meanwhile."""

import os
import sys
import time
from pathlib import Path
from typing import Any

PROC = Path("/proc")
IDLE = (3, 4)  # columns of /proc/stat: idle, waiting for a disk


def busy_seconds() -> dict[int, float]:
    """For every core, the seconds that it has worked since the start of the machine; empty where the system does not tell."""
    stat = PROC / "stat"
    if not stat.is_file():
        return {}
    seconds = {}
    for line in stat.read_text(encoding="utf-8").splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name != "cpu":
            # the columns behind the eighth (time of guests) are contained in the first two
            work = sum(int(ticks) for i, ticks in enumerate(columns[:8]) if i not in IDLE)
            seconds[int(name.removeprefix("cpu"))] = work / os.sysconf("SC_CLK_TCK")
    return seconds


def own_seconds() -> float:
    """Processor seconds of this process and all its descendants, those that have ended included."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            # the name, which is in parentheses, may contain anything
            columns = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # has ended meanwhile
            continue
        process = int(path.parent.name)
        children.setdefault(int(columns[1]), []).append(process)
        ticks[process] = sum(int(column) for column in columns[11:15])  # user and system, own and of ended children
    total, family = 0, [os.getpid()]
    while family:
        process = family.pop()
        total += ticks.get(process, 0)
        family += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


class Load:
    """Cores that other processes keep busy, as a mean over the time between two readings."""

    def __init__(self) -> None:
        self.read()

    def read(self) -> float | None:
        """Load since the last reading, ``None`` where the system does not tell."""
        before, self._last = getattr(self, "_last", None), (time.perf_counter(), sum(busy_seconds().values()), own_seconds())
        if before is None or not self._last[1]:
            return None
        elapsed, busy, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(0.0, (busy - own) / elapsed)


def idlest_cores(count: int, seconds: float = 0.5) -> list[int]:
    """
    The cores of this process that have least to do.

    :param count: How many
    :param seconds: How long to watch them
    :return: Numbers of the cores; empty where the system does not tell, or has no more than that
    """
    before = busy_seconds()
    if not before or not hasattr(os, "sched_getaffinity"):
        return []
    allowed = os.sched_getaffinity(0)
    if len(allowed) <= count:
        return []
    time.sleep(seconds)
    after = busy_seconds()
    return sorted(sorted(allowed, key=lambda core: after.get(core, 0.0) - before.get(core, 0.0))[:count])


def pin(count: int) -> list[int]:
    """
    Confine this process, and all that it starts from now on, to its idlest cores.

    :param count: How many
    :return: Numbers of the cores, empty if nothing had to be confined (or the system cannot)
    """
    cores = idlest_cores(count)
    if cores:
        os.sched_setaffinity(0, cores)
    return cores


def check_load(limit: float) -> None:
    """
    Refuse to compare on a machine that is busy with something else.

    :param limit: Largest number of cores that may be busy
    """
    load = Load()
    time.sleep(1.0)
    busy = load.read()
    if busy is not None and busy > limit:
        sys.exit(
            f"Other processes keep {busy:.2f} cores busy. Wait until they end, or allow it with --max-load {busy + 0.5:.1f}"
        )


def report_load(turns: list[dict[str, Any]], limit: float) -> None:
    """
    Tell what other processes did during the measurements.

    :param turns: Measurements, each with its ``load``
    :param limit: Largest number of cores that may be busy
    """
    loads = [turn["load"] for turn in turns if turn["load"] is not None]
    if loads and max(loads) > limit:
        disturbed = sum(load > limit for load in loads)
        print(
            f"\nWarning: other processes kept up to {max(loads):.2f} cores busy, more than {limit:g} in {disturbed} of "
            f"{len(loads)} measurements. Figures of such a run are doubtful, with several threads they are worthless."
        )
