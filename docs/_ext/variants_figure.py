"""Learning curves of a grid of variants: a panel for every algorithm, a line for each of its variants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark_figure import BEHIND, COLUMNS, Groups, group
from matplotlib.axes import Axes
from page_figure import INKS, page_figure

from zoo.benchmarking.description import Description
from zoo.figures import CONFIDENCE, MIN_RUNS, align, bootstrap_interval, learning_axes, line_style, title

PANEL = (3.0, 2.6)


def families(description: Description) -> dict[str, list[str]]:
    """
    :param description: A grid
    :return: Algorithm -> its variants, itself among them if it is trained as its settings say
    """
    found: dict[str, list[str]] = {}
    for name in description.algorithms:
        found.setdefault(description.variants.get(name, name), []).append(name)
    return found


def label(variant: str, algo: str) -> str:
    """
    :param variant: Name in a grid
    :param algo: Its algorithm
    :return: What is different
    """
    return "as in the settings" if variant == algo else variant.removeprefix(f"{algo}-").replace("-", " ")


def draw_variants(
    rows: Sequence[dict[str, str]],
    variants: Mapping[str, Sequence[str]],
    scheme: str,
    path: Path,
    reference: Sequence[dict[str, str]] = (),
) -> None:
    """
    :param rows: Rows of ``curves.csv``
    :param variants: See :func:`families`; an algorithm without variants stands in grey behind the others
    :param scheme: Colour scheme of the page
    :param path: Where to save the figure
    :param reference: Rows of ``reference.csv``, drawn as dashed lines
    """
    groups, beside = group(rows), group(reference)
    envs = list(dict.fromkeys(env for env, _ in groups))
    alone = [algo for algo, names in variants.items() if list(names) == [algo]]
    compared = {algo: names for algo, names in variants.items() if algo not in alone} or dict(variants)
    panels = [(env, algo) for env in envs for algo in compared if any((env, name) in groups for name in compared[algo])]
    n_rows = -(-len(panels) // COLUMNS)
    with page_figure(path, scheme, (PANEL[0] * COLUMNS, PANEL[1] * n_rows + 0.3)) as figure:
        places = list(figure.subplots(n_rows, COLUMNS, squeeze=False, sharex=True, sharey=len(envs) == 1).flat)
        for index, (axes, (env, algo)) in enumerate(zip(places, panels, strict=False)):
            for other in alone:
                style = {"color": BEHIND[scheme], "linewidth": 1.2, "zorder": 1}
                _draw_line(axes, groups, (env, other), title(other), style)
            for number, name in enumerate(compared[algo]):
                style = {**line_style(number, scheme), "linewidth": 1.6, "zorder": 3}
                _draw_line(axes, groups, (env, name), label(name, algo), style)
            style = {"color": INKS[scheme], "linewidth": 1.4, "linestyle": (0, (4, 2)), "zorder": 4}
            _draw_line(axes, beside, (env, algo), "the reference implementation", style)
            learning_axes(axes, title(algo) if len(envs) == 1 else f"{title(algo)}, {env}", "")
            axes.set_xlabel("")
            axes.tick_params(labelbottom=index + COLUMNS >= len(panels))
            axes.legend(frameon=False, fontsize=7)
        for empty in places[len(panels) :]:
            empty.remove()
        figure.supylabel("mean return of an evaluation", fontsize=9)
        band = f"lines: means over seeds; bands: {CONFIDENCE:.0%} interval of the mean".replace("%", " %")
        figure.supxlabel(f"environment steps\n{band}", fontsize=8)


def _draw_line(axes: Axes, groups: Groups, key: tuple[str, str], name: str, style: dict[str, Any]) -> None:
    if key not in groups:
        return
    steps, values = align(groups[key])
    axes.plot(steps, values.mean(0), label=name, **style)
    if len(values) >= MIN_RUNS:
        low, high = bootstrap_interval(values)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0, zorder=style["zorder"])
