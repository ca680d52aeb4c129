"""Pictures of densities and samples in a square, on dark cards."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sb3_diffusion.envs import grid_axis

from .densities import local_density
from .promises import Promise

INK, MUTED, CARD = "#f2f3f7", "#8f98b3", "#0d1020"
"""Titles, subtitles and background: a dark card that looks the same on a white and on a dark page."""

GLOW = LinearSegmentedColormap.from_list("glow", ["#14182c", "#2b2f6b", "#6a3d9a", "#c6478a", "#f58466", "#fde7a9"])
"""Perceptually ordered: its lightness rises evenly from the background of a panel to almost white."""

FAINTEST = 0.3
"""Position in :data:`GLOW` of a sample that is alone: visible on the background."""


@dataclass(frozen=True)
class Panel:
    """
    One square of the picture.

    :param title: First line above it
    :param subtitle: Second line
    :param samples: Points ``(n, 2)``; ``None`` for the panel of the true density
    :param promise: What the theory of the method says that they are, to be drawn behind them
    """

    title: str
    subtitle: str
    samples: np.ndarray | None = None
    promise: Promise | None = None


def n_columns(n_panels: int) -> int:
    """One row of up to four panels; more rows have three to six columns, whichever leaves the fewest places empty."""
    if n_panels <= 4:
        return n_panels
    return min((4, 6, 5, 3), key=lambda columns: -n_panels % columns)


def draw(panels: list[Panel], density: np.ndarray, path: Path, dpi: int, comment: str) -> None:
    """
    :param panels: What to draw
    :param density: The true density on a grid
    :param path: Where to save the picture
    :param dpi: Pixels per inch; a panel is 2 inches wide
    :param comment: Stored in the file
    """
    columns = n_columns(len(panels))
    rows = -(-len(panels) // columns)
    size, gap, border = 2.0, 0.14, 0.22
    head = 0.56 if any(panel.promise and panel.promise.label for panel in panels) else 0.42
    width = 2 * border + columns * size + (columns - 1) * gap
    height = 2 * border + rows * (size + head) + (rows - 1) * gap
    figure = Figure(figsize=(width, height), facecolor=CARD)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = border + column * (size + gap)
        bottom = height - border - (row + 1) * (size + head) - row * gap
        axes = figure.add_axes((left / width, bottom / height, size / width, size / height))
        _draw_panel(axes, panel, density)
        head_panel(axes, panel.title, panel.subtitle, panel.promise.label if panel.promise else "")
    save_card(figure, path, dpi, comment)


def head_panel(axes: Axes, title: str, *lines: str) -> None:
    """
    :param axes: A panel of a card
    :param title: First line above it
    :param lines: What stands below the title; empty ones are left out
    """
    text: dict[str, Any] = {"transform": axes.transAxes, "va": "baseline", "ha": "left"}
    height = 1.04
    for line in filter(None, reversed(lines)):
        axes.text(0.0, height, line, color=MUTED, fontsize=7.5, **text)
        height += 0.07
    axes.text(0.0, height + 0.015, title, color=INK, fontsize=11, fontweight="bold", **text)


def save_card(figure: Figure, path: Path, dpi: int, comment: str) -> None:
    """
    Save a dark card. A palette is enough for one colour map and makes the file three times smaller.

    :param figure: What to save
    :param path: Where; folders are made
    :param dpi: Pixels per inch
    :param comment: Stored in the file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=dpi, facecolor=CARD, format="png")
    notes = PngInfo()
    notes.add_text("Comment", comment)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=notes)


def _draw_panel(axes: Axes, panel: Panel, density: np.ndarray) -> None:
    axes.set(xlim=(-1.0, 1.0), ylim=(-1.0, 1.0), xticks=[], yticks=[], facecolor=GLOW(0.0))
    axes.spines[:].set_visible(False)
    top = float(np.quantile(density, 0.998))
    if panel.samples is None:
        box = (-1.0, 1.0, -1.0, 1.0)
        axes.imshow(density, origin="lower", extent=box, cmap=GLOW, vmin=0.0, vmax=top, interpolation="bicubic")
        return
    if panel.promise is not None:
        law, axis = panel.promise, grid_axis(len(panel.promise.density))
        axes.contour(axis, axis, law.density, levels=[law.level], colors=INK, linewidths=0.6, alpha=0.45)
    # each sample has the colour of the density of samples around it, on the scale of the true density
    local = local_density(panel.samples)
    order = local.argsort()
    colours = GLOW(np.clip(FAINTEST + (1.0 - FAINTEST) * local / top, 0.0, 1.0))
    axes.scatter(panel.samples[order, 0], panel.samples[order, 1], s=2.0, c=colours[order], alpha=0.8, linewidths=0)
