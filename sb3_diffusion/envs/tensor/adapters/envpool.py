"""envpool: environments in C++ on a pool of threads; fast where there is no GPU."""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Array, Observation, box, to_tensor, upload
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.names import suggest
from sb3_diffusion.numeric import integer, optional

NO_BOUND = 1e30
"""Bounds beyond this are the ends of the number format, one of which envpool writes as the smallest positive number."""


class EnvpoolVecEnv(TensorVecEnv):
    """
    A pool of ``envpool.make(..., env_type="gymnasium")`` as a :class:`~sb3_diffusion.envs.tensor.contract.TensorVecEnv`.

    envpool begins an episode anew in the step *after* the one that ended it, ignores the action of that step, and returns a
    reward of 0 for it: a row that is no transition. No such row is passed on. What a pool returns at the end of an episode is
    its last observation, so these environments are reset here at once, and the next step is one like any other.

    :param env: The pool, which steps all its environments together
    :param device: Where observations and rewards go
    """

    def __init__(self, env: Any, device: th.device | str = "auto"):
        config = env.config
        if config.get("batch_size", config["num_envs"]) not in (0, config["num_envs"]):
            raise ValueError(
                f"batch_size={config['batch_size']} of the pool differs from num_envs={config['num_envs']}, so that it "
                "steps a part of its environments at a time; leave batch_size out."
            )
        self.env = env
        self._keys, space = _observation_space(env.observation_space)
        actions = env.action_space
        super().__init__(config["num_envs"], space, box(actions.shape, actions.low, actions.high), device)

    def reset_simulator(self, seed: int | None) -> Observation:
        """
        :param seed: Not used; a pool is seeded when it is made
        :return: The first observations
        """
        observed, _ = self.env.reset()
        return to_tensor(self._arranged(observed), self.device)

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        observed, reward, terminated, truncated, _ = self.env.step(actions.cpu().numpy().astype(self.env.action_space.dtype))
        last = self._arranged(observed)
        flags = upload(np.stack((terminated, truncated)), self.device)
        final = observation = to_tensor(last, self.device)
        rows = np.flatnonzero(terminated | truncated).astype(np.int32)
        if len(rows):
            renewed, info = self.env.reset(rows)
            observation = to_tensor(_with_rows(last, info["env_id"], self._arranged(renewed)), self.device)
        reward = upload(np.asarray(reward, np.float32), self.device)
        return TensorStep(observation, reward, flags[0], flags[1], final, flags[0] | flags[1])

    def read_limit(self) -> int | None:
        """
        :return: Steps after which an episode is truncated
        """
        return self.env.config.get("max_episode_steps")

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: Not used: a pool is seeded when it is made, which is said once if somebody asks for another seed
        """
        if seed is not None and seed != self.env.config.get("seed"):
            warnings.warn(
                f"seed={seed} is not used: envpool takes its seed when a pool is made, and this one has "
                f"{self.env.config.get('seed')}; make it with seed={seed}.",
                stacklevel=2,
            )
        return [None] * self.num_envs

    def close(self) -> None:
        """Stop the threads."""
        self.env.close()

    def _owners(self) -> list[Any]:
        return [self, self.env]

    def _arranged(self, observed: Any) -> Array:
        """Observations as the space says: numbers without an axis get one."""
        if self._keys is None:
            return np.asarray(observed)
        return {key: np.asarray(observed[key]).reshape(-1, *shape) for key, shape in self._keys.items()}


def make_envpool(
    task: str, num_envs: int | None = None, device: str = "cpu", seed: int | None = None, **settings: Any
) -> EnvpoolVecEnv:
    """
    :param task: Name of a task of envpool, such as ``"HalfCheetah-v5"`` or ``"CartpoleBalance-v1"``
    :param num_envs: Number of environments, 64 by default
    :param device: Where observations and rewards go
    :param seed: Seed of the pool
    :param settings: Arguments of ``envpool.make``, such as ``num_threads`` and ``max_episode_steps``
    :return: The environment
    """
    if importlib.util.find_spec("envpool") is None:
        raise ImportError("envpool is not installed: pip install 'envpool>=1.2,<2' (Python 3.11 and later)")
    import envpool

    if task not in envpool.list_all_envs():
        raise ValueError(
            f"envpool has no task {task!r}; {suggest(task, envpool.list_all_envs(), 'envpool.list_all_envs() names them.')}"
        )
    num_envs = optional(integer, "num_envs", num_envs, low=1) or 64
    chosen = {} if seed is None else {"seed": seed}
    return EnvpoolVecEnv(envpool.make(task, env_type="gymnasium", num_envs=num_envs, **chosen, **settings), device)


def _observation_space(space: Any) -> tuple[dict[str, tuple[int, ...]] | None, spaces.Space]:
    """Shapes of the entries of a ``Dict``, and the space as networks read it."""
    if not isinstance(space, spaces.Dict):
        return None, _plain_box(space)
    parts = {key: _plain_box(part) for key, part in space.spaces.items()}
    return {key: part.shape for key, part in parts.items()}, spaces.Dict(parts)  # type: ignore[arg-type]


def _plain_box(space: Any) -> spaces.Box:
    shape = space.shape or (1,)
    if not np.issubdtype(space.dtype, np.floating):
        return spaces.Box(space.low, space.high, shape, space.dtype)
    unbounded = space.high > NO_BOUND
    return box(shape, np.where(unbounded, -np.inf, space.low), np.where(unbounded, np.inf, space.high))


def _with_rows(array: Array, rows: np.ndarray, values: Array) -> Array:
    """A copy of the array with new values in some of its rows."""
    if isinstance(array, dict):
        return {key: _with_rows(entry, rows, values[key]) for key, entry in array.items()}  # type: ignore[call-overload,misc]
    renewed = array.copy()
    renewed[rows] = values
    return renewed
