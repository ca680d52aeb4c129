"""
Directive ``taxonomy``: tables of the methods, generated from :mod:`sb3_diffusion.taxonomy` so that they cannot drift.

Options: ``:view: matrix`` (guidance mechanism x reference policy), ``:view: methods`` (one row per method, the default), with
``:guidance: <key>`` for the rows of one mechanism and ``:available:`` for those that the library implements.
"""

from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sb3_diffusion import taxonomy
from sb3_diffusion.taxonomy import FAMILIES, GUIDANCE_MECHANISMS, METHODS, REFERENCE_POLICIES, Method, methods_of


def markdown_table(header: list[str], rows: list[list[str]], n_text: int | None = None) -> str:
    """
    :param header: Titles of the columns
    :param rows: Cells as Markdown text
    :param n_text: Number of columns with text; those behind them hold numbers. ``None`` if all hold text
    :return: The table as Markdown text
    """
    n_text = len(header) if n_text is None else n_text
    lines = [header, ["---"] * n_text + ["---:"] * (len(header) - n_text), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def link(method: Method) -> str:
    """The name of a method, linked to its page if there is one."""
    return f"{{doc}}`{method.name} </algorithms/{method.zoo_name}>`" if method.available else method.name


def matrix() -> str:
    """Guidance mechanisms as rows, reference policies as columns."""
    rows = []
    for guidance, title in GUIDANCE_MECHANISMS.items():
        cells = [f"[{title}](#{guidance.replace('_', '-')})"]
        for reference in REFERENCE_POLICIES:
            methods = methods_of(guidance, reference)
            cells.append(", ".join(f"**{link(method)}**" if method.available else method.name for method in methods))
        rows.append(cells)
    return markdown_table(["", *REFERENCE_POLICIES.values()], rows)


def method_list(guidance: str | None, available: bool) -> str:
    """One row per method."""
    shown = [method for method in METHODS if method.available or (method.in_table and not available)]
    shown = [method for method in shown if guidance in (None, method.guidance)]
    rows = [
        [
            link(method),
            REFERENCE_POLICIES[method.reference],
            method.setting,
            f"[{method.paper}](https://arxiv.org/abs/{method.arxiv})",
            f"`{method.zoo_name}`" if method.available else "",
        ]
        for method in shown
    ]
    header = ["Method", "Reference policy", "Setting", "Paper", "`--algo`"]
    if guidance is None:
        for row, method in zip(rows, shown, strict=True):
            row.insert(1, FAMILIES[method.guidance])
        header.insert(1, "Guidance")
    return markdown_table(header, rows)


class TaxonomyTable(SphinxDirective):
    """The directive, see the module."""

    option_spec: ClassVar[dict[str, Any]] = {
        "view": lambda text: directives.choice(text, ("matrix", "methods")),
        "guidance": lambda text: directives.choice(text, tuple(GUIDANCE_MECHANISMS)),
        "available": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(taxonomy.__file__))
        if self.options.get("view") == "matrix":
            box = nodes.container(classes=["taxonomy-matrix"])
            box += self.parse_text_to_nodes(matrix())
            return [box]
        return self.parse_text_to_nodes(method_list(self.options.get("guidance"), "available" in self.options))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("taxonomy", TaxonomyTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
