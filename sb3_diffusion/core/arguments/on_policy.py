"""The arguments that all on-policy algorithms have in common, written down once."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.numeric import integer

FEWEST_TRANSITIONS = 2048
"""Transitions of a rollout where ``n_steps`` is not given: as many as those of Stable-Baselines3's PPO."""
FEWEST_STEPS = 24
"""Steps of a rollout where ``n_steps`` is not given, however many environments there are (IsaacLab's tasks have 24 or 32)."""


class CommonArguments(TypedDict, total=False):
    """What every on-policy algorithm hands on to :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion` unchanged."""

    n_steps: int | None
    n_minibatches: int
    batch_size: int | None
    gamma: float
    gae_lambda: float
    clip_range_vf: float | None
    normalize_advantage: bool | str
    normalize_observations: bool
    timeout_bootstrap: str
    mask_timeouts: bool
    learning_rate_bounds: tuple[float, float]
    target_kl: float | None
    max_grad_norm: float | None
    random_phases: bool
    value_warmup: int
    privileged: Sequence[str] | None
    execution: str
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: th.device | str
    _init_setup_model: bool


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
