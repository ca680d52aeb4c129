"""A policy rolled out in an environment."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize
from tqdm import tqdm

from sb3_diffusion.data.stored.readers.files import Recorded
from sb3_diffusion.data.stored.readers.replay_buffer import PiecesColumn
from sb3_diffusion.data.stored.source import DataSource
from sb3_diffusion.data.stored.tables.recording import begin_after, ended, record
from sb3_diffusion.numeric import integer


def roll_out(
    env: str | gym.Env | VecEnv,
    policy: Any,
    n: int,
    *,
    deterministic: bool = False,
    seed: int | None = None,
    progress_bar: bool = False,
    name: str | None = None,
) -> Recorded:
    """
    :param env: Environment, several of them, or the id of one
    :param policy: Something with ``predict``, a function from observations to actions, or ``None`` for random actions
    :param n: Number of steps; with several environments, it is rounded up to a multiple of their number
    :param deterministic: Passed on to ``predict``
    :param seed: Seed of the environment, and of NumPy's and PyTorch's global generators
    :param progress_bar: Show a bar
    :param name: What the data are called
    :return: What was recorded, each environment's stream in one piece
    """
    n = integer("n", n, low=1)
    own = not isinstance(env, VecEnv)
    venv = env if isinstance(env, VecEnv) else _vector(env)
    if seed is not None:
        set_random_seed(integer("seed", seed, low=0))
        venv.seed(seed)
        venv.action_space.seed(seed)
    try:
        return _roll_out(
            venv, _actor(policy, venv, own, deterministic), n, progress_bar, name or f"collected in {_env_id(venv)}"
        )
    finally:
        if isinstance(env, str):
            venv.close()


def _vector(env: str | gym.Env) -> VecEnv:
    if not isinstance(env, str | gym.Env):
        raise TypeError(f"env={env!r} is no environment; pass one of Gymnasium or Stable-Baselines3, or the id of one.")
    made = gym.make(env) if isinstance(env, str) else env
    return DummyVecEnv([lambda: made])


def _env_id(venv: VecEnv) -> str | None:
    spec = venv.get_attr("spec")[0]
    return None if spec is None else str(spec.id)


def _actor(policy: Any, venv: VecEnv, single: bool, deterministic: bool) -> Callable[[Any], np.ndarray]:
    """From observations of all environments to actions within the space."""
    space = venv.action_space
    if not isinstance(space, spaces.Box):
        raise ValueError(f"The action space {space} of the environment is no Box; these methods choose real numbers.")
    if policy is None:
        return lambda observations: np.stack([space.sample() for _ in range(venv.num_envs)])

    def act(observations: Any) -> np.ndarray:
        if hasattr(policy, "predict"):
            actions = policy.predict(observations, deterministic=deterministic)[0]
        elif single:  # whoever passes one environment passes a function of one observation
            first = (
                {key: value[0] for key, value in observations.items()} if isinstance(observations, dict) else observations[0]
            )
            actions = np.asarray(policy(first))[None]
        else:
            actions = np.asarray(policy(observations))
        return np.clip(actions, space.low, space.high).astype(space.dtype)

    if not hasattr(policy, "predict") and not callable(policy):
        raise TypeError(
            f"policy={policy!r} has no predict() and is no function; pass a model, a function, or None for random."
        )
    return act


class _Table:
    """Arrays ``(steps, environments, ...)`` that are filled step by step."""

    def __init__(self, n_steps: int, n_envs: int):
        self._shape, self.arrays = (n_steps, n_envs), dict[str, np.ndarray]()

    def write(self, step: int, name: str, values: Any) -> None:
        values = np.asarray(values)
        if name not in self.arrays:
            self.arrays[name] = np.empty((*self._shape, *values.shape[1:]), values.dtype)
        self.arrays[name][step] = values

    def column(self, name: str) -> PiecesColumn:
        return PiecesColumn(name, [self.arrays[name][:, env] for env in range(self._shape[1])])

    def columns(self, name: str) -> Any:
        keys = [key for key in self.arrays if key.startswith(f"{name}/")]
        return {key.partition("/")[2]: self.column(key) for key in keys} if keys else self.column(name)

    def flat(self, name: str) -> np.ndarray:
        return self.arrays[name].T.reshape(-1)


def _roll_out(venv: VecEnv, act: Callable[[Any], np.ndarray], n: int, progress_bar: bool, name: str) -> Recorded:
    n_steps, normalizer = -(-n // venv.num_envs), unwrap_vec_normalize(venv)
    table = _Table(n_steps, venv.num_envs)
    space = venv.observation_space if normalizer is None else normalizer.venv.observation_space
    training = normalizer is not None and normalizer.training
    if normalizer is not None:
        normalizer.training = False  # what is seen here is no part of its statistics
    bar = tqdm(total=n_steps * venv.num_envs, desc=name, unit="step", disable=not progress_bar)
    observations = venv.reset()
    raw = observations if normalizer is None else normalizer.get_original_obs()
    try:
        for step in range(n_steps):
            actions = act(observations)
            _write(table, step, "observations", raw)
            observations, rewards, dones, infos = venv.step(actions)
            raw = observations if normalizer is None else normalizer.get_original_obs()
            table.write(step, "actions", actions)
            table.write(step, "rewards", rewards if normalizer is None else normalizer.get_original_reward())
            cut = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos]) & dones
            table.write(step, "truncated", cut)
            table.write(step, "terminated", dones & ~cut)
            _write(table, step, "next_observations", _after(raw, dones, infos, normalizer))
            bar.update(venv.num_envs)
    finally:
        bar.close()
        if normalizer is not None:
            normalizer.training = training
    return _recorded(table, venv, space, name)


def _recorded(table: _Table, venv: VecEnv, space: spaces.Space, name: str) -> Recorded:
    terminated, truncated = table.flat("terminated"), table.flat("truncated")
    ends, steps = terminated | truncated, len(terminated) // venv.num_envs
    borders = ends.copy()
    borders[steps - 1 :: steps] = True
    first = begin_after(borders)
    recording = record(
        table.columns("observations"),
        table.column("actions"),
        table.column("rewards"),
        terminated,
        truncated,
        first=first,
        successors=table.columns("next_observations"),
    )
    recording.counted = ended(first, ends)
    return Recorded(recording, DataSource("collected", name, env_id=_env_id(venv)), space, venv.action_space)


def _write(table: _Table, step: int, name: str, values: Any) -> None:
    for key, part in values.items() if isinstance(values, dict) else [(None, values)]:
        table.write(step, name if key is None else f"{name}/{key}", part)


def _after(observations: Any, dones: np.ndarray, infos: list[dict[str, Any]], normalizer: Any) -> Any:
    """Observations after a step, where the environment has begun anew the last ones of the old episode."""
    if not dones.any():
        return observations
    after = (
        {key: value.copy() for key, value in observations.items()} if isinstance(observations, dict) else observations.copy()
    )
    for env in np.flatnonzero(dones):
        last = infos[env]["terminal_observation"]
        last = last if normalizer is None else normalizer.unnormalize_obs(last)
        if isinstance(after, dict):
            for key, value in last.items():
                after[key][env] = value
        else:
            after[env] = last
    return after
