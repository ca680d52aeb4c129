"""Names of tensor environments."""

import importlib.util

import pytest

from sb3_diffusion.envs.tensor import (
    TorchVecEnv,
    check_tensor_env,
    is_tensor_env,
    make_tensor_env,
    register_tensor_env,
    tensor_env_ids,
)
from sb3_diffusion.envs.tensor.registry import arguments_of
from sb3_diffusion.tensor_names import TASKS
from tests.envs.tensor.clock import ClockEnv


@pytest.mark.parametrize("env_id", tensor_env_ids())
def test_registered_environments_are_made(env_id: str) -> None:
    env = make_tensor_env(env_id, num_envs=5, device="cpu", max_episode_length=8)
    assert isinstance(env, TorchVecEnv) and env.num_envs == 5 and env.max_episode_length == 8
    assert make_tensor_env(env_id, device="cpu").num_envs == 1024
    check_tensor_env(env, n_steps=20)


def test_a_name_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "mine/Clock-v0", ClockEnv)  # which is undone at the end
    del TASKS["mine/Clock-v0"]
    register_tensor_env("mine/Clock-v0", ClockEnv)
    assert is_tensor_env("mine/Clock-v0")
    assert isinstance(make_tensor_env("mine/Clock-v0", 3, limit=7), ClockEnv)
    for taken in ("mine/Clock-v0", "torch/Pendulum-v0", "mjlab/Clock"):
        with pytest.raises(ValueError, match="is taken; choose another name"):
            register_tensor_env(taken, ClockEnv)


def test_names_are_told_from_gymnasiums() -> None:
    for env_id in ("torch/Pendulum-v0", "mjlab/x", "envpool/x", "playground/x", "Isaac-Ant-v0", "IsaacContrib-x"):
        assert is_tensor_env(env_id)
    for env_id in ("Pendulum-v1", "dm_control/cheetah-run-v0", "toy/moons-v0", "Isaacs-v0"):
        assert not is_tensor_env(env_id)
    with pytest.raises(ValueError, match=r"no tensor environment 'torch/Pendelum-v0'; did you mean torch/Pendulum-v0\?"):
        make_tensor_env("torch/Pendelum-v0")


@pytest.mark.parametrize("package", ["mjlab", "envpool", "playground"])
def test_what_is_missing_is_named(package: str) -> None:
    module = "mujoco_playground" if package == "playground" else package
    if importlib.util.find_spec(module) is None:
        with pytest.raises(ImportError, match=f"(?i){package}.* is not installed.*pip install '{package}>="):
            make_tensor_env(f"{package}/Cartpole")


def test_seeds_are_passed_on() -> None:
    one, other = (make_tensor_env("torch/Pendulum-v0", 3, "cpu", seed=4).reset_tensor() for _ in range(2))
    assert one.tolist() == other.tolist()  # type: ignore[union-attr]


def test_arguments_are_told() -> None:
    assert arguments_of("torch/Pendulum-v0") == ["max_episode_length", "render_mode"]
    assert arguments_of("envpool/Ant-v5") == [], "those of the simulator"
