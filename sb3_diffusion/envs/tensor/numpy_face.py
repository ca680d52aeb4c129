"""What everybody sees who knows nothing of tensors: a ``VecEnv`` of Stable-Baselines3."""

import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_diffusion.envs.tensor.episodes import EpisodeStatistics
from sb3_diffusion.envs.tensor.observations import Observation, each, to_numpy, where
from sb3_diffusion.envs.tensor.step import TensorStep

STALE = "terminal_observation_is_stale"
"""Key of an info: the ``terminal_observation`` beside it is the one before the last step, since nobody knows the last."""


class NumpyFace(VecEnv):
    """
    The methods of a ``VecEnv`` in terms of :meth:`reset_tensor` and :meth:`step_tensor`.

    Infos hold what Stable-Baselines3 reads: ``terminal_observation``, ``TimeLimit.truncated`` and, as its ``Monitor`` writes
    it, ``episode``. Where the simulator does not tell the last observation of an episode, ``terminal_observation`` is the one
    before it, and the key :data:`STALE` says so: whoever bootstraps a time-out then values a state that is one step old, and
    not the first state of the next episode.

    :param num_envs: Number of environments
    :param observation_space: Observation space of one environment
    :param action_space: Action space of one environment
    :param render_mode: Render mode
    """

    metadata: dict[str, Any]
    episodes: EpisodeStatistics
    last_observation: Observation | None = None
    """What was seen last; ``None`` before the first reset."""

    def __init__(
        self, num_envs: int, observation_space: spaces.Space, action_space: spaces.Box, render_mode: str | None = None
    ):
        self.render_mode = render_mode  # which VecEnv asks for
        super().__init__(num_envs, observation_space, action_space)
        self._chosen_actions = np.zeros((num_envs, *action_space.shape), np.float32)
        self._made_at = time.time()

    @abstractmethod
    def reset_tensor(self, random_phases: bool = False) -> Observation:
        """Begin new episodes in all environments."""

    @abstractmethod
    def step_tensor(self, actions: th.Tensor) -> TensorStep:
        """One step of all environments."""

    def reset(self) -> VecEnvObs:
        """Begin new episodes in all environments."""
        return to_numpy(self.reset_tensor())

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: Actions ``(n_envs, *action_shape)``
        """
        self._chosen_actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observation, reward, end of episode and infos; tensors are copied to the host
        """
        before = self.last_observation
        step = self.step_tensor(th.as_tensor(np.asarray(self._chosen_actions, np.float32)))
        terminated, truncated, known = th.stack((step.terminated, step.truncated, step.final_valid)).cpu().numpy()
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done)
        if len(ended):
            assert before is not None  # a step without a reset was refused
            for row, final, episode in zip(
                ended, self._last_observations(step, before, ended), self._episodes(ended), strict=True
            ):
                infos[row] = {"TimeLimit.truncated": bool(truncated[row]), "terminal_observation": final, "episode": episode}
                if not known[row]:
                    infos[row][STALE] = True
            if not known[ended].all():
                self._warn_of_stale()
        return to_numpy(step.observation), step.reward.cpu().numpy().copy(), done, infos

    def _episodes(self, ended: np.ndarray) -> list[dict[str, Any]]:
        rows = th.as_tensor(ended, device=self.episodes.returns.device)
        returns = self.episodes.finished_returns[rows].tolist()
        lengths = self.episodes.finished_lengths[rows].tolist()
        elapsed = round(time.time() - self._made_at, 6)
        return [{"r": r, "l": length, "t": elapsed} for r, length in zip(returns, lengths, strict=True)]

    def _last_observations(self, step: TensorStep, before: Observation, ended: np.ndarray) -> Iterator[Any]:
        """One observation for each episode that ended: the last, or the one before if nobody knows the last."""
        last = before if step.final_observation is None else where(step.final_valid, step.final_observation, before)
        rows = th.as_tensor(ended, device=step.reward.device)
        arrays = to_numpy(each(lambda tensor: tensor[rows], last))
        for number in range(len(ended)):
            if isinstance(arrays, dict):
                yield {key: entry[number] for key, entry in arrays.items()}
            else:
                yield arrays[number]

    def _warn_of_stale(self) -> None:
        warnings.warn(
            f"{type(self).__name__} does not know the last observation of an episode; Stable-Baselines3 is given the one "
            "before it, so that a time-out is not bootstrapped from the next episode.",
            stacklevel=2,
        )

    # -- attributes of the environments; all of them are one object --------------------------------------------------------

    def _owners(self) -> list[Any]:
        """Objects whose attributes count as the environments', the first that has one first."""
        return [self]

    def _owner(self, name: str) -> Any:
        for owner in self._owners():
            if hasattr(owner, name):
                return owner
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute, which the environments share
        :param indices: Which environments
        :return: Its value, once for each of them
        """
        value = getattr(self._owner(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute, such as ``max_episode_length``
        :param value: Its value in all environments
        :param indices: All environments
        """
        self._check_all(indices, f"{attr_name} is shared by all environments")
        owner = next((owner for owner in self._owners() if hasattr(owner, attr_name)), self)
        setattr(owner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: Name of a method, which is called once for all environments
        :param method_args: Its arguments
        :param indices: All environments
        :param method_kwargs: Its arguments
        :return: What it returned, once for each environment
        """
        self._check_all(indices, f"{method_name}() acts on all environments at once")
        result = getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: A wrapper of single environments
        :param indices: Which environments
        :return: Whether it is ``Monitor``, whose work is done here: infos hold the return of the episode
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: ``None``: there is nothing to see
        """
        return [None] * self.num_envs

    def close(self) -> None:
        """Release what the simulator holds; nothing, unless a subclass says otherwise."""

    def _check_all(self, indices: VecEnvIndices, reason: str) -> None:
        chosen = set(self._get_indices(indices))
        if chosen != set(range(self.num_envs)):
            raise ValueError(f"indices={sorted(chosen)} is a part of the environments, but {reason}; leave indices out.")
