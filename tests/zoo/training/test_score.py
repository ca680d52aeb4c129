"""Whether episodes were solved, and what they are worth."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion.data.stored.source import DataSource, ReferenceScores
from zoo.benchmarking.cells import check
from zoo.training.score import counting, in_words, score_of, solved


class Corridor(gym.Env):
    """Every other episode is solved at its third step, the others end unsolved at the fifth."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, key: str = "success"):
        self.key, self.episode = key, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        there = self.episode % 2 == 0 and self.t == 3
        return np.zeros(1, np.float32), -1.0, there, self.t == 5, {self.key: np.bool_(there)}


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_episodes_of_an_evaluation_that_were_solved(key: str) -> None:
    env, successes = make_vec_env(Corridor, 2, env_kwargs={"key": key}), []  # type: ignore[var-annotated]
    model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, buffer_size=10, device="cpu")
    returns, _ = evaluate_policy(model, env, 8, return_episode_rewards=True, callback=counting(successes))
    assert sorted(successes) == [False] * 4 + [True] * 4
    assert [value == -3.0 for value in returns] == successes  # type: ignore[union-attr]  # in the same order
    score = score_of(model, returns, successes)  # type: ignore[arg-type]
    assert score == {"scale": "success", "scores": [100.0 * one for one in successes]}
    assert in_words(score) == "Success rate: 50.0 %"
    final = {"timesteps": 1, "budget": 1, "deterministic": True, "returns": returns, "lengths": [3] * 8, **score}
    check(final, "final", SimpleNamespace())  # type: ignore[arg-type]  # as the benchmark reads it


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({}, None),
        ({"success": None}, None),
        ({"success": np.array([True, False])}, None),
        ({"success": np.array(1.0)}, True),
        ({"success": True, "is_success": 0.0}, False),
    ],
)
def test_what_is_said_of_success(info: dict[str, Any], said: bool | None) -> None:
    assert solved(info) is said


def test_a_scale_of_returns_counts_more_and_half_a_list_nothing() -> None:
    scale = ReferenceScores(-100.0, 0.0, 100.0, "own")
    model = SimpleNamespace(dataset=SimpleNamespace(source=DataSource("arrays", "x", reference=scale)))
    score = score_of(model, [-50.0, -100.0], [True, True])
    assert score["scores"] == [50.0, 0.0] and in_words(score) == "Normalised score (own's scale): 25.0 +/- 25.0"
    assert score_of(SimpleNamespace(), [-50.0, -100.0], [True]) == {} == score_of(SimpleNamespace(), [], [])
