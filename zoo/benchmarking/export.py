"""
The numbers of a benchmark for the documentation: three csv files that say where each number is from.

``runs.csv``
    one row for every training of the grid, with or without a result: what came out, what it cost, commit, versions, command
``means.csv``
    one row for every algorithm on every environment, with intervals over seeds
``curves.csv``
    one row for every evaluation
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .cells import Cell
from .scores import NOISE_COLUMNS, CellState, curve_table, environment_table, read_benchmark, score_table

VERSIONS = ("sb3_diffusion", "stable-baselines3", "torch", "gymnasium", "mujoco", "python")
DIGITS = 6
"""Significant digits of the numbers; more would change with the last bit of a mean."""
LONGEST = 200


def export(root: Path, output: Path, grid: Sequence[Cell] = ()) -> Path:
    """
    :param root: Folder of a benchmark
    :param output: Folder for the files
    :param grid: What belongs to the benchmark; without it, whatever is there
    :return: The same folder
    """
    cells = read_benchmark(root, grid)
    scores = score_table(cells)
    tables = {"runs": run_table(cells, scores), "means": environment_table(scores), "curves": curve_table(cells)}
    output.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(output / f"{name}.csv", index=False, lineterminator="\n", float_format=f"%.{DIGITS}g")
    return output


def run_table(cells: list[CellState], scores: pd.DataFrame) -> pd.DataFrame:
    """
    :param cells: What the folders of the benchmark hold
    :param scores: See :func:`~zoo.benchmarking.scores.score_table`
    :return: The same with what is known of every training beside its numbers
    """
    noise = list(NOISE_COLUMNS)  # behind the columns that have always been there
    return pd.concat([scores.drop(columns=noise), pd.DataFrame([_origin(cell) for cell in cells]), scores[noise]], axis=1)


def _origin(cell: CellState) -> dict[str, Any]:
    result = cell.result or {}
    final, versions = result.get("final", {}), result.get("versions", {})
    identity = final.get("dataset", {})
    return {
        "problem": " ".join(cell.problem.split())[:LONGEST],
        "deterministic": final.get("deterministic"),
        "eval_freq": cell.settings.get("eval_freq"),
        "dataset": identity.get("name"),
        "checksum": str(identity.get("checksum") or "")[:12],
        "task": final.get("task"),
        "started": result["attempts"][0]["started"] if result else None,
        "commit": (result.get("commit") or "unknown")[:7] if result else None,
        "machine": f"{result['machine']['cpu']}, {result['machine']['cores']} cores" if result else None,
        **{package: versions.get(package) for package in VERSIONS},
        "command": result.get("command"),
    }
