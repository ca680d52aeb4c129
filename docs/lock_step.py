"""
How far our updates leave those of the reference implementation: ``python docs/lock_step.py``.

Runs the 200 updates of ``tests/golden/08_lockstep_*`` four times per method: as they are, in float64, with the rounding of the
reference's optimizer, and with a mistake. Prints the numbers of ``guide/proof.md`` and draws its figure for both schemes of
colours. Takes a minute; needs a checkout, since what is recorded of the reference belongs to the tests.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch as th
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

from page_figure import INKS, page_figure

from tests.lock_step import (
    RUNS,
    Trajectory,
    ours,
    recorded_updates,
    recording,
    reference,
    round_bias_corrections,
    series_deviations,
    weight_deviations,
)
from zoo.figures import COLOURS, value_axes

OUTPUT = Path(__file__).resolve().parent / "_static"
LABELS = {
    "reference": "reference and ours: weights",
    "rounded": "the same, optimizers round alike",
    "formats": "ours in float32 and float64: weights",
    "mistake": "learning rate wrong by 0.1 %: weights",
}
LOSSES = "reference and ours: losses"
Deviations = dict[str, th.Tensor]


def mistake(model: Any) -> None:
    """Let every step be a thousandth too long."""
    for optimizer in model.optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= 1.001


def measure(name: str) -> tuple[list[int], Deviations]:
    """
    :param name: Name of a run
    :return: The recorded updates; by the keys of :data:`LABELS` the largest deviation of a weight at each of them, and as
        ``"losses"`` that of the losses at every update
    """
    case = recording(name)
    expected, here = reference(case), ours(name, case)
    found = {
        "reference": _largest(weight_deviations(expected, here)),
        "rounded": _largest(weight_deviations(expected, ours(name, case, change=round_bias_corrections))),
        "formats": _largest(weight_deviations(ours(name, case, th.float64), here)),
        "mistake": _largest(weight_deviations(expected, ours(name, case, change=mistake))),
        "losses": _losses(expected, here),
    }
    return recorded_updates(case), found


def _losses(one: Trajectory, other: Trajectory) -> th.Tensor:
    found = series_deviations(one.losses, other.losses)
    return _largest({part: values.nan_to_num(0.0) for part, values in found.items()})  # NaN: the actor was not due


def _largest(deviations: Deviations) -> th.Tensor:
    return th.stack(list(deviations.values())).amax(0)


def draw(measured: dict[str, tuple[list[int], Deviations]], scheme: str, path: Path) -> None:
    """
    :param measured: Results of :func:`measure` by run
    :param scheme: Colour scheme of the page
    :param path: Where to save the figure
    """
    with page_figure(path, scheme, (7.0, 5.4)) as figure:
        panels = list(figure.subplots(2, 2, sharex=True, sharey=True).flat)
        for axes, (name, (updates, found)) in zip(panels, measured.items(), strict=True):
            _draw_panel(axes, RUNS[name].algorithm.__name__, updates, found, (*COLOURS[scheme][:3], INKS[scheme]))
        for axes in panels[2:]:
            axes.set_xlabel("updates")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.supylabel("relative difference", fontsize=9)


def _draw_panel(axes: Axes, name: str, updates: list[int], found: Deviations, colours: tuple[str, ...]) -> None:
    styles: dict[str, dict[str, Any]] = {
        "reference": {"color": colours[0], "linewidth": 2.0, "marker": "o", "markersize": 3.5},
        "rounded": {"color": colours[2], "linewidth": 1.4},
        "formats": {"color": colours[3], "linewidth": 1.2, "linestyle": (0, (5, 2))},
        "mistake": {"color": colours[1], "linewidth": 1.4, "linestyle": (0, (2, 1))},
    }
    for key, style in styles.items():
        axes.plot(updates, found[key], label=LABELS[key], **style)
    # as many of the early updates as of the late ones, and a picture that does not weigh more than the page
    shown = th.logspace(0, math.log10(len(found["losses"])), 60).round().long().unique()
    losses = found["losses"][shown - 1]
    axes.plot(shown[losses > 0.0], losses[losses > 0.0], ".", color=colours[0], markersize=4, alpha=0.6, label=LOSSES)
    value_axes(axes, name, "")
    axes.set(xscale="log", yscale="log", ylim=(1e-8, 1e-1))
    axes.xaxis.set_major_formatter("{x:.0f}")


def main() -> None:
    """Measure, print, draw."""
    measured = {}
    for name in RUNS:
        measured[name] = updates, found = measure(name)
        at = [updates.index(update) for update in (1, 10, 100, 200)]
        for key, label in LABELS.items():
            print(f"{name:6} {label:38}", *(f"{found[key][k]:.1e}" for k in at), flush=True)
        print(f"{name:6} {'losses, largest of all updates':38}", f"{found['losses'].max():.1e}", flush=True)
    for scheme in INKS:
        draw(measured, scheme, OUTPUT / f"lock_step_{scheme}.svg")


if __name__ == "__main__":
    main()
