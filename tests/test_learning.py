"""Learning from scratch, through environment, replay buffer, critics and actor."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_diffusion.taxonomy import Method, available_methods
from tests.cases import case


class FollowEnv(gym.Env[np.ndarray, np.ndarray]):
    """One-step episodes: the reward is minus the squared distance between action (in -2..2) and twice the observation."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.goal = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.8, 0.8, 1).astype(np.float32)
        return self.goal, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.goal, -float((action[0] - 2.0 * self.goal[0]) ** 2), True, False, {}


@pytest.mark.parametrize("method", [m for m in available_methods() if m.setting == "off-policy"], ids=lambda m: m.zoo_name)
def test_follows_the_observation(method: Method) -> None:
    """The action that maximises the reward is twice the observation; random actions are off by 1.1 on average."""
    model = method.load()(
        "DiffusionPolicy",
        FollowEnv(),
        learning_starts=200,
        buffer_size=5_000,
        batch_size=64,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [64, 64], "state_arch": (32,), "time_dim": 16, "diffusion_steps": 5},
        **case(method).learns_with,
    )
    model.learn(1_500)
    observations = np.linspace(-0.8, 0.8, 33, dtype=np.float32)[:, None]
    # behaviour explores, each method in its own way, but it has to beat random actions
    for deterministic, tolerance in ((True, 0.3), (False, 1.0)):
        actions, _ = model.predict(observations, deterministic=deterministic)
        error = np.abs(actions - 2.0 * observations).mean()
        assert error < tolerance, f"mean error {error:.2f} with deterministic={deterministic}"
