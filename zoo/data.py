"""
Data sets to learn from: ``python zoo/data.py list``, then ``download``, ``make``, ``inspect``, ``convert`` or ``collect``.

They lie in the folder that the environment variable SB3_DIFFUSION_DATA names, or in ~/.sb3_diffusion/datasets.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from sb3_diffusion.data.stored.catalogue import KNOWN, OGBENCH_RECIPES, find, folder, how_to_get, ogbench, places
from sb3_diffusion.data.stored.loading import load_dataset
from sb3_diffusion.data.stored.readers.files import require

from .training.options.command_line import CommandParser, whole_number
from .training.options.errors import fail, refuse

PROG = "data.py"
MINARI = "minari:"


def make_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listing = commands.add_parser("list", help="show the names of data sets")
    listing.set_defaults(function=list_command)
    listing.add_argument("part", nargs="?", default="", help="only names that contain this")

    download = commands.add_parser("download", help="fetch the file of a data set; goes on where it stopped")
    download.set_defaults(function=download_command)
    download.add_argument("names", nargs="+", metavar="NAME", help="names, or minari:ID")
    download.add_argument("--url", help="fetch it from here instead, such as a mirror")
    download.add_argument("--sha256", help="checksum that the file has to have")

    make = commands.add_parser("make", help="make a data set: agents rolled out, OGBench's oracles")
    make.set_defaults(function=make_command)
    make.add_argument("name", metavar="NAME", help="name of the data set")
    make.add_argument("-o", "--output", type=Path, help="the file (default: where the name is looked for)")
    make.add_argument(
        "--rows", type=whole_number(10), help="transitions (default: 100,000 of a robot, 20,000 of the pendulum)"
    )
    make.add_argument("--episodes", type=whole_number(1), help="episodes of OGBench's data (default: 40 or 100)")
    make.add_argument("--agents", type=Path, help="folder with RL Zoo's agents (default: from the Hub)")

    reading = CommandParser(add_help=False)
    reading.add_argument("data", metavar="DATA", help="name, minari:ID, file or folder")
    reading.add_argument("--max-episode-steps", type=whole_number(1), help="time limit, if the file does not say it")
    reading.add_argument("--keep-timeouts", action="store_true", default=None, help="keep steps at which a limit struck")
    reading.add_argument("--clip-actions", action="store_true", default=None, help="clip actions instead of refusing them")
    reading.add_argument("--task", type=whole_number(1), help="task of OGBench's whose rewards are used")
    reading.add_argument("--observation-keys", nargs="+", help="keys of Minari's Dict observations")
    reading.add_argument("--concatenate", action="store_true", default=None, help="join these keys to one vector")

    inspect = commands.add_parser("inspect", parents=[reading], help="say what is in a data set, and draw it")
    inspect.set_defaults(function=inspect_command)
    inspect.add_argument("-o", "--output", type=Path, help="the figure (default: <name of the data>.png)")
    inspect.add_argument("--no-figure", action="store_true", help="do not draw")

    convert = commands.add_parser("convert", parents=[reading], help="write a data set in another format")
    convert.set_defaults(function=convert_command)
    convert.add_argument("output", type=Path, help="the file, .npz or .hdf5")

    collect = commands.add_parser("collect", help="roll an agent out and keep what it does")
    collect.set_defaults(function=collect_command)
    collect.add_argument("--env", required=True, help="environment id")
    collect.add_argument("-n", "--n-timesteps", type=whole_number(1), required=True, help="number of steps")
    collect.add_argument("-o", "--output", type=Path, required=True, help="the file, .npz or .hdf5")
    collect.add_argument("--agent", type=Path, help="saved agent of this library (default: random actions)")
    collect.add_argument("--deterministic", action="store_true", help="act without noise")
    collect.add_argument("--seed", type=whole_number(0), default=0, help="seed")
    collect.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
    return parser


def list_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    names = [*KNOWN, *(f"{recipe}-v0" for recipe in OGBENCH_RECIPES)]
    chosen = [name for name in names if args.part in name]
    if not chosen:
        raise ValueError(f"No name contains {args.part!r}; python zoo/data.py list shows all of them.")
    for name in chosen:
        known = ogbench(name) or find(name)
        state = "here" if any(place.is_file() for place in places(known)) else "make" if known.recipe else "download"
        state = "-" if state == "download" and not known.url else state
        print(f"{name:<34} {known.env_id or '-':<38} {state}")
    print(f"Folder: {folder()}. Other sets of OGBench follow its names, Minari's are minari:ID.")


def download_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    from .datasets.downloading import download

    if len(args.names) > 1 and (args.url or args.sha256):
        raise ValueError("--url and --sha256 are for one file; give one NAME.")
    for name in args.names:
        if name.startswith(MINARI):
            require("minari", "minari", "Downloading from Minari").download_dataset(name.removeprefix(MINARI))
            continue
        known = ogbench(name) or find(name)
        url, target = args.url or known.url, places(known)[0]
        if url is None:
            raise ValueError(f"{known.name} cannot be downloaded. {how_to_get(known)}")
        here = [place for place in places(known) if place.is_file()]
        print(f"{known.name} is here already: {here[0]}" if here else f"Saved as {download(url, target, sha256=args.sha256)}")


def make_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    known = ogbench(args.name) or find(args.name)
    if not known.recipe:
        raise ValueError(f"{known.name} cannot be made here. {how_to_get(known)}")
    target = args.output or places(known)[0]
    if target.exists():
        raise ValueError(f"{target} exists; delete it, or name another file with --output.")
    if known.recipe == "oracles":
        from .datasets.oracles import make as make_oracle

        files = make_oracle(known, target, n_episodes=args.episodes)
    elif known.recipe == "bundled":
        from .datasets.bundled import N_ROWS
        from .datasets.bundled import make as make_bundled
        from .hub.published import PRETRAINED

        files = [make_bundled(known, target, PRETRAINED, n_rows=args.rows or N_ROWS)]
    else:
        from .datasets.robots import N_ROWS
        from .datasets.robots import make as make_robot

        files = [make_robot(known, target, n_rows=args.rows or N_ROWS, agents=args.agents)]
    print("\n".join(f"Saved as {file}" for file in files))


def _load(args: argparse.Namespace) -> Any:
    names = ("max_episode_steps", "keep_timeouts", "clip_actions", "task", "observation_keys", "concatenate")
    return load_dataset(args.data, **{name: getattr(args, name) for name in names if getattr(args, name) is not None})


def inspect_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    from .datasets.description import describe, draw
    from .figures import check_output, save

    if args.output is not None:
        check_output(args.output)
    dataset = _load(args)
    print("\n".join(describe(dataset)))
    if not args.no_figure:
        output = args.output or Path(f"{re.sub(r'[^A-Za-z0-9._-]+', '-', dataset.source.name)}.png")
        save(draw(dataset), output)
        print(f"Saved as {output}")


def convert_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    dataset = _load(args)
    print(f"Saved as {dataset.save(args.output)}: {len(dataset):,} transitions")


def collect_command(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    """
    from sb3_diffusion.checkpoints.agents import load_agent
    from sb3_diffusion.data.stored.dataset import OfflineDataset
    from sb3_diffusion.data.stored.writing import check_suffix

    from .training.options.registry import check_environment, import_packages

    check_suffix(args.output)
    import_packages(args.gym_packages)
    check_environment(args.env)
    agent = None if args.agent is None else load_agent(args.agent, device="cpu")
    dataset = OfflineDataset.collect(
        args.env, agent, args.n_timesteps, deterministic=args.deterministic, seed=args.seed, progress_bar=True
    )
    print(f"Saved as {dataset.save(args.output)}: {len(dataset):,} transitions, {dataset.n_episodes:,} episodes")


def main() -> None:
    """Run the command."""
    args = make_parser().parse_args()
    try:
        args.function(args)
        sys.stdout.flush()  # here, a reader that went away can still be told from a mistake
    except Exception as error:
        refuse(PROG, error, args.traceback)
    except KeyboardInterrupt:
        fail(PROG, "interrupted; a download goes on from here when the command is repeated.")


if __name__ == "__main__":
    main()
