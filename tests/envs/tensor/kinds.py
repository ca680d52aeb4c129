"""Every kind of tensor environment, small, with time-outs after five steps: what the contract is tested on."""

from collections.abc import Callable

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffusion.envs.tensor import (
    EnvpoolVecEnv,
    IsaacLabVecEnv,
    MjlabVecEnv,
    TensorVecEnv,
    as_tensor_env,
    make_tensor_env,
)
from tests.environments import PointEnv
from tests.envs.tensor.clock import ClockEnv, Silent
from tests.envs.tensor.fake_envpool import FakePool
from tests.envs.tensor.fake_isaac import FakeIsaacEnv, FakeMjlabEnv


def dummy(observation: str) -> TensorVecEnv:
    vec_env = DummyVecEnv([lambda: PointEnv(observation, truncate_after=5) for _ in range(3)])
    return as_tensor_env(vec_env, "cpu")


KINDS: dict[str, Callable[[], TensorVecEnv]] = {
    "torch/Pendulum": lambda: make_tensor_env("torch/Pendulum-v0", 3, "cpu", max_episode_length=5),
    "torch/CartPoleSwingUp": lambda: make_tensor_env("torch/CartPoleSwingUp-v0", 3, "cpu", max_episode_length=5),
    "torch/CartPoleBalance": lambda: make_tensor_env("torch/CartPoleBalance-v0", 3, "cpu", max_episode_length=5),
    "torch/PointMass": lambda: make_tensor_env("torch/PointMass-v0", 3, "cpu", max_episode_length=5),
    "clock": ClockEnv,
    "clock, ends unknown": lambda: Silent(ClockEnv()),
    "Isaac Lab 3": lambda: IsaacLabVecEnv(FakeIsaacEnv(compute_final_obs=True)),
    "Isaac Lab 3, terms and critic": lambda: IsaacLabVecEnv(
        FakeIsaacEnv(compute_final_obs=True, terms=True), critic_group="critic"
    ),
    "Isaac Lab 3, flag off": lambda: IsaacLabVecEnv(FakeIsaacEnv()),
    "Isaac Lab 2": lambda: IsaacLabVecEnv(FakeIsaacEnv(generation=2)),
    "mjlab": lambda: MjlabVecEnv(FakeMjlabEnv()),
    "mjlab, critic": lambda: MjlabVecEnv(FakeMjlabEnv(), critic_group="critic"),
    "envpool": lambda: EnvpoolVecEnv(FakePool(terminate={0: 3, 1: 5}), "cpu"),
    "envpool, entries": lambda: EnvpoolVecEnv(FakePool(entries=True), "cpu"),
    "VecEnv": lambda: dummy("box"),
    "VecEnv, Dict": lambda: dummy("dict"),
    "VecEnv, image": lambda: dummy("dict with image"),
    "VecEnv, Monitor": lambda: as_tensor_env(make_vec_env(lambda: PointEnv(truncate_after=5), n_envs=2), "cpu"),
}

CLOCKS = ("clock", "Isaac Lab 3", "mjlab", "envpool")
"""Those whose observation is 100 plus the steps of the episode, and which know the last one."""
UNKNOWN = ("clock, ends unknown", "Isaac Lab 3, flag off", "Isaac Lab 2")
"""Those that do not know it."""
