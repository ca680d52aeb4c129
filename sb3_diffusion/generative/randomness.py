"""The single door through which every random number of the library passes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th

_SQRT_HALF = math.sqrt(0.5)


class Randomness:
    """
    Source of random tensors for samplers, losses and exploration.

    Because all draws go through one object, a seed fixes a run, a test can replay recorded numbers
    (:class:`RecordedDraws`) and a CUDA graph can own the generator. Every draw carries a label of the form
    ``"<use>.<what>"`` (for example ``"next_action.x_T"`` or ``"actor.eps"``); it is ignored here and selects the
    stored tensor in :class:`RecordedDraws`.

    :param generator: Generator to draw from. Default: the global generator of the device of each draw. A generator that
        lives on another device than the draw is allowed; the numbers are then moved, which gives the same sample on a
        CPU and on an accelerator.
    """

    def __init__(self, generator: th.Generator | None = None) -> None:
        self.generator = generator

    def _source(self, like: th.Tensor) -> dict[str, Any]:
        if self.generator is None:  # left out, since exporters know no draw of a free batch size with generator=None
            return {"device": like.device}
        return {"device": self.generator.device, "generator": self.generator}

    def normal(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """
        Standard normal numbers.

        :param shape: Shape of the result
        :param label: Name of the draw
        :param like: Tensor whose device and floating-point dtype the result takes
        :return: Tensor of ``shape``
        """
        draw = th.randn(tuple(shape), **self._source(like), dtype=like.dtype)
        return draw.to(like.device)

    def uniform(self, shape: Sequence[int], label: str, like: th.Tensor, low: float = 0.0, high: float = 1.0) -> th.Tensor:
        """
        Uniform numbers in ``[low, high)``.

        :param shape: Shape of the result
        :param label: Name of the draw
        :param like: Tensor whose device and floating-point dtype the result takes
        :param low: Lower end of the interval
        :param high: Upper end of the interval
        :return: Tensor of ``shape``
        """
        draw = th.rand(tuple(shape), **self._source(like), dtype=like.dtype)
        if (low, high) != (0.0, 1.0):
            draw.mul_(high - low).add_(low)
        return draw.to(like.device)

    def integers(self, low: int, high: int, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """
        Integers uniform in ``{low, ..., high - 1}``.

        :param low: Smallest value
        :param high: One more than the largest value
        :param shape: Shape of the result
        :param label: Name of the draw
        :param like: Tensor whose device the result takes
        :return: int64 tensor of ``shape``
        """
        draw = th.randint(low, high, tuple(shape), **self._source(like))
        return draw.to(like.device)

    def permutation(self, n: int, label: str, like: th.Tensor) -> th.Tensor:
        """
        The numbers ``0 .. n - 1`` in a random order.

        :param n: How many
        :param label: Name of the draw
        :param like: Tensor whose device the result takes
        :return: int64 tensor ``(n,)``
        """
        return th.randperm(n, **self._source(like)).to(like.device)

    def gumbel(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """
        Standard Gumbel numbers: where logits plus these are largest is a draw from the softmax of the logits.

        :param shape: Shape of the result
        :param label: Name of the draw
        :param like: Tensor whose device and floating-point dtype the result takes
        :return: Tensor of ``shape``
        """
        return -(-self.uniform(shape, label, like).log()).log()

    def truncated_normal(self, shape: Sequence[int], low: th.Tensor, high: th.Tensor, label: str) -> th.Tensor:
        """
        Standard normal numbers conditioned, element by element, on lying in ``[low, high]``.

        Inverse distribution function. A window whose centre is positive is mirrored first, so that probabilities are
        computed in the lower tail, where they keep their relative precision; float32 is accurate for windows that
        start up to about 12 standard deviations away from zero. Further out the probability of the window underflows
        and the result is the end of the window nearest to zero, which is what a normal draw clamped to the window
        would give; the result is always finite and inside the window. No gradient flows to the bounds.

        :param shape: Shape of the result
        :param low: Lower bounds, broadcast to ``shape``
        :param high: Upper bounds, broadcast to ``shape``, not smaller than ``low``
        :param label: Name of the draw
        :return: Tensor of ``shape``, device and dtype of ``low``
        """
        with th.no_grad():
            mirrored = low + high > 0
            lower = th.where(mirrored, -high, low)
            upper = th.where(mirrored, -low, high)
            mass_below = _normal_cdf(lower)
            mass_inside = _normal_cdf(upper) - mass_below
            # smallest normal number: its quantile (about -12.9 in float32) is finite, and the clamp moves it into the window
            smallest = th.finfo(low.dtype).tiny
            quantile = self.uniform(shape, label, low).mul_(mass_inside).add_(mass_below).clamp_(min=smallest)
            sample = th.special.ndtri(quantile).clamp_(min=lower, max=upper)
            return sample.mul_(th.where(mirrored, -1.0, 1.0).to(low.dtype))


def _normal_cdf(x: th.Tensor) -> th.Tensor:
    # torch's ndtr computes (1 + erf) / 2 and has no correct digit below -5 in float32; erfc keeps relative precision
    return th.special.erfc(x * -_SQRT_HALF).mul_(0.5)


class RecordedDraws(Randomness):
    """
    Replays stored numbers instead of drawing new ones.

    A stored tensor is broadcast to the shape that is asked for; if it has as many axes but a longer first one, the first
    rows are used (a chain of fewer steps uses the first step noises). Nothing is consumed: asking twice for a label
    gives the same numbers. ``uniform``, ``integers``, ``gumbel`` and ``truncated_normal`` return the stored values as
    they are, that is, already inside their interval.

    :param draws: The stored tensors by label
    :raises KeyError: (when drawing) if nothing is stored under the label
    :raises ValueError: (when drawing) if the stored shape cannot be expanded to the requested one
    """

    def __init__(self, draws: Mapping[str, th.Tensor]) -> None:
        super().__init__()
        self.draws = dict(draws)

    def _stored(self, shape: Sequence[int], label: str) -> th.Tensor:
        if label not in self.draws:
            raise KeyError(f"No recorded draw is labelled {label!r}. Recorded labels: {sorted(self.draws)}.")
        stored = self.draws[label]
        shape = tuple(shape)
        if stored.dim() == len(shape):  # asked first: an exported program must not compare a batch with something else
            if stored.shape == shape:
                return stored
            if stored.shape[:1] > shape[:1]:
                stored = stored[: shape[0]]
        try:
            return stored.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"The draw recorded under {label!r} has shape {tuple(self.draws[label].shape)}, which cannot be expanded to "
                f"the requested shape {shape}. Record it with a shape that broadcasts to it."
            ) from error

    def normal(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`Randomness.normal`; returns the stored numbers."""
        return self._stored(shape, label).to(device=like.device, dtype=like.dtype)

    def uniform(self, shape: Sequence[int], label: str, like: th.Tensor, low: float = 0.0, high: float = 1.0) -> th.Tensor:
        """See :meth:`Randomness.uniform`; returns the stored numbers, which are not rescaled to ``[low, high)``."""
        return self._stored(shape, label).to(device=like.device, dtype=like.dtype)

    def integers(self, low: int, high: int, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`Randomness.integers`; returns the stored numbers as int64."""
        return self._stored(shape, label).to(device=like.device, dtype=th.int64)

    def permutation(self, n: int, label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`Randomness.permutation`; returns the stored order."""
        return self._stored((n,), label).to(device=like.device, dtype=th.int64)

    def gumbel(self, shape: Sequence[int], label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`Randomness.gumbel`; returns the stored numbers."""
        return self._stored(shape, label).to(device=like.device, dtype=like.dtype)

    def truncated_normal(self, shape: Sequence[int], low: th.Tensor, high: th.Tensor, label: str) -> th.Tensor:
        """See :meth:`Randomness.truncated_normal`; returns the stored numbers, which are not checked against the bounds."""
        return self._stored(shape, label).to(device=low.device, dtype=low.dtype)
