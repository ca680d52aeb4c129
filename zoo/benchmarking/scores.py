"""
The numbers of a benchmark: what its folders hold, tables, and aggregates over environments.

Scores are normalised by the maximum returns in ``data/maximum_returns.json``. An environment without an entry there has
returns but no normalised scores, and is not part of any aggregate. Cells without a result are never replaced by a number.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from arch.bootstrap import IIDBootstrap, IndependentSamplesBootstrap
from scipy.stats import trim_mean

from ..figures import CONFIDENCE, MIN_RUNS
from .cells import DATA, Cell, CellFileError, read, read_result

N_RESAMPLES = 2000
CURVE_COLUMNS = ("algorithm", "environment", "seed", "timesteps", "mean_return", "std_return", "n_episodes")
N_THRESHOLDS = 101
NOISE_COLUMNS = ("evaluation_noise", "other_noise", "other_return", "other_std")
"""Of deterministic actions: the noise behind the final return, and what the agent scored with the other one."""


@dataclass(frozen=True)
class CellState:
    """
    What the folder of a cell holds.

    :param folder: The folder
    :param algo: Name of the algorithm on the command line
    :param env: Id of the environment
    :param seed: Seed
    :param settings: See :class:`~zoo.benchmarking.cells.Settings`
    :param state: ``"done"``, ``"failed"``, ``"damaged"`` or ``"missing"``
    :param problem: Why it is not done
    :param result: Content of ``result.json`` of a cell that is done
    """

    folder: Path
    algo: str
    env: str
    seed: int
    settings: dict[str, Any]
    state: str
    problem: str = ""
    result: dict[str, Any] | None = None

    @property
    def final(self) -> float | None:
        """Mean return of the trained agent."""
        return None if self.result is None else float(np.mean(self.result["final"]["returns"]))

    @property
    def scores(self) -> list[float]:
        """Scores of the episodes of the trained agent on the scale of its data; none if there is no such scale."""
        return [] if self.result is None else self.result["final"].get("scores", [])

    @property
    def noise(self) -> tuple[str | None, str | None, float | None, float | None]:
        """The values of :data:`NOISE_COLUMNS`; empty for agents without such noise, and for results of before."""
        final = {} if self.result is None else self.result["final"]
        other = final.get("other_noise")
        if other is None:
            return final.get("evaluation_noise"), None, None, None
        returns = other["returns"]
        return final["evaluation_noise"], other["evaluation_noise"], float(np.mean(returns)), float(np.std(returns))

    def spent(self, clock: str) -> float | None:
        """
        :param clock: ``"seconds"`` or ``"cpu_seconds"``
        :return: What all attempts took together, ``None`` if one of them does not say it
        """
        attempts = [] if self.result is None else self.result["attempts"]
        spent = [attempt.get(clock) for attempt in attempts]
        return sum(spent) if spent and None not in spent else None

    @property
    def best(self) -> tuple[float, int] | None:
        """Largest mean return of an evaluation, and the step at which it was found."""
        if self.result is None:
            return None
        evaluations = [(float(np.mean(point["returns"])), int(point["timesteps"])) for point in self.result["curve"]]
        final = self.result["final"]
        return max([*evaluations, (float(np.mean(final["returns"])), int(final["timesteps"]))], key=lambda pair: pair[0])


def read_benchmark(root: Path, grid: Sequence[Cell] = ()) -> list[CellState]:
    """
    :param root: Folder of a benchmark
    :param grid: What belongs to it; those that nobody has planned yet are missing. Without it, whatever is there
    :return: Its cells in the order of algorithm, environment and seed, or in that of the grid
    :raises ValueError: If there is none, or one has other settings than the grid
    """
    if grid:
        return [_read_cell_of(cell) for cell in grid]
    folders = sorted(path.parent for path in root.glob("*/*/seed-*/cell.json"))
    if not folders:
        raise ValueError(f"{root} holds no benchmark; make one with: python zoo/benchmark.py run -f {root} ...")
    cells = [_read_cell(folder) for folder in folders]
    return sorted(cells, key=lambda cell: (cell.algo, cell.env, cell.seed))


def _read_cell_of(cell: Cell) -> CellState:
    asked = cell.describe()
    if not (cell.folder / "cell.json").is_file():
        return CellState(cell.folder, cell.algo, cell.env, cell.seed, asked["settings"], "missing", "not planned yet")
    state = _read_cell(cell.folder)
    if state.settings and state.settings != asked["settings"]:
        raise ValueError(f"{cell.folder} was trained with other settings than those of the grid; give its own --folder.")
    return state


def _read_cell(folder: Path) -> CellState:
    try:
        cell = read(folder, "cell")
    except CellFileError as error:  # the folder is all that says what it is
        seed = folder.name.removeprefix("seed-")
        number = int(seed) if seed.isdecimal() else -1
        return CellState(folder, folder.parents[1].name, folder.parent.name, number, {}, "damaged", str(error))
    names = (folder, cell["algorithm"], cell["environment"], cell["seed"], cell["settings"])
    try:
        return CellState(*names, "done", result=read_result(folder))
    except CellFileError as error:
        return CellState(*names, "damaged", str(error))
    except FileNotFoundError:
        pass
    try:
        attempts = read(folder, "attempts")
    except FileNotFoundError:
        return CellState(*names, "missing", "not started yet")
    except CellFileError as error:
        return CellState(*names, "missing", str(error))
    last = attempts[-1]["error"] if attempts else None
    return (
        CellState(*names, "missing", "interrupted or not finished yet") if last is None else CellState(*names, "failed", last)
    )


def maximum_returns() -> tuple[dict[str, float], str]:
    """Returns by which scores are divided, and where they come from."""
    content = json.loads((DATA / "maximum_returns.json").read_text(encoding="utf-8"))
    return content["returns"], content["source"]


# -- intervals -------------------------------------------------------------------------------------------------------------


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """
    Percentile bootstrap interval of a mean over seeds.

    :param values: One per seed
    :return: The interval, ``None`` for fewer than :data:`~zoo.figures.MIN_RUNS` seeds
    """
    if len(values) < MIN_RUNS:
        return None
    low, high = _interval(IIDBootstrap(values, seed=np.random.default_rng(0)), np.mean)
    return float(low[0]), float(high[0])


def stratified_interval(strata: list[np.ndarray], statistic: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Percentile bootstrap interval of a statistic of runs on several environments; the seeds of each environment are drawn
    apart from the others (stratified bootstrap).

    :param strata: One array of values for each environment
    :param statistic: Function of as many arrays
    :return: Lower and upper ends, ``None`` if an environment has fewer than :data:`~zoo.figures.MIN_RUNS` seeds
    """
    if min(map(len, strata)) < MIN_RUNS:
        return None
    return _interval(IndependentSamplesBootstrap(*strata, seed=np.random.default_rng(0)), statistic)


def _interval(bootstrap: IIDBootstrap, statistic: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    low, high = bootstrap.conf_int(statistic, reps=N_RESAMPLES, method="percentile", size=CONFIDENCE)
    return low, high


def interquartile_mean(*strata: np.ndarray) -> float:
    """
    Mean of the middle half of all runs (IQM).

    :param strata: Scores of the runs, one array for each environment
    """
    return float(trim_mean(np.concatenate(strata), 0.25))


# -- tables ----------------------------------------------------------------------------------------------------------------


def curve_table(cells: list[CellState]) -> pd.DataFrame:
    """One row for every evaluation of every cell."""
    rows = [
        (cell.algo, cell.env, cell.seed, point["timesteps"], mean, std, len(point["returns"]))
        for cell in cells
        for point in (cell.result["curve"] if cell.result else [])
        for mean, std in [(np.mean(point["returns"]), np.std(point["returns"]))]
    ]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def score_table(cells: list[CellState]) -> pd.DataFrame:
    """One row for every cell; numbers of a cell without a result are empty."""
    maxima, _ = maximum_returns()
    rows = []
    for cell in cells:
        best_return, best_timesteps = cell.best or (None, None)
        maximum, result = maxima.get(cell.env), cell.result
        rows.append(
            {
                "algorithm": cell.algo,
                "environment": cell.env,
                "seed": cell.seed,
                "state": cell.state,
                "timesteps": result["final"]["timesteps"] if result else None,
                "final_return": cell.final,
                "final_std": float(np.std(result["final"]["returns"])) if result else None,
                "n_episodes": len(result["final"]["returns"]) if result else None,
                "best_return": best_return,
                "best_timesteps": best_timesteps,
                "maximum_return": maximum,
                "normalised_final": cell.final / maximum if cell.final is not None and maximum else None,
                "score": float(np.mean(cell.scores)) if cell.scores else None,
                "score_std": float(np.std(cell.scores)) if cell.scores else None,
                "scale": result["final"].get("scale") if result else None,
                "seconds": cell.spent("seconds"),
                "cpu_seconds": cell.spent("cpu_seconds"),
                "attempts": len(result["attempts"]) if result else None,
                **dict(zip(NOISE_COLUMNS, cell.noise, strict=True)),
            }
        )
    table = pd.DataFrame(rows)
    counts = ["timesteps", "n_episodes", "best_timesteps", "attempts"]
    return table.astype(dict.fromkeys(counts, "Int64"))


def environment_table(scores: pd.DataFrame) -> pd.DataFrame:
    """
    One row for every algorithm on every environment: over seeds, means of the final returns, of the scores on the scale of the
    data where there is one, and of the best returns; the interquartile mean of the final returns; what a training costs; the
    mean of the final returns with the other noise.

    :param scores: See :func:`score_table`
    """
    rows = []
    for (algo, env), group in scores.groupby(["algorithm", "environment"], sort=False):
        row: dict[str, Any] = {"algorithm": algo, "environment": env, "n_planned": len(group)}
        row["n_done"] = int((group["state"] == "done").sum())
        row["n_failed"] = int(group["state"].isin(["failed", "damaged"]).sum())
        for name, column in {"final": "final_return", "score": "score"}.items():
            values = group[column].dropna().to_numpy(float)
            low, high = mean_interval(values) or (None, None)
            row |= {f"{name}_mean": values.mean() if len(values) else None, f"{name}_low": low, f"{name}_high": high}
        finals = group["final_return"].dropna().to_numpy(float)
        ends = stratified_interval([finals], interquartile_mean)
        row["final_iqm"] = interquartile_mean(finals) if len(finals) else None
        row |= {"iqm_low": ends[0][0] if ends else None, "iqm_high": ends[1][0] if ends else None}
        for column in ("best_return", "seconds", "cpu_seconds", "other_return"):
            values = group[column].dropna().to_numpy(float)
            row[f"{column.removesuffix('_return')}_mean"] = values.mean() if len(values) else None
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Aggregate:
    """
    One algorithm over all environments with a maximum return.

    :param algo: Name of the algorithm on the command line
    :param n_runs: Runs behind the numbers
    :param iqm: Interquartile mean of the normalised scores, ``None`` if an environment has no result
    :param interval: Its bootstrap interval, ``None`` with too few seeds
    :param profile: Share of runs whose score is above each threshold
    :param band: Bootstrap intervals of the profile
    :param note: What is missing
    """

    algo: str
    n_runs: int
    iqm: float | None
    interval: tuple[float, float] | None
    profile: np.ndarray | None
    band: tuple[np.ndarray, np.ndarray] | None
    note: str


def thresholds(scores: pd.DataFrame) -> np.ndarray:
    """Normalised scores at which performance profiles are evaluated: from 0 to 1, or to the largest score above that."""
    largest = scores["normalised_final"].max()
    return np.linspace(0.0, max(1.0, 0.0 if pd.isna(largest) else float(largest)), N_THRESHOLDS)


def aggregate(scores: pd.DataFrame) -> list[Aggregate]:
    """
    Aggregate over environments, for every algorithm that has a result on all that have a maximum return: sums over different
    sets of environments cannot be compared.

    :param scores: See :func:`score_table`
    :return: One entry for every algorithm; empty if no environment has a maximum return
    """
    normalised = scores[scores["maximum_return"].notna()]
    envs = list(normalised["environment"].unique())
    if not envs:
        return []
    taus = thresholds(scores)

    def profile(*strata: np.ndarray) -> np.ndarray:
        return (np.concatenate(strata)[:, None] > taus).mean(0)

    found = []
    for algo in scores["algorithm"].unique():
        own = normalised[normalised["algorithm"] == algo]
        strata = [own.loc[own["environment"] == env, "normalised_final"].dropna().to_numpy(float) for env in envs]
        absent = [env for env, values in zip(envs, strata, strict=True) if not len(values)]
        n_runs = sum(map(len, strata))
        if absent:
            found.append(Aggregate(algo, n_runs, None, None, None, None, f"no result on {', '.join(absent)}"))
            continue
        ends = stratified_interval(strata, interquartile_mean)
        interval = None if ends is None else (float(ends[0][0]), float(ends[1][0]))
        notes = [] if ends else [f"no interval: fewer than {MIN_RUNS} seeds on an environment"]
        if (n_missing := len(own) - n_runs) > 0:
            notes.append(f"{n_missing} runs without a result")
        band = stratified_interval(strata, profile)
        found.append(Aggregate(algo, n_runs, interquartile_mean(*strata), interval, profile(*strata), band, "; ".join(notes)))
    return found


def aggregate_table(aggregates: list[Aggregate]) -> pd.DataFrame:
    """One row for every algorithm."""
    rows = [(entry.algo, entry.n_runs, entry.iqm, *(entry.interval or (None, None)), entry.note) for entry in aggregates]
    return pd.DataFrame(rows, columns=["algorithm", "n_runs", "iqm", "iqm_low", "iqm_high", "note"])
