"""The arguments that all on-policy algorithms have in common, written down once."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.core.arguments.algorithm import AlgorithmArguments
from sb3_diffusion.numeric import integer, real

NORMALIZATIONS = (True, False, "minibatch")
"""Values of ``normalize_advantage``."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "flowrl_paper": {"n_steps": 24, "n_epochs": 4, "timeout_bootstrap": "next_obs", "mask_timeouts": True},
    "flowrl_code": {"n_steps": 24, "timeout_bootstrap": "current", "clip_range_vf": 0.2},
}
"""Settings of others that all of their methods have in common."""
FEWEST_TRANSITIONS = 2048
"""Transitions of a rollout where ``n_steps`` is not given: as many as those of Stable-Baselines3's PPO."""
FEWEST_STEPS = 24
"""Steps of a rollout where ``n_steps`` is not given, however many environments there are (IsaacLab's tasks have 24 or 32)."""


class CommonArguments(AlgorithmArguments, total=False):
    """What every on-policy algorithm hands on to :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion` unchanged."""

    n_steps: int | None
    n_minibatches: int
    batch_size: int | None
    gae_lambda: float
    clip_range_vf: float | None
    normalize_advantage: bool | str
    timeout_bootstrap: str
    mask_timeouts: bool
    learning_rate_bounds: tuple[float, float]
    target_kl: float | None
    random_phases: bool
    value_warmup: int
    privileged: Sequence[str] | None


class OnPolicyArguments(CommonArguments, total=False):
    """The same, for methods without values of their own for these."""

    n_epochs: int
    clip_range: float | Schedule
    value_learning_rate: float | Schedule | None
    desired_kl: float | None


def steps_of(n_steps: int | None, n_envs: int) -> int:
    """
    :param n_steps: Value of the argument ``n_steps``
    :param n_envs: Number of environments
    :return: Steps of a rollout
    """
    return max(FEWEST_STEPS, math.ceil(FEWEST_TRANSITIONS / n_envs)) if n_steps is None else n_steps


def rows_of(batch_size: int | None, n_minibatches: int, size: int) -> int:
    """
    :param batch_size: Value of the argument ``batch_size``
    :param n_minibatches: Value of the argument ``n_minibatches``
    :param size: Transitions of a rollout
    :return: Transitions of a minibatch
    :raises ValueError: If a rollout has fewer
    """
    if batch_size is None:
        integer("n_minibatches", n_minibatches, 1, size, remedy=f"a rollout has {size} transitions")
        return size // n_minibatches
    return integer("batch_size", batch_size, 1, size, remedy=f"a rollout has {size} transitions, n_steps times n_envs")


def check_bounds(learning_rate_bounds: Any) -> tuple[float, float]:
    """
    :param learning_rate_bounds: Smallest and largest learning rate
    :return: The same
    :raises TypeError: If they are no two numbers
    :raises ValueError: If they are not positive, or in the other order
    """
    if not (isinstance(learning_rate_bounds, tuple | list) and len(learning_rate_bounds) == 2):
        raise TypeError(f"learning_rate_bounds={learning_rate_bounds!r} must be two numbers, such as (1e-5, 1e-2).")
    low, high = learning_rate_bounds
    real("learning_rate_bounds", low, above=0)
    return low, real("learning_rate_bounds", high, low=low, remedy="the second is the larger one")


def check_privileged(privileged: Any) -> tuple[str, ...] | None:
    """
    :param privileged: Names of entries of the observation, or ``None``
    :return: The same
    :raises TypeError: If they are no sequence of names
    """
    if privileged is None:
        return None
    if isinstance(privileged, str) or not isinstance(privileged, Sequence):
        raise TypeError(f"privileged={privileged!r} must be a sequence of names, such as ['state'].")
    return tuple(privileged)


def in_our_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Stable-Baselines3 calls the settings of a state's value ``vf``, we those of all that is no actor ``qf``.

    :param arguments: Arguments of the policy
    :return: The same with our names
    :raises ValueError: If there are widths for one of the two networks only
    """
    widths = arguments.get("net_arch")
    if isinstance(widths, dict) and not ("pi" in widths and {"vf", "qf"} & set(widths)):
        raise ValueError(f"policy_kwargs: net_arch={widths!r} must have widths of actor and value, dict(pi=[...], vf=[...]).")

    def renamed(value: Any) -> Any:
        return {"qf" if key == "vf" else key: item for key, item in value.items()} if isinstance(value, dict) else value

    return {name: renamed(value) if name != "networks" else value for name, value in arguments.items()}
