"""Tiny models of every method, whatever it learns from: stored transitions, its own experience or its last rollout."""

from typing import Any

from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.taxonomy import available_methods
from tests import helpers, rollouts

OTHERS = [method for method in available_methods() if method.setting != "off-policy"]
"""The methods that are not online: those of the fixture ``algorithm`` are all the rest."""


def make(algorithm: Any, **kwargs: Any) -> Any:
    """
    :param algorithm: Any algorithm of ours
    :param kwargs: Arguments of the algorithm that replace the tiny ones
    :return: A model whose whole training takes a fraction of a second, with data if it is not on-policy
    """
    if issubclass(algorithm, OnPolicyDiffusion):
        return rollouts.make(algorithm, **kwargs)
    return helpers.make(algorithm, **{"dataset": helpers.point_data(), **kwargs})


def train(model: Any, callback: Any = None) -> Any:
    """All stages from the first on, or a rollout more."""
    if isinstance(model, OnPolicyDiffusion):
        return model.learn(rollouts.ROLLOUT, callback, reset_num_timesteps=False)
    return model.learn_offline(12, callback)
