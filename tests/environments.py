"""A point that is pushed to the origin: the smallest environment that shows what an algorithm does with its inputs."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

OBSERVATIONS: dict[str, spaces.Space] = {
    "box": spaces.Box(-2.0, 2.0, (3,), np.float32),
    "float64": spaces.Box(-2.0, 2.0, (3,), np.float64),
    "matrix": spaces.Box(-2.0, 2.0, (3, 1), np.float32),
    "discrete": spaces.Discrete(6),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict": spaces.Dict(
        {"point": spaces.Box(-2.0, 2.0, (3,), np.float32), "corner": spaces.Discrete(6)},
    ),
    "dict with image": spaces.Dict(
        {"point": spaces.Box(-2.0, 2.0, (3,), np.float32), "camera": spaces.Box(0, 255, (36, 36, 1), np.uint8)},
    ),
}


class PointEnv(gym.Env[Any, np.ndarray]):
    """
    A point in the plane, moved by the first two entries of the action; the reward is minus its squared distance to the origin.

    The third number of a vector observation is the step within the episode divided by 10.

    :param observation: Key of :data:`OBSERVATIONS`
    :param action_space: Action space; two numbers in [-1, 1] by default
    :param truncate_after: Length of an episode that ends by a time limit
    :param terminate_after: Length of an episode that ends in a terminal state; ``None`` for no such end
    """

    def __init__(
        self,
        observation: str = "box",
        action_space: spaces.Box | None = None,
        truncate_after: int = 10,
        terminate_after: int | None = None,
    ):
        self.observation = observation
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32) if action_space is None else action_space
        self.truncate_after = truncate_after
        self.terminate_after = terminate_after
        self.executed: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 2)
        self.n_steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.executed.append(np.array(action))
        space = self.action_space
        assert isinstance(space, spaces.Box)
        push = (2.0 * (action - space.low) / (space.high - space.low) - 1.0).ravel()[:2]
        self.position[: len(push)] = np.clip(self.position[: len(push)] + 0.2 * push, -2.0, 2.0)
        self.n_steps += 1
        terminated = self.n_steps == self.terminate_after
        reward = -float(np.square(self.position).sum())
        return self.observe(), reward, terminated, self.n_steps == self.truncate_after, {}

    def observe(self) -> Any:
        """The observation of the current state."""
        vector = np.array([*self.position, self.n_steps / 10.0])
        corner = int((self.position[0] > 0.0) + 2 * (self.position[1] > 0.0))
        image = np.zeros((36, 36, 1), np.uint8)
        row, column = ((self.position + 2.0) * 8.0).astype(int)
        image[row : row + 4, column : column + 4] = 255
        parts = {
            "box": vector.astype(np.float32),
            "float64": vector,
            "matrix": vector.astype(np.float32).reshape(3, 1),
            "discrete": corner,
            "image": image,
            "dict": {"point": vector.astype(np.float32), "corner": corner},
            "dict with image": {"point": vector.astype(np.float32), "camera": image},
        }
        return parts[self.observation]


def vector_env(n_envs: int, **kwargs: Any) -> VecEnv:
    """
    :param n_envs: Number of environments
    :param kwargs: Arguments of :class:`PointEnv`
    :return: Seeded environments behind one interface, with episode statistics
    """
    return make_vec_env(PointEnv, n_envs=n_envs, seed=0, env_kwargs=kwargs)
