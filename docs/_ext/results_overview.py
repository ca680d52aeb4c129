"""
Directive ``overview``: the outcome of all experiments on one environment, from the files that ``results`` reads.

    ```{overview} Pendulum-v1
    ```

renders one row per algorithm: seeds, steps, the last evaluation and the best one. Algorithms come in the order of the
taxonomy, then the baselines.
"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

from docutils import nodes
from results_table import number, read_experiment, title
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from sb3_diffusion.taxonomy import METHODS


def overview_table(data: Path, env: str) -> str:
    """
    :param data: Folder ``docs/data``
    :param env: Id of the environment
    :return: Markdown table with a row per algorithm that has runs on it
    """
    suffix = f"-{env.replace('/', '-')}"
    entries = json.loads((data / "results.json").read_text(encoding="utf-8"))
    algos = [name.removesuffix(suffix) for name in entries if name.endswith(suffix)]
    order = {method.zoo_name: place for place, method in enumerate(METHODS)}
    rows = []
    for algo in sorted(algos, key=lambda name: (order.get(name, len(order)), name)):
        runs, entry = read_experiment(data, algo, env)
        finals = [run.final.mean_reward for run in runs]
        spread = f" ({number(min(finals))} to {number(max(finals))})" if len(runs) > 1 else ""
        seeds = str(len(runs))
        steps = f"{runs[0].final.timesteps:,}"
        best = number(mean(run.best.mean_reward for run in runs))
        rows.append([title(algo), seeds, steps, f"{number(mean(finals))}{spread}", best, entry["budget"].partition("; ")[2]])
    header = ["Algorithm", "Seeds", "Steps", "Last evaluation", "Best", "Settings"]
    return markdown_table(header, rows)


class Overview(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        data = Path(self.env.srcdir, "data")
        for path in (data / "results.json", *sorted((data / "curves").glob("*.csv"))):
            self.env.note_dependency(str(path))
        try:
            return self.parse_text_to_nodes(overview_table(data, self.arguments[0]))
        except ValueError as error:
            raise self.error(f"overview {self.arguments[0]}: {error}") from error


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("overview", Overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
