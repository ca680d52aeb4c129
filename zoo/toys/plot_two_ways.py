"""
Draw which of two equally good ways policies take: ``python zoo/toys/plot_two_ways.py`` (or ``python -m
zoo.toys.plot_two_ways``).

A point has to pass a disc, above or below. Every method that can imitates demonstrations of both ways and then learns from
what it does; the others learn from nothing. The picture shows episodes of both policies with the randomness of training, and
the command prints how many of them arrived, and which way.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from sb3_diffusion.core.behavior.pretraining import ImitatesFirst
from sb3_diffusion.taxonomy import available_methods

from ..training.options.command_line import CommandParser, whole_number
from ..training.options.errors import mistakes
from .paths import Panel, draw_paths
from .two_ways import Episodes, demonstrations, make_model, play_policy

PROG = "plot_two_ways.py"
FROM_NOTHING = 5
"""A method that cannot imitate has so many times the steps."""
METHODS = {method.zoo_name: method for method in available_methods() if method.setting == "on-policy"}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", nargs="+", choices=list(METHODS), default=list(METHODS), help="methods (default: all)")
    parser.add_argument("--demonstrations", type=whole_number(1), default=1000, help="episodes that are shown")
    parser.add_argument("--pretrain-updates", type=whole_number(1), default=6000, help="updates of the imitation")
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        default=60_000,
        help=f"steps of the learning that follows; {FROM_NOTHING} times as many from nothing",
    )
    parser.add_argument("--n-envs", type=whole_number(1), default=128, help="environments")
    parser.add_argument("--episodes", type=whole_number(1), default=200, help="episodes that are counted; 60 are drawn")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of everything")
    parser.add_argument("--dpi", type=whole_number(1), default=150, help="pixels per inch")
    parser.add_argument("--output", type=Path, default=Path("two_ways.png"), help="where to save the picture")
    args: argparse.Namespace = parser.parse_args()
    return args


def describe(episodes: Episodes) -> str:
    """
    :param episodes: What a policy did
    :return: How many arrived, by their way
    """
    ways = episodes.arrivals()
    shares = {way: 100 * ways.count(way) / len(ways) for way in ("above", "below")}
    return f"{shares['above']:.0f} % above, {shares['below']:.0f} % below"


def main() -> None:
    """Imitate, learn, count, draw."""
    args = parse_arguments()
    with mistakes(PROG, args.traceback):
        if args.output.suffix.lower() != ".png":
            raise ValueError(f"--output {args.output}: the picture is a PNG file; let the name end with .png")
    shown, data = demonstrations(args.demonstrations, args.seed)
    panels = [Panel("Demonstrations", describe(shown), shown)]
    print(f"demonstrations: {panels[0].subtitle}", flush=True)
    for name in args.algo:
        method, begin = METHODS[name], time.perf_counter()
        model = make_model(method, args.n_envs, args.seed)
        stages = []
        if isinstance(model, ImitatesFirst):
            model.pretrain(data, args.pretrain_updates)
            stages.append(("imitation", play_policy(model, args.episodes, args.seed + 1)))
        after, times = ("tuned", 1) if stages else ("from nothing", FROM_NOTHING)
        model.learn(times * args.steps, log_interval=None)  # type: ignore[arg-type]  # nothing is logged
        stages.append((after, play_policy(model, args.episodes, args.seed + 1)))
        for stage, episodes in stages:
            panels.append(Panel(f"{method.name}, {stage}", describe(episodes), episodes))
            print(f"{panels[-1].title}: {panels[-1].subtitle}", flush=True)
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    draw_paths(panels, args.output, args.dpi, shlex.join(sys.argv))
    print(f"Saved as {args.output}")


if __name__ == "__main__":
    main()
