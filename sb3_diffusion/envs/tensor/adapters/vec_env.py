"""Ordinary environments of Stable-Baselines3, for algorithms that speak tensors."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Array, Observation, to_tensor, upload
from sb3_diffusion.envs.tensor.step import TensorStep


def as_tensor_env(env: VecEnv, device: th.device | str = "auto") -> TensorVecEnv:
    """
    :param env: Any vectorised environment
    :param device: Where tensors go that come from an ordinary one
    :return: The environment itself if it speaks tensors, else an adapter
    """
    return env if isinstance(env, TensorVecEnv) else VecEnvAdapter(env, device)


class VecEnvAdapter(TensorVecEnv):
    """
    Tensors for what steps in NumPy. As a ``VecEnv`` it is the environment that it was made of, including its infos.

    :param venv: Vectorised environment
    :param device: Where its observations and rewards go
    """

    infos: Sequence[dict[str, Any]] = ()
    """Infos of the last step; what a ``Monitor`` says about an episode is there."""

    def __init__(self, venv: VecEnv, device: th.device | str = "auto"):
        if not isinstance(venv.action_space, spaces.Box):
            raise ValueError(
                f"The action space {venv.action_space} is no Box; methods that speak tensors choose real numbers."
            )
        self.venv = venv
        super().__init__(venv.num_envs, venv.observation_space, venv.action_space, device, venv.render_mode)
        self.metadata = venv.metadata

    def reset_simulator(self, seed: int | None) -> Observation:
        """
        :param seed: Passed on by :meth:`seed`
        :return: The first observations
        """
        return to_tensor(self.venv.reset(), self.device)  # type: ignore[arg-type]

    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        :param actions: Actions within the bounds
        :return: What happened
        """
        observation, reward, done, self.infos = self.venv.step(actions.cpu().numpy())
        done = np.asarray(done, bool)
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in self.infos]) & done
        final, known = _final_observations(observation, done, self.infos)  # type: ignore[arg-type]
        seen = to_tensor(observation, self.device)  # type: ignore[arg-type]
        terminated, truncated, final_valid = upload(np.stack((done & ~truncated, truncated, known)), self.device)
        return TensorStep(
            observation=seen,
            reward=upload(np.asarray(reward, np.float32), self.device),
            terminated=terminated,
            truncated=truncated,
            final_observation=seen if final is None else to_tensor(final, self.device),
            final_valid=final_valid,
        )

    # -- the face of the environment itself --------------------------------------------------------------------------------

    def reset(self) -> VecEnvObs:
        """Begin new episodes in all environments."""
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: Actions ``(n_envs, *action_shape)``
        """
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observation, reward, end of episode and infos
        """
        return self.venv.step_wait()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: Seed of the next reset
        """
        return self.venv.seed(seed)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        :param options: Options of the next reset
        """
        self.venv.set_options(options)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute
        :param indices: Which environments
        """
        return self.venv.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute
        :param value: Its value
        :param indices: Which environments
        """
        self.venv.set_attr(attr_name, value, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Name of a method
        :param method_args: Its arguments
        :param indices: Which environments
        :param method_kwargs: Its arguments
        """
        return self.venv.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: A wrapper of single environments
        :param indices: Which environments
        """
        return self.venv.env_is_wrapped(wrapper_class, indices)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: What each environment shows
        """
        return self.venv.get_images()

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """
        :param mode: Render mode
        """
        return self.venv.render(mode)

    def close(self) -> None:
        """Close the environments."""
        self.venv.close()


def _final_observations(
    observation: Array, done: np.ndarray, infos: Sequence[dict[str, Any]]
) -> tuple[Array | None, np.ndarray]:
    """The observations with those of ended episodes put back, and where; ``None`` if no episode ended."""
    known = np.zeros_like(done)
    rows = [row for row in np.flatnonzero(done).tolist() if infos[row].get("terminal_observation") is not None]
    if not rows:
        return None, known
    known[rows] = True
    final = {key: entry.copy() for key, entry in observation.items()} if isinstance(observation, dict) else observation.copy()
    for row in rows:
        last = infos[row]["terminal_observation"]
        if isinstance(final, dict):
            for key, entry in final.items():
                entry[row] = last[key]
        else:
            final[row] = last
    return final, known
