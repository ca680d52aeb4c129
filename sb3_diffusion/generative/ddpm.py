"""Variance-preserving diffusion with a table of discrete steps."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch as th

from sb3_diffusion.generative.likelihood import LikelihoodEstimator
from sb3_diffusion.generative.process import GenerativeProcess, noise_to_clean
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.schedules import discrete_betas
from sb3_diffusion.generative.solvers.grid import GridPoint, check_steps
from sb3_diffusion.generative.solvers.rules import CLIP_TARGETS, VARIANCES
from sb3_diffusion.generative.solvers.sampler import Sampler
from sb3_diffusion.names import choice


class DiscreteDiffusion(GenerativeProcess):
    """
    DDPM (Ho et al. 2020): the network predicts the noise at the integer times ``1 .. diffusion_steps``; 0 is clean.

    Times are passed as floating-point tensors holding integers, as networks take them. All tables have length
    ``diffusion_steps + 1`` with ``beta_0 = 0``, so that no index needs a special case.

    :param noise_schedule: ``"cosine"``, ``"vp"``, ``"scaled_linear"`` or ``"linear"`` (the last only makes sense for about
        1000 steps; a warning is given when it does not reach noise)
    :param diffusion_steps: Number of steps of the table
    :raises ValueError: If the schedule is unknown or ``diffusion_steps`` smaller than 1
    """

    prediction: ClassVar[str] = "noise"
    betas: th.Tensor
    alpha: th.Tensor
    sigma: th.Tensor
    posterior_variance: th.Tensor

    def __init__(self, noise_schedule: str = "cosine", diffusion_steps: int = 20) -> None:
        super().__init__()
        betas = discrete_betas(noise_schedule, diffusion_steps)
        signal = th.cumprod(1 - betas, 0)
        before = th.cat([signal[:1], signal[:-1]])
        self.diffusion_steps = diffusion_steps
        self.noise_schedule = noise_schedule
        self._grid = [GridPoint(float(i), a) for i, a in enumerate(signal.sqrt().tolist())]
        tables = {
            "betas": betas,
            "alpha": signal.sqrt(),
            "sigma": (1 - signal).sqrt(),
            # index 0 would be 0 / 0
            "posterior_variance": betas * (1 - before) / (1 - signal).clamp(min=th.finfo(th.float64).tiny),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def coefficients(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GenerativeProcess.coefficients`; ``t`` holds integers in any dtype."""
        index = t.long()
        return self.alpha[index], self.sigma[index]

    def sample_time(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.sample_time`; uniform in ``{1, ..., diffusion_steps}``."""
        return randomness.integers(1, self.diffusion_steps + 1, shape, label, like).to(like.dtype)

    def regression_target(self, x0: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """The noise itself."""
        return eps

    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.predicted_clean`."""
        return noise_to_clean(x_t, prediction, *self.coefficients(t))

    def step_indices(self, steps: int) -> list[int]:
        """
        Table indices visited by a chain of ``steps`` steps: evenly spread, both ends included.

        :param steps: Number of steps, from 1 to ``diffusion_steps``
        :return: ``steps + 1`` increasing indices, from 0 to ``diffusion_steps``
        :raises ValueError: If ``steps`` is out of range
        """
        check_steps(steps, self.diffusion_steps)
        return [(2 * i * self.diffusion_steps + steps) // (2 * steps) for i in range(steps + 1)]

    def sampler(self, steps: int | None = None, solver: str = "ddpm", *, clip: bool = True, **options: Any) -> Sampler:
        """
        Build the reverse chain.

        :param steps: Number of steps; fewer than ``diffusion_steps`` skip table entries. Default: all of them.
        :param solver: ``"ddpm"``, ``"ddim"``, ``"dpm2"`` or ``"dpm++2m"``. ``dpm2`` evaluates the network between two
            visited indices, so that these must be at least two apart.
        :param clip: Clip the estimate of the clean sample to [-1, 1] in every step
        :param options: ``variance``, ``clip_bounds``, ``clip_target``, ``ddim_recompute_noise`` and ``lower_order_final``
            of :class:`~sb3_diffusion.generative.solvers.sampler.Sampler`
        :return: The sampler
        :raises ValueError: For unknown names and values out of range
        """
        indices = self.step_indices(self.diffusion_steps if steps is None else steps)
        midpoints = None
        if solver == "dpm2":
            if any(high - low < 2 for low, high in pairwise(indices)):
                raise ValueError(
                    f"solver='dpm2' needs a trained time between each two sampling times: {len(indices) - 1} sampling steps "
                    f"are too many for diffusion_steps={self.diffusion_steps}; use at most {self.diffusion_steps // 2}."
                )
            midpoints = [self._grid[(low + high) // 2] for low, high in pairwise(indices)]
        return Sampler([self._grid[i] for i in indices], solver, clip=clip, midpoints=midpoints, **options)

    def likelihood(self, steps: int, rule: str = "trapezoid", *, clip: bool = True) -> LikelihoodEstimator:
        """
        See :meth:`GenerativeProcess.likelihood`. The levels are entries of the table: of ``steps`` intervals, at most
        ``diffusion_steps`` can be used.
        """
        indices = self.step_indices(min(steps, self.diffusion_steps))
        return LikelihoodEstimator([self._grid[i] for i in indices], rule, clip=clip)

    def step_divergence(self, first: th.Tensor, second: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        Kullback-Leibler divergence of two reverse steps from the same states whose networks predict different noise. Both have
        the variance ``"beta"`` and clip nothing, and the last step counts as if it added noise.

        :param first: Predicted noise ``(..., action_dim)``
        :param second: The other prediction, of the same shape
        :param t: Times of the states, which broadcast against the predictions
        :return: Divergences ``(...)``, summed over the dimensions of the action
        """
        index = t.long()
        beta, sigma = self.betas[index], self.sigma[index]
        return (beta / (2.0 * (1.0 - beta) * sigma.square()) * (first - second).square()).sum(-1)

    def reverse_step(
        self,
        x_t: th.Tensor,
        t: th.Tensor,
        prediction: th.Tensor,
        randomness: Randomness,
        label: str,
        *,
        n_samples: int | None = None,
        solver: str = "ddpm",
        variance: str = "beta",
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
        clip_target: str = "x0",
    ) -> th.Tensor:
        """
        One step of the chain, from a different time in every row; used by methods that learn a value of noisy actions.

        :param x_t: States ``(..., action_dim)``
        :param t: Their times ``(..., 1)``, integers from 1 to ``diffusion_steps``
        :param prediction: Predicted noise, of the shape of ``x_t``
        :param randomness: Source of the step noise
        :param label: Complete label of that draw (``ddpm`` only)
        :param n_samples: Number of independent samples per row, added as a new axis before the last one. Default: one
            sample and no new axis.
        :param solver: ``"ddpm"`` or ``"ddim"``
        :param variance: Variance of the step noise, ``"beta"`` or ``"posterior"``; rows at ``t = 1`` get no noise
        :param clip: Whether to clip
        :param clip_bounds: Lower and upper bound
        :param clip_target: ``"x0"`` clips the estimate of the clean sample, ``"state"`` the result
        :return: States at time ``t - 1``, of the shape of ``x_t`` or ``(..., n_samples, action_dim)``
        :raises ValueError: For unknown names
        """
        choice("solver", solver, ("ddpm", "ddim"))
        choice("variance", variance, VARIANCES)
        choice("clip_target", clip_target, CLIP_TARGETS)
        index = t.long()
        alpha, sigma = self.alpha[index], self.sigma[index]
        alpha_next, sigma_next = self.alpha[index - 1], self.sigma[index - 1]
        clean = noise_to_clean(x_t, prediction, alpha, sigma)
        if clip and clip_target == "x0":
            clean = clean.clamp(*clip_bounds)
        if solver == "ddim":
            x = alpha_next * clean + sigma_next / sigma * (x_t - alpha * clean)
            x = x if n_samples is None else _repeat(x, n_samples)
        else:
            beta = self.betas[index]
            shrink = (sigma_next / sigma) ** 2
            x = alpha_next * beta / sigma**2 * clean + (1 - beta).sqrt() * shrink * x_t
            table = self.betas if variance == "beta" else self.posterior_variance
            std = th.where(index > 1, table[index].sqrt(), 0.0)
            if n_samples is not None:
                x, std = _repeat(x, n_samples), std.unsqueeze(-2)
            x = x + std * randomness.normal(x.shape, label, like=x)
        return x.clamp(*clip_bounds) if clip and clip_target == "state" else x


def _repeat(x: th.Tensor, n_samples: int) -> th.Tensor:
    return x.unsqueeze(-2).expand(*x.shape[:-1], n_samples, x.shape[-1])
