"""
Questions of the FlowRL paper (its figures 6, 7 and 9, and what its figure 8 asks) where the answer is known:
``python docs/paper_questions.py``.

A bandit whose value is the same function of every coordinate of the action, with two equal peaks in each: in ``d`` dimensions
2^d equally good actions. The methods are given the value and learn the policy alone. Rows go to
``docs/data/paper_questions.csv``; those that are there are not done again. Then the picture is drawn.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb3_diffusion.envs.bandits import BanditEnv
from sb3_diffusion.taxonomy import get_method
from zoo.benchmarking.rows import Rows
from zoo.figures import COLOURS
from zoo.provenance import git_commit
from zoo.toys.drawing import CARD, INK, MUTED, save_card
from zoo.toys.training import Problem, begin, make_model, train

DOCS = Path(__file__).resolve().parent
PEAK, STD, FLOOR = 0.5, 0.15, 0.02
"""Peaks of a coordinate at plus and minus this, their width, and a uniform share."""

METHODS = ("qsm", "sdac", "dacer")
KEY = ("method", "action_dim", "diffusion_steps", "noise_schedule", "backbone", "seed")
FIELDS = (*KEY, "value", "distance", "cpu_seconds", "commit")
DEFAULT: dict[str, Any] = {"action_dim": 6, "diffusion_steps": 20, "noise_schedule": "cosine", "backbone": "mlp"}
QUESTIONS: dict[str, list[Any]] = {
    "action_dim": [2, 6, 17, 38],
    "diffusion_steps": [2, 5, 10, 20],
    "noise_schedule": ["cosine", "linear"],
    "backbone": ["mlp", "simba"],
}
"""What is varied; everything else is :data:`DEFAULT`. 6, 17 and 38 are the dimensions of HalfCheetah, Humanoid and the dog."""


def density(coordinate: th.Tensor) -> th.Tensor:
    """Density of one coordinate, normalised but for the little that lies outside of the box."""
    peaks = sum((-0.5 * ((coordinate - centre) / STD).square()).exp() for centre in (-PEAK, PEAK))
    return (1.0 - FLOOR) * peaks / (2.0 * STD * (2.0 * np.pi) ** 0.5) + 0.5 * FLOOR


def value(actions: th.Tensor) -> th.Tensor:
    """``Q``: at temperature 1 every coordinate has that density, independently of the others."""
    return density(actions).log().sum(-1)


class Answer(NamedTuple):
    """
    What is known of one coordinate.

    :param uniform: Mean value of uniform actions
    :param target: Mean value under ``exp(Q)``
    :param best: Largest value
    :param entropy: Entropy of ``exp(Q)``
    :param masses: Share of every cell of a histogram
    """

    uniform: float
    target: float
    best: float
    entropy: float
    masses: np.ndarray


def answer(n_cells: int = 40, resolution: int = 4000) -> Answer:
    """By quadrature."""
    axis = (th.arange(resolution, dtype=th.float64) + 0.5) * (2.0 / resolution) - 1.0
    law = density(axis)
    shares = law / law.sum()
    logs = law.log()
    entropy = -float((shares * (shares * resolution / 2.0).log()).sum())
    masses = shares.view(n_cells, -1).sum(1).numpy()
    return Answer(float(logs.mean()), float((shares * logs).sum()), float(logs.max()), entropy, masses)


def arms(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One seed of everything after the other; the default stands in the first question only."""
    for seed in seeds:
        for number, (question, settings) in enumerate(QUESTIONS.items()):
            for setting in settings:
                if number == 0 or setting != DEFAULT[question]:
                    yield from ({"method": method, **DEFAULT, question: setting, "seed": seed} for method in METHODS)


def measure(arm: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """
    :param arm: What is trained
    :param args: Command line
    :return: The row: ``value`` is 0 for uniform actions and 1 for ``exp(Q)``, ``distance`` the mean over coordinates of the
        total variation between samples and ``exp(Q)``
    """
    begun, known, dim = time.process_time(), answer(), arm["action_dim"]
    args.seed = arm["seed"]
    problem = Problem(BanditEnv(value, dim), value, dim * known.entropy)
    policy = {name: arm[name] for name in ("diffusion_steps", "noise_schedule")}
    model = make_model(get_method(arm["method"]), args, problem, backbone={"pi": arm["backbone"]}, **policy)
    begin(model, args, value)
    actions = train(model, args)
    mean = float(value(th.as_tensor(actions)).mean()) / dim
    cells = np.clip(((actions + 1.0) * 0.5 * len(known.masses)).astype(int), 0, len(known.masses) - 1)
    shares = np.stack([np.bincount(cells[:, i], minlength=len(known.masses)) for i in range(dim)]) / len(actions)
    return {
        **arm,
        "value": (mean - known.uniform) / (known.target - known.uniform),
        "distance": float(0.5 * np.abs(shares - known.masses).sum(1).mean()),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "commit": (git_commit() or "unknown")[:7],
    }


def values_of(rows: list[dict[str, str]], method: str, question: str, setting: Any, quantity: str) -> list[float]:
    """
    :param rows: Of the csv file
    :param method: Name of a method
    :param question: What is varied
    :param setting: Its value; everything else is :data:`DEFAULT`
    :param quantity: ``"value"`` or ``"distance"``
    :return: One number per seed
    """
    wanted = {"method": method, **{name: str(default) for name, default in DEFAULT.items()}, question: str(setting)}
    return [float(row[quantity]) for row in rows if all(row[name] == wanted[name] for name in wanted)]


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """
    Means over seeds, and from the smallest to the largest of them.

    :param rows: Of the csv file
    :param path: Where to save the picture
    """
    titles = {"action_dim": "Dimensions of the action", "diffusion_steps": "Diffusion steps"}
    labels = {"value": "Value (1: exp(Q))", "distance": "Distance from exp(Q)"}
    figure = Figure(figsize=(7.2, 5.2), facecolor=CARD, layout="constrained")
    places = figure.subplots(2, 2, sharex="col", sharey="row")
    for (row, quantity), (column, question) in product(enumerate(labels), enumerate(titles)):
        axes, settings = places[row, column], QUESTIONS[question]
        for colour, method in zip(COLOURS["dark"], METHODS, strict=False):
            found = [values_of(rows, method, question, setting, quantity) for setting in settings]
            ticks = [tick for tick, values in enumerate(found) if values]
            means = [float(np.mean(found[tick])) for tick in ticks]
            axes.plot(ticks, means, color=colour, marker="o", label=get_method(method).name, linewidth=1.8)
            axes.vlines(ticks, [min(found[tick]) for tick in ticks], [max(found[tick]) for tick in ticks], color=colour)
        axes.set(facecolor=CARD, xticks=range(len(settings)), xticklabels=settings)
        axes.tick_params(colors=MUTED)
        axes.spines[:].set_color(MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(titles[question] if row == 1 else "", color=INK)
        axes.set_ylabel(labels[quantity] if column == 0 else "", color=INK)
    places[0, 0].legend(facecolor=CARD, edgecolor=MUTED, labelcolor=INK, fontsize=9)
    save_card(figure, path, 150, comment="docs/paper_questions.py")


def summary(rows: list[dict[str, str]], quantity: str) -> str:
    """
    :param rows: Of the csv file
    :param quantity: ``"value"`` or ``"distance"``
    :return: Markdown table: mean over seeds, smallest and largest
    """
    lines = [
        "| Setting | " + " | ".join(get_method(method).name for method in METHODS) + " |",
        "|---|" + "---:|" * len(METHODS),
    ]
    for question, settings in QUESTIONS.items():
        for setting in settings:
            cells = [values_of(rows, method, question, setting, quantity) for method in METHODS]
            shown = [f"{np.mean(cell):.2f} ({min(cell):.2f} to {max(cell):.2f})" if cell else "" for cell in cells]
            lines.append(f"| `{question}={setting}` | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what has no row yet, then draw and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n-particles", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--output", type=Path, default=DOCS / "data" / "paper_questions.csv")
    parser.add_argument("--picture", type=Path, default=DOCS / "_static" / "paper_questions.png")
    args = parser.parse_args(namespace=argparse.Namespace(critic="exact", temperature=1.0, random_steps=2000, samples=8000))
    args.device = "cpu"
    table = Rows(args.output, FIELDS, KEY)
    for arm in arms(args.seeds):
        if not table.has(arm):
            table.add([row := measure(arm, args)])
            print(row, flush=True)
    rows = table.read()
    draw(rows, args.picture)
    for quantity in ("value", "distance"):
        print(f"\n{quantity}\n{summary(rows, quantity)}")


if __name__ == "__main__":
    main()
