"""
How soon DACER's actions saturate, and what the clip inside its chain has to do with it:
``python docs/saturation.py --seeds 0 1``.

Every combination of diffusion steps, gain of the output layer and place of the clip is one short training. Rows go to
``docs/data/saturation.csv``; those that are there are not done again.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows

from sb3_diffusion import DACER
from zoo.provenance import git_commit

OUTPUT = Path(__file__).resolve().parent / "data" / "saturation.csv"
ARM = ("environment", "diffusion_steps", "output_gain", "clip_target", "seed", "updates")
METRICS = ("saturated_actions", "clipped_gradients")
WINDOW = 100
"""Updates whose mean is noted."""


class Watch(BaseCallback):
    """
    Notes the means of what the training logs at some numbers of updates.

    :param at: The numbers
    """

    def __init__(self, at: list[int]):
        super().__init__()
        self.at, self.rows = at, {}  # type: ignore[var-annotated]
        self.last: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in METRICS}

    def _on_step(self) -> bool:
        logged = self.model.logger.name_to_value
        for name, values in self.last.items():
            if f"train/{name}" in logged:
                values.append(float(logged[f"train/{name}"]))
        if self.model._n_updates in self.at:  # type: ignore[attr-defined]
            self._note()
        return True

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        means = {name: float(np.mean(values)) for name, values in self.last.items() if values}
        self.rows[self.model._n_updates] = means  # type: ignore[attr-defined]


def arms(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """
    :param args: Command line
    :return: The arguments of every training, one seed of all after the other
    """
    for seed, steps, gain, clip in product(args.seeds, args.diffusion_steps, args.output_gains, args.clip_targets):
        yield {"diffusion_steps": steps, "output_gain": round(gain, 3), "clip_target": clip, "seed": seed}


def train(args: argparse.Namespace, arm: dict[str, Any]) -> list[dict[str, Any]]:
    """
    :param args: Command line
    :param arm: What the training changes
    :return: A row for every number of updates at which the training is looked at; the last one with returns
    """
    begin, env = time.process_time(), make_vec_env(args.env, seed=arm["seed"])
    policy_kwargs = {key: value for key, value in arm.items() if key != "seed"}
    model = DACER(
        "DiffusionPolicy",
        env,
        learning_starts=args.learning_starts,
        batch_size=args.batch_size,
        policy_kwargs=policy_kwargs,
        seed=arm["seed"],
        device="cpu",
    )
    watch = Watch(args.at)
    model.learn(args.steps, callback=watch)
    rows = [{"environment": args.env, **arm, "updates": n, **found} for n, found in watch.rows.items()]
    test = make_vec_env(args.env, seed=1000 + arm["seed"])
    for noise in ("fixed", "fresh"):
        with model.policy.evaluated_with(noise):
            returns, _ = evaluate_policy(model, test, args.episodes, return_episode_rewards=True)
        rows[-1][f"return_{noise}"] = float(np.mean(returns))
    rows[-1] |= {"cpu_seconds": round(time.process_time() - begin, 1), "commit": (git_commit() or "unknown")[:7]}
    return rows


def main() -> None:
    """Train what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--steps", type=int, default=1500, help="steps of a training, the random ones included")
    parser.add_argument("--learning-starts", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--at", type=int, nargs="+", default=[100, 300], help="updates after which to look")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[20, 5])
    parser.add_argument("--output-gains", type=float, nargs="+", default=[2**0.5, 0.1])
    parser.add_argument("--clip-targets", nargs="+", default=["x0", "none"])
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    results = Rows(args.output, ARM, [*METRICS, "return_fixed", "return_fresh", "cpu_seconds", "commit"])
    for arm in arms(args):
        if {"environment": args.env, **arm, "updates": args.steps - args.learning_starts} in results:
            continue
        rows = train(args, arm)
        results.put(*rows)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
