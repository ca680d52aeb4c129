"""Features of the diffusion time: (..., 1) -> (..., dim), always computed in float32 or better."""

import math
from abc import abstractmethod
from typing import ClassVar

import torch as th
from torch import nn

from sb3_diffusion.numeric import integer


def _angular_frequencies(dim: int) -> th.Tensor:
    """10000^(-k / (dim/2 - 1)) for k = 0 .. dim/2 - 1; the single frequency of dim = 2 is one."""
    half = dim // 2
    exponents = th.arange(half, dtype=th.float64) / max(half - 1, 1)
    return th.pow(10_000.0, -exponents).float()


class TimeEmbedding(nn.Module):
    """
    Base class of the time embeddings.

    :param dim: Number of features, even and positive
    """

    # whether a network usually puts a small MLP behind the features
    wants_mlp: ClassVar[bool] = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        dim = integer("time_dim", dim)
        if dim < 2 or dim % 2:
            raise ValueError(f"time_dim={dim} must be even and at least 2: half of the features are cosines, half are sines.")
        self.dim = dim

    @abstractmethod
    def forward(self, t: th.Tensor) -> th.Tensor:
        """
        :param t: Time, (..., 1)
        :return: Features, (..., dim)
        """


class PositionalEmbedding(TimeEmbedding):
    """Fixed frequencies from 1 down to 1/10000, ``[cos, sin]``. Made for step indices; a time in [0, 1] hardly moves them."""

    frequencies: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("frequencies", _angular_frequencies(dim), persistent=False)

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        angles = t * self.frequencies
        return th.cat((angles.cos(), angles.sin()), dim=-1)


class SinusoidalEmbedding(PositionalEmbedding):
    """The frequencies of :class:`PositionalEmbedding` in the order ``[sin, cos]``."""

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        angles = t * self.frequencies
        return th.cat((angles.sin(), angles.cos()), dim=-1)


class FourierEmbedding(TimeEmbedding):
    """
    Learned frequencies, ``[cos(2 pi t f), sin(2 pi t f)]``, started from N(0, scale^2).

    :param dim: Number of features, even and positive
    :param scale: Standard deviation of the initial frequencies
    """

    def __init__(self, dim: int, scale: float = 0.2) -> None:
        super().__init__(dim)
        self.frequencies = nn.Parameter(nn.init.normal_(th.empty(dim // 2), std=scale))

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        angles = (2.0 * math.pi) * t * self.frequencies
        return th.cat((angles.cos(), angles.sin()), dim=-1)


class OctaveEmbedding(TimeEmbedding):
    """Fixed octaves ``[cos(2^k t), sin(2^k t)]``, meant to be fed to the network directly."""

    wants_mlp = False
    frequencies: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        octaves = th.pow(2.0, th.arange(dim // 2, dtype=th.float64)).float()
        self.register_buffer("frequencies", octaves, persistent=False)

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        angles = t * self.frequencies
        return th.cat((angles.cos(), angles.sin()), dim=-1)


class RawTime(TimeEmbedding):
    """
    The time itself as the only feature.

    :param dim: Ignored, so that all embeddings are built alike; the result has one feature
    """

    wants_mlp = False

    def __init__(self, dim: int = 1) -> None:
        super().__init__(2)
        self.dim = 1

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        return t


TIME_EMBEDDINGS: dict[str, type[TimeEmbedding]] = {
    "positional": PositionalEmbedding,
    "sinusoidal": SinusoidalEmbedding,
    "fourier": FourierEmbedding,
    "octave": OctaveEmbedding,
    "raw": RawTime,
}


def resolve_time_embedding(spec: str | type[TimeEmbedding]) -> type[TimeEmbedding]:
    """
    Find a time embedding class.

    :param spec: A name (positional, sinusoidal, fourier, octave, raw) or a subclass of :class:`TimeEmbedding`
    :return: The class; call it with the number of features to get the module
    """
    if isinstance(spec, str):
        if spec.lower() not in TIME_EMBEDDINGS:
            names = ", ".join(TIME_EMBEDDINGS)
            raise ValueError(f"time_embedding={spec!r} is unknown; choose one of {names} or pass a TimeEmbedding class.")
        return TIME_EMBEDDINGS[spec.lower()]
    if isinstance(spec, type) and issubclass(spec, TimeEmbedding):
        return spec
    raise TypeError(f"time_embedding={spec!r} must be a name or a subclass of TimeEmbedding, not {type(spec).__name__}.")
