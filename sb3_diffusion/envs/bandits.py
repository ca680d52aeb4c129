"""Bandits whose value function is known, so that the distribution of a trained policy can be compared with the exact one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.numeric import real

ActionValue = Callable[[th.Tensor], th.Tensor]
"""Actions ``(..., action_dim)`` in [-1, 1] -> values ``(...)``, differentiable."""


class BanditEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    One state, one step, reward ``value(action)``.

    :param value: The value function; ``None`` for a reward of 0
    :param action_dim: Dimension of the action, a point of [-1, 1] to that power
    :param observation_dim: Dimension of the observation, which is always zero
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (declared so by Gymnasium)

    def __init__(self, value: ActionValue | None = None, action_dim: int = 1, observation_dim: int = 1):
        self.value = value
        self.observation_space: spaces.Box = spaces.Box(-1.0, 1.0, (observation_dim,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of Gymnasium's generator, which is not used
        :param options: Ignored
        :return: Zeros, and no further information
        """
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Point in [-1, 1] to the power of ``action_dim``
        :return: Zeros, the value of the action, and the end of the episode
        """
        reward = 0.0
        if self.value is not None:
            with th.no_grad():
                reward = float(self.value(th.as_tensor(action)))
        return np.zeros(self.observation_space.shape, np.float32), reward, True, False, {}


def grid_axis(resolution: int = 200) -> np.ndarray:
    """
    Centres of ``resolution`` equal cells of [-1, 1]; the two ends are half a cell away from the border.

    :param resolution: Number of cells
    """
    return (np.arange(resolution) + 0.5) * (2.0 / resolution) - 1.0


def boltzmann_density(value: ActionValue, temperature: float = 1.0, resolution: int = 200) -> np.ndarray:
    """
    The exact density ``exp(Q(a) / temperature) / Z`` of a two-dimensional bandit, at the cell centres of a grid on [-1, 1]².

    The normaliser is the sum over the same cells (midpoint rule), so the cells' masses add up to one.

    :param value: The value function ``Q``
    :param temperature: Positive, in units of ``Q``
    :param resolution: Cells per axis
    :return: ``(resolution, resolution)``; row ``i``, column ``j`` is the density at ``a = (axis[j], axis[i])``, with ``axis``
        from :func:`grid_axis` (what matplotlib's ``imshow(..., origin="lower")`` expects)
    """
    temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
    axis = th.from_numpy(grid_axis(resolution))
    actions = th.stack(th.meshgrid(axis, axis, indexing="xy"), dim=-1)
    with th.no_grad():
        logits = value(actions).double() / temperature
        log_mass = th.log_softmax(logits.flatten(), dim=0).reshape(logits.shape)
    return (log_mass.exp() * (resolution / 2.0) ** 2).numpy()


def boltzmann_entropy(value: ActionValue, temperature: float = 1.0, resolution: int = 200) -> float:
    """
    Differential entropy of :func:`boltzmann_density` in nats: at most ``log 4``, that of the uniform density.

    :param value: The value function ``Q``
    :param temperature: Positive, in units of ``Q``
    :param resolution: Cells per axis of the quadrature
    """
    density = boltzmann_density(value, temperature, resolution)
    cell = (2.0 / resolution) ** 2
    return float(-(density * np.log(np.maximum(density, np.finfo(float).tiny))).sum() * cell)
