"""Many environments that speak tensors: the contract between simulators and our algorithms."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device

from sb3_diffusion.envs.spaces import check_action_space, check_observation_space
from sb3_diffusion.envs.tensor.episodes import EpisodeStatistics
from sb3_diffusion.envs.tensor.numpy_face import NumpyFace
from sb3_diffusion.envs.tensor.observations import Observation
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.numeric import integer


class TensorVecEnv(NumpyFace):
    """
    Many environments that are stepped together, on one device, in tensors.

    Our on-policy algorithms call :meth:`reset_tensor` and :meth:`step_tensor`, of which neither waits for the device.
    Everybody else meets a ``VecEnv`` of Stable-Baselines3, see :class:`~sb3_diffusion.envs.tensor.numpy_face.NumpyFace`.
    Episodes begin anew within the step in which they end.

    A subclass connects a simulator by :meth:`reset_simulator` and :meth:`step_simulator`. Environments that are written in
    PyTorch derive from :class:`~sb3_diffusion.envs.tensor.torch_env.TorchVecEnv`, which leaves less to write.

    :param num_envs: Number of environments
    :param observation_space: Observation space of one environment
    :param action_space: Action space of one environment, a box of finite width. Actions are cut off at its bounds.
    :param device: Device of all tensors
    :param render_mode: Render mode
    :param privileged: Entries of a ``Dict`` observation that the simulator knows and the robot will not: a critic may read
        them, an actor must not
    """

    episode_length_buf: th.Tensor | None = None
    """
    Steps that each running episode has taken, ``(n_envs,)``, int64, to be written in place; ``None`` if the simulator does not
    let us. The time limit goes by this clock.
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        device: th.device | str = "auto",
        render_mode: str | None = None,
        privileged: Sequence[str] = (),
    ):
        num_envs = integer("num_envs", num_envs, low=1)
        check_observation_space(observation_space)
        check_action_space(action_space)
        self.device = get_device(device)
        self.privileged = _entries(privileged, observation_space)
        self.generator = th.Generator(self.device)
        self.generator.seed()
        self.episodes = EpisodeStatistics(num_envs, self.device)
        self._lowest_action, self._highest_action = (
            th.as_tensor(np.asarray(bound, np.float32), device=self.device) for bound in (action_space.low, action_space.high)
        )
        self._shape_of_actions = (num_envs, *action_space.shape)
        super().__init__(num_envs, observation_space, action_space, render_mode)

    # -- what a simulator has to say ---------------------------------------------------------------------------------------

    @abstractmethod
    def reset_simulator(self, seed: int | None) -> Observation:
        """
        Begin new episodes in all environments.

        :param seed: Seed of what the simulator draws, ``None`` to go on as it is. :attr:`generator` is seeded already.
        :return: Their first observations
        """

    @abstractmethod
    def step_simulator(self, actions: th.Tensor) -> TensorStep:
        """
        One step, after which episodes that ended have begun anew.

        :param actions: Actions within the bounds, ``(n_envs, *action_shape)``
        :return: What happened, in tensors that later steps do not overwrite
        """

    def read_limit(self) -> int | None:
        """
        :return: Steps after which an episode is truncated; ``None`` if there is no limit or nobody says
        """
        return None

    def write_limit(self, steps: int) -> None:
        """
        :param steps: Steps after which an episode shall be truncated
        :raises ValueError: If the simulator does not let us
        """
        raise ValueError(f"max_episode_length={steps} cannot be set: {type(self).__name__} has a limit of its own.")

    # -- what an algorithm calls -------------------------------------------------------------------------------------------

    @property
    def max_episode_length(self) -> int | None:
        """Steps after which an episode is truncated, ``None`` if unknown. Can be written where the simulator lets us."""
        return self.read_limit()

    @max_episode_length.setter
    def max_episode_length(self, steps: int) -> None:
        self.write_limit(integer("max_episode_length", steps, low=1))

    @th.no_grad()
    def reset_tensor(self, random_phases: bool = False) -> Observation:
        """
        Begin new episodes in all environments.

        :param random_phases: Pretend that each of the first episodes has lasted for a while, so that they do not all reach
            their time limit in the same step
        :return: Their first observations
        """
        seed = self._seeds[0]
        self._reset_seeds()
        if seed is not None:
            self.generator.manual_seed(seed)
        self.last_observation = self.reset_simulator(seed)
        self.episodes.restart()
        if random_phases:
            self.randomize_phases()
        return self.last_observation

    @th.no_grad()
    def step_tensor(self, actions: th.Tensor) -> TensorStep:
        """
        One step of all environments.

        :param actions: Actions in units of the action space, ``(n_envs, *action_shape)``; cut off at its bounds
        :return: What happened
        """
        if actions.shape != self._shape_of_actions:
            raise ValueError(
                f"actions have the shape {tuple(actions.shape)} and should have {self._shape_of_actions}, "
                "one row per environment."
            )
        if self.last_observation is None:
            raise RuntimeError("step_tensor() before the first reset_tensor(): there is no episode yet.")
        bounded = actions.to(self.device, th.float32).clamp(self._lowest_action, self._highest_action)
        step = self.step_simulator(bounded)
        step = step._replace(reward=step.reward.float(), truncated=step.truncated & ~step.terminated)
        self.episodes.update(step.reward, step.done)
        self.last_observation = step.observation
        return step

    def randomize_phases(self) -> bool:
        """
        Set the clock of every running episode to a random time before its limit.

        :return: Whether that was possible
        """
        limit = self.max_episode_length
        if self.episode_length_buf is None or limit is None:
            return False
        phases = th.randint(limit, (self.num_envs,), generator=self.generator, device=self.device)
        self.episode_length_buf.copy_(phases)
        return True


def _entries(privileged: Sequence[str], space: spaces.Space) -> tuple[str, ...]:
    known = set(space.spaces) if isinstance(space, spaces.Dict) else set()
    if unknown := set(privileged) - known:
        raise ValueError(f"privileged={sorted(unknown)} names no entry of the observation space; it has {sorted(known)}.")
    return tuple(privileged)
