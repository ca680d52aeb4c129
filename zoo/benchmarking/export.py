"""
The numbers of a benchmark for the documentation: three csv files that say where each number is from.

``runs.csv``
    one row for every training of the grid, with or without a result: what came out, what it cost, commit, versions, command
``means.csv``
    one row for every algorithm on every environment, with intervals over seeds
``curves.csv``
    one row for every evaluation

The files of a grid are also its memory: trainings of several machines, or of one whose folders are gone, add up in them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_diffusion.files import write_atomically
from sb3_diffusion.printable import printable

from .cells import Cell
from .scores import NOISE_COLUMNS, CellState, curve_table, environment_table, read_benchmark, score_table

VERSIONS = ("sb3_diffusion", "stable-baselines3", "torch", "gymnasium", "mujoco", "python")
DIGITS = 6
"""Significant digits of the numbers; more would change with the last bit of a mean."""
LONGEST = 200
TEXT = ("problem", "checksum", "commit", *VERSIONS)
"""Columns of words, some of which look like numbers."""
KEY = ["algorithm", "environment", "seed"]
"""What a training is found by."""
Key = tuple[str, str, int]


def export(root: Path, output: Path, grid: Sequence[Cell] = ()) -> Path:
    """
    What the files say of trainings of the grid that the benchmark has no outcome of stays there.

    :param root: Folder of a benchmark
    :param output: Folder for the files
    :param grid: What belongs to the benchmark; without it, whatever is there
    :return: The same folder
    :raises ValueError: If the files cannot be read, or hold results of other settings; then they stay as they are
    """
    cells = read_benchmark(root, grid)
    runs, curves = run_table(cells, score_table(cells)), curve_table(cells)
    missing = {_key(cell) for cell in cells if cell.state == "missing"}
    if kept := missing.intersection(_outcomes(output, grid)):
        order = list(map(_key, cells))
        runs = _merge(runs, output / "runs.csv", order, kept)
        curves = _merge(curves, output / "curves.csv", order, kept)
    output.mkdir(parents=True, exist_ok=True)
    _write(runs, output / "runs.csv")
    _write(curves, output / "curves.csv")
    # of the rounded returns: the same whether a training was read from its folder or from the file
    _write(environment_table(_read(output / "runs.csv")), output / "means.csv")
    return output


def exported(folder: Path, grid: Sequence[Cell]) -> list[Cell]:
    """
    :param folder: Folder that :func:`export` has written, or that does not exist yet
    :param grid: Cells of a grid
    :return: Those that have a result in it
    :raises ValueError: If a file is no such table, or holds a result of other settings
    """
    outcomes = _outcomes(folder, grid)
    return [cell for cell in grid if outcomes.get(_key(cell)) == "done"]


def _outcomes(folder: Path, grid: Sequence[Cell]) -> dict[Key, str]:
    """The states of the trainings of a grid that the files know an outcome of."""
    if not (folder / "runs.csv").is_file():
        return {}
    runs = _read(folder / "runs.csv", ("state", "command"))
    rows = {tuple(row[KEY]): row for _, row in runs[runs["state"] != "missing"].iterrows()}
    for cell in grid:
        row = rows.get(_key(cell))
        if row is not None and row["state"] == "done" and row["command"] != cell.command:
            raise ValueError(
                f"{folder / 'runs.csv'} has a result of {cell} with other settings: {row['command']!r}, not {cell.command!r}; "
                "give the grid another name, or delete that row to train it again."
            )
    return {_key(cell): rows[_key(cell)]["state"] for cell in grid if _key(cell) in rows}


def _key(cell: Cell | CellState) -> Key:
    return cell.algo, cell.env, cell.seed


def _merge(table: pd.DataFrame, path: Path, order: list[Key], kept: set[Key]) -> pd.DataFrame:
    """The rows of a table and, for the trainings that are kept, those of a file; the trainings stand in the order given."""
    before = _read(path).reindex(columns=table.columns)
    sources = [(before if key in kept else table, key) for key in order]
    rows = [source[(source[KEY] == list(key)).all(axis=1)] for source, key in sources]
    whole = {name: dtype for name, dtype in table.dtypes.items() if dtype == "Int64"}
    return pd.concat([part for part in rows if len(part)]).infer_objects().astype(whole)


def _write(table: pd.DataFrame, path: Path) -> None:
    text = table.to_csv(index=False, lineterminator="\n", float_format=f"%.{DIGITS}g")
    write_atomically(path, text.encode())


def _read(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable as csv: {printable(str(error), LONGEST)}") from None
    if absent := [name for name in (*KEY, *columns) if name not in table]:
        raise ValueError(f"{path} is no table of this benchmark: it lacks {', '.join(absent)}")
    return table


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
