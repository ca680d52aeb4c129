"""The diffusion time as a network sees it: features, (..., 1) -> (..., dim), and the MLP behind them."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch as th
from torch import nn

from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.numeric import integer


def _angular_frequencies(dim: int) -> th.Tensor:
    """10000^(-k / (dim/2 - 1)) for k = 0 .. dim/2 - 1; the single frequency of dim = 2 is one."""
    half = dim // 2
    exponents = th.arange(half, dtype=th.float64) / max(half - 1, 1)
    return th.pow(10_000.0, -exponents).float()


class TimeEmbedding(nn.Module):
    """
    Base class of the time embeddings, which compute in float32 or better.

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


class RandomEmbedding(TimeEmbedding):
    """
    Frequencies drawn from N(0, 30^2) once and for all, ``[sin(2 pi t f), cos(2 pi t f)]``: the same ones in every network.

    :param dim: Number of features, even and positive
    """

    wants_mlp = False
    frequencies: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        drawn = th.randn(dim // 2, generator=th.Generator().manual_seed(0), device="cpu")
        self.register_buffer("frequencies", 30.0 * drawn, persistent=False)

    def forward(self, t: th.Tensor) -> th.Tensor:
        """See :meth:`TimeEmbedding.forward`."""
        angles = (2.0 * math.pi) * t * self.frequencies
        return th.cat((angles.sin(), angles.cos()), dim=-1)


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
    "random": RandomEmbedding,
    "octave": OctaveEmbedding,
    "raw": RawTime,
}


def resolve_time_embedding(spec: str | type[TimeEmbedding]) -> type[TimeEmbedding]:
    """
    Find a time embedding class.

    :param spec: A name (positional, sinusoidal, fourier, random, octave, raw) or a subclass of :class:`TimeEmbedding`
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


class TimeNetwork(nn.Module):
    """
    Time embedding with an optional MLP behind it, every layer of which is activated.

    :param time_embedding: Name or class
    :param time_dim: Number of features of the embedding
    :param time_arch: Widths of the MLP, empty for none; None takes ``default_arch``,
        or no MLP for the embeddings that are fed to the network directly
    :param activation: Name or class
    :param n_members: Number of stacked MLPs, None for a single network; the embedding itself is shared
    :param default_arch: Widths of the MLP where ``time_arch`` is None
    :param n_times: Numbers that make up a time; each gets its own features, with common frequencies
    """

    def __init__(
        self,
        time_embedding: str | type[TimeEmbedding],
        time_dim: int,
        time_arch: Sequence[int] | None,
        activation: str | Callable[[], nn.Module],
        n_members: int | None,
        default_arch: Sequence[int],
        n_times: int = 1,
    ) -> None:
        super().__init__()
        self.n_times = n_times
        self.embedding = resolve_time_embedding(time_embedding)(time_dim)
        if time_arch is None:
            time_arch = default_arch if self.embedding.wants_mlp else ()
        input_dim = n_times * self.embedding.dim
        self.mlp = MLP([input_dim], time_arch, None, activation, n_members) if len(time_arch) else None
        self.output_dim = input_dim if self.mlp is None else self.mlp.output_dim

    def forward(self, t: th.Tensor) -> th.Tensor:
        """
        :param t: (..., n_times)
        :return: (..., output_dim); (members, ..., output_dim) for stacked MLPs
        """
        features = self.embed(t)
        return features if self.mlp is None else self.mlp.full(features)

    def embed(self, t: th.Tensor) -> th.Tensor:
        """
        What enters the MLP.

        :param t: (..., n_times)
        :return: (..., features), the embeddings of all times side by side
        """
        return self.embedding(t) if self.n_times == 1 else self.embedding(t.unsqueeze(-1)).flatten(-2)
