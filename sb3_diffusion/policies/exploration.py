"""Additive Gaussian exploration noise in the normalised action box."""

import math

import torch as th
from torch import nn

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import optional, real


class ExplorationNoise(nn.Module):
    r"""
    Adds ``alpha * scale * N(0, I)`` to actions and clips them to [-1, 1].

    :param scale: Standard deviation per unit of ``alpha``, in units of the normalised action; 0 switches the noise off
    :param initial_alpha: Initial value of the learned factor ``alpha`` (its logarithm is a parameter, see DACER);
        ``None`` fixes ``alpha`` at 1
    """

    optimizer: th.optim.Optimizer
    """Set by the algorithm that learns ``alpha``."""

    def __init__(self, scale: float = 0.0, initial_alpha: float | None = None):
        super().__init__()
        self.scale = real("exploration_noise", scale, low=0, remedy="pass a standard deviation >= 0")
        initial_alpha = optional(real, "initial_alpha", initial_alpha, above=0, remedy="its logarithm is learned")
        self.log_alpha = None if initial_alpha is None else nn.Parameter(th.tensor(math.log(initial_alpha)))

    def forward(self, actions: th.Tensor, noise: Randomness, label: str) -> th.Tensor:
        """
        :param actions: Actions in [-1, 1], any shape
        :param noise: Source of the draw
        :param label: Name of the draw
        :return: Noisy actions in [-1, 1], same shape
        """
        if self.scale == 0.0:
            return actions
        draw, log_alpha = noise.normal(actions.shape, label, like=actions), self.log_alpha
        if log_alpha is None:
            noisy = th.add(actions, draw, alpha=self.scale)
        elif th.is_inference_mode_enabled() and log_alpha.is_cpu:  # a number costs less than operations, and nobody waits
            noisy = th.add(actions, draw, alpha=self.scale * math.exp(log_alpha.item()))
        else:
            noisy = th.addcmul(actions, log_alpha.detach().exp(), draw, value=self.scale)
        return noisy.clamp_(-1.0, 1.0)
