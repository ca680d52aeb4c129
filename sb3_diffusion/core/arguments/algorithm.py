"""The arguments that all algorithms have in common, written down once."""

import math
from typing import Any, TypedDict

import torch as th

from sb3_diffusion.numeric import integer, optional, real


class AlgorithmArguments(TypedDict, total=False):
    """What off-policy and on-policy algorithms hand on unchanged."""

    gamma: float
    normalize_observations: bool
    max_grad_norm: float | None
    execution: str
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: th.device | str
    _init_setup_model: bool


def check_norm(max_grad_norm: Any) -> float | None:
    """
    :param max_grad_norm: Largest norm of a network's gradient; infinity measures the norm and clips nothing
    :return: The same
    :raises TypeError: If it is no number
    :raises ValueError: If it is not positive
    """
    if max_grad_norm == math.inf:
        return math.inf
    return optional(real, "max_grad_norm", max_grad_norm, above=0, remedy="None is for no clipping")


def check_seed(seed: Any) -> int | None:
    """
    :param seed: Seed of all random generators
    :return: The same
    :raises TypeError: If it is no integer
    :raises ValueError: If NumPy cannot take it
    """
    return optional(integer, "seed", seed, 0, 2**32 - 1)
