"""
Watch and score a trained agent: ``python zoo/enjoy.py --algo dacer --env Hopper-v5`` (or ``python -m zoo.enjoy ...``).

Options and folders are those of rl-zoo3. Unlike rl-zoo3's script no replay memory is allocated for off-policy agents, and a
machine without a display scores the agent without rendering.
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings
from rl_zoo3.utils import ALGOS, StoreDict, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from tqdm import trange

from sb3_diffusion.envs import quiet_mujoco

from .registry import check_command_line, fail, register_algorithms

quiet_mujoco()  # at module level, so that worker processes (which import the main module again) are quiet too

PROG = "enjoy.py"


def parse_arguments() -> argparse.Namespace:
    """Command line of rl-zoo3's enjoy script; the default folder is the one that training writes to."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", required=True, help="algorithm")
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (0: latest, -1: no run folder)")
    parser.add_argument("-n", "--n-timesteps", type=int, default=1000, help="number of steps")
    parser.add_argument("--n-envs", type=int, default=1, help="number of environments")
    parser.add_argument("--num-threads", type=int, default=-1, help="threads for PyTorch (-1: default)")
    parser.add_argument("--verbose", type=int, default=1, help="0: only the summary, 1: every episode")
    parser.add_argument("--no-render", action="store_true", help="do not render")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="deterministic actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="actions as during training")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="load the best model instead of the last")
    which.add_argument("--load-checkpoint", type=int, help="load the checkpoint of this number of steps")
    which.add_argument("--load-last-checkpoint", action="store_true", help="load the last checkpoint")
    parser.add_argument("--norm-reward", action="store_true", help="report normalised rewards (agents with VecNormalize)")
    parser.add_argument("--reward-log", default="", help="folder for monitor files")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages that register environments")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment")
    parser.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    return parser.parse_args()


class SavedArgumentsLoader(yaml.SafeLoader):
    """Safe loader that also knows the one Python tag rl-zoo3 writes: the command line as an ordered dictionary."""


def _ordered_dict(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> dict[str, Any]:
    (pairs,) = loader.construct_sequence(node, deep=True)
    return dict(pairs)


SavedArgumentsLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)


def saved_env_kwargs(log_path: str, env_name: str, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of the environment: those of the settings, overwritten by those of the training command.

    :param log_path: Folder of the run
    :param env_name: Environment id as a file name
    :param hyperparams: Settings saved with the run; the environment's arguments are removed from them
    """
    env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    args_file = Path(log_path, env_name, "args.yml")
    if args_file.is_file():
        saved = yaml.load(args_file.read_text(encoding="utf-8"), Loader=SavedArgumentsLoader)
        env_kwargs.update(saved.get("env_kwargs") or {})
    return env_kwargs


def display_available() -> bool:
    """Whether a window can be opened."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def make_env(args: argparse.Namespace, stats_path: str | None, hyperparams: dict[str, Any], env_kwargs: dict) -> VecEnv:
    """
    Make the environment and reset it once, which opens the window.

    :param args: Command line
    :param stats_path: Folder of the run's normalisation statistics
    :param hyperparams: Settings saved with the run
    :param env_kwargs: Arguments of the environment
    """

    def make(render: bool) -> VecEnv:
        env = create_test_env(
            args.env,
            n_envs=args.n_envs,
            stats_path=stats_path,
            seed=args.seed,
            log_dir=args.reward_log or None,
            should_render=render,
            hyperparams=dict(hyperparams),
            env_kwargs=env_kwargs,
            vec_env_cls=DummyVecEnv,  # worker processes cost more than these simulators
        )
        env.reset()
        return env

    if args.no_render:
        return make(render=False)
    if not display_available():
        print("No display found, running without rendering (--no-render hides this message).")
        return make(render=False)
    try:
        return make(render=True)
    except gym.error.DependencyNotInstalled as error:
        print(f"Rendering is not possible ({error}), running without it.")
        return make(render=False)


def load_model(args: argparse.Namespace, model_path: str, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
    """
    Load the agent without its replay memory.

    :param args: Command line
    :param model_path: Saved agent
    :param hyperparams: Settings saved with the run
    :param env: Environment
    """
    algorithm = ALGOS[args.algo]
    kwargs: dict[str, Any] = {"seed": args.seed}
    if issubclass(algorithm, OffPolicyAlgorithm):
        kwargs |= {"buffer_size": 1, "optimize_memory_usage": False}
    if "HerReplayBuffer" in str(hyperparams.get("replay_buffer_class", "")):
        kwargs["env"] = env
    return algorithm.load(model_path, device=args.device, **kwargs)


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


def main() -> None:
    """Load the agent of a run, let it act and print its mean reward."""
    register_algorithms()
    check_command_line(PROG, sys.argv[1:])
    args = parse_arguments()
    for package in args.gym_packages:
        importlib.import_module(package)
    env_name = EnvironmentName(args.env)
    try:
        _, model_path, log_path = get_model_path(
            args.exp_id,
            args.folder,
            args.algo,
            env_name,
            load_best=args.load_best,
            load_checkpoint=args.load_checkpoint,
            load_last_checkpoint=args.load_last_checkpoint,
        )
    except (AssertionError, ValueError) as error:
        fail(PROG, f"{error}; train an agent first with: python zoo/train.py --algo {args.algo} --env {args.env}")
    print(f"Loading {model_path}")

    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    stats_folder = str(Path(log_path, env_name))
    hyperparams, stats_path = get_saved_hyperparams(stats_folder, norm_reward=args.norm_reward, test_mode=True)
    env_kwargs = saved_env_kwargs(log_path, env_name, hyperparams) | (args.env_kwargs or {})
    env = make_env(args, stats_path, hyperparams, env_kwargs)
    if isinstance(env, VecNormalize):
        env.norm_reward = args.norm_reward
    model = load_model(args, model_path, hyperparams, env)

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
