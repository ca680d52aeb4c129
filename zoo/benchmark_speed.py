"""
Measure the algorithms: ``python zoo/benchmark_speed.py`` (or ``python -m zoo.benchmark_speed``).

For every algorithm: updates per second (``train()`` on a filled replay buffer), milliseconds per action for one and for many
observations (``predict()`` as during training), memory, and the share of the machine's own matrix-product speed that the
update reaches. Every algorithm lives in a process of its own, so that peak memory is its own; the processes take turns, so
that a disturbance of the machine hits all of them. Figures are medians over the turns.
"""

import argparse
import inspect
import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = Path(__file__).resolve().parent.name

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch.utils.flop_counter import FlopCounterMode

import sb3_diffusion
from sb3_diffusion.taxonomy import available_methods, get_method

BASELINES: dict[str, type[OffPolicyAlgorithm]] = {"sac": SAC, "td3": TD3}
BUFFER_SIZE = 10_000
CEILING_SIZE = 256
LATENCY_BATCHES = (1, 1024)


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
        algorithm = get_method(name).load()
        kwargs["execution"] = execution
        kwargs["policy_kwargs"] = {"net_arch": {"pi": [args.width] * 3, "qf": [args.width] * 2}}
        kwargs["policy_kwargs"]["diffusion_steps"] = args.diffusion_steps
        if args.n_particles is not None and "n_particles" in inspect.signature(algorithm).parameters:
            kwargs["n_particles"] = args.n_particles
    model = algorithm(policy, env, **kwargs)
    model.set_logger(Logger(folder=None, output_formats=[]))
    fill_buffer(model)
    return model


def fill_buffer(model: OffPolicyAlgorithm) -> None:
    """
    Fill the replay buffer with random transitions.

    :param model: Algorithm
    """
    buffer: Any = model.replay_buffer
    rng = np.random.default_rng(0)
    buffer.observations[:] = rng.normal(size=buffer.observations.shape)
    buffer.next_observations[:] = rng.normal(size=buffer.next_observations.shape)
    buffer.actions[:] = rng.uniform(-1.0, 1.0, size=buffer.actions.shape)
    buffer.rewards[:] = rng.normal(size=buffer.rewards.shape)
    buffer.full = True


def synchronize(device: str) -> None:
    """
    Wait for the device.

    :param device: Device of the benchmark
    """
    if th.device(device).type == "cuda":
        th.cuda.synchronize()


def rate(work: Callable[[int], object], device: str, seconds: float, start: int = 1) -> float:
    """
    Repetitions per second, measured over at least the given time.

    :param work: Function of the number of repetitions
    :param device: Device to wait for
    :param seconds: Time to spend
    :param start: First guess of the number of repetitions; it is doubled until they fill the time
    """
    count = start
    while True:
        synchronize(device)
        begin = time.perf_counter()
        work(count)
        synchronize(device)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return count / elapsed
        count = max(2 * count, int(1.1 * count * seconds / elapsed))


def ceiling(device: str, seconds: float) -> float:
    """
    Speed of square float32 matrix products in FLOP per second.

    :param device: Device of the benchmark
    :param seconds: Time to spend
    """
    left, right = th.rand(2, CEILING_SIZE, CEILING_SIZE, device=device)
    out = th.empty_like(left)

    def multiply(count: int) -> None:
        for _ in range(count):
            th.mm(left, right, out=out)

    multiply(100)
    return 2 * CEILING_SIZE**3 * rate(multiply, device, seconds, start=100)


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

    @property
    def actor_period(self) -> int:
        """Updates after which the pattern of actor and critic updates repeats."""
        return int(getattr(self.model, "policy_delay", 1))

    def train(self, count: int) -> None:
        self.model.train(gradient_steps=count, batch_size=self.args.batch_size)

    def act(self, n: int, count: int) -> None:
        observation = self.observations[0] if n == 1 else self.observations[:n]
        for _ in range(count):
            self.model.predict(observation, deterministic=False)

    def measure(self) -> dict[str, float]:
        """One turn."""
        device, seconds = self.args.device, self.args.seconds
        result = {
            "ceiling_gflops": ceiling(device, 0.2 * seconds) / 1e9,
            "updates_per_second": rate(self.train, device, seconds, start=2 * self.actor_period),
        }
        for n in LATENCY_BATCHES:
            actions = rate(lambda count, n=n: self.act(n, count), device, 0.3 * seconds)  # type: ignore[misc]
            result[f"action_ms_{n}"] = 1000 / actions
        return result

    def finish(self) -> dict[str, float]:
        """Memory, then the floating-point operations of the matrix products in one update, counted in eager execution."""
        memory = {"peak_memory_mib": peak_memory(self.args.device), "memory_before_mib": self.memory_before}
        self.model = make_model(self.name, self.args, "eager")
        self.train(2 * self.actor_period)
        with FlopCounterMode(display=False) as counter:
            self.train(2 * self.actor_period)
        return {**memory, "gflop_per_update": counter.get_total_flops() / (2 * self.actor_period) / 1e9}


def _start(name: str, args: argparse.Namespace) -> None:
    Subject.current = Subject(name, args)


def _measure() -> dict[str, float]:
    return Subject.current.measure()


def _finish() -> dict[str, float]:
    return Subject.current.finish()


def benchmark(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """
    Measure all algorithms in turns.

    :param args: Command line
    :return: Medians and single turns of every algorithm
    """
    context = multiprocessing.get_context("spawn")
    processes = {
        name: ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_start, initargs=(name, args))
        for name in args.algo
    }
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in args.algo}
    results: dict[str, dict[str, Any]] = {}
    try:
        for turn in range(args.repetitions):
            for name, process in processes.items():
                turns[name].append(process.submit(_measure).result())
                print(f"turn {turn + 1}/{args.repetitions}: {name}", file=sys.stderr)
        for name, process in processes.items():
            results[name] = summarize(turns[name], process.submit(_finish).result())
    finally:
        for process in processes.values():
            process.shutdown()
    return results


def summarize(turns: list[dict[str, float]], once: dict[str, float]) -> dict[str, Any]:
    """
    :param turns: Result of every turn
    :param once: What was measured once
    """
    medians = {key: median(turn[key] for turn in turns) for key in turns[0]}
    shares = [once["gflop_per_update"] * turn["updates_per_second"] / turn["ceiling_gflops"] for turn in turns]
    return {**medians, **once, "share_of_ceiling": median(shares), "turns": turns}


def table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :func:`benchmark`
    :return: Markdown table
    """
    header = ["algorithm", "updates/s", "ms/update", *(f"action, {n} obs (ms)" for n in LATENCY_BATCHES)]
    header += ["GFLOP/update", "share of ceiling", "peak MiB"]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name, result in results.items():
        updates = result["updates_per_second"]
        cells = [name, f"{updates:.1f}", f"{1000 / updates:.2f}"]
        cells += [f"{result[f'action_ms_{n}']:.2f}" for n in LATENCY_BATCHES]
        cells += [f"{result['gflop_per_update']:.2f}", f"{100 * result['share_of_ceiling']:.0f} %"]
        cells += [f"{result['peak_memory_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """
    What the figures depend on.

    :param args: Command line
    """
    info: dict[str, Any] = {"cpu": cpu_name(), "python": platform.python_version(), "threads": args.threads}
    if th.device(args.device).type == "cuda":
        info["gpu"] = th.cuda.get_device_name()
    packages = {"sb3_diffusion": sb3_diffusion, "stable_baselines3": sb3, "torch": th, "numpy": np, "gymnasium": gym}
    info["versions"] = {name: package.__version__ for name, package in packages.items()}
    return info


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parse_arguments() -> argparse.Namespace:
    """Command line; the default sizes are those of Hopper."""
    names = [*(method.zoo_name for method in available_methods() if method.setting == "off-policy"), *BASELINES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument("--obs-dim", type=int, default=11, help="size of an observation")
    parser.add_argument("--action-dim", type=int, default=3, help="size of an action")
    parser.add_argument("--batch-size", type=int, default=256, help="transitions per update")
    parser.add_argument("--width", type=int, default=256, help="width of the networks")
    parser.add_argument("--diffusion-steps", type=int, default=20, help="steps of the reverse chain")
    parser.add_argument("--n-particles", type=int, help="particles per state (default: that of each algorithm)")
    parser.add_argument("--execution", default="auto", choices=["auto", "eager", "compile", "cuda_graph"])
    parser.add_argument("--threads", type=int, default=th.get_num_threads(), help="threads for PyTorch")
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu", help="PyTorch device")
    parser.add_argument("--repetitions", type=int, default=5, help="turns per algorithm")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per measurement of the update")
    parser.add_argument("--output", type=Path, default=Path("benchmark_speed.json"), help="where to save everything")
    return parser.parse_args()


def main() -> None:
    """Measure, save and print."""
    args = parse_arguments()
    results = benchmark(args)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    report = {"machine": machine(args), "settings": settings, "results": results}
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{report['machine']['cpu']}, {args.threads} threads, device {args.device}, batch {args.batch_size}\n")
    print(table(results))
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
