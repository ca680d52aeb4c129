"""Figures of the pages: one for each colour scheme, on no background, the same file whenever the same is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INKS = {"light": "#202020", "dark": "#d0d0d0"}
"""Colour scheme of the pages -> colour of text and axes."""


@contextmanager
def page_figure(path: Path, scheme: str, size: tuple[float, float], font_size: float = 9.0) -> Iterator[Figure]:
    """
    :param path: Where the figure is saved, at the end of the context
    :param scheme: Key of :data:`INKS`
    :param size: Width and height in inches
    :param font_size: In points
    :return: What is drawn on
    """
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(names, INKS[scheme])
    with rc_context({**style, "font.size": font_size, "svg.hashsalt": path.name}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})
