"""What one step of many environments says."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch as th

from sb3_diffusion.envs.tensor.observations import Observation


class TensorStep(NamedTuple):
    """
    One step of all environments. Nothing in it is changed by a later step.

    :param observation: What is seen now; where an episode ended, the first observation of the next one
    :param reward: Reward of the step, ``(n_envs,)``, float32; where an episode ended, the reward of its last step
    :param terminated: Where an episode ended in a state that has no future, ``(n_envs,)``, bool
    :param truncated: Where an episode was cut off although its last state has a future, ``(n_envs,)``, bool; never where
        ``terminated``
    :param final_observation: What was seen at the end of an episode, arranged as the observation; ``None`` if the simulator
        never says. Rows that are not ``final_valid`` hold anything.
    :param final_valid: Where ``final_observation`` is the last observation of an episode that ended in this step,
        ``(n_envs,)``, bool. Where an episode was truncated and this is false, nobody knows its last observation: bootstrap
        from the one before, never from ``observation``.
    :param log: What the simulator has to say about itself
    """

    observation: Observation
    reward: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    final_observation: Observation | None
    final_valid: th.Tensor
    log: Mapping[str, Any] = MappingProxyType({})

    @property
    def done(self) -> th.Tensor:
        """Where an episode ended, for whatever reason, ``(n_envs,)``."""
        return self.terminated | self.truncated
