"""Small environment wrappers."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from typing_extensions import override

from sb3_diffusion.numeric import integer


class ActionRepeat(gym.Wrapper, RecordConstructorArgs):
    """
    Apply every action for several steps of the environment and return the summed reward.

    Stops early when the episode ends. One step of the wrapped environment is one decision of the agent, so an episode of
    1000 frames with ``repeat=2`` has 500 steps and the same return.

    :param env: Environment to wrap
    :param repeat: Number of environment steps per action
    """

    def __init__(self, env: gym.Env, repeat: int):
        repeat = integer("repeat", repeat, low=1, remedy="1 leaves the environment unchanged")
        RecordConstructorArgs.__init__(self, repeat=repeat)
        gym.Wrapper.__init__(self, env)
        self.repeat = repeat

    @override
    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total_reward = 0.0
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total_reward += float(reward)
            if terminated or truncated:
                break
        return observation, total_reward, terminated, truncated, info


class Float32Observation(gym.ObservationWrapper, RecordConstructorArgs):
    """
    Cast the observations of a ``Box`` space to float32, so that a replay buffer stores them at half the size.

    :param env: Environment to wrap
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = _float32_box(env.observation_space, "observation")

    @override
    def observation(self, observation: Any) -> np.ndarray:
        return np.asarray(observation, dtype=np.float32)


class Float32Action(gym.ActionWrapper, RecordConstructorArgs):
    """
    Declare a float32 action space for an environment whose ``Box`` action space is float64.

    :param env: Environment to wrap
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._dtype = env.action_space.dtype
        self.action_space = _float32_box(env.action_space, "action")

    @override
    def action(self, action: Any) -> np.ndarray:
        return np.asarray(action, dtype=self._dtype)


def _float32_box(space: spaces.Space, name: str) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise TypeError(
            f"{name} space {space} must be a Box; flatten a Dict with gymnasium.wrappers.FlattenObservation first."
        )
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
