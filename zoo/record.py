"""
Record an agent of your own runs as a video: ``python zoo/record.py --algo dacer --env Hopper-v5``
(or ``python -m zoo.record ...``).

With ``--training`` all saved agents of the run, checkpoints first, appear one after the other in one video. No display is
needed. The options are those of rl-zoo3's ``record_video`` and ``record_training``.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .video import WRONG_ARGUMENTS, draw_elsewhere, encode, frame_rate, label, pictures, to_gif

if TYPE_CHECKING:  # only the process that draws imports the libraries
    import numpy as np
    from stable_baselines3.common.vec_env import VecEnv

PROG = "record.py"
HERE = "--in-this-process"
STEPS, STEPS_OF_EACH = 1000, 300
CHECKPOINT = "rl_model_{}_steps.zip"


@dataclass(frozen=True)
class Agent:
    """
    A saved agent of a run.

    :param title: What it is, in words
    :param archive: Its file
    """

    title: str
    archive: Path


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's scripts; the default folder is the one that training writes to."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (0: latest, -1: no run folder)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="the best model instead of the last")
    which.add_argument("--load-checkpoint", type=int, help="the checkpoint of this number of steps")
    which.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    which.add_argument("--training", action="store_true", help="all checkpoints, the last and the best model, in one video")
    parser.add_argument("-o", "--output-folder", type=Path, help="where to write (default: videos/ in the folder of the run)")
    parser.add_argument(
        "-n", "--n-timesteps", type=int, help=f"steps of an agent (default: {STEPS}, with --training {STEPS_OF_EACH})"
    )
    parser.add_argument("-g", "--gif", action="store_true", help="write an animated GIF as well")
    parser.add_argument("--video-kb", type=int, default=20_000, help="size of the video that should not be exceeded, in kB")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="deterministic actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="actions as during training")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--device", default="cpu", help="PyTorch device (default: cpu)")
    parser.add_argument("--num-threads", type=int, default=-1, help="threads for PyTorch (-1: default)")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
    parser.add_argument("--env-kwargs", nargs="+", help="arguments of the environment, key:value")
    parser.add_argument(HERE, action="store_true", help="draw in this process, in one way only; shows errors in full")
    return parser.parse_args()


def find_agents(args: argparse.Namespace) -> list[Agent]:
    """
    The agents that the command line names.

    :param args: Command line
    :raises ValueError: if there is none
    """
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import get_latest_run_id, get_model_path

    env_name = EnvironmentName(args.env)
    if args.training:
        number = args.exp_id or get_latest_run_id(str(Path(args.folder, args.algo)), env_name)
        folder = Path(args.folder, args.algo) / (f"{env_name}_{number}" if number > 0 else "")
        return agents_of_training(folder, f"{env_name}.zip")
    which = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    try:
        _, archive, _ = get_model_path(args.exp_id, args.folder, args.algo, env_name, *which)
    except (AssertionError, ValueError) as error:
        train = f"train an agent first with: python zoo/train.py --algo {args.algo} --env {args.env}"
        raise ValueError(f"{error}; {train}") from None
    return [Agent(title_of(Path(archive)), Path(archive))]


def agents_of_training(folder: Path, final: str) -> list[Agent]:
    """
    Everything that a run has saved: checkpoints in order, the agent at the end, the best one.

    :param folder: Folder of the run
    :param final: File of the agent at the end
    :raises ValueError: if there is nothing
    """
    checkpoints = sorted(folder.glob(CHECKPOINT.format("*")), key=_steps)
    others = [path for path in (folder / final, folder / "best_model.zip") if path.is_file()]
    if not checkpoints:
        if not others:
            raise ValueError(f"{folder} contains no agent; train one first.")
        print(f"{folder} has no checkpoints; train with --save-freq to see more of a training.")
    return [Agent(title_of(path), path) for path in (*checkpoints, *others)]


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


def video_name(args: argparse.Namespace, agents: list[Agent]) -> str:
    """
    File of the video; rl-zoo3's prefix says which agent it shows.

    :param args: Command line
    :param agents: What is shown
    """
    if args.training:
        return "training.mp4"
    title = agents[0].title.replace(" ", "-").replace(",", "")
    return f"{title}-{args.algo}-{args.env.replace('/', '-')}.mp4"


def open_env(args: argparse.Namespace, agent: Agent) -> "VecEnv":
    """
    The environment of the training, which draws, with the statistics of the agent's own file, or else those of the run.

    :param args: Command line
    :param agent: Who acts
    """
    from rl_zoo3.utils import create_test_env, get_saved_hyperparams
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    from sb3_diffusion import load_normalization
    from sb3_diffusion.core.archives import open_archive
    from sb3_diffusion.core.checkpoints import NORMALIZATION

    from .training.run_files import saved_env_kwargs

    settings = agent.archive.parent / args.env.replace("/", "-")
    hyperparams, stats_path = get_saved_hyperparams(str(settings), test_mode=True)
    env_kwargs = saved_env_kwargs(settings, hyperparams) | args.env_kwargs | {"render_mode": "rgb_array"}
    n_stack = hyperparams.pop("frame_stack", 0)
    with open_archive(agent.archive) as archive:
        own_statistics = NORMALIZATION in archive.sizes
    if own_statistics:
        hyperparams["normalize"] = False
    env = create_test_env(
        args.env,
        seed=args.seed,
        stats_path=stats_path,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        vec_env_cls=DummyVecEnv,
    )
    env = load_normalization(agent.archive, env) if own_statistics else env
    return VecFrameStack(env, n_stack) if n_stack else env


def draw(args: argparse.Namespace, agents: list[Agent]) -> Iterator["np.ndarray"]:
    """
    Let one agent after the other act.

    :param args: Command line
    :param agents: Who acts
    :return: Pictures, with a title if there are several agents
    """
    from stable_baselines3.common.utils import set_random_seed

    from .enjoy import load_model

    for agent in agents:
        print(f"Recording {agent.archive}", flush=True)
        env = open_env(args, agent)
        model = load_model(args, str(agent.archive), {}, env)
        set_random_seed(args.seed)
        for picture in pictures(model, env, args.n_timesteps, deterministic=not args.stochastic):
            yield label(picture, agent.title) if args.training else picture
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
    folder = args.output_folder or agents[0].archive.parent / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    env = open_env(args, agents[0])
    rate, every = frame_rate(env)
    env.close()
    target = folder / video_name(args, agents)
    n_pictures = -(-args.n_timesteps // every) * len(agents)
    encode(rate, n_pictures, draw(args, agents), target, 1000 * args.video_kb)
    print(f"Saved as {target}")
    if args.gif:
        print(f"Saved as {to_gif(target)}")


def check_numbers(args: argparse.Namespace) -> None:
    """
    :param args: Command line
    :raises ValueError: if a number makes no sense
    """
    for option, least in (("n_timesteps", 1), ("video_kb", 10)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} {value} is too small; give at least {least}.")


def draw_in_this_process(args: argparse.Namespace) -> None:
    """
    Check the names and record.

    :param args: Command line
    """
    import gymnasium as gym

    from sb3_diffusion.envs import quiet_mujoco

    from .training.errors import fail
    from .training.registry import check_command_line, register_algorithms

    quiet_mujoco()
    register_algorithms()
    check_command_line(PROG, sys.argv[1:])
    try:
        check_numbers(args)
        args.env_kwargs = _keyword_arguments(args.env_kwargs)
        record_here(args)
    except (ValueError, ImportError, gym.error.Error) as error:
        fail(PROG, str(error))


def _keyword_arguments(words: list[str] | None) -> dict[str, Any]:
    """Values of ``--env-kwargs``, read as rl-zoo3 reads them."""
    from rl_zoo3.utils import StoreDict

    parser = argparse.ArgumentParser()
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict)
    return dict(parser.parse_args(["--env-kwargs", *words]).env_kwargs) if words else {}


def main() -> None:
    """Record in another process, which may fail in its own way, and say why if it does."""
    args = parse_arguments()
    if getattr(args, HERE.strip("-").replace("-", "_")):
        draw_in_this_process(args)
        return
    problem = draw_elsewhere([sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], HERE], show=True)
    if problem:
        prefix = f"{PROG}: error: "
        print(f"{prefix}{problem.removeprefix(prefix)}", file=sys.stderr)
        raise SystemExit(WRONG_ARGUMENTS)


if __name__ == "__main__":
    main()
