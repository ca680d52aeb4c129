"""
Directive ``shares``: a report of ``zoo/speed/shares.py`` as a table.

    ```{shares} shares-cpu.json
    ```

reads ``docs/data/shares-cpu.json``.
"""

from typing import Any

from docutils import nodes
from measured import measured
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

from sb3_diffusion.taxonomy import available_methods

TITLES = {
    "environment": "Environment",
    "acting": "Acting",
    "storing": "Storing",
    "sampling": "Sampling",
    "update": "Update",
    "rest": "Rest",
}


def shares_text(report: dict[str, Any]) -> str:
    """
    :param report: What ``zoo/speed/shares.py`` saved
    :return: The table and what it depends on, as Markdown
    """
    machine, settings = report["machine"], report["settings"]
    names = {method.zoo_name: method.name for method in available_methods()}
    rows = []
    for algo, result in report["results"].items():
        row = [names.get(algo, f"{algo.upper()} (SB3)"), f"{result['ms_per_step']:.2f}"]
        rows.append([*row, *(f"{100 * result['shares'][key]:.1f} %" for key in TITLES)])
    versions = ", ".join(f"{package} {release}" for package, release in machine["versions"].items())
    hardware = [machine[key] for key in ("cpu", "gpu") if key in machine]
    lines = [
        markdown_table(["Algorithm", "ms per step", *TITLES.values()], rows, n_text=1),
        "",
        f"* Machine: {', '.join(hardware)}; {settings['threads']} thread(s), device {settings['device']}",
        f"* {settings['env']}, {settings['n_envs']} environment(s), batch {settings['batch_size']}, one update per "
        "transition, default settings of every method",
        f"* Execution: {settings['execution']}; medians of {settings['repetitions']} turns of {settings['steps']} steps",
        f"* Versions: Python {machine['python']}, {versions}",
    ]
    return "\n".join(lines)


class Shares(SphinxDirective):
    """The directive, see the module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(shares_text(measured(self, self.arguments[0])))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("shares", Shares)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
