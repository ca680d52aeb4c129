"""Transitions in the form in which the losses use them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples


class Batch(NamedTuple):
    """
    A batch of transitions.

    :param observations: Observations (tensor or dict of tensors)
    :param actions: Normalised actions in [-1, 1], ``(batch, action_dim)``
    :param rewards: (n-step) rewards, ``(batch,)``
    :param next_observations: Observations after the (n-step) transition
    :param discounts: Factor of the next value: ``gamma ** n``, and 0 where the episode terminated; ``(batch,)``
    :param extras: What a stage of learning from data prepared for these transitions, by name
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor
    next_observations: PyTorchObs
    discounts: th.Tensor
    extras: Mapping[str, th.Tensor] = MappingProxyType({})

    @classmethod
    def from_replay(cls, samples: ReplayBufferSamples, gamma: float) -> "Batch":
        """
        :param samples: What the replay buffer returned; ``dones`` excludes truncations
        :param gamma: Discount factor of one-step transitions
        """
        discounts = (1.0 - samples.dones) * (gamma if samples.discounts is None else samples.discounts)
        return cls(
            observations=samples.observations,
            # stored actions lie in the box unless somebody else filled the buffer
            actions=samples.actions.float().clamp(-1.0, 1.0),
            rewards=samples.rewards.squeeze(-1).float(),
            next_observations=samples.next_observations,
            discounts=discounts.squeeze(-1).float(),
        )


def joined(first: PyTorchObs, second: PyTorchObs) -> Any:
    """
    :param first: Observations (tensor or dict of tensors)
    :param second: Observations of the same space
    :return: Both as one batch
    """
    if isinstance(first, dict):
        return {key: th.cat((value, second[key])) for key, value in first.items()}  # type: ignore[index]
    return th.cat((first, second))  # type: ignore[arg-type]


def concatenated(first: Batch, second: Batch) -> Batch:
    """
    :param first: Some transitions
    :param second: Others
    :return: Both as one batch, without extras
    """
    return Batch(
        joined(first.observations, second.observations),
        th.cat((first.actions, second.actions)),
        th.cat((first.rewards, second.rewards)),
        joined(first.next_observations, second.next_observations),
        th.cat((first.discounts, second.discounts)),
    )
