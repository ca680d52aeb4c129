"""Wrappers and DeepMind Control tasks."""

import logging

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffusion.envs import DMC_TASKS, ActionRepeat, Float32Action, Float32Observation, make_dmc, wrap_dmc
from sb3_diffusion.envs.dmc import _check_versions
from sb3_diffusion.envs.mujoco_log import _forward


class CountingEnv(gym.Env):
    """Observation and reward are the number of the step; float64; ends after a given number of steps."""

    observation_space = spaces.Box(0.0, 100.0, (1,), dtype=np.float64)
    action_space = spaces.Box(-2.0, 2.0, (1,), dtype=np.float64)

    def __init__(self, terminate_at: int = 1000, truncate_at: int = 1000):
        self.terminate_at, self.truncate_at, self.count = terminate_at, truncate_at, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert action.dtype == np.float64
        self.count += 1
        done = self.count >= self.terminate_at, self.count >= self.truncate_at
        return np.full(1, float(self.count)), float(self.count), *done, {"count": self.count}


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = ActionRepeat(CountingEnv(terminate_at=5), repeat=3)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (observation[0], reward, terminated, truncated, info["count"]) == (3.0, 6.0, False, False, 3)
    observation, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (observation[0], reward, terminated, truncated, info["count"]) == (5.0, 9.0, True, False, 5)


def test_action_repeat_keeps_truncation() -> None:
    env = ActionRepeat(CountingEnv(truncate_at=2), repeat=2)
    env.reset()
    assert env.step(np.zeros(1))[2:4] == (False, True)


@pytest.mark.parametrize("repeat", [0, -1])
def test_action_repeat_must_be_positive(repeat: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        ActionRepeat(CountingEnv(), repeat=repeat)


def test_float32_wrappers() -> None:
    env = Float32Action(Float32Observation(CountingEnv()))
    assert env.observation_space == spaces.Box(0.0, 100.0, (1,), dtype=np.float32)
    assert env.action_space == spaces.Box(-2.0, 2.0, (1,), dtype=np.float32)
    assert env.reset()[0].dtype == np.float32
    assert env.step(env.action_space.sample())[0].dtype == np.float32


def test_float32_needs_a_box() -> None:
    class DictEnv(CountingEnv):
        observation_space = spaces.Dict({"a": spaces.Box(0.0, 1.0, (1,))})  # type: ignore[assignment]

    with pytest.raises(TypeError, match="FlattenObservation"):
        Float32Observation(DictEnv())


@pytest.mark.parametrize(("mujoco", "dm_control"), [("3.17.0", "1.0.50"), ("4.0.0", "1.0.51")])
def test_working_pairs_of_mujoco_and_dm_control(mujoco: str, dm_control: str) -> None:
    _check_versions(mujoco, dm_control)


def test_broken_pair_is_explained() -> None:
    with pytest.raises(ImportError, match="pip uninstall -y mujoco mujoco-core mujoco-studio"):
        _check_versions("4.0.0", "1.0.50")


def test_only_the_expected_notice_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mujoco"):
        _forward("compiler attribute 'settotalmass' is deprecated and will be removed")
        _forward("Nan, Inf or huge value in QACC")
    assert [record.message for record in caplog.records] == ["Nan, Inf or huge value in QACC"]


@pytest.mark.parametrize("task", DMC_TASKS)
def test_dmc_spaces(task: str) -> None:
    pytest.importorskip("dm_control")
    domain, name = task.rsplit("-", 1)
    env = make_dmc(domain, name)
    assert isinstance(env.observation_space, spaces.Box)
    assert isinstance(env.action_space, spaces.Box)
    assert env.observation_space.dtype == env.action_space.dtype == np.float32
    assert len(env.observation_space.shape) == 1
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    env.close()


def test_dmc_episode_is_500_decisions_and_ends_by_truncation() -> None:
    pytest.importorskip("dm_control")
    env = make_dmc("cartpole", "balance")
    env.reset(seed=0)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
        rewards.append(float(reward))
    assert (len(rewards), terminated, truncated) == (500, False, True)
    assert min(rewards) >= 0.0
    assert max(rewards) <= 2.0  # at most 1 per frame


def test_dmc_in_a_vec_env_reports_truncation() -> None:
    pytest.importorskip("dm_control")
    env = DummyVecEnv([lambda: make_dmc("cheetah", "run", action_repeat=4, task_kwargs={"time_limit": 0.08})])
    env.reset()
    for _ in range(2):
        _, _, dones, infos = env.step(np.zeros((1, 6), dtype=np.float32))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["terminal_observation"].dtype == np.float32


def test_dmc_seed_and_wrapping_by_id() -> None:
    pytest.importorskip("dm_control")
    env = make_dmc("hopper", "stand")
    check_env(env, warn=False)
    same = wrap_dmc(gym.make("dm_control/hopper-stand-v0"))
    np.testing.assert_array_equal(env.reset(seed=3)[0], same.reset(seed=3)[0])


def test_unknown_dmc_task_is_explained() -> None:
    pytest.importorskip("dm_control")
    with pytest.raises(ValueError, match=r"did you mean dm_control/cheetah-run-v0\?"):
        make_dmc("cheetah", "jog")
