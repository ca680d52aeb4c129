"""Data that a policy collects."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import OfflineDataset
from tests.environments import PointEnv, vector_env


def test_one_environment_and_a_function() -> None:
    data = OfflineDataset.collect(PointEnv(), lambda observation: np.full(2, 2.0), 25, seed=1)
    assert len(data) == 25
    assert (data.actions == 1).all()  # what the environment was given
    assert data.truncated.tolist() == [step % 10 == 9 for step in range(25)]
    assert data.recorded_lengths.tolist() == [10, 10]
    assert data.episode_lengths().tolist() == [10, 10, 5]
    # the third number of an observation is the step: the last one of an episode is the old episode's, not the new one's
    np.testing.assert_allclose(data.next_observations[[0, 8, 9, 10], 2], [0.1, 0.9, 1.0, 0.1], atol=1e-6)
    assert data.source.kind == "collected"


def test_ends_of_the_task_and_of_the_time_are_told_apart() -> None:
    data = OfflineDataset.collect(PointEnv(terminate_after=7), None, 21, seed=1)
    assert np.flatnonzero(data.terminated).tolist() == [6, 13, 20]
    assert not data.truncated.any()


@pytest.mark.parametrize("observation", ["dict with image", "discrete", "image"])
def test_several_environments(observation: str) -> None:
    env = vector_env(3, observation=observation)
    data = OfflineDataset.collect(env, lambda observations: np.zeros((3, 2)), 31)
    assert len(data) == 33
    assert data.recorded_lengths.tolist() == [10, 10, 10]
    assert data.episode_lengths().tolist() == [10, 1] * 3


def test_a_model_and_its_seed() -> None:
    model = SAC("MlpPolicy", PointEnv(), device="cpu", seed=0)
    runs = [OfflineDataset.collect(PointEnv(), model, 15, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].identity() == runs[1].identity() != runs[2].identity()
    one = OfflineDataset.collect(PointEnv(), model, 15, seed=3, deterministic=True)
    expected, _ = model.predict(one.observations.numpy(), deterministic=True)
    np.testing.assert_allclose(one.actions, expected, atol=1e-5)


def test_what_is_normalised_is_stored_as_it_was() -> None:
    env: Any = VecNormalize(DummyVecEnv([PointEnv]))
    env.reset()
    for _ in range(30):
        env.step(np.ones((1, 2), np.float32))
    count, seen = env.obs_rms.count, []

    def policy(observations: np.ndarray) -> np.ndarray:
        seen.append(observations.copy())
        return np.zeros((1, 2), np.float32)

    data = OfflineDataset.collect(env, policy, 20, seed=0)
    plain = OfflineDataset.collect(PointEnv(), lambda observation: np.zeros(2), 20, seed=0)
    th.testing.assert_close(data.observations, plain.observations)
    th.testing.assert_close(data.next_observations, plain.next_observations, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(data.rewards, plain.rewards)
    assert not np.allclose(np.concatenate(seen), plain.observations)
    assert env.obs_rms.count == count and env.training


def test_the_bar(capfd: pytest.CaptureFixture[str]) -> None:
    OfflineDataset.collect("Pendulum-v1", None, 8, progress_bar=True, seed=0)
    assert "8/8" in capfd.readouterr().err
    data = OfflineDataset.collect("Pendulum-v1", None, 8, seed=0)
    assert capfd.readouterr().err == ""
    assert data.source.env_id == "Pendulum-v1"
    assert data.action_space == spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((PointEnv(), None, 0), ValueError, "n=0 must be at least 1"),
        ((PointEnv(), "random", 5), TypeError, "policy='random'"),
        ((5, None, 5), TypeError, "env=5 is no environment"),
        (("CartPole-v1", None, 5), ValueError, "is no Box"),
    ],
)
def test_mistakes_are_named(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        OfflineDataset.collect(*arguments)
