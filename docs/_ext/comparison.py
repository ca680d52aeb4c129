"""
Directive ``comparison``: one row per method, from the page of each.

    ```{comparison} sampling
    :header: While collecting | For the value target

    SAC (SB3) | Gaussian | one $a'$ with its log density
    ```

shows what a line ``% sampling: policy | one $a'$`` says on the pages of the methods (a comment, which is not rendered there),
then the rows of its content. ``:numbers:`` sets the columns flush right, ``:setting: offline`` takes those that learn from
data instead, ``:setting: on-policy`` those that learn from rollouts.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import link, markdown_table

from sb3_diffusion.taxonomy import Method, available_methods

PAGES = Path(__file__).resolve().parents[1] / "algorithms"
COMPARISONS = {"sampling": 4, "critics": 4, "cost": 4}
"""What pages tell -> number of cells."""


def cells(line: str) -> list[str]:
    """What stands between the bars of a line."""
    return [cell.strip() for cell in line.split("|")]


def row(method: Method, comparison: str) -> list[str]:
    """
    :param method: A method with a page
    :param comparison: Key of :data:`COMPARISONS`
    :return: What its page tells
    :raises ValueError: If it does not
    """
    text = (PAGES / f"{method.zoo_name}.md").read_text(encoding="utf-8")
    found = re.search(f"^% {comparison}: (.+)$", text, re.MULTILINE)
    if found is None or len(cells(found[1])) != COMPARISONS[comparison]:
        form = " | ".join(["..."] * COMPARISONS[comparison])
        raise ValueError(f"write a line '% {comparison}: {form}' on docs/algorithms/{method.zoo_name}.md")
    return cells(found[1])


class Comparison(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "header": directives.unchanged_required,
        "numbers": directives.flag,
        "setting": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        (comparison,) = self.arguments
        methods = [method for method in available_methods() if method.setting == self.options.get("setting", "off-policy")]
        for method in methods:
            self.env.note_dependency(str(PAGES / f"{method.zoo_name}.md"))
        try:
            rows = [[link(method), *row(method, comparison)] for method in methods]
        except ValueError as error:
            raise self.error(str(error)) from None
        rows += [cells(line) for line in self.content if line.strip()]
        table = markdown_table(["Method", *cells(self.options["header"])], rows, 1 if "numbers" in self.options else None)
        return self.parse_text_to_nodes(table)


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("comparison", Comparison)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
