"""
What an on-policy method makes of one rollout: ``python zoo/speed/rollout_updates.py``.

Values, advantages, what the method remembers of the policy that acted, and all epochs of updates, for a rollout of the paper's
size whose numbers are random. ``--against "<command>"`` measures another implementation in the same turns, on the same cores;
it is asked as in ``benchmark.py`` (docs: guide/speed), with ``n_envs`` and ``n_steps`` among the settings and one rollout as
one update.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch as th

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from sb3_diffusion.envs.tensor.observations import box
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv
from sb3_diffusion.taxonomy import available_methods, get_method

from .external import External
from .machine import Load, check_load, pin, report_load
from .report import conditions
from .subject import silence
from .timing import synchronize

NAMES = [method.zoo_name for method in available_methods() if method.setting == "on-policy"]


class Noise(TorchVecEnv):
    """
    Observations that mean nothing.

    :param n_envs: Number of environments
    :param obs_dim: Size of an observation
    :param action_dim: Size of an action
    :param device: Device
    """

    def __init__(self, n_envs: int, obs_dim: int, action_dim: int, device: str):
        self.obs_dim = obs_dim
        super().__init__(n_envs, box((obs_dim,)), box((action_dim,), -1.0, 1.0), 50, device)

    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes
        :return: Numbers
        """
        return th.randn(n, self.obs_dim, generator=self.generator, device=self.device)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: Numbers
        :param action: Actions
        :return: Other numbers
        """
        after = self.initial_state(len(state))
        return after, after[:, 0], after[:, 0] > 10.0


class Subject:
    """
    A method and its rollout.

    :param name: Name of the method
    :param args: Command line
    """

    def __init__(self, name: str, args: argparse.Namespace):
        env = Noise(args.n_envs, args.obs_dim, args.action_dim, args.device)
        algorithm = get_method(name).load()
        settings = algorithm.preset(args.preset) if args.preset else {}
        # the last statistics of the observations would only be counted again
        settings |= {"n_steps": args.n_steps, "normalize_observations": False, "execution": args.execution}
        self.device = args.device
        self.model = algorithm("MlpPolicy", env, device=args.device, seed=0, **settings)
        silence(self.model)
        self.model.learn(1, log_interval=None)

    def update(self) -> float:
        """All that follows a rollout; its seconds."""
        synchronize(self.device)
        start = time.perf_counter()
        self.model._value_rollout(self.model._last_obs)
        self.model.train()
        synchronize(self.device)
        return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", nargs="+", default=NAMES, choices=NAMES, help="methods (default: all)")
    parser.add_argument("--preset", default="flowrl_code", help="settings, of those that methods know by name; '' for ours")
    parser.add_argument("--obs-dim", type=int, default=60, help="size of an observation, that of Isaac-Ant-v0 by default")
    parser.add_argument("--action-dim", type=int, default=8, help="size of an action, the same")
    parser.add_argument("--n-envs", type=int, default=1024, help="environments")
    parser.add_argument("--n-steps", type=int, default=24, help="steps of a rollout")
    parser.add_argument("--execution", default="auto", choices=["auto", "eager", "compile", "cuda_graph"])
    parser.add_argument("--turns", type=int, default=3, help="rollouts of each")
    parser.add_argument("--threads", type=int, default=1, help="threads for PyTorch")
    parser.add_argument("--device", default="cpu", help="PyTorch device")
    parser.add_argument("--against", metavar="COMMAND", help="another implementation, to measure in the same turns")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that COMMAND may take for one answer")
    parser.add_argument("--max-load", type=float, default=0.3, help="cores that other processes may keep busy")
    parser.add_argument("--output", type=Path, help="where to save everything")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    pin(args.threads)
    check_load(args.max_load)
    other = External(args.against, args.threads, args.timeout) if args.against else None
    load, results = Load(), []
    for name in args.algo:
        results.append(_measure(name, args, other))
        print(_line(results[-1]), flush=True)
    report_load([{"load": load.read()}], args.max_load)
    if args.output is not None:
        about = {key: value for key, value in vars(args).items() if key not in ("output", "against")}
        args.output.write_text(
            json.dumps({"settings": about, "machine": conditions(args), "results": results}, indent=2) + "\n"
        )


def _measure(name: str, args: argparse.Namespace, other: External | None) -> dict[str, Any]:
    subject, settings = Subject(name, args), {"seconds": 0.0, "threads": args.threads}
    settings |= {key: getattr(args, key) for key in ("obs_dim", "action_dim", "n_envs", "n_steps")}
    asks = other is not None and name in other.describe()["algorithms"]
    if asks:
        other.measure(name, settings)  # type: ignore[union-attr]  # which compiles
    ours, theirs = [], []
    for _ in range(args.turns):
        ours.append(subject.update())
        if asks:
            theirs.append(1.0 / other.measure(name, settings)["updates_per_second"])  # type: ignore[union-attr]
    ratios = [that / this for this, that in zip(ours, theirs, strict=False)]
    seconds = {"ours_s": median(ours), "theirs_s": median(theirs) if theirs else None}
    return {"algorithm": name, **seconds, "ratio": median(ratios) if ratios else None, "ratios": ratios}


def _line(result: dict[str, Any]) -> str:
    text = f"{result['algorithm']}: {result['ours_s']:.2f} s for a rollout"
    if result["ratio"] is None:
        return text
    low, high = min(result["ratios"]), max(result["ratios"])
    return f"{text}, theirs {result['theirs_s']:.2f} s: {result['ratio']:.2f} times as fast ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
