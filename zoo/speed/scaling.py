"""
How cost grows: ``python zoo/speed/scaling.py --algo qsm`` (or ``python -m zoo.speed.scaling``).

One quantity at a time leaves the sizes of Hopper: diffusion steps, particles, batch, width, sizes of observation and action,
both at once as in larger tasks, threads, execution mode, and the number of environments per process. All points of a line are
measured in turns, so that a disturbance of the machine hits all of them, and a law ``a + b x`` is fitted to their medians.

Results are merged into the output file: a command may measure one algorithm, or one line, at a time.
"""

import argparse
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_diffusion.taxonomy import available_methods, get_method

from .machine import Load, report_load
from .report import conditions
from .subject import make_model, silence
from .timing import rate

BASE: dict[str, Any] = {"obs_dim": 11, "action_dim": 3, "batch_size": 256, "width": 256, "diffusion_steps": 20}
PARTICLES = (0.125, 0.25, 0.5, 1, 2)  # times the algorithm's default
LINES: dict[str, tuple[Any, ...]] = {
    "diffusion_steps": (5, 10, 20, 40),
    "n_particles": PARTICLES,
    "batch_size": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512),
    "obs_dim": (11, 50, 150, 348),
    "action_dim": (3, 6, 17, 38),
    "task": ("Hopper", "HalfCheetah", "Ant", "Humanoid", "dog-run"),
    "threads": tuple(2**i for i in range((os.cpu_count() or 1).bit_length())),
    "execution": ("eager", "compile"),
    "n_envs": (1, 2, 4, 8, 16, 32, 64),
}
TASKS = {"Hopper": (11, 3), "HalfCheetah": (17, 6), "Ant": (105, 8), "Humanoid": (348, 17), "dog-run": (223, 38)}
# The law is linear in this power of the quantity; lines that are not listed have no law.
POWERS = {"diffusion_steps": 1, "n_particles": 1, "batch_size": 1, "width": 2, "obs_dim": 1, "action_dim": 1, "n_envs": 1}


def default_particles(name: str) -> int | None:
    """Particles per state that an algorithm uses by default, ``None`` if it has none."""
    parameter = inspect.signature(get_method(name).load()).parameters.get("n_particles")
    return None if parameter is None else int(parameter.default)


def points(name: str, line: str) -> tuple[Any, ...]:
    """
    :param name: Name of the algorithm
    :param line: Key of :data:`LINES`
    :return: Values of the quantity that are measured
    """
    if line != "n_particles":
        return LINES[line]
    default = default_particles(name)
    return () if default is None else tuple(max(1, round(factor * default)) for factor in PARTICLES)


def sizes(line: str, value: Any) -> dict[str, Any]:
    """
    :param line: Key of :data:`LINES`
    :param value: Value of the quantity
    :return: What :func:`~zoo.speed.subject.make_model` has to know, as far as it differs from Hopper
    """
    if line == "task":
        return dict(zip(("obs_dim", "action_dim"), TASKS[value], strict=True))
    return {line: value}


class Update:
    """
    The update of one algorithm at one point of a line.

    :param name: Name of the algorithm
    :param args: Command line
    :param line: Key of :data:`LINES`
    :param value: Value of the quantity
    """

    def __init__(self, name: str, args: argparse.Namespace, line: str, value: Any):
        self.settings = argparse.Namespace(**{**vars(args), **BASE, "n_particles": None, **sizes(line, value)})
        th.set_num_threads(self.settings.threads)
        self.seconds = args.seconds
        self.model = make_model(name, self.settings, self.settings.execution)
        self.observation = np.zeros(self.settings.obs_dim, dtype=np.float32)
        self.period = int(getattr(self.model, "policy_delay", 1))
        self.train(2 * self.period)
        self.act(3)

    def train(self, count: int) -> None:
        """Train for as many steps as the measurement takes."""
        self.model.train(gradient_steps=count, batch_size=self.settings.batch_size)

    def act(self, count: int) -> None:
        """Act as often as the measurement takes."""
        for _ in range(count):
            self.model.predict(self.observation, deterministic=False)

    def measure(self) -> dict[str, float]:
        """One turn."""
        th.set_num_threads(self.settings.threads)
        updates, _ = rate(self.train, self.settings.device, self.seconds, start=self.period)
        actions, _ = rate(self.act, self.settings.device, 0.3 * self.seconds)
        return {"ms_per_update": 1000 / updates, "action_ms_1": 1000 / actions}


class Environments:
    """
    Several environments in one process: all of the work between two observations.

    :param name: Name of the algorithm
    :param args: Command line
    :param line: Key of :data:`LINES`
    :param value: Number of environments
    """

    # what happens in a step of all environments: environments and replay buffer only; and the policy; and one update
    MODES: ClassVar[dict[str, tuple[int, int]]] = {"random": (10**9, 0), "acting": (0, 0), "training": (0, 1)}

    def __init__(self, name: str, args: argparse.Namespace, line: str, value: int):
        self.n_envs, self.args = value, args
        self.models = {mode: self.make(name, *how) for mode, how in self.MODES.items()}
        self.period = int(getattr(self.models["training"], "policy_delay", 1))
        for mode in self.MODES:
            self.step(mode, 2 * self.period)

    def make(self, name: str, learning_starts: int, gradient_steps: int) -> OffPolicyAlgorithm:
        """A model that acts randomly for ``learning_starts`` steps and updates ``gradient_steps`` times per step."""
        th.set_num_threads(self.args.threads)
        width, steps = BASE["width"], BASE["diffusion_steps"]
        model: OffPolicyAlgorithm = get_method(name).load()(
            "MlpPolicy",
            make_vec_env(self.args.env, self.n_envs, seed=0),
            buffer_size=10_000,
            batch_size=BASE["batch_size"],
            learning_starts=learning_starts,
            gradient_steps=gradient_steps,
            policy_kwargs={"net_arch": {"pi": [width] * 3, "qf": [width] * 2}, "diffusion_steps": steps},
            execution=self.args.execution,
            device=self.args.device,
            seed=0,
        )
        silence(model)
        return model

    def step(self, mode: str, count: int) -> None:
        """Step all environments ``count`` times."""
        self.models[mode].learn(count * self.n_envs, log_interval=10**9, reset_num_timesteps=False)

    def measure(self) -> dict[str, float]:
        """One turn."""
        device, seconds = self.args.device, 2 * self.args.seconds
        result = {}
        for mode in self.MODES:
            work: Callable[[int], object] = functools.partial(self.step, mode)
            steps, _ = rate(work, device, seconds, start=self.period)
            result[f"ms_per_step_{mode}"] = 1000 / steps
            result[f"env_steps_per_second_{mode}"] = steps * self.n_envs
        return result


def measure(name: str, line: str, args: argparse.Namespace) -> dict[str, Any]:
    """
    Measure one line of one algorithm.

    :param name: Name of the algorithm
    :param line: Key of :data:`LINES`
    :param args: Command line
    :return: Medians of the points with their turns, the laws, and the default where points are relative to it
    """
    values = [value for value in points(name, line) if not isinstance(value, int) or value <= args.largest]
    make: Callable[..., Any] = Environments if line == "n_envs" else Update
    subjects = [make(name, args, line, value) for value in values]
    turns: list[list[dict[str, Any]]] = [[] for _ in values]
    load = Load()
    for _ in range(args.repetitions):
        for subject, results in zip(subjects, turns, strict=True):
            load.read()
            results.append({**subject.measure(), "load": load.read()})
    found: list[dict[str, Any]] = []
    for value, results in zip(values, turns, strict=True):
        keys = [key for key in results[0] if key != "load"]
        found.append({"value": value, **{key: median(turn[key] for turn in results) for key in keys}, "turns": results})
    laws = {}
    if line in POWERS and len(found) > 2:
        laws = {key: fit(found, key, POWERS[line]) for key in found[0] if key.startswith(("ms_", "action_ms"))}
    default = {"default": default_particles(name)} if line == "n_particles" else {}
    return {**default, "points": found, "laws": laws}


def fit(found: list[dict[str, Any]], key: str, power: int) -> dict[str, float]:
    """
    The law ``a + b x`` with the smallest relative squared errors, where ``x`` is a power of the quantity.

    :param found: Points of a line
    :param key: What to fit
    :param power: The power
    :return: ``a``, ``b``, ``power``, and the largest relative deviation ``error`` of a point from the law
    """
    x = np.array([float(point["value"]) ** power for point in found])
    y = np.array([point[key] for point in found])
    columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)
    return {"a": float(a), "b": float(b), "power": power, "error": float(np.abs((a + b * x) / y - 1).max())}


def merge(path: Path, algo: str, line: str, result: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """
    Put a line into the file of results; what the file holds of other lines and algorithms stays.

    :param path: The file
    :param algo: Name of the algorithm
    :param line: Key of :data:`LINES`
    :param result: Result of :func:`measure`
    :param run: Machine and settings
    :return: All that the file holds now
    """
    report: dict[str, Any] = {"runs": [], "results": {}}
    if path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
    if run not in report["runs"]:
        report["runs"].append(run)
    report["results"].setdefault(algo, {})[line] = {"run": report["runs"].index(run), **result}
    used = {entry["run"] for lines in report["results"].values() for entry in lines.values()}
    kept = {old: new for new, old in enumerate(sorted(used))}
    report["runs"] = [report["runs"][old] for old in kept]
    for lines in report["results"].values():
        for entry in lines.values():
            entry["run"] = kept[entry["run"]]
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def show(algo: str, line: str, result: dict[str, Any]) -> str:
    """
    :param algo: Name of the algorithm
    :param line: Key of :data:`LINES`
    :param result: Result of :func:`measure`
    :return: Text for the terminal
    """
    text = [f"\n{algo}, {line}"]
    for point in result["points"]:
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in point.items() if key not in ("value", "turns"))
        text.append(f"  {point['value']!s:>12}: {numbers}")
    for key, law in result["laws"].items():
        x = "x" if law["power"] == 1 else f"x^{law['power']}"
        text.append(f"  {key} = {law['a']:.4g} + {law['b']:.4g} {x}, within {100 * law['error']:.0f} %")
    return "\n".join(text)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    names = [method.zoo_name for method in available_methods() if method.setting == "off-policy"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument(
        "--lines", nargs="+", choices=list(LINES), default=list(LINES), help="quantities to vary (default: all)"
    )
    parser.add_argument("--largest", type=float, default=float("inf"), help="leave out points beyond this value")
    parser.add_argument("--env", default="Hopper-v5", help="environment of the line n_envs")
    parser.add_argument("--execution", default="auto", choices=["auto", "eager", "compile", "cuda_graph"])
    parser.add_argument("--threads", type=int, default=1, help="threads for PyTorch, except in the line threads")
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu", help="PyTorch device")
    parser.add_argument("--repetitions", type=int, default=3, help="turns per line")
    parser.add_argument("--seconds", type=float, default=0.3, help="time per measurement of the update")
    parser.add_argument("--max-load", type=float, default=0.2, help="warn if other processes keep more cores busy")
    parser.add_argument("--output", type=Path, default=Path("benchmark_scaling.json"), help="file to merge the results into")
    return parser.parse_args()


def main() -> None:
    """Measure line after line; each is saved as soon as it is complete."""
    args = parse_arguments()
    settings = ("env", "execution", "device", "threads", "repetitions", "seconds")
    run = {"machine": conditions(args), "settings": {key: getattr(args, key) for key in settings}, "base": BASE}
    turns = []
    for name in args.algo:
        for line in args.lines:
            if not points(name, line):
                continue
            result = measure(name, line, args)
            merge(args.output, name, line, result, run)
            print(show(name, line, result), flush=True)
            turns += [turn for point in result["points"] for turn in point["turns"]]
    report_load(turns, args.max_load)
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
