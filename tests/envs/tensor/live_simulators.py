"""
Simulators that no test environment has, tried for real: contract, time-outs, and a few steps of Stable-Baselines3.

Their packages do not live together, so each has a virtual environment of its own with this package, pytest not being needed::

    pip install "envpool>=1.2,<2"                                 # fits into the core environment
    pip install "mjlab>=1.6,<2"                                   # its own: pins mujoco 3.11
    pip install "playground>=0.2,<0.3" "mujoco-mjx==3.17.*" jax   # its own: 1.5 GB
    python -m tests.envs.tensor.live_simulators envpool/HalfCheetah-v5 envpool/CartpoleBalance-v1
    python -m tests.envs.tensor.live_simulators mjlab/Mjlab-Cartpole-Balance
    python -m tests.envs.tensor.live_simulators playground/CartpoleBalance

Isaac Lab needs a GPU or Isaac Sim; on such a machine, ``Isaac-Cartpole`` is tried in the same way.
"""

import argparse
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion.envs.tensor import TensorVecEnv, check_tensor_env, make_tensor_env

PACKAGES = ("envpool", "mjlab", "playground", "isaaclab", "mujoco", "warp-lang", "jax", "torch", "stable-baselines3")
N_ENVS = 16


def final_states_are_near_the_last(env: TensorVecEnv) -> tuple[int, int]:
    """
    At a time-out the final observation has to be one step from the one before it, like any other, and the first observation of
    the next episode is not.

    :return: Number of time-outs, and of those that look like a step of the simulation
    """
    seen, n_timeouts, n_near = env.reset_tensor(random_phases=True), 0, 0
    largest = th.zeros(env.num_envs, device=env.device)
    limit = env.max_episode_length or 1000
    for _ in range(limit + 1):
        step = env.step_tensor(th.zeros(env.num_envs, *env.action_space.shape))  # type: ignore[misc]
        moved = distance(step.observation, seen).where(~step.done, th.zeros_like(largest))
        largest = th.maximum(largest, moved)
        rows = step.truncated & step.final_valid
        assert step.final_observation is not None
        near = distance(step.final_observation, seen) <= 3.0 * largest.max()
        n_timeouts, n_near, seen = n_timeouts + int(rows.sum()), n_near + int((rows & near).sum()), step.observation
    return n_timeouts, n_near


def distance(one: th.Tensor | dict[str, th.Tensor], other: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
    if isinstance(one, dict) and isinstance(other, dict):
        return th.stack([distance(one[key], other[key]) for key in one]).sum(0)
    assert isinstance(one, th.Tensor) and isinstance(other, th.Tensor)
    return (one - other).float().flatten(1).abs().sum(dim=1)


def release(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def try_live(env_id: str) -> None:
    started = time.perf_counter()
    env = make_tensor_env(env_id, num_envs=N_ENVS, seed=0)
    print(f"{env_id}: made in {time.perf_counter() - started:.1f} s on {env.device}, limit {env.max_episode_length}")
    print(f"  observations {env.observation_space}\n  actions {env.action_space}")
    try:
        env.max_episode_length = 50
    except ValueError as error:
        env.close()
        print(f"  {error}")
        env = make_tensor_env(env_id, num_envs=N_ENVS, seed=0, max_episode_steps=50)
    check_tensor_env(env, n_steps=120)
    n_timeouts, n_near = final_states_are_near_the_last(env)
    print(f"  contract kept; {n_near} of {n_timeouts} final observations are one step from the one before")
    assert n_timeouts > 0 and n_near == n_timeouts
    policy = "MultiInputPolicy" if hasattr(env.observation_space, "spaces") else "MlpPolicy"
    model = PPO(policy, env, n_steps=64, batch_size=256, n_epochs=1)
    started = time.perf_counter()
    model.learn(4 * 64 * N_ENVS)
    rate = model.num_timesteps / (time.perf_counter() - started)
    mean, std = evaluate_policy(model, env, n_eval_episodes=N_ENVS)
    print(f"  PPO: {rate:.0f} steps/s, {env.episodes.pop()}, evaluation {mean:.2f} ± {std:.2f}")
    env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="+", help="names of make_tensor_env")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*precision lowered.*")
    print(*filter(None, map(release, PACKAGES)), f"python {sys.version.split()[0]}", sep="  ")
    for name in arguments.ids:
        try_live(name)
