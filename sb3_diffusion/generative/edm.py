"""Preconditioning and training noise levels of EDM (Karras et al. 2022), as used by DTQL."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import real


class Scalings(NamedTuple):
    """Coefficients of the preconditioned denoiser, each of the shape of ``sigma``."""

    skip: th.Tensor
    out: th.Tensor
    input: th.Tensor
    noise: th.Tensor


class EDM(nn.Module):
    """
    Variance-exploding noise ``x = x_0 + sigma eps`` with the preconditioned denoiser
    ``D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)``, ``F`` the network.

    Training levels follow the truncated log-logistic law of DTQL (Chen et al. 2024): ``log sigma`` is logistic with location
    ``log sigma_data`` and scale 0.5, restricted to ``[sigma_min, sigma_max]``. The law is evaluated in float64, because the
    upper end of its distribution function is within 1e-4 of 1.

    :param sigma_data: Standard deviation of the data
    :param sigma_min: Smallest noise level
    :param sigma_max: Largest noise level
    :raises ValueError: Unless ``sigma_data > 0`` and ``0 < sigma_min < sigma_max``
    """

    law_scale = 0.5

    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__()
        for name, value in (("sigma_data", sigma_data), ("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            real(name, value)
        if not (sigma_data > 0 and 0 < sigma_min < sigma_max):
            raise ValueError(
                "EDM needs sigma_data > 0 and 0 < sigma_min < sigma_max, got "
                f"sigma_data={sigma_data}, sigma_min={sigma_min}, sigma_max={sigma_max}."
            )
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def scalings(self, sigma: th.Tensor) -> Scalings:
        """
        Preconditioning coefficients (Karras et al. 2022, table 1).

        :param sigma: Noise levels of any shape, positive
        :return: ``skip = d^2/(s^2 + d^2)``, ``out = s d/sqrt(s^2 + d^2)``, ``input = 1/sqrt(s^2 + d^2)``,
            ``noise = log(s)/4`` with ``d = sigma_data``
        """
        total = sigma.square() + self.sigma_data**2
        root = total.sqrt()
        return Scalings(
            skip=self.sigma_data**2 / total, out=sigma * self.sigma_data / root, input=1 / root, noise=sigma.log() / 4
        )

    def add_noise(self, x0: th.Tensor, sigma: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """
        ``x0 + sigma eps``.

        :param x0: clean samples ``(..., action_dim)``
        :param sigma: Noise levels ``(..., 1)``
        :param eps: Standard normal noise of the shape of ``x0``
        :return: Noisy samples of the shape of ``x0``
        """
        return x0 + sigma * eps

    def denoised(self, x: th.Tensor, sigma: th.Tensor, output: th.Tensor) -> th.Tensor:
        """
        Clean sample implied by a network output (not clipped).

        :param x: Noisy samples ``(..., action_dim)``
        :param sigma: Noise levels ``(..., 1)``
        :param output: What the network returns for ``(input * x, noise)``, of the shape of ``x``
        :return: ``skip * x + out * output``
        """
        scalings = self.scalings(sigma)
        return scalings.skip * x + scalings.out * output

    def distribution_bounds(self) -> tuple[float, float]:
        """
        Value of the untruncated distribution function at the two ends of the range of levels.

        :return: Lower and upper end of the uniform variable of :meth:`sample_sigma`
        """
        return self._distribution(self.sigma_min), self._distribution(self.sigma_max)

    def _distribution(self, sigma: float) -> float:
        return 1 / (1 + math.exp(-(math.log(sigma) - math.log(self.sigma_data)) / self.law_scale))

    def sigma_of_quantile(self, u: th.Tensor) -> th.Tensor:
        """
        Inverse of the untruncated distribution function.

        :param u: Values in ``(0, 1)``; pass float64 to keep the upper tail
        :return: Noise levels of the shape and dtype of ``u``
        """
        return th.exp(self.law_scale * th.logit(u) + math.log(self.sigma_data))

    def sample_sigma(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """
        Draw training noise levels. The recorded quantity is the uniform variable between :meth:`distribution_bounds`.

        :param shape: Shape of the result, usually ``(batch, 1)``
        :param randomness: Source of the draw
        :param label: Complete label of the draw
        :param like: Tensor whose device and dtype the result takes
        :return: Noise levels in ``[sigma_min, sigma_max]``
        """
        double = th.empty(0, dtype=th.float64, device=like.device)
        u = randomness.uniform(shape, label, double, *self.distribution_bounds())
        return self.sigma_of_quantile(u).clamp(self.sigma_min, self.sigma_max).to(like.dtype)
