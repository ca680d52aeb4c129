"""Learning curves of a grid as small multiples: a panel for every method, the others' means behind it in grey."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from page_figure import INKS, page_figure

from zoo.figures import COLOURS, CONFIDENCE, MIN_RUNS, Curve, align, bootstrap_interval, learning_axes, title

BEHIND = {"light": "#b8b8b8", "dark": "#5c5c5c"}
"""Colour scheme of the pages -> colour of what stands behind."""

COLUMNS = 2  # two panels can be read on a phone, too
PANEL = (3.0, 2.1)
Groups = dict[tuple[str, str], list[Curve]]


def group(rows: Sequence[dict[str, str]]) -> Groups:
    """
    :param rows: Rows of ``curves.csv``
    :return: Environment and algorithm -> one curve per seed
    """
    points: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        seeds = points.setdefault((row["environment"], row["algorithm"]), {})
        seeds.setdefault(row["seed"], []).append((float(row["timesteps"]), float(row["mean_return"])))
    return {
        key: [tuple(np.array(column) for column in zip(*sorted(curve), strict=True)) for curve in seeds.values()]  # type: ignore[misc]
        for key, seeds in points.items()
    }


def draw_curves(
    rows: Sequence[dict[str, str]],
    algos: Sequence[str],
    scheme: str,
    path: Path,
    reference: Sequence[dict[str, str]] = (),
) -> None:
    """
    :param rows: Rows of ``curves.csv``
    :param algos: Methods in their order; those without a curve have no panel
    :param scheme: Key of :data:`BEHIND`
    :param path: Where to save the figure
    :param reference: Rows of ``reference.csv``, drawn as dashed lines
    """
    groups, beside = group(rows), group(reference)
    envs = list(dict.fromkeys(env for env, _ in groups))
    panels = [(env, algo) for env in envs for algo in algos if (env, algo) in groups]
    columns = min(COLUMNS, len(panels))
    n_rows = -(-len(panels) // columns)
    with page_figure(path, scheme, (PANEL[0] * COLUMNS, PANEL[1] * n_rows + 0.4)) as figure:
        shared: Any = {"squeeze": False, "sharex": True, "sharey": len(envs) == 1}
        places = list(figure.subplots(n_rows, columns, **shared).flat)
        for index, (axes, (env, algo)) in enumerate(zip(places, panels, strict=False)):
            others = [curves for key, curves in groups.items() if key[0] == env and key[1] != algo]
            name = title(algo) if len(envs) == 1 else f"{title(algo)}, {env}"
            colour = COLOURS[scheme][algos.index(algo) % len(COLOURS[scheme])]
            _draw_panel(axes, name, groups[env, algo], others, colour, BEHIND[scheme])
            if (env, algo) in beside:
                steps, values = align(beside[env, algo])
                axes.plot(steps, values.mean(0), color=INKS[scheme], linewidth=1.4, linestyle=(0, (4, 2)), zorder=4)
            axes.tick_params(labelbottom=index + columns >= len(panels))  # nothing is drawn below
        for empty in places[len(panels) :]:
            empty.remove()
        figure.supylabel("mean return of an evaluation", fontsize=9)
        figure.supxlabel(_legend(groups, bool(beside)), fontsize=8)


def _draw_panel(axes: Axes, name: str, curves: list[Curve], others: list[list[Curve]], colour: str, grey: str) -> None:
    for other in others:
        steps, values = align(other)
        axes.plot(steps, values.mean(0), color=grey, linewidth=1.0, zorder=1)
    steps, values = align(curves)
    for run in values if len(values) > 1 else ():
        axes.plot(steps, run, color=colour, linewidth=0.7, alpha=0.6, zorder=2)
    axes.plot(steps, values.mean(0), color=colour, linewidth=2.0, zorder=3, marker="o" if len(steps) == 1 else None)
    if len(curves) >= MIN_RUNS:
        low, high = bootstrap_interval(values)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    learning_axes(axes, f"{name} ({len(curves)} seed{'' if len(curves) == 1 else 's'})", "")
    axes.set_xlabel("")


def _legend(groups: Groups, with_reference: bool) -> str:
    """What is drawn, in words, on lines that are no longer than the figure is wide."""
    n_runs = [len(curves) for curves in groups.values()]
    below = ["thick: mean over seeds", "thin: single seeds"] if max(n_runs) > 1 else []
    below += [f"band: {CONFIDENCE:.0%} interval of the mean".replace("%", " %")] if max(n_runs) >= MIN_RUNS else []
    below += ["grey: the other methods"] if len(groups) > 1 else []
    dashed = ["dashed: mean of the reference implementation's seeds"] if with_reference else []
    return "\n".join(["environment steps", *(["; ".join(below)] if below else []), *dashed])
