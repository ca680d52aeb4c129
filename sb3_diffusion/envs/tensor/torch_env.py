"""Environments that are written in PyTorch: three methods, and thousands of copies run at once."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Observation, where
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer

MAX_IMAGES = 16
"""How many environments are drawn; of thousands, side by side, nothing could be seen."""


class TorchVecEnv(TensorVecEnv):
    """
    A task as three functions of a batch of states: how it begins, how it goes on, and what is seen of it.

    Time limits, resets, final observations and statistics are done here, for all copies at once and without a question whose
    answer would have to come from the device.

    :param num_envs: Number of environments
    :param observation_space: Observation space of one environment
    :param action_space: Action space of one environment
    :param max_episode_length: Steps after which an episode is truncated
    :param device: Device of all tensors
    :param render_mode: ``"rgb_array"`` for pictures by :meth:`draw`
    :param privileged: Entries of a ``Dict`` observation that are for critics only
    """

    render_fps: ClassVar[int] = 30
    """Steps per second of a video."""
    state: th.Tensor
    """State of every environment, ``(n_envs, state_dim)``."""
    episode_length_buf: th.Tensor

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        max_episode_length: int,
        device: th.device | str = "auto",
        render_mode: str | None = None,
        privileged: tuple[str, ...] = (),
    ):
        render_mode = choice("render_mode", render_mode, (None, "rgb_array"))
        super().__init__(num_envs, observation_space, action_space, device, render_mode, privileged)
        self.metadata = {**self.metadata, "render_fps": self.render_fps}
        self._time_limit = integer("max_episode_length", max_episode_length, low=1)
        self._scales: dict[tuple[float, ...], th.Tensor] = {}
        self.episode_length_buf = th.zeros(self.num_envs, dtype=th.int64, device=self.device)

    @abstractmethod
    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes that begin
        :return: Random states ``(n, state_dim)``, drawn with :attr:`generator` or :meth:`uniform`
        """

    @abstractmethod
    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        The task itself; a function of its arguments that changes neither.

        :param state: States ``(n, state_dim)``
        :param action: Actions within the bounds, ``(n, *action_shape)``
        :return: Next states, rewards ``(n,)``, and whether the next state has no future ``(n,)``
        """

    def observe(self, state: th.Tensor) -> Observation:
        """
        :param state: States ``(n, state_dim)``
        :return: What is seen of them; by default everything
        """
        return state

    def draw(self, state: Sequence[float]) -> np.ndarray | None:
        """
        :param state: State of one environment
        :return: A picture of it ``(height, width, 3)``, uint8; ``None`` if there is nothing to see
        """
        return None

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: Pictures of the first environments, at most :data:`MAX_IMAGES` of them
        """
        if self.render_mode != "rgb_array":
            return super().get_images()
        return [self.draw(state) for state in self.state[:MAX_IMAGES].tolist()]

    def uniform(self, n: int, *half_widths: float) -> th.Tensor:
        """
        :param n: Number of rows
        :param half_widths: One number for each column
        :return: Numbers ``(n, columns)`` between minus and plus that
        """
        # made once: a copy of numbers to the device would wait for it
        if half_widths not in self._scales:
            self._scales[half_widths] = th.tensor(half_widths, device=self.device)
        scale = self._scales[half_widths]
        return (2.0 * th.rand(n, len(half_widths), generator=self.generator, device=self.device) - 1.0) * scale

    def read_limit(self) -> int:
        """
        :return: Steps after which an episode is truncated
        """
        return self._time_limit

    def write_limit(self, steps: int) -> None:
        """
        :param steps: Steps after which an episode is truncated; a running one that is older, in its next step
        """
        self._time_limit = steps

    def reset_simulator(self, seed: int | None) -> Observation:
        """
        :param seed: Not used, all draws are made with :attr:`generator`
        :return: The first observations
        """
        self.state = self.initial_state(self.num_envs)
        self.episode_length_buf.zero_()
        return self.observe(self.state)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        last, reward, terminated = self.transition(self.state, actions)
        self.episode_length_buf += 1
        truncated = (self.episode_length_buf >= self._time_limit) & ~terminated
        done = terminated | truncated
        # a new state for every environment, of which few are used: asking how many would mean to wait for the answer
        self.state = th.where(done.unsqueeze(-1), self.initial_state(self.num_envs), last)
        self.episode_length_buf.masked_fill_(done, 0)
        final = self.observe(last)
        observation = where(done, self.observe(self.state), final)
        return TensorStep(observation, reward, terminated, truncated, final, done)
