"""The arguments that all algorithms have in common, written down once."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
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


def check_verbose(verbose: Any) -> int:
    """
    :param verbose: How much is said; ``True`` is 1
    :return: The same
    :raises TypeError: If it is no integer
    """
    return verbose if isinstance(verbose, bool) else integer("verbose", verbose, remedy="0 says nothing, 1 what happens")


def check_switches(model: Any) -> None:
    """
    Refuse words where ``True`` or ``False`` is meant: ``"no"`` would count as ``True``.

    :param model: An algorithm whose arguments are its attributes
    :raises TypeError: If one that is annotated as a ``bool`` is something else
    """
    for name, parameter in inspect.signature(type(model)).parameters.items():
        value = getattr(model, name, False)
        if parameter.annotation is bool and not (isinstance(value, bool | np.bool_ | int) and value in (0, 1)):
            raise TypeError(f"{name}={value!r} must be True or False, not a {type(value).__name__}.")


def check_policy_kwargs(policy_kwargs: Any) -> None:
    """
    :param policy_kwargs: Arguments of the policy
    :raises TypeError: If they are no dictionary
    """
    if not isinstance(policy_kwargs, Mapping):
        raise TypeError(f"policy_kwargs={policy_kwargs!r} must be a dictionary, such as dict(net_arch=[256, 256]).")


def check_seed(seed: Any) -> int | None:
    """
    :param seed: Seed of all random generators
    :return: The same
    :raises TypeError: If it is no integer
    :raises ValueError: If NumPy cannot take it
    """
    return optional(integer, "seed", seed, 0, 2**32 - 1)
