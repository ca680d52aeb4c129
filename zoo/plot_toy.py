"""
Draw what diffusion policies learn: ``python zoo/plot_toy.py`` (or ``python -m zoo.plot_toy``).

Trains every method on a two-dimensional bandit whose value function ``Q`` is known and draws samples of the policies beside
the density ``exp(Q / temperature) / Z``, which a maximum-entropy method should sample. With ``--critic exact`` the methods are
given ``Q`` and learn the policy alone, as in their theorems; with ``--critic learned`` they train as in any other environment.

With ``--offline`` the toy is a data set: methods that learn from data get its points and rewards, and their samples stand
beside the density of the data times ``exp(reward / temperature)``.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import numpy as np

from sb3_diffusion.envs import TOYS, boltzmann_density, get_toy
from sb3_diffusion.taxonomy import GUIDANCE_MECHANISMS, Method, available_methods, get_method

from .datasets import toys as toy_data
from .toys.densities import BINS, highest_density_level, total_variation
from .toys.drawing import Panel, draw
from .toys.promises import Promise, promise_of
from .toys.training import begin, make_model, toy_problem, train
from .training.options.command_line import CommandParser, whole_number
from .training.options.device import check_device
from .training.options.errors import mistakes

PROG = "plot_toy.py"
UPDATES = 20_000
"""Enough for every method to come to its fixed point."""


def density_of(args: argparse.Namespace) -> np.ndarray:
    """
    :param args: Command line
    :return: What the methods should sample, on a grid
    """
    if args.offline:
        return toy_data.target_density(args.toy, args.temperature, 20 * BINS)
    return boltzmann_density(get_toy(args.toy).value, args.temperature, 20 * BINS)


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
    updates = f"updates per method (default: {UPDATES:,}; with --offline {toy_data.UPDATES:,})"
    parser.add_argument("--updates", type=whole_number(1), help=updates)
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
    if args.updates is None:
        args.updates = toy_data.UPDATES if args.offline else UPDATES
    return args


def online_methods() -> list[Method]:
    """Methods that are trained on the toy as an environment."""
    return [method for method in available_methods() if method.setting == "off-policy"]


def train_online(method: Method, args: argparse.Namespace, density: np.ndarray) -> tuple[np.ndarray, Promise]:
    """Samples of the trained policy, and what they should be."""
    problem = toy_problem(args)
    model = make_model(method, args, problem)
    begin(model, args, problem.value)
    promise = promise_of(method, model, args, density)  # mirror descent starts from the policy of now
    return train(model, args), promise


def train_offline(method: Method, args: argparse.Namespace, density: np.ndarray) -> tuple[np.ndarray, Promise]:
    """The same for a method that learns from data."""
    return toy_data.train(method, args), Promise("", density, highest_density_level(density, 0.9))


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
        samples, promise = train_offline(method, args, density) if args.offline else train_online(method, args, density)
        distance = f"total variation {total_variation(samples, density):.3f}"
        if promise.density is not density:
            distance += f" ({total_variation(samples, promise.density):.3f} from {promise.label})"
        print(f"{method.name}: {distance}, {time.perf_counter() - begin:.0f} s", flush=True)
        panels.append(Panel(method.name, GUIDANCE_MECHANISMS.get(method.guidance, "Baseline"), samples, promise))
        draw(panels, density, args.output, args.dpi, comment=shlex.join(sys.argv))  # what is there, should the rest be stopped
    print(f"Saved as {args.output}")


if __name__ == "__main__":
    main()
