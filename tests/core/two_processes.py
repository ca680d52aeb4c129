"""A training in one process or in two that share it: ``python -m tests.core.two_processes RANK WORLD FOLDER``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import distributed

from sb3_diffusion import PPO
from sb3_diffusion.envs.tensor.observations import box
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv
from sb3_diffusion.generative.randomness import Randomness

TOGETHER = 8
"""Environments of all processes."""


class Part(TorchVecEnv):
    """Some rows of the environments that there are; nothing is drawn."""

    def __init__(self, first: int, n_envs: int):
        self.rows = th.arange(first, first + n_envs).float().unsqueeze(1)
        self.n_begun = 0
        super().__init__(n_envs, box((2,)), box((1,), -1.0, 1.0), 5, "cpu")

    def initial_state(self, n: int) -> th.Tensor:
        self.n_begun += 1
        return th.cat((self.rows.sin(), (self.rows * self.n_begun).cos()), 1)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        after = 0.9 * state + 0.3 * action
        return after, -after.square().sum(1), after[:, 0] > 0.95


class Rows(Randomness):
    """The rows of draws that are made for the environments of all processes."""

    def __init__(self, first: int, n_envs: int):
        super().__init__(th.Generator().manual_seed(0))
        self.first, self.n_envs = first, n_envs

    def normal(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        assert shape[0] == self.n_envs
        return super().normal((TOGETHER, *shape[1:]), label, like)[self.first : self.first + self.n_envs]

    def permutation(self, n: int, label: str, like: th.Tensor) -> th.Tensor:
        return th.arange(n)  # whose length differs, and there is one minibatch anyway


class Stop(BaseCallback):
    """Ends a training in the middle of a rollout, on the first process alone."""

    def _on_step(self) -> bool:
        return self.n_calls < 10


def model(first: int, n_envs: int, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {
        "n_steps": 8,
        "n_epochs": 3,
        "desired_kl": 1e-3,
        "random_phases": False,
        "seed": 0,
        "device": "cpu",
    }
    made: Any = PPO("GaussianPolicy", Part(first, n_envs), n_minibatches=1, policy_kwargs={"net_arch": [8]}, **settings)
    made.randomness = Rows(first, n_envs)
    return made


def main(rank: int, world: int, folder: Path) -> None:
    th.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    n_envs = TOGETHER // world
    trained = model(rank * n_envs, n_envs)
    if rank > 0:
        with th.no_grad():  # which is not where it begins
            for parameter in trained.policy.parameters():
                parameter.add_(1.0)
    trained.learn(4 * 8 * TOGETHER)
    assert trained.num_timesteps == 4 * 8 * TOGETHER
    rates = [float(part.optimizer.param_groups[0]["lr"]) for part in trained.parts()]
    th.save({"weights": trained.policy.state_dict(), "rates": rates}, folder / f"{world}-{rank}.pt")
    trained.learn(4 * 8 * TOGETHER, callback=Stop())  # nobody waits for ever
    if world > 1:
        distributed.barrier()  # nobody leaves while another one still hears of the end
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads have aborted an interpreter that was being taken down, once in many runs
