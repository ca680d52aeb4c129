"""Whether an environment can be made, and whether algorithm and settings fit its spaces; asked before a run begins."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.dqn import DQN

from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.names import suggest

Wrapper = Callable[[gym.Env], gym.Env]


def make(env_id: str, env_kwargs: Mapping[str, Any], wrap: Wrapper | None = None, option: str = "--env-kwargs") -> gym.Env:
    """
    :param env_id: Environment
    :param env_kwargs: Its arguments
    :param wrap: The wrappers of the settings
    :param option: Where the arguments come from, for the message
    :raises ValueError: If it cannot be made; the message says why
    """
    given = f" with {option} {' '.join(f'{key}:{value}' for key, value in env_kwargs.items())}" if env_kwargs else ""
    try:
        env = gym.spec(env_id).make(**env_kwargs)
    except Exception as error:  # whatever a simulator raises
        reason = f"{type(error).__name__}: {error}"
        known = _arguments(env_id)
        unknown = [name for name in env_kwargs if name not in known]
        if known and unknown:
            reason = f"it has no argument {unknown[0]!r}; {suggest(unknown[0], known)}"
        raise ValueError(f"environment {env_id} cannot be made{given}: {reason}") from error
    try:
        return env if wrap is None else wrap(env)
    except Exception as error:
        env.close()
        raise ValueError(f"env_wrapper does not fit {env_id}: {type(error).__name__}: {error}") from error


def check(
    algorithm: type, policy: str | type, env: gym.Env, normalize: Mapping[str, Any] | None, frame_stack: int | None
) -> None:
    """
    :param algorithm: The algorithm
    :param policy: Name or class of its policy
    :param env: The environment, with the wrappers of the settings
    :param normalize: Arguments of ``VecNormalize``; ``None`` for no normalisation
    :param frame_stack: Number of stacked observations
    :raises ValueError: If they do not fit
    """
    name = f"environment {env.spec.id}" if env.spec is not None else "this environment"
    check_actions(algorithm, env.action_space, name)
    if normalize is None:
        return
    # Stable-Baselines3 replays what it was before it was normalised: not stacked, and not transposed
    if issubclass(algorithm, OffPolicyAlgorithm):
        if (frame_stack or 1) > 1:
            raise ValueError(
                f"normalize with frame_stack={frame_stack}: {algorithm.__name__} cannot replay observations that are "
                "normalised and then stacked; leave one of the two out, or take an on-policy algorithm such as ppo."
            )
        _check_replayed_images(algorithm, policy, env.observation_space, normalize, name)
    elif _is_convolutional(policy) and _normalized_images(env.observation_space, normalize):
        raise ValueError(
            f"normalize: the images of {name} would be no images any more to the policy, which divides them by 255 itself; "
            "write normalize: {norm_obs: false} to normalise rewards only."
        )


def check_actions(algorithm: type, space: spaces.Space, name: str) -> None:
    """
    :param algorithm: The algorithm
    :param space: Its actions
    :param name: The environment in words
    :raises ValueError: If it cannot act so
    """
    if not issubclass(algorithm, OffPolicyAlgorithm | OnPolicyDiffusion):
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


def _check_replayed_images(
    algorithm: type, policy: str | type, space: spaces.Space, normalize: Mapping[str, Any], name: str
) -> None:
    convolutional, normalized = _is_convolutional(policy), _normalized_images(space, normalize)
    for key, image in _images(space).items():
        is_normalized = key in normalized
        if is_normalized and convolutional:
            raise ValueError(
                f"normalize: the images of {name} would be no images any more to the policy, which divides them by 255 "
                "itself; leave normalize out."
            )
        if not is_normalized and not is_image_space_channels_first(image):
            raise ValueError(
                f"normalize: {algorithm.__name__} cannot replay the images of {name}, whose channels come last, behind a "
                "normalisation; leave normalize out, or move the channels to the front with an env_wrapper."
            )


def _images(space: spaces.Space) -> dict[str, spaces.Box]:
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
    return {key: part for key, part in parts.items() if isinstance(part, spaces.Box) and is_image_space(part)}


def _normalized_images(space: spaces.Space, normalize: Mapping[str, Any]) -> set[str]:
    if not normalize.get("norm_obs", True):
        return set()
    keys = normalize.get("norm_obs_keys") if isinstance(space, spaces.Dict) else None
    return {key for key in _images(space) if keys is None or key in keys}


def _is_convolutional(policy: str | type) -> bool:
    return "Cnn" in (policy.__name__ if isinstance(policy, type) else policy)


def _arguments(env_id: str) -> list[str]:
    """Names of the arguments that an environment takes; empty if that cannot be told."""
    entry = gym.spec(env_id).entry_point
    try:
        parameters = inspect.signature(entry if callable(entry) else load_env_creator(str(entry))).parameters
    except (TypeError, ValueError, ImportError, AttributeError):
        return []
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    return [] if takes_all else [*parameters, "max_episode_steps", "disable_env_checker"]
