"""Arguments that say which data is learned from, and how: checks, and whether data and environment belong together."""

import io
import warnings
from pathlib import Path
from typing import Any

from gymnasium.spaces import Dict
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.data.rewards import REWARD_TRANSFORMS, RewardTransform
from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.envs.spaces import interchangeable, same_actions
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

Dataset = OfflineDataset | str | Path | dict[str, Any] | None
"""A data set, what :func:`~sb3_diffusion.load_dataset` reads, or the identity of one (in the files of agents)."""


def check_transform(given: Any) -> str | dict[str, Any]:
    """
    :param given: Value of the argument ``reward_transform``: a name, or a transform with its numbers
    :return: The name, or the transform as a file keeps it
    :raises ValueError: If there is no such transform
    """
    if isinstance(given, RewardTransform):
        return given._asdict()
    if not isinstance(given, dict):
        return choice("reward_transform", given, REWARD_TRANSFORMS)
    if set(given) != set(RewardTransform._fields):
        raise ValueError(
            f"reward_transform={given!r} must have the entries {', '.join(RewardTransform._fields)}, or be a name."
        )
    return {**given, **{key: real(f"reward_transform[{key!r}]", given[key]) for key in ("scale", "shift")}}


def resolved_transform(given: str | dict[str, Any]) -> RewardTransform | None:
    """
    :param given: What :func:`check_transform` returned
    :return: The transform, ``None`` if its numbers have to be found in data
    """
    if isinstance(given, dict):
        return RewardTransform(**given)
    return RewardTransform("none", 1.0, 0.0) if given == "none" else None


def check_same_spaces(model: Any, dataset: OfflineDataset, env: GymEnv | None = None) -> None:
    """
    :param model: An algorithm with its spaces
    :param dataset: Data that it shall learn from
    :param env: Where to look for the spaces instead
    :raises ValueError: If shapes of observations, or shape or bounds of actions differ
    """
    owner: Any = model if env is None else env
    observed, acted = described_shapes(owner.observation_space), owner.action_space
    stored = described_shapes(dataset.observation_space)
    if observed != stored:
        raise ValueError(
            f"dataset={dataset.source.name!r} has observations of shape {stored}, the environment of {observed}; use the "
            "environment of the data, or wrap it in the same way."
        )
    box = dataset.action_space
    if not same_actions(box, acted):
        raise ValueError(
            f"dataset={dataset.source.name!r} has the action space {box}, the environment {acted}; pass action_space=... when "
            "reading the data if the file does not tell its bounds."
        )


def described_shapes(space: Any) -> Any:
    """
    :param space: Observation space
    :return: Its shape, or that of every entry of a Dict
    """
    return {key: part.shape for key, part in space.spaces.items()} if isinstance(space, Dict) else space.shape


def spaces_in_place(path: str | Path | io.BufferedIOBase, env: VecEnv, custom_objects: dict[str, Any]) -> dict[str, Any]:
    """
    :param path: File of an agent, as Stable-Baselines3 reads it
    :param env: Environment for it
    :param custom_objects: Replacements of attributes that cannot be unpickled
    :return: The environment's spaces if they may take the place of those in the file, which came from data; else nothing
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is said again when the agent itself is loaded
        saved, _, _ = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)
    if not saved or not saved.get("dataset_identity"):
        return {}
    observed = interchangeable(saved["observation_space"], env.observation_space)
    if not (observed and same_actions(saved["action_space"], env.action_space)):
        return {}
    return {"observation_space": env.observation_space, "action_space": env.action_space}
