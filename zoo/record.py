"""
Record an agent of your own runs as a video: ``python zoo/record.py --algo dacer --env Hopper-v5``
(or ``python -m zoo.record ...``).

With ``--training`` all saved agents of the run, checkpoints first, appear one after the other in one video. No display is
needed. The options are those of rl-zoo3's ``record_video`` and ``record_training``.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .hub.video import WRONG_ARGUMENTS, draw_elsewhere, encode, frame_rate, label, pictures, to_gif
from .training.options.command_line import Assignments, CommandParser, whole_number
from .training.options.errors import fail, mistakes
from .training.options.registry import check_command_line, register_algorithms
from .training.options.which_agent import add_options, chosen

if TYPE_CHECKING:  # only the process that draws imports the libraries
    import numpy as np
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from .training.runs.saved_agents import SavedAgent

PROG = "record.py"
HERE = "--in-this-process"
STEPS, STEPS_OF_EACH = 1000, 300
CHECKPOINT = "rl_model_{}_steps.zip"


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's scripts; the default folder is the one that training writes to."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    which = add_options(parser, "record")
    which.add_argument("--training", action="store_true", help="all checkpoints, the last and the best model, in one video")
    parser.add_argument("-o", "--output-folder", type=Path, help="where to write (default: videos/ in the folder of the run)")
    steps = f"steps of an agent (default: {STEPS}, with --training {STEPS_OF_EACH})"
    parser.add_argument("-n", "--n-timesteps", type=whole_number(1), help=steps)
    parser.add_argument("-g", "--gif", action="store_true", help="write an animated GIF as well")
    size = "size of the video that should not be exceeded, in kB"
    parser.add_argument("--video-kb", type=whole_number(10), default=20_000, help=size)
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="deterministic actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="actions as during training")
    parser.add_argument("--trust-remote-code", action="store_true", help="let the files of a run of others run code")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed")
    parser.add_argument("--device", default="cpu", help="PyTorch device (default: cpu)")
    parser.add_argument("--num-threads", type=whole_number(1, {-1: "the default"}), default=-1, help="threads of PyTorch")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")
    parser.add_argument("--env-kwargs", nargs="+", action=Assignments, help="arguments of the environment")
    parser.add_argument(HERE, action="store_true", help="draw in this process, in one way only; shows errors in full")
    return parser.parse_args()


def find_agents(args: argparse.Namespace) -> "list[SavedAgent]":
    """
    The agents that the command line names.

    :param args: Command line
    :raises ValueError: If there is none
    """
    from .training.runs.saved_agents import NoAgent, SavedAgent, candidates, find_run

    env_kwargs = {**(args.env_kwargs or {}), "render_mode": "rgb_array"}
    if not args.training:
        return [find_run(args.folder, args.algo, args.env, args.exp_id, chosen(args), env_kwargs=env_kwargs)]
    runs = candidates(Path(args.folder, args.algo), args.env, args.exp_id)
    for run in runs:
        archives = archives_of_training(run, args.env)
        if archives:
            return [SavedAgent(args.algo, args.env, run, archive, env_kwargs) for archive in archives]
        print(f"Passing over {run}: it has no agent")
    raise NoAgent(
        f"no run in {Path(args.folder, args.algo)} has an agent; "
        f"train an agent first with: python zoo/train.py --algo {args.algo} --env {args.env} --save-freq N"
    )


def archives_of_training(run: Path, env_id: str) -> list[Path]:
    """
    Everything that a run has saved: checkpoints in order, the agent at the end, the best one.

    :param run: Folder of the run
    :param env_id: Environment
    """
    checkpoints = sorted(run.glob(CHECKPOINT.format("*")), key=_steps)
    final = run / f"{env_id.replace('/', '-')}.zip"
    others = [path for path in (final, run / "best_model.zip") if path.is_file()]
    if others and not checkpoints:
        print(f"{run} has no checkpoints; train with --save-freq to see more of a training.")
    return [*checkpoints, *others]


def title_of(archive: Path) -> str:
    """
    :param archive: File of an agent, named by the training
    :return: What it is, in words
    """
    if archive.name == "best_model.zip":
        return "best model"
    return f"checkpoint {_steps(archive):,}" if archive.match(CHECKPOINT.format("*")) else "final model"


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.split("_")[-2])


def video_name(args: argparse.Namespace, archive: Path) -> str:
    """
    File of the video; rl-zoo3's prefix says which agent it shows.

    :param args: Command line
    :param archive: File of the agent that is shown, or of one of them
    """
    if args.training:
        return "training.mp4"
    title = title_of(archive).replace(" ", "-").replace(",", "")
    return f"{title}-{args.algo}-{args.env.replace('/', '-')}.mp4"


def open_agent(args: argparse.Namespace, agent: "SavedAgent") -> "tuple[BaseAlgorithm, VecEnv]":
    """
    An agent, and the environment of its training, which draws, with the statistics of the agent's own file.

    :param args: Command line
    :param agent: Who acts
    """
    from .hub.published import with_due_care
    from .training.runs.saved_agents import SavedAgent

    careful = with_due_care(agent, args.trust_remote_code)
    options: Any = {} if isinstance(careful, SavedAgent) else {"env_kwargs": agent.env_kwargs}
    env = careful.make_env(seed=args.seed, **options)
    return careful.load(env, device=args.device, seed=args.seed), env


def draw(args: argparse.Namespace, agents: "list[SavedAgent]") -> Iterator["np.ndarray"]:
    """
    Let one agent after the other act.

    :param args: Command line
    :param agents: Who acts
    :return: Pictures, with a title if there are several agents
    """
    from stable_baselines3.common.utils import set_random_seed

    for agent in agents:
        print(f"Recording {agent.archive}", flush=True)
        model, env = open_agent(args, agent)
        set_random_seed(args.seed)
        for picture in pictures(model, env, args.n_timesteps, deterministic=not args.stochastic):
            yield label(picture, title_of(agent.archive)) if args.training else picture
        env.close()


def record_here(args: argparse.Namespace) -> None:
    """
    Record in this process.

    :param args: Command line
    """
    import torch as th

    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    args.n_timesteps = args.n_timesteps or (STEPS_OF_EACH if args.training else STEPS)
    agents = find_agents(args)
    folder = args.output_folder or agents[0].folder / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    _, env = open_agent(args, agents[0])
    rate, every = frame_rate(env)
    env.close()
    target = folder / video_name(args, agents[0].archive)
    n_pictures = -(-args.n_timesteps // every) * len(agents)
    encode(rate, n_pictures, draw(args, agents), target, 1000 * args.video_kb)
    print(f"Saved as {target}")
    if args.gif:
        print(f"Saved as {to_gif(target)}")


def draw_in_this_process(args: argparse.Namespace) -> None:
    """
    Record, with one line for whatever goes wrong.

    :param args: Command line
    """
    from sb3_diffusion.envs import quiet_mujoco

    from .training.options.device import check_device

    with mistakes(PROG, args.traceback):
        check_device(args.device)
        quiet_mujoco()
        register_algorithms()
        record_here(args)


def main() -> None:
    """Record in another process, which may fail in its own way, and say why if it does."""
    args = parse_arguments()
    check_command_line(PROG, sys.argv[1:])
    if getattr(args, HERE.strip("-").replace("-", "_")):
        draw_in_this_process(args)
        return
    problem = draw_elsewhere([sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], HERE], show=True)
    if problem:
        prefix = f"{PROG}: error: "
        if problem.startswith(prefix):
            print(problem, file=sys.stderr)
            raise SystemExit(WRONG_ARGUMENTS)
        fail(PROG, problem)


if __name__ == "__main__":
    main()
