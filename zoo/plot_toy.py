"""
Draw what diffusion policies learn: ``python zoo/plot_toy.py`` (or ``python -m zoo.plot_toy``).

Trains every method on a two-dimensional bandit whose value function ``Q`` is known and draws samples of the policies beside
the density ``exp(Q / temperature) / Z``, which a maximum-entropy method should sample. With ``--critic exact`` the methods are
given ``Q`` and learn the policy alone, as in their theorems; with ``--critic learned`` they train as in any other environment.

With ``--offline`` the toy is a data set: methods that learn from data get its points and rewards, and their samples stand
beside the density of the data times ``exp(reward / temperature)``.
"""

import argparse
import inspect
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from stable_baselines3.common.logger import Logger

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.envs import TOYS, boltzmann_density, boltzmann_entropy, get_toy, grid_axis, make_toy
from sb3_diffusion.envs.bandits import ActionValue
from sb3_diffusion.taxonomy import GUIDANCE_MECHANISMS, Method, available_methods, get_method

from .datasets import toys as toy_data
from .training.options.command_line import CommandParser, whole_number
from .training.options.device import check_device
from .training.options.errors import mistakes

PROG = "plot_toy.py"

LEARNING_RATE = 5e-3
LEARNING_RATES = {"reparameterization": 1e-3}
"""Guidance mechanism -> learning rate where it differs: gradients that pass through the whole chain need smaller steps."""

OWN_ARGUMENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    # otherwise learned
    "DIME": lambda args: {"initial_alpha": args.temperature, "alpha_learning_rate": 0.0},
    # their particles are policy samples, a chain each; all rows of a batch are the same state, so that few are enough
    **dict.fromkeys(["QVPO", "DPMD", "FPMD"], lambda args: {"n_particles": max(1, args.n_particles // 4)}),
}
"""Method -> what its argument names alone do not tell."""

N_DECAYS = 20
"""The learning rate falls to zero in so many steps, so that the picture does not show one noisy iterate."""

BINS = 20
"""Cells per axis in which samples and density are compared."""


# -- training --------------------------------------------------------------------------------------------------------------


def method_arguments(method: Method, args: argparse.Namespace) -> dict[str, Any]:
    """
    What a method is given beside its defaults, chosen by the names of its arguments, so that a new method needs no entry.

    :param method: The method
    :param args: Command line
    """
    n_refreshes = 10
    knobs: dict[str, Any] = {
        # the temperature, in units of Q
        "temperature": args.temperature,
        "normalize_gradient": False,
        "reward_scale": 1.0,
        # methods that regulate the entropy instead are asked for that of the true density
        "target_entropy": boltzmann_entropy(get_toy(args.toy).value, args.temperature),
        "alpha_update_interval": 10,
        # mirror descent multiplies the policy by exp(Q / own temperature) at every refresh
        "initial_temperature": n_refreshes * args.temperature,
        "temperature_learning_rate": 0.0,
        "refresh_interval": max(1, args.updates // n_refreshes),
        "particle_noise": 0.0,
        # samples of the policy itself: neither noise for exploration nor a choice among several
        "exploration_noise": 0.0,
        "n_behavior_candidates": 1,
        # there is one state, whose value is bounded
        "n_entropy_states": 1,
        "v_min": -10.0,
        "v_max": 5.0,
        "n_particles": args.n_particles,
        "actor_learning_rate": None,
        **({"policy_delay": 1} if args.critic == "exact" else {}),
        **OWN_ARGUMENTS.get(method.name, lambda args: {})(args),
    }
    return {name: knob for name, knob in knobs.items() if name in inspect.signature(method.load()).parameters}


def make_model(method: Method, args: argparse.Namespace) -> OffPolicyDiffusion:
    """
    :param method: The method
    :param args: Command line
    :return: The method on the toy, untrained
    """
    algorithm = method.load()
    initial_rate = LEARNING_RATES.get(method.guidance, LEARNING_RATE)
    model: OffPolicyDiffusion = algorithm(
        "DiffusionPolicy",
        make_toy(args.toy),
        learning_rate=lambda progress: initial_rate * progress,
        learning_starts=args.random_steps,
        buffer_size=args.random_steps + args.updates,
        batch_size=args.batch_size,
        policy_kwargs={"net_arch": [args.width] * 3, "state_arch": (16,)},
        seed=args.seed,
        device=args.device,
        **method_arguments(method, args),
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def give_critic(model: OffPolicyDiffusion, value: ActionValue) -> None:
    """
    Let the critics of a model return a known value function, and leave their weights alone.

    :param model: The model
    :param value: The value function
    """
    untouched = next(model.critic.parameters())

    def q(actions: th.Tensor, context: th.Tensor, t: th.Tensor | None = None) -> th.Tensor:
        values = value(actions)
        return values.expand(2, *values.shape)

    def value_and_gradient(actions: th.Tensor, context: th.Tensor, reduction: str = "min") -> tuple[th.Tensor, th.Tensor]:
        with th.enable_grad():
            inputs = actions.detach().requires_grad_()
            values = value(inputs)
            (gradient,) = th.autograd.grad(values.sum(), inputs)
        return values.detach(), gradient

    def critic_loss(batch: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return 0.0 * untouched.sum(), {}

    model.critic_loss = critic_loss  # type: ignore[method-assign]
    for critic in (model.critic, model.critic_target):
        critic.q, critic.value_and_gradient = q, value_and_gradient  # type: ignore[method-assign]


def train(method: Method, args: argparse.Namespace) -> np.ndarray:
    """
    :param method: The method
    :param args: Command line
    :return: Actions of the trained policy ``(n, 2)``
    """
    model = make_model(method, args)
    if args.critic == "exact":
        model.learn(args.random_steps)  # fills the replay buffer, no updates yet
        give_critic(model, get_toy(args.toy).value)
        for decay in range(N_DECAYS):
            model._current_progress_remaining = 1.0 - decay / N_DECAYS
            model.train(args.updates * (decay + 1) // N_DECAYS - args.updates * decay // N_DECAYS, args.batch_size)
    else:
        model.learn(args.random_steps + args.updates)
    observations = np.zeros((args.samples, 1), np.float32)
    actions, _ = model.predict(observations, deterministic=False)
    return actions


def total_variation(samples: np.ndarray, density: np.ndarray) -> float:
    """
    Distance between the histograms of samples and of a density, with :data:`BINS` cells per axis: 0 equal, 1 disjoint.

    :param samples: ``(n, 2)``
    :param density: On a grid whose resolution is a multiple of :data:`BINS`
    """
    per_bin = len(density) // BINS
    mass = density.reshape(BINS, per_bin, BINS, per_bin).sum((1, 3))
    counts, *_ = np.histogram2d(samples[:, 1], samples[:, 0], bins=BINS, range=[[-1.0, 1.0]] * 2)
    return float(0.5 * np.abs(mass / mass.sum() - counts / counts.sum()).sum())


# -- drawing ---------------------------------------------------------------------------------------------------------------

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


def density_of(args: argparse.Namespace) -> np.ndarray:
    """
    :param args: Command line
    :return: What the methods should sample, on a grid
    """
    if args.offline:
        return toy_data.target_density(args.toy, args.temperature, 20 * BINS)
    return boltzmann_density(get_toy(args.toy).value, args.temperature, 20 * BINS)


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
        text: dict[str, Any] = {"transform": axes.transAxes, "va": "baseline", "ha": "left"}
        axes.text(0.0, 1.125, panel.title, color=INK, fontsize=11, fontweight="bold", **text)
        axes.text(0.0, 1.04, panel.subtitle, color=MUTED, fontsize=7.5, **text)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=dpi, facecolor=CARD, format="png")
    # a palette is enough for one colour map and makes the file three times smaller
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


# -- command line ----------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    names = [method.zoo_name for method in (*online_methods(), *toy_data.methods())]
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", nargs="+", choices=names, help="methods (default: all)")
    parser.add_argument("--offline", action="store_true", help="learn from points of the toy and their rewards")
    parser.add_argument("--toy", choices=list(TOYS), default="8gaussians", help="density")
    parser.add_argument("--critic", choices=["exact", "learned"], default="exact", help="given Q, or one learned from rewards")
    unit = f"temperature in units of Q (default: 1; with --offline {toy_data.TEMPERATURE})"
    parser.add_argument("--temperature", type=float, help=unit)
    parser.add_argument("--updates", type=whole_number(1), default=6000, help="updates per method")
    parser.add_argument("--random-steps", type=whole_number(1), default=2000, help="random actions before the first update")
    parser.add_argument("--batch-size", type=whole_number(1), default=256, help="transitions per update")
    parser.add_argument("--n-particles", type=whole_number(1), default=64, help="particles per state, where a method has them")
    parser.add_argument("--width", type=whole_number(1), default=64, help="width of the networks")
    parser.add_argument("--samples", type=whole_number(1), default=8000, help="samples per panel")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of every method")
    parser.add_argument("--device", default="cpu", help="PyTorch device")
    parser.add_argument("--dpi", type=whole_number(1), default=150, help="pixels per inch; a panel is two inches wide")
    parser.add_argument("--output", type=Path, default=Path("toy.png"), help="where to save the picture")
    args: argparse.Namespace = parser.parse_args()
    known = [method.zoo_name for method in (toy_data.methods() if args.offline else online_methods())]
    args.algo = known if args.algo is None else args.algo
    if other := set(args.algo) - set(known):
        setting = "do not learn" if args.offline else "learn"
        parser.error(f"--algo {' '.join(sorted(other))}: these {setting} from data; --offline is for those that do")
    if args.temperature is None:
        args.temperature = toy_data.TEMPERATURE if args.offline else 1.0
    return args


def online_methods() -> list[Method]:
    """Methods that are trained on the toy as an environment."""
    return [method for method in available_methods() if method.setting == "off-policy"]


def main() -> None:
    """Train, print the distances to the true density, draw."""
    args = parse_arguments()
    with mistakes(PROG, args.traceback):
        check_device(args.device)
        if args.output.suffix.lower() != ".png":
            raise ValueError(f"--output {args.output}: the picture is a PNG file; let the name end with .png")
        density = density_of(args)
    panels = [Panel("exp(Q / λ)", "True density")]
    if args.offline:
        points = toy_data.as_dataset(args.toy, args.samples, args.seed).actions.numpy()
        panels = [Panel("Data · exp(r / λ)", "True density"), Panel("Data", "What is learned from", points)]
    for name in args.algo:
        method = get_method(name)
        begin = time.perf_counter()
        samples = toy_data.train(method, args) if args.offline else train(method, args)
        distance = total_variation(samples, density)
        print(f"{method.name}: total variation {distance:.3f}, {time.perf_counter() - begin:.0f} s", flush=True)
        panels.append(Panel(method.name, GUIDANCE_MECHANISMS.get(method.guidance, "Baseline"), samples))
    draw(panels, density, args.output, args.dpi, comment=shlex.join(sys.argv))
    print(f"Saved as {args.output}")


if __name__ == "__main__":
    main()
