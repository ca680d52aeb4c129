"""Pictures of ways through a field with discs, on dark cards."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Circle

from sb3_diffusion.envs.tensor.tasks.point_mass import GOAL, GOAL_RADIUS, OBSTACLES, WALLS

from .drawing import CARD, GLOW, head_panel, n_columns, save_card
from .two_ways import Episodes

WAYS = {"above": "#f58466", "below": "#6aa5f8", None: "#8f98b3"}
DISC = "#3a4060"
DRAWN = 60
"""Episodes that are drawn; more would hide each other."""


@dataclass(frozen=True)
class Panel:
    """
    One field of the picture.

    :param title: First line above it
    :param subtitle: Second line
    :param episodes: What is drawn
    """

    title: str
    subtitle: str
    episodes: Episodes


def draw_paths(panels: list[Panel], path: Path, dpi: int, comment: str) -> None:
    """
    :param panels: What to draw
    :param path: Where to save the picture
    :param dpi: Pixels per inch; a panel is 3 inches wide
    :param comment: Stored in the file
    """
    columns = min(3, n_columns(len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.3 + 3.1 * columns, 0.2 + 2.5 * rows), facecolor=CARD)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set(
            xlim=(-WALLS[0], WALLS[0]), ylim=(-WALLS[1], WALLS[1]), xticks=[], yticks=[], aspect="equal", facecolor=GLOW(0.0)
        )
        axes.spines[:].set_visible(False)
        for x, y, radius in OBSTACLES:
            axes.add_patch(Circle((x, y), radius, color=DISC))
        axes.add_patch(Circle(GOAL, GOAL_RADIUS, color="#3f7d58"))
        for positions, way in list(zip(panel.episodes.observations, panel.episodes.arrivals(), strict=True))[:DRAWN]:
            axes.plot(positions[:, 0], positions[:, 1], color=WAYS[way], linewidth=0.7, alpha=0.6)
        head_panel(axes, panel.title, panel.subtitle)
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.92, 0.06, 0.3)
    save_card(figure, path, dpi, comment)
