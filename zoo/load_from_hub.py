"""
Download an agent: ``python zoo/load_from_hub.py --algo dacer --env Hopper-v5 -orga ORGANIZATION``
(or ``python -m zoo.load_from_hub ...``).

It is stored as ``hub/ORGANIZATION/<algo>-<env>/``, apart from the runs of your own, because whatever is in one of these is
loaded by unpickling. ``zoo/enjoy.py --from-hub`` acts with it. Downloading runs nothing.
"""

import argparse
import shlex
import sys
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .training.options.registry import check_command_line

if __name__ == "__main__":  # names are checked before the imports below, which take seconds
    check_command_line("load_from_hub.py", sys.argv[1:])

from sb3_diffusion.checkpoints.agents import why_unsafe
from sb3_diffusion.printable import printable

from .hub.client import Repository, download
from .hub.published import agent_name
from .hub.repository import read_results
from .training.options.command_line import CommandParser
from .training.options.errors import fail, refuse
from .training.options.registry import register_algorithms

PROG = "load_from_hub.py"
FOLDER = "hub"


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's script, with a few options more."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("-orga", "--organization", required=True, help="user or organisation on the Hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: <algo>-<env>)")
    parser.add_argument("-f", "--folder", type=Path, default=Path(FOLDER), help="folder for downloaded agents")
    parser.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")
    return parser.parse_args()


def fetch(repository: Repository, algo: str, env_id: str, folder: Path, revision: str | None) -> Path:
    """
    Download an agent and say what has come.

    :param repository: Where from
    :param algo: Algorithm
    :param env_id: Environment
    :param folder: Folder for downloaded agents
    :param revision: Branch, tag or commit; by default the newest
    :return: Folder of the agent
    """
    target = folder / repository.organization / repository.name
    print(f"Downloading {repository.url}")
    commit = download(repository, algo, env_id, target, revision=revision)
    print(f"Revision {commit} is in {target}")
    scores = read_results(target).get("mean_reward"), read_results(target).get("std_reward")
    if all(isinstance(score, int | float) for score in scores):
        print(f"Its author reports a mean reward of {scores[0]:.2f} +/- {scores[1]:.2f}")
    return target


def main() -> None:
    """Download an agent and say how to act with it."""
    args = parse_arguments()
    check_command_line(PROG, sys.argv[1:])
    register_algorithms()
    name = args.repo_name or agent_name(args.algo, args.env)
    try:
        folder = fetch(Repository(args.organization, name), args.algo, args.env, args.folder, args.revision)
        reason = why_unsafe(folder / f"{agent_name(args.algo, args.env)}.zip")
    except Exception as error:
        refuse(PROG, error, args.traceback)
    except KeyboardInterrupt:
        fail(PROG, "interrupted; what was there before is unchanged.")
    words = ["python", "zoo/enjoy.py", "--algo", args.algo, "--env", args.env, "--from-hub", "-orga", args.organization]
    words += ["--repo-name", args.repo_name] if args.repo_name else []
    words += ["--hub-folder", str(args.folder)] if args.folder != Path(FOLDER) else []
    if reason is not None:
        print(f"It {reason}, so that it can be loaded by unpickling only, which can run any code in it")
        words.append("--trust-remote-code")
    print(f"Watch it with: {printable(shlex.join(words))}")


if __name__ == "__main__":
    main()
