"""Trainings of the reference implementation (``docs/reference_runs.py``) beside those of a grid, as a table."""

from collections.abc import Sequence

import numpy as np
from benchmark_figure import group
from taxonomy_table import markdown_table

from zoo.benchmarking.scores import interquartile_mean, stratified_interval
from zoo.figures import MIN_RUNS

Row = dict[str, str]


def final_returns(curves: Sequence[Row], algo: str, env: str) -> np.ndarray:
    """
    :param curves: Rows of evaluations
    :param algo: An algorithm
    :param env: An environment
    :return: The returns at the last evaluation of every training
    """
    return np.array([values[-1] for _, values in group(curves).get((env, algo), [])])


def mean_returns(curves: Sequence[Row], algo: str, env: str) -> np.ndarray:
    """
    :param curves: Rows of evaluations
    :param algo: An algorithm
    :param env: An environment
    :return: The mean over the evaluations of every training, which says how early it learns
    """
    return np.array([values.mean() for _, values in group(curves).get((env, algo), [])])


def our_returns(runs: Sequence[Row], algo: str, env: str) -> np.ndarray:
    """
    :param runs: Rows of trainings with a result
    :param algo: An algorithm
    :param env: An environment
    :return: Their returns with fresh noise, which is what the reference has, or without any where a policy has none
    """
    own = [run for run in runs if (run["algorithm"], run["environment"]) == (algo, env)]
    return np.array([float(run["other_return"] if run["other_noise"] == "fresh" else run["final_return"]) for run in own])


def compare(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """
    :param ours: One return for each seed
    :param theirs: The same of the reference, whose seeds mean nothing to ours
    :return: Difference of the interquartile means, and its bootstrap interval, ``None`` with too few seeds
    """
    difference = interquartile_mean(ours) - interquartile_mean(theirs)
    ends = stratified_interval([ours, theirs], lambda a, b: interquartile_mean(a) - interquartile_mean(b))
    return difference, None if ends is None else (float(ends[0][0]), float(ends[1][0]))


def verdict(interval: tuple[float, float] | None) -> str:
    """
    :param interval: Of a difference
    :return: What may be said
    """
    if interval is None:
        return f"nothing: fewer than {MIN_RUNS} seeds"
    low, high = interval
    if low > 0.0:
        return "ours is better"
    if high < 0.0:
        return "the reference is better"
    return f"no difference found; one of {max(-low, high):,.0f} could hide"


def n_seeds(returns: np.ndarray) -> str:
    """
    :param returns: One for each seed
    :return: How many there are, in words
    """
    return f"{len(returns)} seed{'' if len(returns) == 1 else 's'}"


def beside_reference(runs: Sequence[Row], curves: Sequence[Row], reference: Sequence[Row], names: dict[str, str]) -> str:
    """
    :param runs: Rows of trainings with a result
    :param curves: Rows of their evaluations
    :param reference: Rows of the reference's evaluations
    :param names: Algorithm -> its name on the page
    :return: The table as Markdown, and what stands behind it
    """
    envs = list(dict.fromkeys(row["environment"] for row in reference))
    rows = []
    for env in envs:
        for algo, name in names.items():
            compared = {
                "at the end": (our_returns(runs, algo, env), final_returns(reference, algo, env)),
                "all evaluations": (mean_returns(curves, algo, env), mean_returns(reference, algo, env)),
            }
            for what, (ours, theirs) in compared.items():
                if not len(ours) or not len(theirs):
                    continue
                difference, interval = compare(ours, theirs)
                ends = "" if interval is None else f" [{interval[0]:,.1f}, {interval[1]:,.1f}]"
                parts = [f"{interquartile_mean(found):,.1f} ({n_seeds(found)})" for found in (ours, theirs)]
                where = [f"`{env}`"] if len(envs) > 1 else []
                shown = f"{difference:+,.1f}{ends}".replace("-", "\N{MINUS SIGN}")
                rows.append([name, *where, what, verdict(interval), *parts, shown])
    places = ["Environment"] if len(envs) > 1 else []
    header = ["Method", *places, "Return", "What it says", "Ours", "Reference", "Difference"]
    commits = ", ".join(sorted({f"`{row['commit']}`" for row in reference}))
    versions = "; ".join(sorted({row["versions"] for row in reference}))
    about = (
        "Interquartile means over seeds; 95 % intervals by bootstrap, the seeds of either side drawn anew. At the end both "
        "act with fresh noise (and the best of as many as the reference takes) for as many episodes; in the evaluations on "
        "the way, whose mean says how early a method learns, our agents have fixed noise, as in the figure. Reference "
        f"implementation at {commits}, {versions}, by `docs/reference_runs.py` with the settings of this grid."
    )
    return f"{markdown_table(header, rows, n_text=len(header) - 3)}\n\n{about}"
