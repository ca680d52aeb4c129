"""The arguments that all off-policy algorithms have in common, written down once."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule


class OffPolicyArguments(TypedDict, total=False):
    """What every off-policy algorithm hands on to :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion` unchanged."""

    buffer_size: int
    learning_starts: int
    batch_size: int
    tau: float
    gamma: float
    train_freq: int | tuple[int, str]
    gradient_steps: int
    action_noise: ActionNoise | None
    replay_buffer_class: type[ReplayBuffer] | None
    replay_buffer_kwargs: dict[str, Any] | None
    optimize_memory_usage: bool
    n_steps: int
    actor_learning_rate: float | Schedule | None
    critic_learning_rate: float | Schedule | None
    max_grad_norm: float | None
    execution: str
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: th.device | str
    _init_setup_model: bool


def complete_signature(constructor: Callable[..., None], common: Callable[..., None]) -> inspect.Signature:
    """
    Signature of an algorithm whose constructor hands ``**kwargs`` on to the base class.

    The order is Stable-Baselines3's: the method's own arguments stand between ``n_steps`` and the rest.

    :param constructor: ``__init__`` of the algorithm
    :param common: ``__init__`` of the base class
    :return: Signature without ``self`` and without ``**kwargs``
    """
    own = inspect.signature(constructor).parameters
    base = inspect.signature(common).parameters
    merged = {**base, **{name: parameter for name, parameter in own.items() if parameter.kind != parameter.VAR_KEYWORD}}
    rank = {name: float(index) for index, name in enumerate(base)}
    order = sorted(merged, key=lambda name: rank.get(name, rank["n_steps"] + 0.5))
    # only what can be passed by position is shown so
    positional = [name for name, p in own.items() if p.kind == p.POSITIONAL_OR_KEYWORD and name != "self"]
    keywords = [name for name in order if name not in (*positional, "self")]
    by_name = [merged[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in keywords]
    return inspect.Signature([*(merged[name] for name in positional), *by_name])
