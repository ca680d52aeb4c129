"""
Directive ``pretrained``: the agents that come with the clone, with the scores of their ``results.json`` and their videos.

The videos lie beside the agents and are copied when the pages are built.
"""

import html
import json
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from results_table import number
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import markdown_table

PRETRAINED = Path(__file__).resolve().parents[2] / "zoo" / "pretrained"
VIDEOS = "pretrained"
"""Folder of the videos among the static files."""


def pretrained_table(folder: Path) -> str:
    """
    :param folder: Folder with one folder per agent
    :return: Markdown table with a row per agent; cells of scores that it has not are empty
    """
    rows = []
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        training, episodes = results["training"], len(results["evaluations"][0]["returns"])
        scores = {
            (score["is_deterministic"], score.get("evaluation_noise") == "fresh"): _shown(score, episodes)
            for score in results["evaluations"]
        }
        shown = [scores.get(protocol, "") for protocol in ((True, False), (True, True), (False, False))]
        rows.append([f"`{path.parent.name}`", *shown, str(episodes), f"{training['timesteps']:,}", str(training["seed"])])
    header = ["Agent", "Deterministic", "The same with fresh noise", "Stochastic", "Episodes", "Steps or updates", "Seed"]
    return markdown_table(header, rows)


def _shown(score: dict[str, Any], episodes: int) -> str:
    own = len(score["returns"])
    return f"{number(score['mean_reward'])} ± {number(score['std_reward'])}" + (
        "" if own == episodes else f" ({own} episodes)"
    )


def videos(folder: Path) -> list[Path]:
    """
    :param folder: Folder with one folder per agent
    :return: Their videos, those of an environment together
    """
    return sorted(folder.glob("*/replay.mp4"), key=lambda path: path.parent.name.partition("-")[::-1])


def video_wall(paths: list[Path], static: str) -> str:
    """
    :param paths: Videos
    :param static: Where the page finds the static files
    :return: HTML. Only the beginning of a video is loaded with the page, which is its picture until it is played
    """
    figures = []
    for path in paths:
        name = html.escape(path.parent.name)
        source = f'src="{static}/{VIDEOS}/{name}.mp4" title="{name}"'
        video = f'<video {source} controls muted loop playsinline preload="metadata"></video>'
        figures.append(f"<figure>{video}<figcaption>{name}</figcaption></figure>")
    return f'<div class="video-wall">{"".join(figures)}</div>'


def copy_videos(app: Sphinx, exception: Exception | None) -> None:
    """Handler of the end of a build: put the videos among the static files."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", VIDEOS)
        target.mkdir(parents=True, exist_ok=True)
        for path in videos(PRETRAINED):
            shutil.copyfile(path, target / f"{path.parent.name}.mp4")


class Pretrained(SphinxDirective):
    """The directive, see the module."""

    def run(self) -> list[nodes.Node]:
        for path in (*PRETRAINED.glob("*/results.json"), *PRETRAINED.glob("*/replay.mp4")):
            self.env.note_dependency(str(path))
        static = "../" * self.env.docname.count("/") + "_static"
        wall = nodes.raw("", video_wall(videos(PRETRAINED), static), format="html")
        return [*self.parse_text_to_nodes(pretrained_table(PRETRAINED)), wall]


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("pretrained", Pretrained)
    app.connect("build-finished", copy_videos)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
