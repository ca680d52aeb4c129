"""
Measure the algorithms: ``python zoo/benchmark_speed.py`` (or ``python -m zoo.benchmark_speed``).

For every algorithm: updates per second (``train()`` on a filled replay buffer), milliseconds per action for one and for many
observations (``predict()`` as during training), memory, and the share of the machine's own matrix-product speed that the
update reaches. Every algorithm lives in a process of its own, so that peak memory is its own; the processes take turns, so
that a disturbance of the machine hits all of them. Figures are medians over the turns.

``--against "<command>"`` measures another implementation in the same turns, on the same cores, and shows ratios. The command
answers requests line by line (docs: guide/speed); ``--serve`` makes this script such a command.
"""

import argparse
import inspect
import json
import multiprocessing
import os
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

import sb3_diffusion
from sb3_diffusion import kernels
from sb3_diffusion.taxonomy import available_methods, get_method

from .external import External, ExternalError
from .flops import FlopCounter
from .machine import Load, cpu_name, pin

BASELINES: dict[str, type[OffPolicyAlgorithm]] = {"sac": SAC, "td3": TD3}
BUFFER_SIZE = 10_000
CEILING_SIZE = 256
LATENCY_BATCHES = (1, 1024)
COMPARED = {
    "updates_per_second": "updates/s",
    "cpu_ms_per_update": "processor time per update (ms)",
    **{f"action_ms_{n}": f"action, {n} obs (ms)" for n in LATENCY_BATCHES},
}
UNCOMPARED = ("algo", "timeout", "max_load", "pinned_to_cores")  # may differ between reports that are merged
SIZES = ("obs_dim", "action_dim", "batch_size", "width", "diffusion_steps", "n_particles")


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


def synchronize(device: str) -> None:
    """
    Wait for the device.

    :param device: Device of the benchmark
    """
    if th.device(device).type == "cuda":
        th.cuda.synchronize()


def rate(work: Callable[[int], object], device: str, seconds: float, start: int = 1) -> tuple[float, float]:
    """
    Repetitions per second, measured over at least the given time.

    :param work: Function of the number of repetitions
    :param device: Device to wait for
    :param seconds: Time to spend
    :param start: First guess of the number of repetitions; it is doubled until they fill the time
    :return: Repetitions per second, and the cores that this process kept busy meanwhile
    """
    count = start
    while True:
        synchronize(device)
        begin, processor = time.perf_counter(), time.process_time()
        work(count)
        synchronize(device)
        elapsed, processor = time.perf_counter() - begin, time.process_time() - processor
        if elapsed >= seconds:
            return count / elapsed, processor / elapsed
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
    return 2 * CEILING_SIZE**3 * rate(multiply, device, seconds, start=100)[0]


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


def _start(name: str, args: argparse.Namespace) -> None:
    Subject.current = Subject(name, args)


def _arguments() -> dict[str, Any]:
    return Subject.current.arguments()


def _measure() -> dict[str, float]:
    return Subject.current.measure()


def _finish() -> dict[str, float]:
    return Subject.current.finish()


class Contest:
    """
    The algorithms of this library, and those of another one beside them, each in a process of its own.

    :param args: Command line
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        context = multiprocessing.get_context("spawn")
        self.processes = {
            name: ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_start, initargs=(name, args))
            for name in args.algo
        }
        self.rivals: dict[str, External] = {}
        self.rival: dict[str, Any] | None = None

    def __enter__(self) -> "Contest":
        try:
            if self.args.against:
                self._start_rivals()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for rival in self.rivals.values():
            rival.close()
        for process in self.processes.values():
            process.shutdown()

    def _start_rivals(self) -> None:
        names = self.args.algo
        while names:
            name, *names = names
            self.rivals[name] = rival = External(self.args.against, self.args.threads, self.args.timeout)
            if self.rival is None:
                self.rival = {"command": self.args.against, **rival.describe()}
                names = [other for other in names if other in self.rival["algorithms"]]
                if name not in self.rival["algorithms"]:
                    self.rivals.pop(name).close()

    def run(self) -> dict[str, dict[str, Any]]:
        """
        Measure in turns.

        :return: Medians and single turns of every algorithm
        """
        ours: dict[str, list[dict[str, Any]]] = {name: [] for name in self.processes}
        theirs: dict[str, list[dict[str, Any]]] = {name: [] for name in self.rivals}
        settings = {key: getattr(self.args, key) for key in (*SIZES, "device", "threads", "seconds")}
        load = Load()
        for turn in range(self.args.repetitions):
            for name, process in self.processes.items():
                sides = ["ours"] if name not in self.rivals else ["ours", "theirs"]
                for side in sides if turn % 2 == 0 else reversed(sides):  # neither is always the first
                    load.read()
                    if side == "ours":
                        ours[name].append({**process.submit(_measure).result(), "load": load.read()})
                    else:
                        request = {**settings, "arguments": process.submit(_arguments).result()}
                        theirs[name].append({**self.rivals[name].measure(name, request), "load": load.read()})
                print(f"turn {turn + 1}/{self.args.repetitions}: {name}", file=sys.stderr)
        results = {}
        for name, process in self.processes.items():
            results[name] = summarize(ours[name], process.submit(_finish).result())
            if name in self.rivals:
                results[name]["against"] = compare(ours[name], theirs[name])
        return results


def summarize(turns: list[dict[str, Any]], once: dict[str, float]) -> dict[str, Any]:
    """
    :param turns: Result of every turn
    :param once: What was measured once
    """
    shares = [once["gflop_per_update"] * turn["updates_per_second"] / turn["ceiling_gflops"] for turn in turns]
    return {**medians(turns), **once, "share_of_ceiling": median(shares), "turns": turns}


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """
    :param turns: Result of every turn
    :return: Median of every quantity that all turns have
    """
    keys = [key for key in turns[0] if all(turn.get(key) is not None for turn in turns)]
    return {key: median(turn[key] for turn in turns) for key in keys}


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """
    :param ours: Result of every turn
    :param theirs: Result of the other implementation in the same turns
    :return: Its medians, and how many times as fast ours is: ratio of every turn, their median and range
    """
    speedups: dict[str, dict[str, Any]] = {}
    for key in COMPARED:
        if all(turn.get(key) for turn in (*ours, *theirs)):
            ratios = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
            if key != "updates_per_second":  # a time
                ratios = [1 / ratio for ratio in ratios]
            speedups[key] = {"median": median(ratios), "min": min(ratios), "max": max(ratios), "turns": ratios}
    return {**medians(theirs), "speedups": speedups, "turns": theirs}


def table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :meth:`Contest.run`
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


def comparison_table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :meth:`Contest.run`
    :return: Markdown table of what was measured on both sides
    """
    lines = [
        "| algorithm | quantity | ours | theirs | times as fast | range |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        for key, speedup in result.get("against", {}).get("speedups", {}).items():
            values = f"{result[key]:.4g} | {result['against'][key]:.4g}"
            ratios = f"{speedup['median']:.2f} | {speedup['min']:.2f} to {speedup['max']:.2f}"
            lines.append(f"| {name} | {COMPARED[key]} | {values} | {ratios} |")
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """
    What the figures depend on.

    :param args: Command line
    """
    info: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    info |= {"threads": args.threads, "kernels": kernels.load_kernels() is not None}
    if th.device(args.device).type == "cuda":
        info["gpu"] = th.cuda.get_device_name()
    packages = {"sb3_diffusion": sb3_diffusion, "stable_baselines3": sb3, "torch": th, "numpy": np, "gymnasium": gym}
    info["versions"] = {name: package.__version__ for name, package in packages.items()}
    return info


def serve(args: argparse.Namespace) -> None:
    """
    Be the other side of ``--against``: answer requests until the input ends.

    :param args: Command line; the sizes come with the requests
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not look like an answer
    subject: Subject | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["request"] == "describe":
            versions = machine(args)["versions"]
            answer = {"name": f"sb3_diffusion ({args.execution})", "versions": versions, "algorithms": args.algo}
        else:
            if subject is None:
                known = {key: value for key, value in request["settings"].items() if key in vars(args)}
                subject = Subject(request["algorithm"], argparse.Namespace(**{**vars(args), **known}))
            answer = {**subject.measure(), "peak_memory_mib": peak_memory(subject.args.device)}
        print(json.dumps(answer), file=answers, flush=True)


def check_load(limit: float) -> None:
    """
    Refuse to compare on a machine that is busy with something else.

    :param limit: Largest number of cores that may be busy
    """
    load = Load()
    time.sleep(1.0)
    busy = load.read()
    if busy is not None and busy > limit:
        sys.exit(
            f"Other processes keep {busy:.2f} cores busy. Wait until they end, or allow it with --max-load {busy + 0.5:.1f}"
        )


def report_load(turns: list[dict[str, Any]], limit: float) -> None:
    """
    Tell what other processes did during the measurements.

    :param turns: Measurements, each with its ``load``
    :param limit: Largest number of cores that may be busy
    """
    loads = [turn["load"] for turn in turns if turn["load"] is not None]
    if loads and max(loads) > limit:
        disturbed = sum(load > limit for load in loads)
        print(
            f"\nWarning: other processes kept up to {max(loads):.2f} cores busy, more than {limit:g} in {disturbed} of "
            f"{len(loads)} measurements. Figures of such a run are doubtful, with several threads they are worthless."
        )


def parse_arguments() -> argparse.Namespace:
    """Command line; the default sizes are those of Hopper."""
    names = [*(method.zoo_name for method in available_methods() if method.setting == "off-policy"), *BASELINES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument("--obs-dim", "--observation-dim", type=int, default=11, help="size of an observation")
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
    parser.add_argument("--against", metavar="COMMAND", help="another implementation, to measure in the same turns")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that COMMAND may take for one answer")
    parser.add_argument("--max-load", type=float, default=0.2, help="cores that other processes may keep busy")
    parser.add_argument("--serve", action="store_true", help="be such a COMMAND: answer requests on the standard input")
    parser.add_argument("--merge", action="store_true", help="keep what the output holds of other algorithms")
    parser.add_argument("--output", type=Path, default=Path("benchmark_speed.json"), help="where to save everything")
    return parser.parse_args()


def merge(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """
    Add the other algorithms of an earlier report.

    :param path: The earlier report, which need not exist
    :param report: A report
    :return: Both in one
    :raises SystemExit: If something else than the algorithms differs between the two
    """
    if not path.is_file():
        return report
    old = json.loads(path.read_text(encoding="utf-8"))
    for part in ("machine", "settings", "against"):
        ours, theirs = report.get(part) or {}, old.get(part) or {}
        different = [key for key in {**theirs, **ours} if key not in UNCOMPARED and theirs.get(key) != ours.get(key)]
        if different:
            sys.exit(f"{path} was measured with another {part} ({', '.join(different)}), choose another --output")
    results = {**old["results"], **report["results"]}
    return {**report, "settings": {**report["settings"], "algo": list(results)}, "results": results}


def main() -> None:
    """Measure, save and print."""
    args = parse_arguments()
    if args.serve:
        return serve(args)
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "serve", "merge")}
    report: dict[str, Any] = {"machine": machine(args), "settings": settings, "results": {}}
    cores: list[int] = []
    if args.against:
        check_load(args.max_load)
        cores = pin(args.threads)
    try:
        with Contest(args) as contest:
            if contest.rival is not None:
                report["against"] = {**contest.rival, "pinned_to_cores": cores}
            if args.merge:
                merge(args.output, report)  # complain before the work, not after it
            results = report["results"] = contest.run()
    except ExternalError as error:
        sys.exit(f"benchmark_speed.py: {error}")
    if args.merge:
        report = merge(args.output, report)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{report['machine']['cpu']}, {args.threads} threads, device {args.device}, batch {args.batch_size}\n")
    print(table(results))
    if contest.rival is not None:
        print(f"\nOurs against {contest.rival['name']} (median of the ratios of {args.repetitions} turns)\n")
        print(comparison_table(results))
    sides = [side for result in results.values() for side in (result, result.get("against")) if side]
    report_load([turn for side in sides for turn in side["turns"]], args.max_load)
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
