"""The figures of a report, each as an address that holds the whole picture."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..figures import MIN_RUNS, Phases, draw_panels, line_style, title
from .scores import (
    Aggregate,
    CellState,
)


@dataclass(frozen=True)
class Picture:
    """
    A figure of the page.

    :param title: What it shows, for readers who do not see it
    :param data: The figure itself, as an address
    :param caption: Below it
    """

    title: str
    data: str
    caption: str


def count(number: int, noun: str) -> str:
    """
    :param number: How many
    :param noun: What, in the singular
    :return: Both
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def address(kind: str, content: bytes) -> str:
    """
    :param kind: Its media type
    :param content: A file
    :return: The address of a page that holds the file itself
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(figure: Figure, heading: str, text: str) -> Picture:
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": heading}):  # the same figure gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return Picture(heading, address("image/svg+xml", buffer.getvalue()), text)


def curves(cells: list[CellState]) -> Picture | None:
    """
    :param cells: What the folders of the benchmark hold
    :return: Learning curves of all runs, one panel per environment; nothing as long as there are none
    """
    panels: dict[str, dict[str, list[Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.env, cell.algo, cell.seed)):
        if cell.result is not None and cell.result["curve"]:
            points = cell.result["curve"]
            curve = (
                np.array([point["timesteps"] for point in points], float),
                np.array([np.mean(point["returns"]) for point in points]),
            )
            panels.setdefault(cell.env, {}).setdefault(cell.algo, []).append(curve)
    if not panels:
        return None
    data = {cell.env for cell in cells if cell.result is not None and "dataset" in cell.result["final"]}
    phases = {env: Phases(frozenset(), False) for env in data}  # a benchmark ends with the updates on data
    figure = draw_panels(panels, "evaluation return\n(mean over episodes)", phases)
    text = "Mean return over the episodes of every evaluation during training."
    return _picture(figure, f"Learning curves on {', '.join(panels)}", text)


def aggregate_pictures(aggregates: list[Aggregate], algos: list[str], taus: np.ndarray) -> list[Picture]:
    """
    :param aggregates: See :func:`~zoo.benchmarking.scores.aggregate`
    :param algos: All algorithms, in the order of their colours
    :param taus: Thresholds of the profiles
    :return: Performance profiles and interquartile means of the algorithms that have a result everywhere
    """
    complete = [entry for entry in aggregates if entry.iqm is not None]
    if not complete:
        return []
    single = (
        ""
        if all(entry.interval for entry in complete)
        else f" No interval where an environment has fewer than {MIN_RUNS} seeds."
    )
    profiles = "Performance profiles: share of runs with a normalised score above the threshold; higher is better."
    means = "Interquartile means of the normalised scores; further right is better."
    band, bar = " Bands: 95 % bootstrap intervals.", " Bars: 95 % bootstrap intervals."
    return [
        _picture(_draw_profiles(complete, algos, taus), "Performance profiles", profiles + band + single),
        _picture(_draw_means(complete, algos), "Interquartile means", means + bar + single),
    ]


def _draw_profiles(aggregates: list[Aggregate], algos: list[str], taus: np.ndarray) -> Figure:
    figure = plt.figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for entry in aggregates:
        assert entry.profile is not None
        style = line_style(algos.index(entry.algo))
        axes.plot(taus, entry.profile, label=f"{title(entry.algo)}\n({count(entry.n_runs, 'run')})", linewidth=2.0, **style)
        if entry.band is not None:
            axes.fill_between(taus, *entry.band, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="threshold (normalised score)", ylabel="share of runs above it", xlim=(0.0, taus[-1]), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _draw_means(aggregates: list[Aggregate], algos: list[str]) -> Figure:
    ordered = sorted(aggregates, key=lambda entry: entry.iqm or 0.0)
    figure = plt.figure(figsize=(8.0, 0.9 + 0.42 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    for height, entry in enumerate(ordered):
        assert entry.iqm is not None
        colour = line_style(algos.index(entry.algo))["color"]
        if entry.interval is not None:
            axes.plot(entry.interval, [height, height], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
        axes.plot(entry.iqm, height, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(ordered)), [title(entry.algo) for entry in ordered])
    axes.set(xlabel="interquartile mean of normalised scores", ylim=(-0.6, len(ordered) - 0.4))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
