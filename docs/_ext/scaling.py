"""
Directive ``scaling``: the results of ``zoo/speed/scaling.py`` in ``docs/data/scaling.json``, as one of

    ```{scaling} laws
    ```
    ```{scaling} figure
    :algos: qsm, dacer, sdac
    ```
    ```{scaling} tasks
    ```
    ```{scaling} environments
    :algos: qsm
    ```
    ```{scaling} gains
    diffusion_steps 20 10
    n_particles 1 1/4
    ```

``gains`` compares points of a line: how many times as many updates per second the second setting allows as the first. Numbers
of particles are multiples of each algorithm's default. ``algos`` selects algorithms; without it, all that were measured are
shown.
"""

import re
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from figure_node import figure_node
from matplotlib.axes import Axes
from measured import measured
from page_figure import page_figure
from results_table import title
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

Lines = dict[str, Any]

FILE = "scaling.json"
# name of a line -> its title, its symbol, and the unit in which its law is written
LINES: dict[str, tuple[str, str, int]] = {
    "diffusion_steps": ("diffusion steps", "T", 20),
    "n_particles": ("particles", "K", 100),
    "batch_size": ("batch size", "B", 256),
    "width": ("width of the networks", "W", 256),
    "obs_dim": ("size of the observation", "S", 100),
    "action_dim": ("size of the action", "A", 10),
}
SETTINGS = {**{line: name for line, (name, *_) in LINES.items()}, "threads": "threads", "execution": "execution"}
NONE = "\N{EN DASH}"
MODES = {"random": "random actions", "acting": "acting", "training": "acting, one update per round"}

# Okabe and Ito's palette; markers carry the difference in print
COLOURS = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#202020", "#8c6d1f"),
    "dark": ("#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#4a8ed0", "#d0d0d0", "#F0E442"),
}
MARKERS = "osD^vP*X"


def law_text(law: dict[str, float], unit: int) -> str:
    """A law as text, in multiples of a unit."""
    slope = law["b"] * unit ** law["power"]
    sign = "\N{MINUS SIGN}" if slope < 0 else "+"
    return f"{law['a']:.3g} {sign} {abs(slope):.3g}\N{NO-BREAK SPACE}*x*".replace("-", "\N{MINUS SIGN}")


def laws_table(results: dict[str, Lines]) -> str:
    """The law of every line and algorithm for the milliseconds of an update, as Markdown."""
    rows = []
    for line, (name, symbol, unit) in LINES.items():
        laws = {algo: lines[line]["laws"]["ms_per_update"] for algo, lines in results.items() if line in lines}
        if not laws:
            continue
        power = "²" if next(iter(laws.values()))["power"] == 2 else ""
        cells = [law_text(laws[algo], unit) if algo in laws else NONE for algo in results]
        worst = max(law["error"] for law in laws.values())
        rows.append([f"{name} *{symbol}*", f"(*{symbol}* / {unit}){power}", *cells, f"{100 * worst:.0f} %"])
    header = ["Quantity", "*x*", *(title(algo) for algo in results), "Off by at most"]
    return markdown_table(header, rows, n_text=2)


def tasks_table(results: dict[str, Lines]) -> str:
    """Milliseconds of an update with the sizes of several tasks, as Markdown."""
    points = {
        algo: {point["value"]: point for point in lines["task"]["points"]}
        for algo, lines in results.items()
        if "task" in lines
    }
    tasks = list(dict.fromkeys(task for values in points.values() for task in values))
    rows = []
    for algo, values in points.items():
        cells = [f"{values[task]['ms_per_update']:.1f}" if task in values else NONE for task in tasks]
        rows.append([title(algo), *cells])
    return markdown_table(["Algorithm", *tasks], rows, n_text=1)


def environments_text(results: dict[str, Lines]) -> str:
    """Environment steps per second with several environments in a process, and the laws of a round, as Markdown."""
    results = {algo: lines for algo, lines in results.items() if "n_envs" in lines}
    columns = {(algo, mode): f"{title(algo)}, {text}" for algo in results for mode, text in MODES.items()}
    points = {algo: {point["value"]: point for point in lines["n_envs"]["points"]} for algo, lines in results.items()}
    rows = []
    for n in sorted({n for values in points.values() for n in values}):
        found = [(points[algo].get(n), mode) for algo, mode in columns]
        cells = [f"{point[f'env_steps_per_second_{mode}']:,.0f}" if point else NONE for point, mode in found]
        rows.append([str(n), *cells])
    laws = [
        f"* {text} takes {law_text(results[algo]['n_envs']['laws'][f'ms_per_step_{mode}'], 1)} ms per round"
        for (algo, mode), text in columns.items()
        if results[algo]["n_envs"]["laws"]
    ]
    table = markdown_table(["Environments *x*", *columns.values()], rows, n_text=1)
    return "\n".join([table, "", *laws])


def find(lines: Lines, line: str, value: str) -> dict[str, Any] | None:
    """
    :param lines: Results of an algorithm
    :param line: Name of a line
    :param value: Value of the quantity; of particles, a multiple of the default
    :return: The point, ``None`` if it was not measured
    """
    if line not in lines:
        return None
    points = lines[line]["points"]
    wanted: Any = value
    if line == "n_particles":
        wanted = round(lines[line]["default"] * Fraction(value))
    elif line not in ("execution", "task"):
        wanted = int(value)
    return next((point for point in points if point["value"] == wanted), None)


def gains_table(results: dict[str, Lines], content: list[str]) -> str:
    """
    How many times as fast the update becomes, as Markdown.

    :param results: Lines of the algorithms
    :param content: ``<line> <before> <after>`` each
    """
    rows = []
    for text in content:
        line, before, after = text.split()
        cells = []
        for lines in results.values():
            old, new = find(lines, line, before), find(lines, line, after)
            cells.append(
                f"{old['ms_per_update'] / new['ms_per_update']:.2f}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}"
                if old and new
                else NONE
            )
        of_default = " (of the default)" if line == "n_particles" else ""
        rows.append([f"{SETTINGS[line]}{of_default}: {before} → {after}", *cells])
    return markdown_table(["Change", *(title(algo) for algo in results)], rows, n_text=1)


def conditions(report: dict[str, Any], results: dict[str, Lines], lines: list[str]) -> str:
    """
    :param report: The file
    :param results: The selected algorithms
    :param lines: Names of the lines that are shown
    :return: What the figures depend on, as Markdown
    """
    runs = sorted({found[line]["run"] for found in results.values() for line in lines if line in found})
    text = []
    for run in (report["runs"][number] for number in runs):
        machine, settings = run["machine"], run["settings"]
        packages = ("sb3_diffusion", "torch")
        versions = ", ".join(f"{package} {machine['versions'][package]}" for package in packages)
        hardware = ", ".join(machine[key] for key in ("cpu", "gpu") if key in machine)
        threads = "" if lines == ["threads"] else f", {settings['threads']} thread(s)"
        env = f", {settings['env']}" if lines == ["n_envs"] else ""
        entry = (
            f"* {hardware}{threads}, device {settings['device']}{env}; medians of {settings['repetitions']} turns; {versions}"
        )
        text += [entry] if entry not in text else []
    return "\n".join(text)


def draw(results: dict[str, Lines], scheme: str, path: Path) -> None:
    """
    Draw the points and the laws, a panel per quantity.

    :param results: Lines of the algorithms
    :param scheme: Colour scheme of the page, a key of :data:`COLOURS`
    :param path: Where to save the drawing
    """
    with page_figure(path, scheme, (7.2, 5.2)) as figure:
        panels = figure.subplots(2, 3, sharey=True).flat
        for axes, (line, (name, *_)) in zip(panels, LINES.items(), strict=True):
            for algo, colour, marker in zip(results, COLOURS[scheme], MARKERS, strict=False):
                if line in results[algo]:
                    _draw_line(axes, results[algo][line], algo, colour, marker)
            axes.set_xscale("log")
            points = {point["value"] for lines in results.values() for point in lines.get(line, {"points": []})["points"]}
            if len(points) <= 5:  # points of several algorithms may lie too close together for a label each
                axes.set_xticks(sorted(points), labels=[str(value) for value in sorted(points)])
                axes.minorticks_off()
            axes.set_yscale("log")
            axes.set_xlabel(name)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        figure.supylabel("milliseconds per update", fontsize=9)
        handles = {
            label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)


def _draw_line(axes: Axes, line: dict[str, Any], algo: str, colour: str, marker: str) -> None:
    x = [point["value"] for point in line["points"]]
    axes.plot(x, [p["ms_per_update"] for p in line["points"]], marker, color=colour, markersize=4, label=title(algo))
    if law := line["laws"].get("ms_per_update"):
        grid = [x[0] * (x[-1] / x[0]) ** (i / 40) for i in range(41)]
        axes.plot(grid, [law["a"] + law["b"] * value ** law["power"] for value in grid], color=colour, linewidth=1.0)


class Scaling(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"algos": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        report = measured(self, FILE)
        results = report["results"]
        if "algos" in self.options:
            algos = re.findall(r"[\w-]+", self.options["algos"])
            if missing := [algo for algo in algos if algo not in results]:
                raise self.error(f"scaling: data/{FILE} has no {', '.join(missing)}")
            results = {algo: results[algo] for algo in algos}
        view, figures, lines = self.arguments[0], [], list(LINES)
        if view == "laws":
            text = laws_table(results)
        elif view == "figure":
            text, figures = "", [self.figure(results)]
        elif view == "tasks":
            text, lines = tasks_table(results), ["task"]
        elif view == "environments":
            text, lines = environments_text(results), ["n_envs"]
        elif view == "gains":
            lines = list(dict.fromkeys(row.split()[0] for row in self.content))
            if unknown := [line for line in lines if line not in SETTINGS]:
                raise self.error(f"scaling: unknown quantity {unknown[0]!r}; known are {', '.join(SETTINGS)}")
            text = gains_table(results, list(self.content))
        else:
            raise self.error(f"scaling: unknown view {view!r}")
        return [*figures, *self.parse_text_to_nodes(f"{text}\n\n{conditions(report, results, lines)}\n")]

    def figure(self, results: dict[str, Lines]) -> nodes.Node:
        """The drawing, once for each colour scheme of the pages."""
        alt = "Milliseconds per update over six quantities"
        return figure_node(self.env, f"scaling-{'-'.join(results)}", alt, partial(draw, results))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("scaling", Scaling)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
