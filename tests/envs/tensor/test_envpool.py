"""The adapter of envpool, on a fake with its contract: episodes begin anew one step late, unless they are reset by number."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor import EnvpoolVecEnv
from tests.envs.tensor.fake_envpool import FakePool


def test_the_pool_ignores_actions_after_an_end() -> None:
    """What the adapter is there for: without a reset, the row after an end is no transition."""
    pool = FakePool(limit=2)
    pool.reset()
    rows = [pool.step(np.zeros((4, 1))) for _ in range(3)]
    assert rows[2][1].tolist() == [0.0] * 4 and pool.n_ignored == 4


def test_every_row_is_a_transition() -> None:
    pool = FakePool(terminate={0: 3, 1: 5})
    env = EnvpoolVecEnv(pool, "cpu")
    env.reset_tensor()
    for number in range(12):
        before = env.last_observation
        step = env.step_tensor(th.full((4, 1), 0.5))
        assert isinstance(before, th.Tensor) and isinstance(step.final_observation, th.Tensor)
        assert (step.final_observation == before + 1.0).all()  # a step forward in every row, also after an end
        assert isinstance(step.observation, th.Tensor)
        assert (step.reward == step.final_observation[:, 0] - 100.0).all()
        assert (step.observation[step.done] == 100.0).all()
        assert th.equal(step.observation[~step.done], step.final_observation[~step.done])
        if number == 4:
            assert step.terminated.tolist() == [False, True, False, False]
            assert step.truncated.tolist() == [False, False, True, True]
    assert pool.n_ignored == 0
    assert pool.received[0].dtype == np.float64 and pool.received[0].tolist() == [[0.5]] * 4


def test_spaces_are_those_of_networks() -> None:
    plain, entries = EnvpoolVecEnv(FakePool(), "cpu"), EnvpoolVecEnv(FakePool(entries=True), "cpu")
    assert plain.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    # neither the positive lower bound of the pool nor a number without an axis
    assert entries.observation_space == spaces.Dict(
        {
            "height": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "position": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        }
    )
    seen = entries.reset_tensor()
    assert isinstance(seen, dict) and seen["height"].shape == (4, 1) and seen["height"].dtype == th.float32
    assert plain.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert plain.max_episode_length == 5


def test_a_pool_of_parts_is_refused() -> None:
    pool = FakePool()
    pool.config["batch_size"] = 2
    with pytest.raises(ValueError, match="batch_size=2 of the pool differs from num_envs=4"):
        EnvpoolVecEnv(pool)


def test_a_seed_that_comes_too_late_is_told() -> None:
    env = EnvpoolVecEnv(FakePool(), "cpu")
    with pytest.warns(UserWarning, match="seed=3 is not used: .* this one has 42; make it with seed=3"):
        env.seed(3)
    env.seed(42)
    env.seed()
    env.close()
    assert env.env.closed
