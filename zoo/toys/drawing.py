"""Pictures of densities and samples in a square, on dark cards."""

import math
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
    """

    title: str
    subtitle: str
    samples: np.ndarray | None = None


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
    size, gap, head, border = 2.0, 0.14, 0.42, 0.22
    width = 2 * border + columns * size + (columns - 1) * gap
    height = 2 * border + rows * (size + head) + (rows - 1) * gap
    figure = Figure(figsize=(width, height), facecolor=CARD)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = border + column * (size + gap)
        bottom = height - border - (row + 1) * (size + head) - row * gap
        axes = figure.add_axes((left / width, bottom / height, size / width, size / height))
        _draw_panel(axes, panel, density)
        head_panel(axes, panel.title, panel.subtitle)
    save_card(figure, path, dpi, comment)


def head_panel(axes: Axes, title: str, subtitle: str) -> None:
    """
    :param axes: A panel of a card
    :param title: First line above it
    :param subtitle: Second line
    """
    text: dict[str, Any] = {"transform": axes.transAxes, "va": "baseline", "ha": "left"}
    axes.text(0.0, 1.125, title, color=INK, fontsize=11, fontweight="bold", **text)
    axes.text(0.0, 1.04, subtitle, color=MUTED, fontsize=7.5, **text)


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
    axis = grid_axis(len(density))
    axes.contour(axis, axis, density, levels=[highest_density_level(density, 0.9)], colors=INK, linewidths=0.5, alpha=0.3)
    # each sample has the colour of the density of samples around it, on the scale of the true density
    local = local_density(panel.samples)
    order = local.argsort()
    colours = GLOW(np.clip(FAINTEST + (1.0 - FAINTEST) * local / top, 0.0, 1.0))
    axes.scatter(panel.samples[order, 0], panel.samples[order, 1], s=2.0, c=colours[order], alpha=0.8, linewidths=0)


def highest_density_level(density: np.ndarray, mass: float) -> float:
    """
    :param density: On a grid
    :param mass: Between 0 and 1
    :return: The level above which the density has this mass
    """
    ordered = np.sort(density, axis=None)[::-1]
    return float(ordered[np.searchsorted(ordered.cumsum(), mass * ordered.sum())])


def local_density(samples: np.ndarray, bins: int = 100, radius: int = 4) -> np.ndarray:
    """
    :param samples: ``(n, 2)`` in [-1, 1]²
    :param bins: Cells per axis of the histogram
    :param radius: The histogram is smoothed by a binomial kernel of ``2 * radius + 1`` cells
    :return: Estimated density at each sample ``(n,)``
    """
    cell = np.clip(((samples + 1.0) * (0.5 * bins)).astype(int), 0, bins - 1)
    counts = np.zeros((bins, bins))
    np.add.at(counts, (cell[:, 0], cell[:, 1]), 1.0)
    kernel = np.array([math.comb(2 * radius, k) for k in range(2 * radius + 1)]) / 4.0**radius
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    return counts[cell[:, 0], cell[:, 1]] * (bins / 2.0) ** 2 / len(samples)
