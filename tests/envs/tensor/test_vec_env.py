"""Ordinary environments of Stable-Baselines3 behind tensors."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack

from sb3_diffusion.envs.tensor import VecEnvAdapter, as_tensor_env
from tests.environments import PointEnv
from tests.envs.tensor.clock import ClockEnv


def test_what_speaks_tensors_is_left_alone() -> None:
    env = ClockEnv()
    assert as_tensor_env(env) is env
    vec_env = make_vec_env(PointEnv, n_envs=2)
    assert isinstance(as_tensor_env(vec_env), VecEnvAdapter)


def test_ends_come_from_the_infos() -> None:
    env = as_tensor_env(make_vec_env(lambda: PointEnv(truncate_after=4), n_envs=2), "cpu")
    env.reset_tensor()
    steps = [env.step_tensor(th.zeros(2, 2)) for _ in range(4)]
    assert steps[3].truncated.tolist() == [True, True] and not steps[3].terminated.any()
    assert steps[3].final_valid.all() and not steps[2].final_valid.any()
    assert isinstance(steps[3].final_observation, th.Tensor) and isinstance(steps[3].observation, th.Tensor)
    assert steps[3].final_observation[:, 2].tolist() == pytest.approx([0.4, 0.4])  # the clock of the task
    assert steps[3].observation[:, 2].tolist() == [0.0, 0.0]
    assert isinstance(env, VecEnvAdapter) and env.infos[0]["episode"]["l"] == 4
    both = as_tensor_env(make_vec_env(lambda: PointEnv(truncate_after=4, terminate_after=4), n_envs=2), "cpu")
    both.reset_tensor()
    last = [both.step_tensor(th.zeros(2, 2)) for _ in range(4)][-1]
    assert last.terminated.all() and not last.truncated.any() and last.final_valid.all()


def test_an_environment_that_hides_its_ends_is_believed() -> None:
    class Hiding(VecEnvWrapper):
        def reset(self) -> np.ndarray:
            return self.venv.reset()  # type: ignore[return-value]

        def step_wait(self):  # type: ignore[no-untyped-def]
            seen, reward, done, infos = self.venv.step_wait()
            return seen, reward, done, [{key: info[key] for key in info if key != "terminal_observation"} for info in infos]

    env = as_tensor_env(Hiding(make_vec_env(lambda: PointEnv(truncate_after=2), n_envs=2)), "cpu")
    env.reset_tensor()
    last = [env.step_tensor(th.zeros(2, 2)) for _ in range(2)][-1]
    assert last.truncated.all() and not last.final_valid.any()


def test_the_user_does_not_notice() -> None:
    """As a VecEnv it is the environment itself: attributes, wrappers, seeds, infos."""
    env = as_tensor_env(make_vec_env(lambda: PointEnv(truncate_after=3), n_envs=2))
    plain = make_vec_env(lambda: PointEnv(truncate_after=3), n_envs=2)
    for one in (env, plain):
        one.seed(5)
    assert np.array_equal(np.asarray(env.reset()), np.asarray(plain.reset()))
    for _ in range(4):
        ours, theirs = env.step(np.zeros((2, 2))), plain.step(np.zeros((2, 2)))
        assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(ours[:3], theirs[:3], strict=True))
        assert [info.keys() for info in ours[3]] == [info.keys() for info in theirs[3]]
    assert env.env_is_wrapped(Monitor) == [True, True] and env.get_attr("truncate_after", [1]) == [3]
    env.set_attr("truncate_after", 9, indices=[0])
    assert env.get_attr("truncate_after") == [9, 3]
    assert env.env_method("get_wrapper_attr", "truncate_after", indices=0) == [9]
    assert env.render_mode == plain.render_mode and env.metadata == plain.metadata
    env.close()


def test_seeds_fix_the_tensors() -> None:
    runs = []
    for _ in range(2):
        env = as_tensor_env(make_vec_env(PointEnv, n_envs=2), "cpu")
        env.seed(9)
        runs.append(env.reset_tensor())
    assert th.equal(runs[0], runs[1])  # type: ignore[arg-type]


def test_stacked_images_keep_their_type() -> None:
    vec_env = VecFrameStack(DummyVecEnv([lambda: PointEnv("image")]), 3)
    env = as_tensor_env(vec_env, "cpu")
    seen = env.reset_tensor()
    assert isinstance(seen, th.Tensor) and seen.dtype == th.uint8 and seen.shape == (1, 36, 36, 3)
    wide = as_tensor_env(DummyVecEnv([lambda: PointEnv("float64")]), "cpu").reset_tensor()
    assert isinstance(wide, th.Tensor) and wide.dtype == th.float32


def test_actions_that_are_no_numbers_are_refused() -> None:
    class Discrete(PointEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(3)  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"The action space Discrete\(3\) is no Box"):
        as_tensor_env(DummyVecEnv([Discrete]))
