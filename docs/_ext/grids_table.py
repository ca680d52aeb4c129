"""
Directive ``grids``: what the standing benchmark asks, and how far it has come.

    ```{grids}
    inverted-double-pendulum
    hopper
    ```

one row for every grid of ``docs/data/benchmark``, in the order of the content, which has to name them all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark_results import read_rows
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from zoo.benchmarking.description import read_description


def grids_text(data: Path, names: Sequence[str]) -> str:
    """
    :param data: Folder ``docs/data/benchmark``
    :param names: Its grids
    :return: The table as Markdown
    :raises ValueError: If these are not all
    """
    if differs := sorted({path.stem for path in data.glob("*.yml")} ^ set(names)):
        raise ValueError(f"{', '.join(differs)}: the list and the files docs/data/benchmark/*.yml differ in these")
    rows = []
    for name in names:
        description, runs = read_description(data / f"{name}.yml"), data / name / "runs.csv"
        n_done = sum(run["state"] == "done" for run in read_rows(runs)) if runs.is_file() else 0
        n_planned = len(list(description.cells(Path())))
        rows.append([f"`{name}.yml`", description.question, f"{n_done} of {n_planned}"])
    return markdown_table(["Grid", "Question", "Trainings done"], rows, n_text=2)


class Grids(SphinxDirective):
    """The directive, see the module."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        data = Path(self.env.srcdir, "data", "benchmark")
        for path in (*data.glob("*.yml"), *data.glob("*/runs.csv")):
            self.env.note_dependency(str(path))
        try:
            text = grids_text(data, [line.strip() for line in self.content if line.strip()])
        except ValueError as error:
            raise self.error(f"grids: {error}") from error
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("grids", Grids)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
