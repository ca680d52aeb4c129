"""A pool with the contract of envpool's: episodes begin anew in the step after, and rows can be reset by number."""

from typing import Any

import numpy as np
from gymnasium import spaces

SMALLEST, LARGEST = 2.2250738585072014e-308, 1.7976931348623157e308


class FakePool:
    """
    Rows count the steps of their episode, as 100 plus the count; a row terminates after ``terminate[row]`` steps.

    :param entries: Whether observations are a dictionary, as those of DeepMind Control are
    """

    def __init__(self, num_envs: int = 4, limit: int = 5, entries: bool = False, terminate: dict[int, int] | None = None):
        self.config = {"num_envs": num_envs, "batch_size": num_envs, "max_episode_steps": limit, "seed": 42}
        self.entries, self.terminate = entries, terminate or {}
        low, high = (SMALLEST, LARGEST) if entries else (-np.inf, np.inf)
        shapes: dict[str, tuple[int, ...]] = {"height": (), "position": (2,)}
        self.observation_space: spaces.Space = spaces.Box(low, high, (2,), np.float64)
        if entries:
            self.observation_space = spaces.Dict(
                {key: spaces.Box(low, high, shape, np.float64) for key, shape in shapes.items()}
            )
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
        self.clock = np.zeros(num_envs, int)
        self.ended = np.zeros(num_envs, bool)
        self.received: list[np.ndarray] = []
        self.n_ignored = 0
        self.closed = False

    def reset(self, env_id: np.ndarray | None = None) -> tuple[Any, dict[str, Any]]:
        rows = np.arange(len(self.clock)) if env_id is None else np.asarray(env_id)
        self.clock[rows], self.ended[rows] = 0, False
        return self.look(rows), {"env_id": rows}

    def step(self, action: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.received.append(action)
        renewed = self.ended
        self.n_ignored += int(renewed.sum())
        self.clock = np.where(renewed, 0, self.clock + 1)
        reward = np.where(renewed, 0.0, self.clock).astype(np.float32)
        terminated = np.array([self.clock[row] == self.terminate.get(row) for row in range(len(self.clock))])
        truncated = (self.clock >= self.config["max_episode_steps"]) & ~terminated
        self.ended = terminated | truncated
        rows = np.arange(len(self.clock))
        return self.look(rows), reward, terminated, truncated, {"env_id": rows, "elapsed_step": self.clock.astype(np.int32)}

    def look(self, rows: np.ndarray) -> Any:
        clock = 100.0 + self.clock[rows]
        pair = np.stack((clock, clock), axis=-1)
        return {"height": clock, "position": pair} if self.entries else pair

    def close(self) -> None:
        self.closed = True
