"""The arguments that all off-policy algorithms have in common, written down once."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.numeric import integer, real


class CommonArguments(TypedDict, total=False):
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
    critic_learning_rate: float | Schedule | None
    max_grad_norm: float | None
    execution: str
    dataset: Any
    reward_transform: Any
    normalize_observations: bool
    offline_fraction: float | str
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: th.device | str
    _init_setup_model: bool


class OffPolicyArguments(CommonArguments, total=False):
    """The same, for methods that have no learning rate of their own for the actor."""

    actor_learning_rate: float | Schedule | None


def complete_signature(constructor: Callable[..., None], parent: type) -> inspect.Signature:
    """
    Signature of an algorithm whose constructor hands ``**kwargs`` on to its parent class.

    The order is Stable-Baselines3's: the method's own arguments stand between ``n_steps`` and the rest.

    :param constructor: ``__init__`` of the algorithm
    :param parent: The class that gets ``**kwargs``; its own signature is complete
    :return: Signature without ``self`` and without ``**kwargs``
    """
    own, base = (
        {name: p for name, p in inspect.signature(function).parameters.items() if p.kind != p.VAR_KEYWORD}
        for function in (constructor, parent)
    )
    merged = {**base, **own}
    rank = {name: float(index) for index, name in enumerate(base)}
    order = sorted(merged, key=lambda name: rank.get(name, rank["n_steps"] + 0.5))
    # only what can be passed by position is shown so
    positional = [name for name, p in own.items() if p.kind == p.POSITIONAL_OR_KEYWORD and name != "self"]
    keywords = [name for name in order if name not in (*positional, "self")]
    by_name = [merged[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in keywords]
    return inspect.Signature([*(merged[name] for name in positional), *by_name])


def check_schedule(name: str, value: Any) -> float | Schedule:
    """
    :param name: Name of the argument
    :param value: A number that is not negative, or a function of the remaining progress
    :return: The same
    :raises TypeError: If it is neither
    :raises ValueError: If it is a number out of range
    """
    return value if callable(value) else real(name, value, low=0, remedy=_SCHEDULE)  # type: ignore[no-any-return]


def scheduled(name: str, schedule: Schedule, progress: float) -> float:
    """
    :param name: Name of the argument that the schedule was made of
    :param schedule: Function of the remaining progress
    :param progress: Remaining progress, from 1 to 0
    :return: Its value
    :raises ValueError: If that is negative, NaN or infinite
    """
    remedy = f"its schedule returned this at a remaining progress of {progress:g}"
    return real(name, schedule(progress), low=0, remedy=remedy)


def check_fraction(value: Any) -> float | str:
    """
    :param value: Share of the batches that comes from a data set, or ``"append"``
    :return: The same
    :raises ValueError: If it is out of range or another word
    :raises TypeError: If it is neither a number nor a word
    """
    if value == "append":
        return str(value)
    return real("offline_fraction", value, 0, 1, remedy="0 leaves the data out, 'append' makes one pool of both")  # type: ignore[no-any-return]


def check_train_freq(train_freq: Any) -> Any:
    """
    :param train_freq: Number of steps, or ``(number, unit)``; the unit is left to Stable-Baselines3
    :return: The same
    :raises TypeError: If the number is no integer
    :raises ValueError: If it is smaller than 1
    """
    remedy = "1 updates after every step, (1, 'episode') after every episode"
    if isinstance(train_freq, tuple | list) and len(train_freq) == 2:
        return (integer("train_freq", train_freq[0], low=1, remedy=remedy), train_freq[1])
    return integer("train_freq", train_freq, low=1, remedy=remedy)


_SCHEDULE = "it must not be negative, and may be a function of the remaining progress (1 to 0)"
