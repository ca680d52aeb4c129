"""Rewards as a method is given them while it learns from data: each transform is a factor and a shift."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th

from sb3_diffusion.names import suggest

if TYPE_CHECKING:
    from sb3_diffusion.data.stored.dataset import OfflineDataset


class RewardTransform(NamedTuple):
    """
    ``reward * scale + shift``.

    :param name: What it is called, a key of :data:`REWARD_TRANSFORMS`
    :param scale: Factor
    :param shift: What is added to the product
    """

    name: str
    scale: float
    shift: float

    @property
    def is_identity(self) -> bool:
        """Whether nothing is done to the rewards."""
        return self.scale == 1.0 and self.shift == 0.0

    def __call__(self, rewards: Any) -> Any:
        """
        :param rewards: Rewards of the environment, a number, an array or a tensor
        :return: A copy with what the method learns from
        """
        return rewards * self.scale + self.shift


def reward_transform(name: "str | RewardTransform | None", dataset: "OfflineDataset") -> RewardTransform:
    """
    :param name: One of :data:`REWARD_TRANSFORMS`, ``None`` for ``"none"``; a transform is returned as it is
    :param dataset: The data whose numbers it is made of
    :return: The transform
    :raises ValueError: If there is none of this name, or the data do not allow it
    """
    if isinstance(name, RewardTransform):
        return name
    name = "none" if name is None else name
    if name not in REWARD_TRANSFORMS:
        raise ValueError(f"Unknown reward_transform={name!r}; {suggest(str(name), REWARD_TRANSFORMS)}")
    scale, shift = REWARD_TRANSFORMS[name](dataset)
    return RewardTransform(name, scale, shift)


def _return_range(dataset: "OfflineDataset") -> tuple[float, float]:
    # over the transitions that are learned from: an episode that was cut counts with what is left of it
    returns = dataset.episode_returns()
    width = _width("return_range_1000", returns, "all episodes have the return")
    return 1000.0 / width, 0.0


def _standardize(dataset: "OfflineDataset") -> tuple[float, float]:
    rewards = dataset.rewards.double()
    _width("standardize", rewards, "all rewards are")
    mean, deviation = float(rewards.mean()), float(rewards.std(correction=0))
    return 1.0 / deviation, -mean / deviation


def _minmax(dataset: "OfflineDataset") -> tuple[float, float]:
    rewards = dataset.rewards.double()
    width = _width("minmax_pm1", rewards, "all rewards are")
    return 2.0 / width, -2.0 * float(rewards.min()) / width - 1.0


def _width(name: str, values: th.Tensor, what: str) -> float:
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ValueError(
            f"reward_transform={name!r} divides by a range that is zero: {what} {low:g}; use reward_transform='none'."
        )
    return high - low


REWARD_TRANSFORMS: dict[str, Callable[["OfflineDataset"], tuple[float, float]]] = {
    "none": lambda dataset: (1.0, 0.0),
    "return_range_1000": _return_range,
    "minus_one": lambda dataset: (1.0, -1.0),
    "cql_antmaze": lambda dataset: (4.0, -2.0),
    "antmaze100": lambda dataset: (100.0, 0.0),
    "standardize": _standardize,
    "minmax_pm1": _minmax,
}
"""
Name -> factor and shift for the rewards of a data set.

``return_range_1000``: returns span 1,000, as in IQL on MuJoCo; ``minus_one``: ``r - 1``, as in IQL on AntMaze;
``cql_antmaze``: ``4 (r - 0.5)``; ``antmaze100``: ``100 r``; ``standardize``: mean 0 and deviation 1 over transitions;
``minmax_pm1``: from -1 to 1.
"""
