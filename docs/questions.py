"""
The paper's questions (its figures 6 to 9) on a bandit: ``python docs/questions.py``, then ``--draw`` for the figures of
``guide/questions.md``. How much do methods lose as actions grow, and with fewer steps, another schedule, another backbone?

A bandit whose value is a sum over the coordinates of the action, each of which has two lobes of unequal height. Whatever the
dimension, every coordinate of ``exp(Q / temperature)`` has the same law, which is known. The methods are given ``Q`` (as with
``zoo/plot_toy.py --critic exact``), so that what is compared are ways of guidance, not critics. Rows go to
``docs/data/questions.csv``; those that are there are not trained again.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

from page_figure import INKS, page_figure
from rows import Rows

from sb3_diffusion.envs.bandits import BanditEnv, grid_axis
from sb3_diffusion.taxonomy import get_method
from zoo.figures import line_style, value_axes
from zoo.provenance import git_commit
from zoo.toys.training import Problem, begin, make_model, train

FOLDER = Path(__file__).resolve().parent
OUTPUT = FOLDER / "data" / "questions.csv"
KEY = ("algorithm", "n_particles", "variant", "action_dim", "seed")
FIELDS = ("updates", "distance", "value", "cpu_seconds", "commit")
ARMS = (("qsm", 0), ("dacer", 0), ("sdac", 64), ("sdac", 500))
"""Methods and their particles; 0 where a method has none."""
DEFAULT = "default"
VARIANTS: dict[str, dict[str, Any]] = {
    "2 steps": {"diffusion_steps": 2},
    "5 steps": {"diffusion_steps": 5},
    "10 steps": {"diffusion_steps": 10},
    DEFAULT: {},
    "linear": {"noise_schedule": "linear"},
    "SimBa": {"backbone": "simba", "net_arch": [128, 128]},
}
"""What a question changes about the policy -> its arguments; the default has 20 steps, the cosine schedule and the MLP."""

LOBES, SHARES, WIDTH = (-0.5, 0.5), (0.3, 0.7), 0.15
RESOLUTION = 2_000
DIMENSIONS = [2, 4, 8, 17, 38]
VARIANTS_DIM = 8
"""Coordinates with which the policy is changed."""
LABELS = {
    "value": "value per coordinate\n(0: uniform, 1: exp(Q / λ))",
    "distance": "distance of a coordinate's law\nfrom that of exp(Q / λ)",
}
AXES = {"action_dim": "coordinates of an action", "variant": f"change of the policy, {VARIANTS_DIM} coordinates"}
TICKS = {
    "2 steps": "2",
    "5 steps": "5",
    "10 steps": "10\nsteps",
    DEFAULT: "20",
    "linear": "linear\nschedule",
    "SimBa": "SimBa",
}


def coordinate_value(x: th.Tensor) -> th.Tensor:
    """
    :param x: Coordinates of actions
    :return: The log density of two lobes there, up to a constant
    """
    terms = [np.log(share) - (x - lobe).square() / (2.0 * WIDTH**2) for lobe, share in zip(LOBES, SHARES, strict=True)]
    return th.logsumexp(th.stack(terms), 0)


def action_value(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: ``(..., action_dim)``
    :return: Sum over the coordinates ``(...)``
    """
    return coordinate_value(actions).sum(-1)


class ExactLaw:
    """
    What every coordinate of ``exp(Q / temperature)`` is distributed like.

    :param temperature: In units of ``Q``
    """

    def __init__(self, temperature: float):
        self.axis = grid_axis(RESOLUTION)
        values = coordinate_value(th.as_tensor(self.axis)).numpy()
        mass = np.exp((values - values.max()) / temperature)
        self.mass = mass / mass.sum()
        self.uniform, self.value = float(values.mean()), float((self.mass * values).sum())

    @property
    def entropy(self) -> float:
        """In nats, of one coordinate."""
        return float(-(self.mass * np.log(np.maximum(self.mass, 1e-300) * RESOLUTION / 2.0)).sum())

    def distance(self, samples: np.ndarray) -> float:
        """
        Wasserstein distance of order one, the area between the two distribution functions; the mean over coordinates.

        :param samples: Actions ``(n, action_dim)``
        """
        ordered = np.sort(samples, axis=0)
        cumulated = np.stack([np.searchsorted(column, self.axis, side="right") for column in ordered.T]) / len(samples)
        return float(np.abs(cumulated - self.mass.cumsum()).mean() * 2.0)

    def relative_value(self, samples: np.ndarray) -> float:
        """
        :param samples: Actions ``(n, action_dim)``
        :return: Their mean value per coordinate, 0 for uniform ones and 1 for this law's
        """
        value = float(coordinate_value(th.as_tensor(samples).double()).mean())
        return (value - self.uniform) / (self.value - self.uniform)


def measure(arm: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """
    :param arm: Values of :data:`KEY`
    :param args: Command line
    :return: The row of the training
    """
    law, dimension = ExactLaw(args.temperature), arm["action_dim"]
    own = {"n_particles": arm["n_particles"] or 64, "seed": arm["seed"], "critic": "exact", "device": "cpu"}
    settings = argparse.Namespace(**{**vars(args), **own})
    start = time.process_time()
    problem = Problem(BanditEnv(action_value, dimension), action_value, dimension * law.entropy)
    model = make_model(get_method(arm["algorithm"]), settings, problem, VARIANTS[arm["variant"]])
    begin(model, settings, action_value)
    train(model, settings)
    # a chain for each, without the noise that DACER adds for exploration
    model.policy.n_action_candidates = 1
    with model.policy.evaluated_with("fresh"):
        samples, _ = model.predict(np.zeros((args.samples, 1), np.float32), deterministic=True)
    return {
        **arm,
        "updates": args.updates,
        "distance": law.distance(samples),
        "value": law.relative_value(samples),
        "cpu_seconds": round(time.process_time() - start, 1),
        "commit": (git_commit() or "unknown")[:7],
    }


def draw(rows: list[dict[str, str]], over: str, scheme: str, path: Path) -> None:
    """
    :param rows: The measurements
    :param over: What the horizontal axis shows: ``"action_dim"`` or ``"variant"``
    :param scheme: Colour scheme of the page
    :param path: Where to save the figure
    """
    ticks = list(VARIANTS) if over == "variant" else sorted({row[over] for row in rows}, key=int)
    n_joined = 1 + ticks.index(DEFAULT) if over == "variant" else len(ticks)
    with page_figure(path, scheme, (7.0, 3.2)) as figure:
        for axes, (name, label) in zip(figure.subplots(1, 2), LABELS.items(), strict=True):
            for number, (algorithm, particles) in enumerate(ARMS):
                own = [row for row in rows if (row["algorithm"], row["n_particles"]) == (algorithm, str(particles))]
                if own:
                    text = get_method(algorithm).name + (f", {particles} particles" if particles else "")
                    points = [(ticks.index(row[over]), float(row[name])) for row in own]
                    draw_arm(axes, points, n_joined, text, line_style(number, scheme))
            value_axes(axes, "", label)
            axes.set_xticks(range(len(ticks)), labels=[TICKS.get(tick, tick) for tick in ticks])
            axes.set_xlabel(AXES[over])
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def draw_arm(axes: Axes, points: list[tuple[int, float]], n_joined: int, text: str, style: dict[str, Any]) -> None:
    """
    The mean over seeds; the band goes from the lowest to the highest of them, since an interval of three says no more.

    :param axes: Where to draw
    :param points: Place on the horizontal axis, and what was measured
    :param n_joined: So many places have an order, and are joined by a line
    :param text: Name of the line
    :param style: Of the line
    """
    found = {place: [value for other, value in points if other == place] for place in sorted({place for place, _ in points})}
    joined = {place: values for place, values in found.items() if place < n_joined}
    axes.plot(list(joined), [np.mean(values) for values in joined.values()], label=text, marker="o", markersize=3.5, **style)
    ends = list(map(min, joined.values())), list(map(max, joined.values()))
    axes.fill_between(list(joined), *ends, color=style["color"], alpha=0.2, linewidth=0)
    for place in found.keys() - joined.keys():
        axes.plot([place, place], [min(found[place]), max(found[place])], color=style["color"], alpha=0.3, linewidth=4)
        axes.plot(place, np.mean(found[place]), color=style["color"], marker="o", markersize=3.5)


def arms(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """
    :param args: Command line
    :return: Values of :data:`KEY` for every training that is asked for
    """
    dimensions = args.action_dims or (DIMENSIONS if args.variants == [DEFAULT] else [VARIANTS_DIM])
    for seed, (algorithm, particles), variant, dimension in product(args.seeds, ARMS, args.variants, dimensions):
        if algorithm in args.algo and particles in args.n_particles:
            yield dict(zip(KEY, (algorithm, particles, variant, dimension, seed), strict=True))


def main() -> None:
    """Train what has no row yet, or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    parser.add_argument("--algo", nargs="+", choices=sorted({algo for algo, _ in ARMS}), default=["qsm", "dacer", "sdac"])
    parser.add_argument("--n-particles", type=int, nargs="+", default=[0, 64, 500], help="0 for methods that have none")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=[DEFAULT])
    parser.add_argument("--action-dims", type=int, nargs="+", help="default: 2 to 38; of other variants 8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--updates", type=int, default=5_000)
    parser.add_argument("--random-steps", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--samples", type=int, default=8_000)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    results = Rows(args.output, KEY, FIELDS)
    if args.draw:
        rows = list(results.read().values())
        growing = [row for row in rows if row["variant"] == DEFAULT]
        changed = [row for row in rows if int(row["action_dim"]) == VARIANTS_DIM and row["n_particles"] != "500"]
        for scheme in INKS:
            draw(growing, "action_dim", scheme, FOLDER / "_static" / f"questions_dimensions_{scheme}.svg")
            draw(changed, "variant", scheme, FOLDER / "_static" / f"questions_variants_{scheme}.svg")
        return
    for arm in arms(args):
        if arm not in results:
            results.put(row := measure(arm, args))
            print(row, flush=True)


if __name__ == "__main__":
    main()
