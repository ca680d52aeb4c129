"""
See where the time of a training goes: ``python zoo/speed/shares.py --env Hopper-v5`` (or ``python -m zoo.speed.shares``).

Every algorithm trains on a real environment through its own ``learn()``, one update per transition. The wall-clock time of a
step is split into environment, acting (``predict()``), storing and sampling transitions, update (``train()`` without sampling)
and the rest, which is Stable-Baselines3's loop. The algorithms take turns, so that a disturbance of the machine hits all of
them; figures are medians over the turns.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_diffusion.envs import quiet_mujoco
from sb3_diffusion.taxonomy import get_method

from .report import conditions
from .subject import BASELINES, method_names
from .timing import synchronize

SECTIONS = ("environment", "acting", "storing", "sampling", "update", "rest")

quiet_mujoco()


class Stopwatch:
    """
    Splits time among sections; a section inside another one stops the outer one.

    :param device: Device to wait for where a section begins and ends
    """

    def __init__(self, device: str):
        self.device = device
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.sections = ["rest"]
        self.last = time.perf_counter()

    def lap(self) -> None:
        """Book the time since the last lap on the current section."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self.sections[-1]] += now - self.last
        self.last = now

    def watch(self, owner: object, method: str, section: str) -> None:
        """
        Replace a method by one whose time is booked on a section.

        :param owner: The object
        :param method: Name of the method
        :param section: Name of the section
        """
        function = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.lap()
            self.sections.append(section)
            try:
                return function(*args, **kwargs)
            finally:
                self.lap()
                self.sections.pop()

        setattr(owner, method, watched)

    def read(self) -> dict[str, float]:
        """Seconds per section since the last reading."""
        self.lap()
        seconds, self.seconds = self.seconds, dict.fromkeys(SECTIONS, 0.0)
        return seconds


class Trainee:
    """
    One algorithm in training.

    :param name: Name of the algorithm
    :param args: Command line
    """

    def __init__(self, name: str, args: argparse.Namespace):
        self.args = args
        self.model = make_model(name, args)
        # random actions until learning starts, and then whatever an algorithm does in its first updates only
        self.model.learn(2 * args.warmup)
        self.stopwatch = Stopwatch(args.device)
        for owner, method, section in (
            (self.model.env, "step", "environment"),
            (self.model, "predict", "acting"),
            (self.model.replay_buffer, "add", "storing"),
            (self.model.replay_buffer, "sample", "sampling"),
            (self.model, "train", "update"),
        ):
            self.stopwatch.watch(owner, method, section)

    def turn(self) -> dict[str, float]:
        """Train for a while; milliseconds per transition."""
        before = self.model.num_timesteps
        self.stopwatch.read()
        self.model.learn(self.args.steps, reset_num_timesteps=False)
        steps = self.model.num_timesteps - before
        return {section: 1000 * seconds / steps for section, seconds in self.stopwatch.read().items()}


def make_model(name: str, args: argparse.Namespace) -> OffPolicyAlgorithm:
    """
    An algorithm with its default settings.

    :param name: Name of the algorithm
    :param args: Command line
    """
    kwargs: dict[str, Any] = {"learning_starts": args.warmup, "batch_size": args.batch_size, "gradient_steps": -1}
    if name not in BASELINES:
        kwargs["execution"] = args.execution
    algorithm: Any = BASELINES[name] if name in BASELINES else get_method(name).load()
    env = make_vec_env(args.env, n_envs=args.n_envs, seed=0)
    model = algorithm("MlpPolicy", env, seed=0, device=args.device, buffer_size=args.buffer_size, **kwargs)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model  # type: ignore[no-any-return]


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """
    Train all algorithms in turns.

    :param args: Command line
    :return: Milliseconds per transition of every algorithm, in total and by section, and single turns
    """
    th.set_num_threads(args.threads)
    trainees = {name: Trainee(name, args) for name in args.algo}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in args.algo}
    for turn in range(args.repetitions):
        for name, trainee in trainees.items():
            turns[name].append(trainee.turn())
            print(f"turn {turn + 1}/{args.repetitions}: {name}", file=sys.stderr)
    return {name: summarize(turns[name]) for name in args.algo}


def summarize(turns: list[dict[str, float]]) -> dict[str, Any]:
    """
    :param turns: Milliseconds of every turn
    """
    totals = [sum(turn.values()) for turn in turns]
    shares = {
        section: median(turn[section] / total for turn, total in zip(turns, totals, strict=True)) for section in SECTIONS
    }
    sections = {section: median(turn[section] for turn in turns) for section in SECTIONS}
    return {"ms_per_step": median(totals), "ms": sections, "shares": shares, "turns": turns}


def table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :func:`measure`
    :return: Markdown table
    """
    lines = [f"| algorithm | ms/step | {' | '.join(SECTIONS)} |", "|---" + "|---:" * (len(SECTIONS) + 1) + "|"]
    for name, result in results.items():
        cells = [f"{result['ms'][section]:.3f} ({100 * result['shares'][section]:.1f} %)" for section in SECTIONS]
        lines.append(f"| {name} | {result['ms_per_step']:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    names = method_names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5", help="id of the environment")
    parser.add_argument("--algo", nargs="+", choices=names, default=names, help="algorithms (default: all)")
    parser.add_argument("--n-envs", type=int, default=1, help="environments")
    parser.add_argument("--batch-size", type=int, default=256, help="transitions per update")
    parser.add_argument("--buffer-size", type=int, default=1_000_000, help="size of the replay buffer")
    parser.add_argument("--execution", default="auto", choices=["auto", "eager", "compile", "cuda_graph"])
    parser.add_argument("--threads", type=int, default=th.get_num_threads(), help="threads for PyTorch")
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu", help="PyTorch device")
    parser.add_argument("--warmup", type=int, default=500, help="random steps, and as many with updates, before measuring")
    parser.add_argument("--steps", type=int, default=300, help="environment steps per turn")
    parser.add_argument("--repetitions", type=int, default=5, help="turns per algorithm")
    parser.add_argument("--output", type=Path, default=Path("speed_shares.json"), help="where to save everything")
    return parser.parse_args()


def main() -> None:
    """Measure, save and print."""
    args = parse_arguments()
    results = measure(args)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    report = {"machine": conditions(args), "settings": settings, "results": results}
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{report['machine']['cpu']}, {args.threads} threads, device {args.device}, {args.env}; ms per step (share)\n")
    print(table(results))
    print(f"\nSaved as {args.output}")


if __name__ == "__main__":
    main()
