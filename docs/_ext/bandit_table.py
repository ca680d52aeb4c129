"""
Directive ``bandit``: what ``docs/questions.py`` measured, as a table.

    ```{bandit} variant value
    ```

has a row for every method and a column for everything that the rows of ``docs/data/questions.csv`` have in ``variant`` (or
``action_dim``); a cell is the mean of ``value`` (``distance``, ``cpu_seconds``) over seeds, and from where to where they go.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark_results import Row, number, read_rows
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from zoo.figures import title

DEFAULT, VARIANTS_DIM = "default", "8"
COLUMNS = {"action_dim": "{} coordinates", "variant": "{}"}
QUANTITIES = ("value", "distance", "cpu_seconds")


def seeds_text(values: Sequence[float], digits: int) -> str:
    """
    :param values: One for each seed
    :param digits: Behind the point
    :return: Their mean and range, in words
    """
    shown = [number(str(value), digits) for value in (sum(values) / len(values), min(values), max(values))]
    mean, low, high = shown
    return f"{mean} (one seed)" if len(values) == 1 else f"{mean} ({low} to {high})"


def bandit_table(rows: Sequence[Row], over: str, quantity: str) -> str:
    """
    :param rows: Those of the file
    :param over: Key of :data:`COLUMNS`
    :param quantity: One of :data:`QUANTITIES`
    :return: The table as Markdown
    """
    other, fixed = ("variant", DEFAULT) if over == "action_dim" else ("action_dim", VARIANTS_DIM)
    rows = [row for row in rows if row[other] == fixed]
    columns = list(dict.fromkeys(row[over] for row in rows))
    changed = {(row["algorithm"], row["n_particles"]) for row in rows if row[over] != DEFAULT}
    lines = []
    for algo, particles in dict.fromkeys((row["algorithm"], row["n_particles"]) for row in rows):
        if (algo, particles) not in changed:
            continue
        own = [row for row in rows if (row["algorithm"], row["n_particles"]) == (algo, particles)]
        name = title(algo) + (f", {particles} particles" if particles != "0" else "")
        found = [[float(row[quantity]) for row in own if row[over] == column] for column in columns]
        digits = 0 if quantity == "cpu_seconds" else 2
        lines.append([name, *(seeds_text(values, digits) if values else "not measured" for values in found)])
    header = [COLUMNS[over].format("20 steps, cosine, MLP" if column == DEFAULT else column) for column in columns]
    return markdown_table(["Method", *header], lines, n_text=1)


class Bandit(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        over, quantity = (
            directives.choice(argument, known)
            for argument, known in zip(self.arguments, (tuple(COLUMNS), QUANTITIES), strict=True)
        )
        path = Path(self.env.srcdir, "data", "questions.csv")
        self.env.note_dependency(str(path))
        box = nodes.container(classes=["compact"])
        box += self.parse_text_to_nodes(bandit_table(read_rows(path), over, quantity))
        return [box]


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("bandit", Bandit)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
