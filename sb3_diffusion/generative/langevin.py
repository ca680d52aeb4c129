"""Langevin dynamics: climbing an energy with noise instead of reversing a learned diffusion."""

from collections.abc import Callable, Sequence

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.grid import check_bounds
from sb3_diffusion.numeric import MAX_STEPS, integer

_NORM_FLOOR = 1e-8


def annealed_levels(n_levels: int = 10, sigma_max: float = 0.1, sigma_min: float = 1e-3) -> th.Tensor:
    """
    Noise levels evenly spaced in their logarithm (Song & Ermon 2019).

    :param n_levels: Number of levels, at least 1
    :param sigma_max: First level
    :param sigma_min: Last level
    :return: float64 tensor ``(n_levels,)``, decreasing
    :raises ValueError: If ``n_levels`` is smaller than 1 or not ``0 < sigma_min <= sigma_max``
    """
    integer("n_levels", n_levels, high=MAX_STEPS)
    if n_levels < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(
            "Annealing needs n_levels >= 1 and 0 < sigma_min <= sigma_max, got "
            f"n_levels={n_levels}, sigma_min={sigma_min}, sigma_max={sigma_max}."
        )
    return th.logspace(0, 1, n_levels, base=sigma_min / sigma_max, dtype=th.float64) * sigma_max


def annealed_step_sizes(levels: th.Tensor, step_size: float = 1e-4) -> th.Tensor:
    """
    Step sizes proportional to the squared level, which keeps the ratio of drift to noise the same at every level
    (Song & Ermon 2019, alg. 1).

    :param levels: Noise levels ``(n_levels,)``
    :param step_size: Step size at the last level
    :return: Tensor of the shape of ``levels``
    """
    return step_size * (levels / levels[-1]) ** 2


def polynomial_step_sizes(steps: int, start: float = 0.1, end: float = 1e-5, power: float = 2.0) -> th.Tensor:
    """
    ``(start - end) (1 - k / (steps - 1))^power + end`` (implicit behavioural cloning, Florence et al. 2021).

    :param steps: Number of steps, at least 2
    :param start: First step size
    :param end: Last step size
    :param power: Exponent of the decay
    :return: float64 tensor ``(steps,)``
    :raises ValueError: If ``steps`` is smaller than 2
    """
    if steps < 2:
        raise ValueError(f"A polynomial decay needs at least 2 steps, got {steps}.")
    return (start - end) * th.linspace(1, 0, steps, dtype=th.float64) ** power + end


def exponential_step_sizes(steps: int, start: float = 0.1, decay: float = 0.8) -> th.Tensor:
    """
    ``start * decay^k`` (implicit behavioural cloning, Florence et al. 2021).

    :param steps: Number of steps
    :param start: First step size
    :param decay: Ratio of two consecutive step sizes
    :return: float64 tensor ``(steps,)``
    """
    return start * decay ** th.arange(steps, dtype=th.float64)


def energy_gradient(energy: Callable[[th.Tensor], th.Tensor]) -> Denoise:
    """
    Turn an energy into the gradient function that :class:`Langevin` asks for.

    :param energy: Maps ``(..., action_dim)`` to one value per sample, for example the mean of the critics
    :return: ``gradient(x, k)``, the gradient of the energy at ``x``, detached; ``k`` is ignored
    """

    def gradient(x: th.Tensor, k: int) -> th.Tensor:
        with th.enable_grad():
            leaf = x.detach().requires_grad_()
            return th.autograd.grad(energy(leaf).sum(), leaf)[0]

    return gradient


class Langevin(nn.Module):
    """
    ``x <- x + drift_k g(x) + noise_k z`` for ``k = 0, 1, ...``, ``g`` the gradient of an energy to be climbed.

    Usually built by :meth:`annealed` or :meth:`ibc`. Noise is added in the last step, too. Has the interface of
    :class:`~sb3_diffusion.generative.solvers.sampler.Sampler` with the gradient in the place of the network; no parameters,
    empty ``state_dict()``.

    :param drift: Factor of the gradient in each step
    :param noise: Factor of the standard normal draw in each step, as many as ``drift``
    :param times: Value of ``times`` for each step. Default: the index of the step.
    :param normalize_gradient: Divide the gradient by its Euclidean norm over the action axis (plus 1e-8)
    :param gradient_clip: Largest absolute value of an entry of the gradient (after the normalisation)
    :param step_clip: Largest absolute value of an entry of the whole change of a step, noise included
    :param clip: Clip the state to ``clip_bounds`` after every step
    :param clip_bounds: Lower and upper bound of clipping and of ``clip_output``
    :raises ValueError: If the sequences are empty or differ in length, or the bounds are inverted
    """

    times: th.Tensor
    noise_scale: th.Tensor

    def __init__(
        self,
        drift: Sequence[float],
        noise: Sequence[float],
        *,
        times: Sequence[float] | None = None,
        normalize_gradient: bool = False,
        gradient_clip: float | None = None,
        step_clip: float | None = None,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        check_bounds(clip_bounds)
        times = [float(k) for k in range(len(drift))] if times is None else times
        if not len(drift) == len(noise) == len(times) > 0:
            raise ValueError(
                "Langevin dynamics needs one drift, noise and time per step and at least one step, got "
                f"{len(drift)}, {len(noise)} and {len(times)}."
            )
        self.steps = len(drift)
        self.drift = list(drift)
        self.normalize_gradient = normalize_gradient
        self.gradient_clip = gradient_clip
        self.step_clip = step_clip
        self.clip = clip
        self.clip_low, self.clip_high = clip_bounds
        self.register_buffer("times", th.tensor(list(times)), persistent=False)
        self.register_buffer("noise_scale", th.tensor(list(noise)), persistent=False)

    @classmethod
    def annealed(
        cls,
        n_levels: int = 10,
        steps_per_level: int = 2,
        sigma_max: float = 0.1,
        sigma_min: float = 1e-3,
        step_size: float = 1e-4,
        gradient_weight: float = 1.0,
        normalize_gradient: bool = True,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> "Langevin":
        """
        Annealed Langevin dynamics (Song & Ermon 2019, alg. 1):
        ``x <- x + a_l w g / 2 + sqrt(a_l) z`` with ``a_l = step_size (sigma_l / sigma_min)^2``.

        ``times`` holds the index of the level (not sigma), which is what a level-conditioned network takes.

        :param n_levels: Number of noise levels
        :param steps_per_level: Number of steps at each level
        :param sigma_max: First level
        :param sigma_min: Last level
        :param step_size: Step size at the last level
        :param gradient_weight: The factor ``w``
        :param normalize_gradient: Use the direction of the gradient only
        :param clip: Clip the state after every step
        :param clip_bounds: Lower and upper bound
        :return: The sampler, with ``n_levels * steps_per_level`` steps
        :raises ValueError: For values out of range
        """
        integer("steps_per_level", steps_per_level, high=MAX_STEPS)
        if steps_per_level < 1:
            raise ValueError(f"steps_per_level must be at least 1, got {steps_per_level}.")
        sizes = annealed_step_sizes(annealed_levels(n_levels, sigma_max, sigma_min), step_size)
        sizes = sizes.repeat_interleave(steps_per_level)
        return cls(
            (0.5 * gradient_weight * sizes).tolist(),
            sizes.sqrt().tolist(),
            times=[float(level) for level in range(n_levels) for _ in range(steps_per_level)],
            normalize_gradient=normalize_gradient,
            clip=clip,
            clip_bounds=clip_bounds,
        )

    @classmethod
    def ibc(
        cls,
        step_sizes: th.Tensor | Sequence[float],
        noise_scale: float = 1.0,
        gradient_clip: float | None = None,
        step_clip: float | None = None,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> "Langevin":
        """
        Langevin sampler of implicit behavioural cloning (Florence et al. 2021): ``x <- x + e_k (g / 2 + noise_scale z)``.
        The noise is multiplied by the step size, not by its square root, so this is an optimiser with noise rather than
        a sampler of a fixed density.

        :param step_sizes: ``e_k``, see :func:`polynomial_step_sizes` and :func:`exponential_step_sizes`
        :param noise_scale: Factor of the noise
        :param gradient_clip: Largest absolute value of an entry of the gradient
        :param step_clip: Largest absolute value of an entry of the change of a step
        :param clip: Clip the state after every step
        :param clip_bounds: Lower and upper bound
        :return: The sampler
        :raises ValueError: If there are no steps
        """
        sizes = th.as_tensor(step_sizes, dtype=th.float64)
        return cls(
            (0.5 * sizes).tolist(),
            (noise_scale * sizes).tolist(),
            gradient_clip=gradient_clip,
            step_clip=step_clip,
            clip=clip,
            clip_bounds=clip_bounds,
        )

    def _change(self, gradient: th.Tensor, drift: float, noise: th.Tensor) -> th.Tensor:
        if self.normalize_gradient:
            gradient = gradient / (gradient.norm(dim=-1, keepdim=True) + _NORM_FLOOR)
        if self.gradient_clip is not None:
            gradient = gradient.clamp(-self.gradient_clip, self.gradient_clip)
        change = th.add(noise, gradient, alpha=drift)
        return change if self.step_clip is None else change.clamp(-self.step_clip, self.step_clip)

    def _run(
        self,
        gradient: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str,
        start: th.Tensor | None,
        visit: Callable[[th.Tensor], None],
    ) -> th.Tensor:
        shape = tuple(shape)
        x = randomness.normal(shape, f"{label}.x_T", like=self.times) if start is None else start.expand(shape)
        draws = randomness.normal((self.steps, *shape), f"{label}.step_noise", like=self.times)
        step_noise = (draws * self.noise_scale.view(-1, *(1 for _ in shape))).unbind(0)
        visit(x)
        for k in range(self.steps):
            x = x + self._change(gradient(x, k), self.drift[k], step_noise[k])
            if self.clip:
                x = x.clamp(self.clip_low, self.clip_high)
            visit(x)
        return x

    def sample(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str = "sample",
        clip_output: bool = True,
        start: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        Run the chain.

        Draws ``"<label>.x_T"`` of shape ``shape`` (unless ``start`` is given) and ``"<label>.step_noise"`` of shape
        ``(steps, *shape)``.

        :param denoise: ``denoise(x, k)`` returns the gradient of the energy at ``x`` for step ``k``; see
            :func:`energy_gradient`
        :param shape: Shape of the samples ``(..., action_dim)``
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Clamp the result to the clip bounds
        :param start: Initial state, broadcast to ``shape``. Default: standard normal.
        :return: Samples of shape ``shape``
        """
        x = self._run(denoise, shape, randomness, label, start, lambda state: None)
        return x.clamp(self.clip_low, self.clip_high) if clip_output else x

    def chain(
        self,
        denoise: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str = "sample",
        clip_output: bool = True,
        start: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        Run the chain and keep every state. Parameters as in :meth:`sample`.

        :param denoise: The gradient of the energy
        :param shape: Shape of the samples
        :param randomness: Source of the draws
        :param label: Prefix of their labels
        :param clip_output: Clamp the last state to the clip bounds
        :param start: Initial state
        :return: ``(steps + 1, *shape)``, initial state first
        """
        states: list[th.Tensor] = []
        self._run(denoise, shape, randomness, label, start, states.append)
        if clip_output:
            states[-1] = states[-1].clamp(self.clip_low, self.clip_high)
        return th.stack(states)

    @override
    def extra_repr(self) -> str:
        return f"steps={self.steps}"
