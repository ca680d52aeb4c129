"""
Steps per second of on-policy trainings: ``python zoo/speed/on_policy.py`` (or ``python -m zoo.speed.on_policy``).

Ours beside rsl_rl's PPO (if ``rsl-rl-lib`` is installed) and Stable-Baselines3's, on the same environment written in PyTorch,
with networks, rollouts and minibatches of the same sizes. A turn is one rollout and the updates from it; all trainings take
turns in one process, so that a disturbance of the machine hits all of them. Figures are medians over the turns.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median, quantiles
from typing import Any, ClassVar

import torch as th
from torch import nn

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from stable_baselines3 import PPO as StablePPO

from sb3_diffusion import DPPO, PPO
from sb3_diffusion.envs.tensor.registry import make_tensor_env

from .machine import Load, check_load, pin, report_load
from .report import conditions
from .timing import synchronize


class Training(ABC):
    """
    A training under measurement.

    :param args: Command line
    """

    name: ClassVar[str]

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.env: Any = make_tensor_env(args.env, args.n_envs, device=args.device)
        self.model = self.make()

    @property
    def rows(self) -> int:
        """Transitions of a minibatch."""
        return int(self.args.n_steps * self.args.n_envs // self.args.n_minibatches)

    @abstractmethod
    def make(self) -> Any:
        """The algorithm."""

    @abstractmethod
    def turn(self) -> None:
        """One rollout, and the updates from it."""


class OurPPO(Training):
    """Our PPO."""

    name = "ours: PPO"
    algorithm: ClassVar[Any] = PPO

    def make(self) -> Any:
        """The algorithm."""
        args = self.args
        settings: dict[str, Any] = {"n_steps": args.n_steps, "n_minibatches": args.n_minibatches, "n_epochs": args.n_epochs}
        settings["policy_kwargs"] = {"net_arch": args.net_arch}
        model = self.algorithm("MlpPolicy", self.env, device=args.device, seed=0, **settings)
        model.learn(1, log_interval=None)
        return model

    def turn(self) -> None:
        """One rollout, and the updates from it."""
        self.model.learn(1, log_interval=None, reset_num_timesteps=False)


class OurDPPO(OurPPO):
    """Our DPPO, with ten steps of denoising."""

    name = "ours: DPPO"
    algorithm = DPPO


class TheirPPO(Training):
    """Stable-Baselines3's PPO."""

    name = "Stable-Baselines3: PPO"

    def make(self) -> Any:
        """The algorithm."""
        args = self.args
        networks = {"net_arch": args.net_arch, "activation_fn": nn.ELU}
        settings = {"n_steps": args.n_steps, "batch_size": self.rows, "n_epochs": args.n_epochs, "learning_rate": 1e-4}
        model = StablePPO("MlpPolicy", self.env, policy_kwargs=networks, device=args.device, seed=0, **settings)
        model.learn(1, log_interval=1_000_000)
        return model

    def turn(self) -> None:
        """One rollout, and the updates from it."""
        self.model.learn(1, log_interval=1_000_000, reset_num_timesteps=False)


class RslPPO(Training):
    """rsl_rl's PPO, with its own runner."""

    name = "rsl_rl: PPO"

    def make(self) -> Any:
        """The algorithm."""
        from rsl_rl.runners import OnPolicyRunner  # type: ignore[import-not-found]  # not among what we need

        args = self.args
        network = {
            "class_name": "rsl_rl.models:MLPModel",
            "hidden_dims": args.net_arch,
            "activation": "elu",
            "obs_normalization": True,
        }
        gaussian = {"class_name": "rsl_rl.modules:GaussianDistribution", "init_std": 1.0}
        settings = {
            "num_steps_per_env": args.n_steps,
            "save_interval": 1_000_000,
            "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
            "actor": {**network, "distribution_cfg": gaussian},
            "critic": dict(network),
            "algorithm": {
                "class_name": "rsl_rl.algorithms:PPO",
                "num_learning_epochs": args.n_epochs,
                "num_mini_batches": args.n_minibatches,
                "learning_rate": 1e-4,
                "schedule": "fixed",
            },
        }
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            runner = OnPolicyRunner(_rsl_face(self.env), settings, log_dir=None, device=args.device)
            runner.learn(1)
        return runner

    def turn(self) -> None:
        """One rollout, and the updates from it."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            self.model.learn(1)


def _rsl_face(env: Any) -> Any:
    """An environment of ours as rsl_rl wants it."""
    from rsl_rl.env import VecEnv  # type: ignore[import-not-found]
    from tensordict import TensorDict  # type: ignore[import-not-found]

    class Face(VecEnv):  # type: ignore[misc]
        """Tensors in another arrangement, nothing is copied."""

        def __init__(self) -> None:
            self.num_envs, self.num_actions = env.num_envs, env.action_space.shape[0]
            self.max_episode_length, self.device = env.max_episode_length, env.device
            self.cfg: dict[str, Any] = {}
            self.seen = env.reset_tensor()
            self.scale = th.as_tensor(env.action_space.high, device=env.device)

        @property
        def episode_length_buf(self) -> th.Tensor:
            """Steps of the running episodes."""
            return env.episode_length_buf  # type: ignore[no-any-return]

        def get_observations(self) -> Any:
            """What is seen now."""
            return TensorDict({"policy": self.seen}, batch_size=self.num_envs)

        def step(self, actions: th.Tensor) -> Any:
            """One step of all environments."""
            step = env.step_tensor(actions * self.scale)
            self.seen = step.observation
            return self.get_observations(), step.reward, step.done.long(), {"time_outs": step.truncated}

    return Face()


def trainings(args: argparse.Namespace) -> list[Training]:
    """
    :param args: Command line
    :return: What is compared, the first with all others
    """
    kinds: list[type[Training]] = [OurPPO, TheirPPO, OurDPPO]
    if importlib.util.find_spec("rsl_rl") is not None:
        kinds.insert(1, RslPPO)
    return [kind(args) for kind in kinds if not args.only or any(word in kind.name.lower() for word in args.only)]


def by_turns(subjects: Sequence[Training], n_turns: int, device: str) -> list[list[float]]:
    """
    :param subjects: What is compared
    :param n_turns: Turns of each
    :param device: Device to wait for
    :return: Seconds of every turn of each
    """
    seconds: list[list[float]] = [[] for _ in subjects]
    for turn in range(n_turns):
        order = list(range(len(subjects)))
        for index in order if turn % 2 == 0 else reversed(order):
            synchronize(device)
            start = time.perf_counter()
            subjects[index].turn()
            synchronize(device)
            seconds[index].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="torch/Pendulum-v0", help="an environment written in PyTorch")
    parser.add_argument("--n-envs", type=int, default=1024, help="environments")
    parser.add_argument("--n-steps", type=int, default=24, help="steps of a rollout")
    parser.add_argument("--n-minibatches", type=int, default=4, help="minibatches of an epoch")
    parser.add_argument("--n-epochs", type=int, default=5, help="passes over a rollout")
    parser.add_argument("--net-arch", type=int, nargs="+", default=[256, 256, 256], help="hidden units of both networks")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of what is measured, such as ppo: or rsl")
    parser.add_argument("--turns", type=int, default=7, help="rollouts of each")
    parser.add_argument("--threads", type=int, default=1, help="threads for PyTorch")
    parser.add_argument("--device", default="cpu", help="PyTorch device")
    parser.add_argument("--max-load", type=float, default=0.3, help="cores that other processes may keep busy")
    parser.add_argument("--output", type=Path, help="where to save everything")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    th.set_num_threads(args.threads)
    pin(args.threads)
    check_load(args.max_load)
    load = Load()
    subjects = trainings(args)
    seconds = by_turns(subjects, args.turns, args.device)
    report_load([{"load": load.read()}], args.max_load)
    steps = args.n_steps * args.n_envs
    print(f"\n{args.env}, {args.n_envs} environments, {args.n_steps} steps, {args.threads} threads, device {args.device}\n")
    print("| training | steps/s | times as fast as it: ours PPO | quartiles |\n|---|---:|---:|---|")
    results = []
    for subject, own in zip(subjects, seconds, strict=True):
        ratios = [theirs / ours for ours, theirs in zip(seconds[0], own, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        speed = steps / median(own)
        results.append({"name": subject.name, "steps_per_second": speed, "ratio": median(ratios), "quartiles": [low, high]})
        print(f"| {subject.name} | {speed:,.0f} | {median(ratios):.2f} | {low:.2f} to {high:.2f} |")
    if args.output is not None:
        about = {name: value for name, value in vars(args).items() if name != "output"}
        args.output.write_text(
            json.dumps({"settings": about, "machine": conditions(args), "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
