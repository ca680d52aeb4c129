"""One algorithm under measurement: its spaces without a task, its filled replay buffer, and what is measured of it."""

import argparse
import inspect
import resource
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_diffusion import kernels
from sb3_diffusion.taxonomy import available_methods, get_method

from .flops import FlopCounter
from .timing import ceiling, rate

BASELINES: dict[str, type[OffPolicyAlgorithm]] = {"sac": SAC, "td3": TD3}
BUFFER_SIZE = 10_000
LATENCY_BATCHES = (1, 1024)


def method_names() -> list[str]:
    """Algorithms that can be measured."""
    return [*(method.zoo_name for method in available_methods() if method.setting in ("off-policy", "offline")), *BASELINES]


def sizes() -> argparse.ArgumentParser:
    """Parent of a command line: the sizes of what is measured, those of Hopper by default, and how it runs."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--obs-dim", "--observation-dim", type=int, default=11, help="size of an observation")
    parser.add_argument("--action-dim", type=int, default=3, help="size of an action")
    parser.add_argument("--batch-size", type=int, default=256, help="transitions per update")
    parser.add_argument("--width", type=int, default=256, help="width of the networks (of online methods)")
    parser.add_argument("--diffusion-steps", type=int, default=20, help="steps of the reverse chain (the same)")
    parser.add_argument("--n-particles", type=int, help="particles per state (default: that of each algorithm)")
    parser.add_argument("--execution", default="auto", choices=["auto", "eager", "compile", "cuda_graph"])
    parser.add_argument("--threads", type=int, default=th.get_num_threads(), help="threads for PyTorch")
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu", help="PyTorch device")
    return parser


class BenchmarkEnv(gym.Env):
    """
    Spaces of a task without the task; it is never stepped.

    :param obs_dim: Size of an observation
    :param action_dim: Size of an action
    """

    def __init__(self, obs_dim: int, action_dim: int):
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), dtype=np.float32)


def make_model(name: str, args: argparse.Namespace, execution: str) -> OffPolicyAlgorithm:
    """
    Make an algorithm with a filled replay buffer.

    :param name: Name of the algorithm
    :param args: Command line
    :param execution: How the update runs (our algorithms only)
    """
    env = BenchmarkEnv(args.obs_dim, args.action_dim)
    kwargs: dict[str, Any] = {"buffer_size": BUFFER_SIZE, "batch_size": args.batch_size, "device": args.device, "seed": 0}
    policy: str | type[BasePolicy] = "MlpPolicy"
    if name in BASELINES:
        algorithm = BASELINES[name]
        kwargs["policy_kwargs"] = {"net_arch": [args.width] * 2}
    else:
        method = get_method(name)
        algorithm = method.load()
        kwargs["execution"] = execution
        if method.setting == "off-policy":  # those that learn from data differ in their networks, which are part of the method
            networks = {"net_arch": {"pi": [args.width] * 3, "qf": [args.width] * 2}}
            kwargs["policy_kwargs"] = {**networks, "diffusion_steps": args.diffusion_steps}
        if args.n_particles is not None and "n_particles" in inspect.signature(algorithm).parameters:
            kwargs["n_particles"] = args.n_particles
    model = algorithm(policy, env, **kwargs)
    silence(model)
    fill_buffer(model)
    return model


def silence(model: OffPolicyAlgorithm) -> None:
    """
    :param model: Algorithm that shall not write anywhere
    """
    model.set_logger(Logger(folder=None, output_formats=[]))


def fill_buffer(model: OffPolicyAlgorithm) -> None:
    """
    Fill the replay buffer with random transitions.

    :param model: Algorithm
    """
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    assert buffer is not None and buffer.n_envs == 1
    for _ in range(buffer.buffer_size):
        observation, following = rng.normal(size=(2, 1, *buffer.obs_shape)).astype(np.float32)
        action = rng.uniform(-1.0, 1.0, size=(1, buffer.action_dim)).astype(np.float32)
        buffer.add(observation, following, action, rng.normal(size=1), np.zeros(1), [{}])


def peak_memory(device: str) -> float:
    """
    Peak memory of this process in MiB: of the GPU if there is one, else resident.

    :param device: Device of the benchmark
    """
    if th.device(device).type == "cuda":
        return th.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Subject:
    """
    One algorithm under measurement, alone in its process.

    :param name: Name of the algorithm
    :param args: Command line
    """

    current: "Subject"

    def __init__(self, name: str, args: argparse.Namespace):
        th.set_num_threads(args.threads)
        self.name, self.args = name, args
        self.memory_before = peak_memory(args.device)
        self.model = make_model(name, args, args.execution)
        rng = np.random.default_rng(1)
        self.observations = rng.normal(size=(max(LATENCY_BATCHES), args.obs_dim)).astype(np.float32)
        # warm-up: allocators, compilation, and whatever an algorithm does in its first update only
        self.train(2 * self.actor_period)
        for n in LATENCY_BATCHES:
            self.act(n, 3)

    def arguments(self) -> dict[str, Any]:
        """The algorithm's arguments as far as they are plain values, for those who want to measure the same."""
        values = {name: getattr(self.model, name, None) for name in inspect.signature(type(self.model)).parameters}
        return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}

    @property
    def actor_period(self) -> int:
        """Updates after which the pattern of actor and critic updates repeats."""
        return int(getattr(self.model, "policy_delay", 1))

    def train(self, count: int) -> None:
        """Train for as many steps as the measurement takes."""
        self.model.train(gradient_steps=count, batch_size=self.args.batch_size)

    def act(self, n: int, count: int) -> None:
        """Act as often as the measurement takes."""
        observation = self.observations[0] if n == 1 else self.observations[:n]
        for _ in range(count):
            self.model.predict(observation, deterministic=False)

    def measure(self) -> dict[str, float]:
        """One turn."""
        device, seconds = self.args.device, self.args.seconds
        result = {"ceiling_gflops": ceiling(device, 0.2 * seconds) / 1e9}
        updates, cores = rate(self.train, device, seconds, start=2 * self.actor_period)
        result |= {"updates_per_second": updates, "cores_used": cores, "cpu_ms_per_update": 1000 * cores / updates}
        for n in LATENCY_BATCHES:
            actions, _ = rate(lambda count, n=n: self.act(n, count), device, 0.3 * seconds)  # type: ignore[misc]
            result[f"action_ms_{n}"] = 1000 / actions
        return result

    def finish(self) -> dict[str, float]:
        """Memory, then the floating-point operations of the matrix products in one update, counted in eager execution."""
        memory = {"peak_memory_mib": peak_memory(self.args.device), "memory_before_mib": self.memory_before}
        self.model = make_model(self.name, self.args, "eager")
        self.train(2 * self.actor_period)
        with kernels.switched_off(), FlopCounter() as counter:  # which sees PyTorch's operations only
            self.train(2 * self.actor_period)
        return {**memory, "gflop_per_update": counter.total / (2 * self.actor_period) / 1e9}
