"""
Directive ``results``: the outcome of an experiment, from the csv files in ``docs/data``.

    ```{results} dacer Hopper-v5
    :compare: sac
    ```

renders a learning curve, a table with one row per seed, and how the numbers came about. Every number is read from a file:

``data/curves/<algo>-<env>-seed<k>.csv``
    columns ``timesteps, mean_reward, std_reward, n_episodes``, one row per evaluation
``data/results.json``
    ``{"<algo>-<env>": {...}}`` with the keys of :data:`REQUIRED` and :data:`OPTIONAL`; an entry ``"default"`` holds what is
    common to all
``data/reference.json``
    ``{"<algo>-<env>": {"note": ..., "points": [[timesteps, mean_reward], ...]}}``, what was measured with the reference
    implementation

A slash in the id of an environment becomes a dash in these names. A missing file or key is an error.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from figure_node import figure_node
from matplotlib.axes import Axes
from page_figure import INKS, page_figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from zoo.figures import learning_axes, line_style, title

COLUMNS = ("timesteps", "mean_reward", "std_reward", "n_episodes")
REQUIRED = ("seeds", "budget", "protocol", "command", "versions")
OPTIONAL = ("commit", "machine", "note")


@dataclass(frozen=True)
class Evaluation:
    """One row of a csv file."""

    timesteps: int
    mean_reward: float
    std_reward: float
    n_episodes: int


@dataclass(frozen=True)
class Run:
    """One seed of an experiment."""

    algo: str
    seed: int
    evaluations: tuple[Evaluation, ...]

    @property
    def final(self) -> Evaluation:
        """The last evaluation."""
        return self.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The evaluation with the largest mean."""
        return max(self.evaluations, key=lambda evaluation: evaluation.mean_reward)


def read_run(path: Path, algo: str, seed: int) -> Run:
    """
    :param path: File of the curve
    :param algo: Name of the algorithm on the command line
    :param seed: Its seed
    :raises ValueError: if the columns are not those of :data:`COLUMNS`, or the file has no row
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path.name} has the columns {reader.fieldnames}, expected are {', '.join(COLUMNS)}")
        evaluations = tuple(
            Evaluation(int(row["timesteps"]), float(row["mean_reward"]), float(row["std_reward"]), int(row["n_episodes"]))
            for row in reader
        )
    if not evaluations:
        raise ValueError(f"{path.name} has no rows")
    return Run(algo, seed, evaluations)


def read_experiment(data: Path, algo: str, env: str) -> tuple[list[Run], dict[str, Any]]:
    """
    :param data: Folder ``docs/data``
    :param algo: Name of the algorithm on the command line
    :param env: Id of the environment
    :return: One run per seed of the entry in ``results.json``, and the entry
    :raises ValueError: if anything is missing or unknown
    """
    name = f"{algo}-{env.replace('/', '-')}"
    entries = json.loads((data / "results.json").read_text(encoding="utf-8"))
    if name not in entries:
        raise ValueError(f"results.json has no entry {name!r}")
    entry = {**entries.get("default", {}), **entries[name]}
    if missing := [key for key in REQUIRED if key not in entry]:
        raise ValueError(f"the entry {name!r} of results.json lacks {', '.join(missing)}")
    if unknown := [key for key in entry if key not in REQUIRED + OPTIONAL]:
        raise ValueError(f"the entry {name!r} of results.json has unknown keys {', '.join(unknown)}")
    paths = {seed: data / "curves" / f"{name}-seed{seed}.csv" for seed in entry["seeds"]}
    if absent := [path.name for path in paths.values() if not path.is_file()]:
        raise ValueError(f"data/curves lacks {', '.join(absent)}")
    return [read_run(path, algo, seed) for seed, path in paths.items()], entry


def read_reference(data: Path, algo: str, env: str) -> dict[str, Any] | None:
    """Measurements of the reference implementation, ``None`` if there are none."""
    path = data / "reference.json"
    if not path.is_file():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get(f"{algo}-{env.replace('/', '-')}")
    return found


def number(value: float) -> str:
    """One decimal, none from a thousand on, and a typographic minus."""
    digits = 0 if abs(value) >= 1000 else 1
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def results_table(groups: Sequence[list[Run]]) -> str:
    """
    :param groups: The runs of each algorithm
    :return: Markdown table with a row per seed, and one with the mean where there are several
    """
    rows = []
    for runs in groups:
        for run in runs:
            final = f"{number(run.final.mean_reward)} ± {number(run.final.std_reward)}"
            rows.append([title(run.algo), str(run.seed), final, number(run.best.mean_reward), f"{run.best.timesteps:,}"])
        if len(runs) > 1:
            finals = [run.final.mean_reward for run in runs]
            bests = [run.best.mean_reward for run in runs]
            final = f"**{number(mean(finals))} ± {number(stdev(finals))}**"
            rows.append([f"**{title(runs[0].algo)}**", f"**mean of {len(runs)}**", final, f"**{number(mean(bests))}**", ""])
    return markdown_table(["Algorithm", "Seed", "Final return", "Best return", "at step"], rows, n_text=2)


def conditions(groups: Sequence[list[Run]], entries: Sequence[dict[str, Any]]) -> str:
    """How the numbers came about, as Markdown."""
    entry = entries[0]
    versions = ", ".join(f"{package} {release}" for package, release in entry["versions"].items())
    lines = [
        "Returns are means over the episodes of one evaluation; ± is the standard deviation over those episodes, "
        "and over seeds in the rows of means. A best return is the largest of many evaluations and thus optimistic.",
        "",
        f"* Budget: {entry['budget']}",
        f"* Evaluation: {entry['protocol']}",
        f"* Versions: {versions}",
    ]
    for key in OPTIONAL:
        lines += [f"* {key.capitalize()}: {entry[key]}"] if key in entry else []
    lines += ["", "```bash", *(line for other in entries for line in _commands(other)), "```"]
    return "\n".join(lines)


def _commands(entry: dict[str, Any]) -> list[str]:
    """The command, once per seed where it has a place for it."""
    seeds = entry["seeds"] if "{seed}" in entry["command"] else [None]
    return [entry["command"].replace("{seed}", str(seed)) for seed in seeds]


def reference_text(reference: dict[str, Any]) -> str:
    """Measurements of the reference implementation, as Markdown."""
    points = "; ".join(
        f"{reward:,} at {timesteps:,} steps".replace("-", "\N{MINUS SIGN}") for timesteps, reward in reference["points"]
    )
    return f"Reference implementation ({reference['note']}): {points}."


def draw(groups: Sequence[list[Run]], reference: dict[str, Any] | None, env: str, scheme: str, path: Path) -> None:
    """
    Draw the learning curves: a thin line per seed, a thick one for their mean.

    :param groups: The runs of each algorithm
    :param reference: Points of the reference implementation
    :param env: Id of the environment
    :param scheme: Colour scheme of the page
    :param path: Where to save the drawing
    """
    with page_figure(path, scheme, (7.2, 3.4), font_size=10) as figure:
        axes = figure.add_subplot()
        for index, runs in enumerate(groups):
            _draw_runs(axes, runs, line_style(index, scheme))
        if reference is not None:
            points = reference["points"]
            style: dict[str, Any] = {
                "marker": "D",
                "markersize": 6,
                "markerfacecolor": "none",
                "linestyle": "none",
                "color": INKS[scheme],
            }
            axes.plot([x for x, _ in points], [y for _, y in points], label="reference\nimplementation", **style)
        learning_axes(axes, env, "mean return per episode")
        figure.legend(loc="outside right upper", frameon=False)


def _draw_runs(axes: Axes, runs: list[Run], style: dict[str, Any]) -> None:
    curves = [{evaluation.timesteps: evaluation.mean_reward for evaluation in run.evaluations} for run in runs]
    several = len(runs) > 1
    for curve in curves if several else []:
        axes.plot(list(curve), list(curve.values()), color=style["color"], linewidth=0.8, alpha=0.6)
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    label = f"{title(runs[0].algo)}\n({len(runs)} seeds, mean)" if several else f"{title(runs[0].algo)}\n(1 seed)"
    means = [mean(curve[step] for curve in curves) for step in common]
    axes.plot(common, means, linewidth=2.2, label=label, **style)


class Results(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {"compare": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        algo, env = self.arguments
        data = Path(self.env.srcdir, "data")
        for path in (data / "results.json", data / "reference.json", *sorted((data / "curves").glob("*.csv"))):
            self.env.note_dependency(str(path))
        algos = [algo, *re.findall(r"[\w-]+", self.options.get("compare", ""))]
        reference = read_reference(data, algo, env)
        try:
            experiments = [read_experiment(data, name, env) for name in algos]
        except ValueError as error:
            raise self.error(f"results {algo} {env}: {error}") from error
        groups = [runs for runs, _ in experiments]
        text = results_table(groups) + "\n\n" + conditions(groups, [entry for _, entry in experiments])
        if reference is not None:
            text += "\n\n" + reference_text(reference)
        return [self.figure(groups, reference, env), *self.parse_text_to_nodes(text)]

    def figure(self, groups: list[list[Run]], reference: dict[str, Any] | None, env: str) -> nodes.Node:
        """The learning curves, once for each colour scheme of the pages."""
        names = ", ".join(title(runs[0].algo) for runs in groups)
        name = f"{groups[0][0].algo}-{env.replace('/', '-')}"
        return figure_node(self.env, name, f"Learning curves of {names} on {env}", partial(draw, groups, reference, env))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
