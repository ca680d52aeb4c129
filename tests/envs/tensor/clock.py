"""Environments whose observation is a clock, so that every step and every end of an episode can be told by what is seen."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor import Observation, TensorStep, TensorVecEnv, TorchVecEnv
from sb3_diffusion.envs.tensor.observations import box

LIMIT = 5
START = 100.0
"""The clock of an episode that begins, so that the first observation is nothing like the last one."""


class ClockEnv(TorchVecEnv):
    """
    The observation is (100 plus the number of steps of the episode, number of the environment); the reward is the action.

    :param terminate_after: Steps of an episode that ends in a terminal state; ``None`` for no such end
    """

    def __init__(self, num_envs: int = 3, device: str = "cpu", limit: int = LIMIT, terminate_after: int | None = None):
        super().__init__(num_envs, box((2,)), spaces.Box(-1.0, 1.0, (1,), np.float32), limit, device)
        self.terminate_after = terminate_after
        self.numbers = th.arange(float(num_envs), device=self.device)

    def initial_state(self, n: int) -> th.Tensor:
        return th.stack((th.full_like(self.numbers, START), self.numbers), dim=-1)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        after = th.stack((state[:, 0] + 1.0, state[:, 1]), dim=-1)
        terminated = th.zeros_like(after[:, 0], dtype=th.bool)
        if self.terminate_after is not None:
            terminated = after[:, 0] - START >= self.terminate_after
        return after, action.squeeze(-1), terminated


class Reporting(TensorVecEnv):
    """A clock whose report of a step is changed by ``change``, to say less than it knows, or something wrong."""

    def __init__(self, env: TorchVecEnv):
        super().__init__(env.num_envs, env.observation_space, env.action_space, env.device)  # type: ignore[arg-type]
        self.env = env

    def reset_simulator(self, seed: int | None) -> Observation:
        return self.env.reset_simulator(seed)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        return self.change(self.env.step_simulator(actions))

    def change(self, step: TensorStep) -> TensorStep:
        return step

    def read_limit(self) -> int | None:
        return self.env.read_limit()


class Silent(Reporting):
    """Knows no final observation."""

    def change(self, step: TensorStep) -> TensorStep:
        return step._replace(final_observation=None, final_valid=th.zeros_like(step.done))


class FirstOfNext(Reporting):
    """Gives out the first observation of the next episode as the last of this one: the mistake that tests have to find."""

    def change(self, step: TensorStep) -> TensorStep:
        return step._replace(final_observation=step.observation)
