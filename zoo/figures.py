"""Drawing that commands and documentation share: colours, the axes of learning curves, curves with an interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sb3_diffusion.taxonomy import BASELINES, CONTRIB, available_methods

# Okabe and Ito's palette, distinguishable with every kind of colour vision; line styles carry the difference in print
COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#202020"),
    "dark": ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#d0d0d0"),
}
# The lengths 7 and 4 have no common divisor, so that 28 curves differ in colour or line
DASHES = ("-", (0, (6, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)))
FORMATS = (".png", ".svg", ".pdf")

CONFIDENCE = 0.95
MIN_RUNS = 3
"""An interval is drawn from this number of runs on."""

STEPS = "environment steps"
MAX_COLUMNS = 3
MAX_POINTS = 200
"""Runs with different steps are compared at no more than so many."""

Curve = tuple[np.ndarray, np.ndarray]
"""Environment steps in ascending order, and a value at each."""


def title(algo: str) -> str:
    """
    Name of an algorithm in text.

    :param algo: Its name on the command line
    """
    names = {method.zoo_name: method.name for method in available_methods()}
    names |= {name: f"{name.upper()} (SB3)" for name in (*BASELINES, *CONTRIB)}
    return names.get(algo, algo)


def line_style(index: int, scheme: str = "light") -> dict[str, Any]:
    """
    Colour and dashes of a curve.

    :param index: Number of the curve in its figure
    :param scheme: Colour scheme of the page, a key of :data:`COLOURS`
    """
    colours = COLOURS[scheme]
    return {"color": colours[index % len(colours)], "linestyle": DASHES[index % len(DASHES)]}


def value_axes(axes: Axes, heading: str, value: str) -> None:
    """
    Look of the axes of every figure.

    :param axes: Where is drawn
    :param heading: Above the axes
    :param value: What the vertical axis shows
    """
    axes.set_title(heading, fontsize=10)
    axes.set_ylabel(value)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def learning_axes(axes: Axes, heading: str, value: str) -> None:
    """
    Name and format the axes of a learning curve.

    :param axes: Where the curves are drawn
    :param heading: Above the axes, usually the id of the environment
    :param value: What the vertical axis shows
    """
    value_axes(axes, heading, value)
    axes.set_xlabel(STEPS)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def align(curves: Sequence[Curve]) -> Curve:
    """
    Values of several runs at the same steps: those of all runs in the range that all of them cover, at most
    :data:`MAX_POINTS`, with linear interpolation where a run has no value.

    :param curves: One per run
    :return: Steps ``(n,)`` and values ``(runs, n)``
    :raises ValueError: If the runs have no range in common
    """
    if len(curves) == 1:
        return curves[0][0], curves[0][1][None]
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    common = np.unique(np.concatenate([steps[(first <= steps) & (steps <= last)] for steps, _ in curves]))
    if not len(common):
        raise ValueError(f"one run begins at step {first}, another one ends at step {last}")
    if len(common) > MAX_POINTS:
        common = np.linspace(first, last, MAX_POINTS)
    return common, np.stack([np.interp(common, steps, values) for steps, values in curves])


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap interval of the mean over runs, the same at every call.

    :param values: ``(runs, n)``
    :return: Lower and upper end ``(n,)``
    """
    from scipy.stats import bootstrap  # slow to import, and not needed by every figure

    result = bootstrap(
        (values,),
        np.mean,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        batch=100,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def draw_runs(axes: Axes, curves: Sequence[Curve], label: str, style: dict[str, Any]) -> None:
    """
    Draw the mean of several runs, with an interval from :data:`MIN_RUNS` runs on, and thin lines for single runs below that.

    :param axes: Where to draw
    :param curves: One per run
    :param label: For the legend
    :param style: See :func:`line_style`
    """
    steps, values = align(curves)
    # a single point has no line
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, values.mean(0), linewidth=2.0, label=label, marker=marker, **style)
    if len(curves) >= MIN_RUNS:
        low, high = bootstrap_interval(values)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)
    elif len(curves) > 1:
        for run_steps, run_values in curves:
            axes.plot(run_steps, run_values, color=style["color"], linewidth=0.8, alpha=0.6)


def caption(n_runs: Sequence[int]) -> str:
    """
    What :func:`draw_runs` drew, as a sentence for the figure.

    :param n_runs: Number of runs behind each curve
    """
    if max(n_runs) == 1:
        return "Lines: single runs"
    parts = ["Thick lines: mean over runs" if any(1 < n < MIN_RUNS for n in n_runs) else "Lines: mean over runs"]
    if any(1 < n < MIN_RUNS for n in n_runs):
        parts.append("thin lines: single runs")
    if max(n_runs) >= MIN_RUNS:
        parts.append(f"bands: {CONFIDENCE:.0%} bootstrap interval of the mean (from {MIN_RUNS} runs on)".replace("%", " %"))
    return "; ".join(parts)


@dataclass(frozen=True)
class Phases:
    """
    What the horizontal axis of an environment's runs counts.

    :param updates: Numbers of updates on data with which runs began
    :param online: Whether a run has environment steps behind them
    """

    updates: frozenset[int]
    online: bool

    def draw(self, axes: Axes) -> None:
        """
        :param axes: Of the learning curves
        """
        axes.set_xlabel(f"updates on data, then {STEPS}" if self.online else "updates on data")
        for switch in sorted(self.updates) if self.online else ():
            axes.axvline(switch, color="grey", linestyle=":", linewidth=1.2, zorder=0)


def draw_panels(
    panels: dict[str, dict[str, list[Curve]]], value: str, phases: Mapping[str, Phases] = MappingProxyType({})
) -> Figure:
    """
    Learning curves, with a panel for every environment.

    :param panels: Environment -> algorithm -> one curve per run
    :param value: What the vertical axis shows
    :param phases: Of the environments whose runs did not begin with steps
    """
    columns = min(len(panels), MAX_COLUMNS)
    rows = -(-len(panels) // columns)
    # an algorithm looks the same in all panels
    algos = list(dict.fromkeys(algo for curves in panels.values() for algo in curves))
    from matplotlib import pyplot as plt  # which shows a figure that it has made; nothing else here is ever shown

    figure = plt.figure(figsize=(2.2 + 4.0 * columns, 0.5 + 3.0 * rows), layout="constrained")
    handles: dict[str, Artist] = {}
    for index, (env, groups) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, index)
        learning_axes(axes, env, value)
        if env in phases:
            phases[env].draw(axes)
        for algo, curves in groups.items():
            counts = {len(others[algo]) for others in panels.values() if algo in others}
            label = f"{title(algo)}\n({_runs(counts)})"
            try:
                draw_runs(axes, curves, label, line_style(algos.index(algo)))
            except ValueError as error:
                raise ValueError(f"the runs of {algo} on {env} cannot be averaged: {error}; plot them apart") from error
        handles |= {str(handle.get_label()): handle for handle in axes.get_legend_handles_labels()[0]}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False)
    text = caption([len(curves) for groups in panels.values() for curves in groups.values()])
    if any(phase.online for env, phase in phases.items() if env in panels):
        text = "\n".join(part for part in (text, "dotted: from here on in the environment") if part)
    figure.supxlabel(text, fontsize=8)
    return figure


def _runs(counts: set[int]) -> str:
    """Number of runs behind a curve, which may differ from panel to panel."""
    low, high = min(counts), max(counts)
    return f"{low} run" if high == 1 else f"{low} runs" if low == high else f"{low} to {high} runs"


def check_output(path: Path) -> None:
    """
    :param path: Where a figure is to be saved
    :raises ValueError: If its format is not one of :data:`FORMATS`
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {path} does not say the format; let its name end with {', '.join(FORMATS)}")


def save(figure: Figure, path: Path) -> None:
    """
    Save a figure; the same figure gives the same bytes.

    :param figure: What to save
    :param path: Where; the suffix says the format, folders are made
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # files of these two kinds would carry the time
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    figure.savefig(path, dpi=150, metadata=date)
