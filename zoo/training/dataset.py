"""The data of a training: whether its algorithm and options go with data, and how they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rl_zoo3.utils import ALGOS

from sb3_diffusion import OfflineDataset, load_dataset
from sb3_diffusion.core.behavior.pretraining import ImitatesFirst
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.stored.catalogue import known_file
from sb3_diffusion.data.stored.loading import HDF5
from sb3_diffusion.data.stored.readers.ogbench import has_ogbench_layout

from .options.train import PRETRAIN_UPDATES


def imitates(algo: str) -> bool:
    """
    :param algo: Name of an algorithm
    :return: Whether its actor imitates data before it learns from what it does
    """
    return issubclass(ALGOS[algo], ImitatesFirst)


def check_options(algo: str, dataset: str, online_steps: int, pretrain_updates: int, searches: bool) -> None:
    """
    :param algo: Name of the algorithm
    :param dataset: ``--dataset``
    :param online_steps: ``--online-steps``
    :param pretrain_updates: ``--pretrain-updates``
    :param searches: ``-optimize``
    :raises ValueError: If the algorithm does not learn from data, or an option says nothing to the way it does
    """
    if not issubclass(ALGOS[algo], (OffPolicyDiffusion, ImitatesFirst)):
        raise ValueError(
            f"--dataset {dataset}: {algo} does not learn from data; all our off-policy methods do, and "
            "tensor_ppo, dppo, fpo and fpopp imitate them first."
        )
    if imitates(algo) and (online_steps or searches):
        option = "--online-steps" if online_steps else "-optimize"
        raise ValueError(f"{option} with --dataset: {algo} is on-policy, -n counts its steps; leave {option} out.")
    if not imitates(algo) and pretrain_updates not in (0, PRETRAIN_UPDATES):
        raise ValueError(f"--pretrain-updates are for on-policy methods; {algo} learns from data for -n updates.")


def read_data(dataset: str, env_id: str, env_kwargs: Mapping[str, Any]) -> OfflineDataset:
    """
    :param dataset: Name or file of the data
    :param env_id: The task
    :param env_kwargs: Its arguments
    :return: The data, named on the screen
    """
    found = load_dataset(dataset, **_bounds_of_actions(Path(dataset), env_id, env_kwargs))
    print(f"Learning from {found}")
    return found


def _bounds_of_actions(path: Path, env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the task, for a file of the user's that need not say them."""
    plain = path.suffix in HDF5 or (path.suffix == ".npz" and path.is_file() and not has_ogbench_layout(path))
    if env_id not in gym.registry or not plain or known_file(path) is not None:
        return {}
    env = gym.make(env_id, **env_kwargs)
    env.close()
    return {"action_space": env.action_space} if isinstance(env.action_space, spaces.Box) else {}
