"""The evaluations of a run: read from its file, drawn as text for the terminal."""

import sys
import zipfile
from pathlib import Path

import numpy as np

MAX_ROWS = 12
WIDTH = 40
BLOCKS = " ▏▎▍▌▋▊▉█"
"""A cell filled by so many eighths."""

Curve = tuple[np.ndarray, np.ndarray]
"""Environment steps in ascending order, and a value at each."""


def read_evaluations(folder: Path) -> Curve | None:
    """
    :param folder: Of a run
    :return: Mean return of every evaluation, ``None`` if there is none yet
    :raises ValueError: If the file is damaged
    """
    path = folder / "evaluations.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            steps, returns = file["timesteps"], file["results"]
        if steps.ndim != 1 or returns.ndim != 2 or len(steps) != len(returns):
            raise ValueError(f"shapes {steps.shape} and {returns.shape} do not fit")
        curve = steps.astype(np.float64), returns.astype(np.float64).mean(1)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); leave this run out or train it again") from error
    return curve if len(steps) else None


def draw_text(curve: Curve, *, unicode: bool = True) -> str:
    """
    One row per evaluation: step, mean return, a bar between the lowest and the highest return.

    :param curve: Two evaluations or more
    :param unicode: Whether the terminal knows block characters
    :return: Lines; of a long curve some rows are left out, never the first, the best and the last
    """
    steps, values = curve
    shown = np.unique(np.append(np.linspace(0, len(steps) - 1, MAX_ROWS).round().astype(int), _best(values)))
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    rows = []
    for index in shown:
        share = (values[index] - low) / (high - low) if high > low else 0.0
        bar = _bar(share, unicode) if np.isfinite(share) else ""
        best = "  best" if index == _best(values) else ""
        rows.append(f"{steps[index]:>10,.0f} {values[index]:>12,.2f}  {bar}{best}".rstrip())
    return "\n".join(rows)


def print_curve(folder: Path) -> None:
    """
    Print the learning curve of a run. It takes two evaluations to make one.

    :param folder: Of the run
    """
    try:
        curve = read_evaluations(folder)
    except ValueError as error:  # nothing to spoil the end of a training for
        print(f"No learning curve: {error}")
        return
    if curve is None or len(curve[0]) < 2:
        return
    print("Learning curve (steps, mean return of an evaluation):")
    print(draw_text(curve, unicode=_prints_blocks()))


def _best(values: np.ndarray) -> int:
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def _bar(share: float, unicode: bool) -> str:
    """A bar for a number from 0 to 1. The lowest value has one, too, so that every row is seen to be a row."""
    if not unicode:
        return "#" * max(1, round(share * WIDTH))
    eighths = max(1, round(share * WIDTH * 8))
    return (BLOCKS[-1] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()


def _prints_blocks() -> bool:
    """Whether the standard output can encode the characters of a bar; a pipe or an old console may not."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
