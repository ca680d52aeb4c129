"""Whether an environment can be made, and whether algorithm and settings fit its spaces: looked at once, before a run begins."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.dqn import DQN

Wrapper = Callable[[gym.Env], gym.Env]


def make(env_id: str, env_kwargs: Mapping[str, Any], wrap: Wrapper | None = None, option: str = "--env-kwargs") -> gym.Env:
    """
    :param env_id: Environment
    :param env_kwargs: Its arguments
    :param wrap: The wrappers of the settings
    :param option: Where the arguments come from, for the message
    :raises ValueError: if it cannot be made; the message says why
    """
    given = f" with {option} {' '.join(f'{key}:{value}' for key, value in env_kwargs.items())}" if env_kwargs else ""
    try:
        env = gym.spec(env_id).make(**env_kwargs)
    except Exception as error:  # whatever a simulator raises
        raise ValueError(f"environment {env_id} cannot be made{given}: {type(error).__name__}: {error}") from error
    try:
        return env if wrap is None else wrap(env)
    except Exception as error:
        env.close()
        raise ValueError(f"env_wrapper does not fit {env_id}: {type(error).__name__}: {error}") from error


def check(algorithm: type, env: gym.Env, normalize: Mapping[str, Any] | None, frame_stack: int | None) -> None:
    """
    :param algorithm: The algorithm
    :param env: The environment, with the wrappers of the settings
    :param normalize: Arguments of ``VecNormalize``; ``None`` for no normalisation
    :param frame_stack: Number of stacked observations
    :raises ValueError: if they do not fit
    """
    name = f"environment {env.spec.id}" if env.spec is not None else "this environment"
    _check_actions(algorithm, env.action_space, name)
    if normalize is not None and normalize.get("norm_obs", True):
        _check_normalization(algorithm, env.observation_space, normalize, frame_stack, name)


def _check_actions(algorithm: type, space: spaces.Space, name: str) -> None:
    if not issubclass(algorithm, OffPolicyAlgorithm):
        return  # these take actions of every kind
    if _chooses(algorithm):
        if not isinstance(space, spaces.Discrete):
            raise ValueError(f"{name} has actions {space}, but {algorithm.__name__} chooses among a few (Discrete).")
        return
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"{name} has actions {space}, but {algorithm.__name__} acts with continuous ones (Box); take dqn or ppo for it."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"{name} has actions {space} of whole numbers, to which {algorithm.__name__} would truncate its own; "
            "wrap the environment so that its box has float32."
        )
    if not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"{name} has actions {space} without bounds; wrap it with gymnasium's RescaleAction or ClipAction.")


def _chooses(algorithm: type) -> bool:
    """Whether the actions are a few, as in DQN (QR-DQN of sb3-contrib is no subclass of it)."""
    return issubclass(algorithm, DQN) or algorithm.__name__ == "QRDQN"


def _check_normalization(
    algorithm: type, space: spaces.Space, normalize: Mapping[str, Any], frame_stack: int | None, name: str
) -> None:
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    keys = normalize.get("norm_obs_keys") or list(parts)
    images = [key for key in keys if key in parts and is_image_space(parts[key])]
    if any(not is_image_space_channels_first(parts[key]) for key in images):  # type: ignore[arg-type]
        raise ValueError(
            f"normalize: {name} observes images, which cannot be normalised once their channels are moved to the front; "
            "write normalize: {norm_obs: false} to normalise rewards only (policies divide images by 255 themselves)"
            + (", or name the other entries as norm_obs_keys." if isinstance(space, spaces.Dict) else ".")
        )
    if frame_stack is not None and issubclass(algorithm, OffPolicyAlgorithm):
        raise ValueError(
            f"normalize with frame_stack={frame_stack}: {algorithm.__name__} replays stacked observations, for which there are "
            "no statistics; leave one of the two out, or write normalize: {norm_obs: false} to normalise rewards only."
        )
