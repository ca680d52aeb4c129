"""
Watch and score a trained agent: ``python zoo/enjoy.py --algo dacer --env Hopper-v5`` (or ``python -m zoo.enjoy ...``).

Options and folders are those of rl-zoo3. Unlike rl-zoo3's script no replay memory is allocated for off-policy agents, and a
machine without a display scores the agent without rendering.

Without a run of your own the agent of that name in ``zoo/pretrained`` acts, with ``--from-hub -orga ORGANIZATION`` one of the
Hub. Loading these runs nothing that was downloaded.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

from .training.options.registry import check_command_line

if __name__ == "__main__":  # names are checked before the imports below, which take seconds
    check_command_line("enjoy.py", sys.argv[1:])

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm import trange

from sb3_diffusion.envs import quiet_mujoco
from sb3_diffusion.policies.acting import EVALUATION_NOISE
from sb3_diffusion.printable import printable
from sb3_diffusion.tensor_names import is_tensor_env

from .hub.client import Repository
from .hub.published import PRETRAINED, PublishedAgent, agent_name, with_due_care
from .hub.repository import read_results, read_source
from .load_from_hub import FOLDER, fetch
from .training.options.command_line import Assignments, CommandParser, whole_number
from .training.options.device import check_device
from .training.options.errors import mistakes
from .training.options.registry import register_algorithms
from .training.options.which_agent import add_options, chosen
from .training.runs.protocols import choose_candidates, choose_noise
from .training.runs.saved_agents import NoAgent, SavedAgent, find_run

quiet_mujoco()  # at module level, so that worker processes (which import the main module again) are quiet too

PROG = "enjoy.py"


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's enjoy script; the default folder is the one that training writes to."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    add_options(parser, "load")
    parser.add_argument("--from-hub", action="store_true", help="act with an agent of the Hub, downloaded if it is not there")
    parser.add_argument("-orga", "--organization", help="user or organisation on the Hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository on the Hub (default: <algo>-<env>)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: the newest)")
    parser.add_argument("--hub-folder", type=Path, default=Path(FOLDER), help="folder for downloaded agents")
    parser.add_argument("--trust-remote-code", action="store_true", help="let an agent of others run code while it is loaded")
    parser.add_argument("-n", "--n-timesteps", type=whole_number(1), default=1000, help="number of steps")
    parser.add_argument("--n-envs", type=whole_number(1), default=1, help="number of environments")
    parser.add_argument("--num-threads", type=whole_number(1, {-1: "the default"}), default=-1, help="threads of PyTorch")
    parser.add_argument("--verbose", type=int, default=1, help="0: only the summary, 1: every episode")
    parser.add_argument("--no-render", action="store_true", help="do not render")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="deterministic actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="actions as during training")
    parser.add_argument(
        "--evaluation-noise", choices=EVALUATION_NOISE, help="noise of deterministic actions (default: the agent's own)"
    )
    parser.add_argument(
        "--n-action-candidates", type=whole_number(1), help="actions that critics choose from (default: the agent's own)"
    )
    parser.add_argument("--norm-reward", action="store_true", help="report normalised rewards (agents with VecNormalize)")
    parser.add_argument("--reward-log", default="", help="folder for monitor files")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments or algorithms")
    parser.add_argument("--env-kwargs", nargs="+", action=Assignments, help="arguments of the environment")
    parser.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    return parser.parse_args()


def display_available() -> bool:
    """Whether a window can be opened."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_env(args: argparse.Namespace, make: Callable[[bool], VecEnv]) -> VecEnv:
    """
    Make the environment and reset it once, which opens the window.

    :param args: Command line
    :param make: Makes the environment, with a window or without
    """

    def reset(render: bool) -> VecEnv:
        env = make(render)
        env.reset()
        return env

    if args.no_render:
        return reset(False)
    if is_tensor_env(args.env):
        print(f"{args.env} has no window, zoo/record.py makes a video of it (--no-render hides this message).")
        return reset(False)
    if not display_available():
        print("No display found, running without rendering (--no-render hides this message).")
        return reset(False)
    try:
        return reset(True)
    except gym.error.DependencyNotInstalled as error:
        print(f"Rendering is not possible ({printable(error)}), running without it.")
        return reset(False)


def run(model: BaseAlgorithm, env: VecEnv, args: argparse.Namespace) -> Iterator[tuple[float, int]]:
    """
    Act for ``-n`` steps.

    :param model: Agent
    :param env: Environment
    :param args: Command line
    :return: Return and length of every finished episode
    """
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
    observation: Any = env.reset()
    state = None
    episode_start = np.ones(env.num_envs, dtype=bool)
    for _ in trange(args.n_timesteps, disable=not args.progress):
        action, state = model.predict(observation, state, episode_start, deterministic=not args.stochastic)
        observation, reward, episode_start, _ = env.step(action)
        returns += reward
        lengths += 1
        for i in np.flatnonzero(episode_start):
            yield float(returns[i]), int(lengths[i])
            returns[i], lengths[i] = 0.0, 0


def find_agent(args: argparse.Namespace) -> SavedAgent | PublishedAgent:
    """
    The agent that is to act: one of the Hub, one of the user's own runs, or without any that of ``zoo/pretrained``.

    :param args: Command line
    :raises ValueError: If there is none; the message says why
    """
    if args.from_hub:
        return find_on_hub(args)
    which = chosen(args)
    try:
        agent = find_run(args.folder, args.algo, args.env, args.exp_id, which, env_kwargs=args.env_kwargs)
        print(f"Loading {printable(agent.archive)}")
        return with_due_care(agent, args.trust_remote_code)
    except NoAgent as reason:
        folder = PRETRAINED / agent_name(args.algo, args.env)
        if args.exp_id != 0 or which != "last" or not folder.is_dir():
            raise
        why = str(reason).partition("; train an agent first")[0]
        print(f"None of your own runs has an agent ({why}): using the pretrained agent {folder}")
        return PublishedAgent(folder, args.env, args.algo, trust=args.trust_remote_code)


def find_on_hub(args: argparse.Namespace) -> PublishedAgent:
    """
    The agent of the Hub, downloaded if it is not there.

    :param args: Command line
    """
    if args.organization is None:
        raise ValueError("--from-hub needs -orga, the user or organisation on the Hub.")
    repository = Repository(args.organization, args.repo_name or agent_name(args.algo, args.env))
    folder = args.hub_folder / repository.organization / repository.name
    source = read_source(folder)
    if source and args.revision in (None, source.get("asked_for"), source.get("revision")):
        revision = printable(source.get("revision"), 100)
        print(f"Using {folder}, revision {revision} (zoo/load_from_hub.py looks for a newer one)")
    else:
        folder = fetch(repository, args.algo, args.env, args.hub_folder, args.revision)
    return PublishedAgent(folder, args.env, args.algo, trust=args.trust_remote_code)


def load_published(args: argparse.Namespace, agent: PublishedAgent) -> tuple[BaseAlgorithm, VecEnv]:
    """
    Load an agent that was published, without running anything of it.

    :param args: Command line
    :param agent: The agent
    """
    scores = read_results(agent.folder)
    if isinstance(scores.get("mean_reward"), int | float):
        print(f"Reported mean reward: {scores['mean_reward']:.2f}")

    def make(render: bool) -> VecEnv:
        return agent.make_env(
            n_envs=args.n_envs,
            seed=args.seed,
            env_kwargs=args.env_kwargs,
            render_mode="human" if render else None,
            log_dir=args.reward_log or None,
        )

    env = open_env(args, make)
    return agent.load(env, device=args.device, seed=args.seed), env


def load_run(args: argparse.Namespace, agent: SavedAgent) -> tuple[BaseAlgorithm, VecEnv]:
    """
    Load the agent of one of the user's own runs.

    :param args: Command line
    :param agent: The agent
    """

    def make(render: bool) -> VecEnv:
        return agent.make_env(
            n_envs=args.n_envs, seed=args.seed, render=render, log_dir=args.reward_log or None, norm_reward=args.norm_reward
        )

    env = open_env(args, make)
    return agent.load(env, device=args.device, seed=args.seed), env


def main() -> None:
    """Load an agent, let it act and print its mean reward."""
    args = parse_arguments()
    check_command_line(PROG, sys.argv[1:])
    register_algorithms()
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    with mistakes(PROG, args.traceback):
        check_device(args.device)
        agent = find_agent(args)
        model, env = load_run(args, agent) if isinstance(agent, SavedAgent) else load_published(args, agent)
        choose_noise(model, args.evaluation_noise)
        choose_candidates(model, args.n_action_candidates)
    set_random_seed(args.seed)  # however much was drawn while loading, the same seed gives the same actions
    normalization = unwrap_vec_normalize(env)
    if normalization is not None:
        normalization.norm_reward = args.norm_reward

    episodes: list[tuple[float, int]] = []
    with contextlib.suppress(KeyboardInterrupt):
        for episode in run(model, env, args):
            episodes.append(episode)
            if args.verbose > 0:
                print(f"Episode reward: {episode[0]:.2f}, length: {episode[1]}")
    env.close()
    print_summary(episodes, args.n_timesteps)


def print_summary(episodes: list[tuple[float, int]], n_timesteps: int) -> None:
    """
    :param episodes: Return and length of the finished episodes
    :param n_timesteps: Number of steps that were asked for
    """
    if not episodes:
        print(f"No episode ended within {n_timesteps} steps; ask for more with -n.")
        return
    returns, lengths = np.array(episodes).T
    print(f"Mean reward: {returns.mean():.2f} +/- {returns.std():.2f} over {len(episodes)} episodes")
    print(f"Mean episode length: {lengths.mean():.2f} +/- {lengths.std():.2f}")


if __name__ == "__main__":
    main()
