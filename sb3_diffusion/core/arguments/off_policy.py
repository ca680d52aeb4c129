"""The arguments that all off-policy algorithms have in common, written down once."""

from typing import Any

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.core.arguments.algorithm import AlgorithmArguments
from sb3_diffusion.numeric import integer, real


class CommonArguments(AlgorithmArguments, total=False):
    """What every off-policy algorithm hands on to :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion` unchanged."""

    buffer_size: int
    learning_starts: int
    batch_size: int
    tau: float
    train_freq: int | tuple[int, str]
    gradient_steps: int
    action_noise: ActionNoise | None
    replay_buffer_class: type[ReplayBuffer] | None
    replay_buffer_kwargs: dict[str, Any] | None
    optimize_memory_usage: bool
    n_steps: int
    critic_learning_rate: float | Schedule | None
    dataset: Any
    reward_transform: Any
    offline_fraction: float | str


class OffPolicyArguments(CommonArguments, total=False):
    """The same, for methods that have no learning rate of their own for the actor."""

    actor_learning_rate: float | Schedule | None


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
