"""Invertible flow with an exact density (GenPO), and the sampler of a policy that is made of it."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.grid import check_steps
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

EXECUTED = ("mean", "first")
"""What of a doubled action is executed: the mean of its halves, or the first one."""


class CoupledFlow(nn.Module):
    """
    Coupled-Heun flow of GenPO (Ding et al. 2025, arXiv 2505.18763): an invertible map on two copies of the action.

    The state ``(..., 2 * action_dim)`` holds two halves ``z`` and ``y``. A step of width ``1 / steps`` at time ``t`` is::

        z = z + v(y, t) / steps
        y = y + v(z, t) / steps
        z = p z + (1 - p) y
        y = p y + (1 - p) z

    Every line is inverted exactly, and only the last two change volumes, by ``p`` per coordinate. So for *any* velocity
    network the Jacobian determinant is the constant ``p^(2 * action_dim * steps)``: where the paper and the reference
    implementation differentiate through the whole map and take a determinant, the log density here costs no more than
    the inverse. Inverting multiplies rounding errors by up to ``p^(-2 * steps)``; run it in float32 with TF32 off.

    :param steps: Number of steps; the network is evaluated twice in each, at the same time
    :param mixing: The coefficient ``p`` in ``(0.5, 1]``; 1 never mixes the halves and preserves volumes
    :raises ValueError: For values out of range
    """

    times: th.Tensor

    def __init__(self, steps: int = 5, mixing: float = 0.95) -> None:
        super().__init__()
        check_steps(steps)
        self.steps = steps
        self.mixing = _checked(mixing)
        self.register_buffer("times", th.tensor([k / steps for k in range(steps)]), persistent=False)

    def forward(self, velocity: Denoise, x0: th.Tensor) -> th.Tensor:
        """
        Map base noise to a doubled action.

        :param velocity: ``velocity(half, k)`` maps ``(..., action_dim)`` to its velocity at ``times[k]``; it is called
            twice for each ``k``
        :param x0: ``(..., 2 * action_dim)``
        :return: ``(..., 2 * action_dim)``, not clipped
        """
        p, width = self.mixing, 1.0 / self.steps
        z, y = _halves(x0)
        for k in range(self.steps):
            z = th.add(z, velocity(y, k), alpha=width)
            y = th.add(y, velocity(z, k), alpha=width)
            z = p * z + (1 - p) * y
            y = p * y + (1 - p) * z
        return th.cat([z, y], dim=-1)

    def inverse(self, velocity: Denoise, x1: th.Tensor) -> th.Tensor:
        """
        Map a doubled action back to its base noise.

        :param velocity: As in :meth:`forward`
        :param x1: ``(..., 2 * action_dim)``
        :return: ``(..., 2 * action_dim)``
        """
        p, width = self.mixing, 1.0 / self.steps
        z, y = _halves(x1)
        for k in reversed(range(self.steps)):
            y = (y - (1 - p) * z) / p
            z = (z - (1 - p) * y) / p
            y = th.sub(y, velocity(z, k), alpha=width)
            z = th.sub(z, velocity(y, k), alpha=width)
        return th.cat([z, y], dim=-1)

    def log_det(self, action_dim: int) -> float:
        """
        Logarithm of the Jacobian determinant of :meth:`forward`, the same everywhere.

        :param action_dim: Size of one half
        :return: ``2 * action_dim * steps * log(mixing)``
        """
        return 2 * action_dim * self.steps * math.log(self.mixing)

    def log_prob_of_noise(self, x0: th.Tensor) -> th.Tensor:
        """
        Log density of ``forward(velocity, x0)`` from its base noise; needs no network.

        :param x0: ``(..., 2 * action_dim)``
        :return: ``(...)``
        """
        size = x0.shape[-1]
        return -0.5 * x0.square().sum(-1) - 0.5 * size * math.log(2 * math.pi) - self.log_det(size // 2)

    def log_prob(self, velocity: Denoise, x1: th.Tensor) -> th.Tensor:
        """
        Log density of a doubled action.

        :param velocity: As in :meth:`forward`
        :param x1: ``(..., 2 * action_dim)``
        :return: ``(...)``
        """
        return self.log_prob_of_noise(self.inverse(velocity, x1))

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample"
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Draw doubled actions and their log densities; the only draw is ``"<label>.x_T"``.

        :param denoise: The velocity, as in :meth:`forward`
        :param shape: ``(..., 2 * action_dim)``
        :param randomness: Source of the draw
        :param label: Prefix of its label
        :return: Doubled actions of shape ``shape``, not clipped (the density belongs to these), and log densities ``(...)``
        """
        x0 = randomness.normal(shape, f"{label}.x_T", like=self.times)
        return self(denoise, x0), self.log_prob_of_noise(x0)

    @staticmethod
    def action(x1: th.Tensor) -> th.Tensor:
        """
        Action to execute: the mean of the two halves.

        :param x1: ``(..., 2 * action_dim)``
        :return: ``(..., action_dim)``, not clipped
        """
        z, y = _halves(x1)
        return 0.5 * (z + y)

    @override
    def extra_repr(self) -> str:
        return f"steps={self.steps}, mixing={self.mixing}"


class CoupledProcess(nn.Module):
    """
    What a policy needs of a coupled flow in the place of a diffusion. Nothing is learned from noisy actions: the network is
    trained by the density, so that this is no :class:`~sb3_diffusion.generative.process.GenerativeProcess`.

    :param mixing: See :class:`CoupledFlow`
    """

    #: What the network of this process predicts, see :class:`~sb3_diffusion.generative.process.GenerativeProcess`.
    prediction: ClassVar[str] = "coupled velocity"
    #: Numbers that tell the network the time.
    n_times: ClassVar[int] = 1

    def __init__(self, mixing: float = 0.95) -> None:
        super().__init__()
        self.mixing = _checked(mixing)

    def sampler(self, steps: int, executed: str = "mean") -> "CoupledSampler":
        """
        Build the sampler.

        :param steps: Number of steps, at least 1
        :param executed: See :class:`CoupledSampler`
        :return: The sampler
        """
        return CoupledSampler(steps, self.mixing, executed)

    @override
    def extra_repr(self) -> str:
        return f"mixing={self.mixing}"


class CoupledSampler(nn.Module):
    """
    Draws actions by a coupled flow. Has the interface of :class:`~sb3_diffusion.generative.process.ChainSampler`, and hides
    that the action is doubled.

    :param steps: Number of steps, at least 1
    :param mixing: See :class:`CoupledFlow`
    :param executed: What of the doubled action is executed, one of :data:`EXECUTED`
    """

    def __init__(self, steps: int, mixing: float = 0.95, executed: str = "mean") -> None:
        super().__init__()
        self.flow = CoupledFlow(steps, mixing)
        self.executed = choice("executed", executed, EXECUTED)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.flow.steps

    @property
    def times(self) -> th.Tensor:
        """Times of the evaluations, each of which is two."""
        return self.flow.times

    def draw(self, velocity: Denoise, shape: Sequence[int], randomness: Randomness, label: str) -> th.Tensor:
        """
        Draw doubled actions; the only draw is ``"<label>.x_T"``, the noise of both halves, ``(2, *shape)``.

        :param velocity: See :meth:`CoupledFlow.forward`
        :param shape: ``(..., action_dim)``
        :param randomness: Source of the draw
        :param label: Prefix of its label
        :return: ``(..., 2 * action_dim)``, not clipped
        """
        noise = randomness.normal((2, *shape), f"{label}.x_T", like=self.times)
        return self.flow(velocity, th.cat((noise[0], noise[1]), dim=-1))  # type: ignore[no-any-return]

    def action(self, doubled: th.Tensor) -> th.Tensor:
        """
        :param doubled: ``(..., 2 * action_dim)``
        :return: What is executed of it, ``(..., action_dim)``, not clipped
        """
        return CoupledFlow.action(doubled) if self.executed == "mean" else _halves(doubled)[0]

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Draw actions.

        :param denoise: The velocity, see :meth:`CoupledFlow.forward`
        :param shape: ``(..., action_dim)``
        :param randomness: Source of the draw
        :param label: Prefix of its label
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions of shape ``shape``
        """
        actions = self.action(self.draw(denoise, shape, randomness, label))
        return actions.clamp(-1.0, 1.0) if clip_output else actions

    @override
    def extra_repr(self) -> str:
        return f"executed={self.executed!r}"


def _checked(mixing: float) -> float:
    return real("mixing", mixing, above=0.5, high=1, remedy="1 never mixes the halves")


def _halves(x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    if x.shape[-1] % 2:
        raise ValueError(f"A coupled flow acts on two copies of the action, got an odd last dimension {x.shape[-1]}.")
    first, second = x.chunk(2, dim=-1)
    return first, second
