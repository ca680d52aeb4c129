"""
Directive ``gallery``: what all methods have done on all environments, as pictures.

A section for every environment with learning curves as small multiples, a panel for each method, and with the videos of the
agents that come with the clone. The curves are those that ``results`` and ``benchmark`` read; a section has those of one
protocol. A grid takes the place of curves of fewer methods on its environment, and otherwise has a section of its own.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmark_figure import draw_curves
from benchmark_results import read_rows
from docutils import nodes
from figure_node import figure_node
from pretrained_table import PRETRAINED, video_wall, videos
from results_table import read_experiment
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sb3_diffusion.taxonomy import BASELINES, METHODS
from zoo.figures import title

Row = dict[str, str]


def rows_of_experiments(data: Path) -> list[Row]:
    """
    :param data: Folder ``docs/data``
    :return: Evaluations of the entries of ``results.json``, arranged as those of a grid
    """
    rows = []
    for name in json.loads((data / "results.json").read_text(encoding="utf-8")):
        algo, _, env = name.partition("-")
        if not env:  # what all entries have in common
            continue
        for run in read_experiment(data, algo, env)[0]:
            fixed = {"environment": env, "algorithm": algo, "seed": str(run.seed)}
            rows += [
                {**fixed, "timesteps": str(point.timesteps), "mean_return": str(point.mean_reward)}
                for point in run.evaluations
            ]
    return rows


def curves(data: Path) -> dict[str, list[Row]]:
    """
    :param data: Folder ``docs/data``
    :return: Title -> evaluations, in the order of the titles, which are environments, with the name of the grid if need be
    """
    found: dict[str, list[Row]] = {}
    for row in rows_of_experiments(data):
        found.setdefault(row["environment"], []).append(row)
    for path in sorted((data / "benchmark").glob("*/curves.csv")):
        of_grid: dict[str, list[Row]] = {}
        for row in read_rows(path):
            of_grid.setdefault(row["environment"], []).append(row)
        for env, rows in of_grid.items():
            replaces = {row["algorithm"] for row in rows} >= {row["algorithm"] for row in found.get(env, [])}
            found[env if replaces else f"{env} ({path.parent.name})"] = rows
    return dict(sorted(found.items()))


class Gallery(SphinxDirective):
    """The directive, see the module."""

    def run(self) -> list[nodes.Node]:
        data = Path(self.env.srcdir, "data")
        for path in (data / "results.json", *data.glob("curves/*.csv"), *data.glob("benchmark/*/curves.csv")):
            self.env.note_dependency(str(path))
        static = "../" * self.env.docname.count("/") + "_static"
        order = [method.zoo_name for method in METHODS] + list(BASELINES)
        parts: list[nodes.Node] = []
        for env, rows in curves(data).items():
            section = nodes.section(ids=[nodes.make_id(env)])
            section += nodes.title(text=env)
            algos = sorted(
                {row["algorithm"] for row in rows}, key=lambda algo: (order.index(algo) if algo in order else 99, algo)
            )
            alt = f"Learning curves on {env}: {', '.join(title(algo) for algo in algos)}"
            section += figure_node(self.env, f"gallery-{nodes.make_id(env)}", alt, partial(draw_curves, rows, algos))
            films = [path for path in videos(PRETRAINED) if path.parent.name.endswith(f"-{env.replace('/', '-')}")]
            if films:
                section += nodes.raw("", video_wall(films, static), format="html")
            parts.append(section)
        return parts


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
