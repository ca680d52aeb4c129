"""Additive Gaussian exploration noise in the normalised action box."""

import math

import torch as th
from torch import nn

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.multiplier import Multiplier


class ExplorationNoise(nn.Module):
    r"""
    Adds ``factor * scale * N(0, I)`` to actions and clips them to [-1, 1].

    :param scale: Standard deviation per unit of the factor, in units of the normalised action; 0 switches the noise off
    :param factor: A learned number, which belongs to the policy; ``None`` for 1
    """

    def __init__(self, scale: float = 0.0, factor: Multiplier | None = None):
        super().__init__()
        self.scale = real("exploration_noise", scale, low=0, remedy="pass a standard deviation >= 0")
        self._factor = (factor,)  # in a tuple, so that the policy's number is not registered a second time

    def forward(self, actions: th.Tensor, noise: Randomness, label: str) -> th.Tensor:
        """
        :param actions: Actions in [-1, 1], any shape
        :param noise: Source of the draw
        :param label: Name of the draw
        :return: Noisy actions in [-1, 1], same shape
        """
        if self.scale == 0.0:
            return actions
        draw, factor = noise.normal(actions.shape, label, like=actions), self._factor[0]
        if factor is None:
            noisy = th.add(actions, draw, alpha=self.scale)
        elif (
            th.is_inference_mode_enabled() and factor.log_value.is_cpu
        ):  # a number costs less than operations, and nobody waits
            noisy = th.add(actions, draw, alpha=self.scale * math.exp(factor.log_value.item()))
        else:
            noisy = th.addcmul(actions, factor(), draw, value=self.scale)
        return noisy.clamp_(-1.0, 1.0)
