"""
Publish an agent: ``python zoo/push_to_hub.py --algo dacer --env Hopper-v5 -orga ORGANIZATION``
(or ``python -m zoo.push_to_hub ...``).

The agent is evaluated and recorded, and sent together with its settings, its scores and a page that describes it. The
repository is private unless ``--public`` is given. ``--dry-run`` does all of that except sending.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .training.options.registry import check_command_line

if __name__ == "__main__":  # names are checked before the imports below, which take seconds
    check_command_line("push_to_hub.py", sys.argv[1:])

import torch as th

from sb3_diffusion.envs import quiet_mujoco
from sb3_diffusion.printable import printable

from .hub.client import Repository, check_secrets, contents, push, redact
from .hub.publication import write_repository
from .hub.published import agent_name
from .hub.repository import read_results
from .training.options.command_line import Assignments, CommandParser, whole_number
from .training.options.device import check_device
from .training.options.errors import fail, refuse
from .training.options.registry import register_algorithms
from .training.options.which_agent import add_options, chosen
from .training.runs.protocols import protocol_of
from .training.runs.saved_agents import find_run
from .training.runs.started_with import changes
from .training.runs.trust import check_own

quiet_mujoco()

PROG = "push_to_hub.py"


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's script, with a few options more."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    add_options(parser, "publish")
    parser.add_argument("-orga", "--organization", help="user or organisation on the Hub (required unless --dry-run)")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: <algo>-<env>)")
    parser.add_argument("-m", "--commit-message", default="Upload agent", help="commit message")
    parser.add_argument("--revision", help="branch to send to, created if it does not exist (default: main)")
    parser.add_argument("--public", action="store_true", help="let everybody see the repository (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="write the folder and list what would be sent, send nothing")
    parser.add_argument("--output", type=Path, help="write the agent's folder in there (default: <folder of the run>/hub)")
    parser.add_argument("--as-written", action="store_true", help="send the folder that an earlier call has written")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the files of a run of others run code")
    parser.add_argument("--n-eval-episodes", type=whole_number(1), default=10, help="episodes of each evaluation")
    parser.add_argument("--n-envs", type=whole_number(1), default=1, help="number of environments of the evaluations")
    parser.add_argument("-n", "--n-timesteps", type=whole_number(1), default=1000, help="length of the video")
    parser.add_argument("--video-kb", type=whole_number(1), default=2000, help="largest size of the video in kB")
    parser.add_argument("--no-video", "--no-render", action="store_true", help="do not record a video")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of the evaluations")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("--num-threads", type=whole_number(1, {-1: "the default"}), default=-1, help="threads of PyTorch")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")
    parser.add_argument("--env-kwargs", nargs="+", action=Assignments, help="arguments of the environment")
    return parser.parse_args()


def prepare(args: argparse.Namespace, repository: Repository | None) -> Path:
    """
    Write the agent's folder, or find the one that was written before.

    :param args: Command line
    :param repository: Repository on the Hub, if it is known
    :return: The agent's folder
    """
    run = find_run(args.folder, args.algo, args.env, args.exp_id, chosen(args), env_kwargs=args.env_kwargs)
    consequence = f"publishing unpickles {run.archive} and obeys its settings, which can run any code"
    check_own(run.folder, args.trust_remote_code, consequence)
    output = args.output or run.folder / "hub"
    if args.as_written:
        return output / agent_name(args.algo, args.env)
    print(f"Publishing {run.archive}")
    if edited := changes(run.settings):
        what = printable(redact("; ".join(edited)))
        print(f"Its settings were edited later ({what}); those that it was trained with are published.")
    folder = write_repository(
        run,
        output,
        n_eval_episodes=args.n_eval_episodes,
        n_envs=args.n_envs,
        seed=args.seed,
        device=args.device,
        video=not args.no_video,
        video_steps=args.n_timesteps,
        video_bytes=1000 * args.video_kb,
        repo_id=repository.id if repository else None,
    )
    for evaluation in read_results(folder)["evaluations"]:
        print(
            f"Mean reward: {evaluation['mean_reward']:.2f} +/- {evaluation['std_reward']:.2f} "
            f"over {protocol_of(evaluation).episodes(evaluation['n_eval_episodes'])}"
        )
    return folder


def main() -> None:
    """Write the agent's folder and send it."""
    args = parse_arguments()
    check_command_line(PROG, sys.argv[1:])
    register_algorithms()
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    if args.organization is None and not args.dry_run:
        fail(PROG, "-orga is missing: the user or organisation on the Hub to publish for; --dry-run works without.")
    try:
        check_device(args.device)
        name = args.repo_name or agent_name(args.algo, args.env)
        repository = Repository(args.organization, name) if args.organization else None
        check_secrets({"--commit-message": args.commit_message, "--revision": args.revision or "", "--repo-name": name})
        folder = prepare(args, repository)
        trusted = args.trust_remote_code or not (args.as_written and args.output)  # else it need not be of this run
        sizes = {
            path: source.stat().st_size if isinstance(source, Path) else len(source)
            for path, source in sorted(contents(folder, args.algo, args.env, trusted).items())
        }
        print(f"{'Would send' if args.dry_run else 'Sending'} {folder}{f' to {repository.url}' if repository else ''}:")
        for path, size in sizes.items():
            print(f"{size:>10} {path}")
        if args.dry_run or repository is None:
            return
        options = {"message": args.commit_message, "public": args.public, "revision": args.revision, "trusted": trusted}
        commit = push(folder, repository, args.algo, args.env, **options)
    except Exception as error:
        refuse(PROG, error, args.traceback)
    except KeyboardInterrupt:
        fail(PROG, "interrupted; nothing was published. The same command with --as-written repeats without a new evaluation.")
    print(f"Published as {repository.url}, revision {commit}")


if __name__ == "__main__":
    main()
