"""Directive ``pretrained``: the agents that come with the clone, with the scores of their ``results.json``."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from results_table import number
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

PRETRAINED = Path(__file__).resolve().parents[2] / "zoo" / "pretrained"


def pretrained_table(folder: Path) -> str:
    """
    :param folder: Folder with one folder per agent
    :return: Markdown table with a row per agent
    """
    rows = []
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        scores = [
            f"{number(score['mean_reward'])} ± {number(score['std_reward'])}"
            for score in sorted(results["evaluations"], key=lambda score: not score["is_deterministic"])
        ]
        training, episodes = results["training"], len(results["evaluations"][0]["returns"])
        rows.append([f"`{path.parent.name}`", *scores, str(episodes), f"{training['timesteps']:,}", str(training["seed"])])
    header = ["Agent", "Deterministic", "Stochastic", "Episodes", "Steps", "Seed"]
    return markdown_table(header, rows)


class Pretrained(SphinxDirective):
    """The directive, see the module."""

    def run(self) -> list[nodes.Node]:
        for path in sorted(PRETRAINED.glob("*/results.json")):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(pretrained_table(PRETRAINED))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("pretrained", Pretrained)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
