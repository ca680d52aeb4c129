"""The network of a diffusion or flow policy: noise or velocity as a function of the noisy action, the time and the state."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.networks.backbones import DENOISER_BACKBONES, dropout_argument, resolve_backbone
from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.compiled import ACTION, STATE, TIME, CompiledDenoiser
from sb3_diffusion.networks.embeddings import TimeEmbedding, TimeNetwork
from sb3_diffusion.numeric import real


class BoundDenoiser:
    """
    A denoiser for fixed states and a sequence of times, see :meth:`Denoiser.bind`.

    :param denoiser: The denoiser
    :param c: Encoded states, (batch, width)
    :param e: Encoded times of the evaluations, (n_evaluations, width)
    """

    def __init__(self, denoiser: "Denoiser", c: th.Tensor, e: th.Tensor) -> None:
        self.denoiser = denoiser
        self.c, self.e = c, e

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        """The denoiser's prediction at ``x``, at the evaluation number ``k``."""
        return self.denoiser(x, self.c, self.e[k])  # type: ignore[no-any-return]

    def run_chain(
        self, x: th.Tensor, steps: th.Tensor, draws: th.Tensor | None, clip: tuple[float, float]
    ) -> th.Tensor | None:
        """
        A whole reverse chain by the compiled kernels.

        :param x: Starting points, (batch, action_dim) or (batch, n, action_dim)
        :param steps: Coefficients, see :meth:`~sb3_diffusion.kernels.Network.run_chain`
        :param draws: Standard normal noise of the first steps, ``(n_noisy, ...)`` with the shape of ``x`` behind
        :param clip: Bounds of the state where a step clips it
        :return: All points at which the network was evaluated, and the samples as the last one, ``(n_evaluations + 1, ...)``;
            None where the kernels cannot do it
        """
        network = self.denoiser.trunk_kernel()
        return None if network is None else network.run_chain(x, self.c, self.e, steps, draws, clip)


class FreshDenoiser:
    """
    A denoiser for states that are seen once, as when acting; see :meth:`Denoiser.bind_features`. Where the compiled kernels
    can do it, states, times and chain are one call.

    :param denoiser: The denoiser
    :param features: State features, (batch, feature_dim)
    :param t: Diffusion times of the evaluations, (n_evaluations, n_times)
    """

    def __init__(self, denoiser: "Denoiser", features: th.Tensor, t: th.Tensor) -> None:
        self.denoiser = denoiser
        self.features, self.t = features, t
        self._bound: BoundDenoiser | None = None

    @property
    def bound(self) -> BoundDenoiser:
        """The same with states and times encoded, once."""
        if self._bound is None:  # exporters stumble over the lock of a cached_property
            e = self.denoiser.kept_times(self.t)
            e = self.denoiser.encode_time(self.t) if e is None else e
            self._bound = self.denoiser.bind(self.denoiser.encode_state(self.features), e)
        return self._bound

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        """The denoiser's prediction at ``x``, at the evaluation number ``k``."""
        return self.bound(x, k)

    def run_chain(
        self, x: th.Tensor, steps: th.Tensor, draws: th.Tensor | None, clip: tuple[float, float]
    ) -> th.Tensor | None:
        """See :meth:`BoundDenoiser.run_chain`."""
        points = self.denoiser.run_chain(x, self.features, self.t, steps, draws, clip)
        return self.bound.run_chain(x, steps, draws, clip) if points is None else points


class Denoiser(CompiledDenoiser):
    """
    Predicts noise (or a velocity) from a noisy action, the diffusion time and the state.

    The first layer works on ``[x, time features, state features]`` but is evaluated in shares, so that whatever stays the same
    is computed once: ``encode_state`` once per state, ``encode_time`` once per time, and only
    ``forward`` once per particle and step.

    :param feature_dim: Size of the state features
    :param action_dim: Size of the action
    :param net_arch: Widths of the trunk
    :param activation: Name or class, for the trunk and for the networks of time and state
    :param backbone: Name or class of the trunk, one of :data:`~sb3_diffusion.networks.backbones.DENOISER_BACKBONES`
    :param time_embedding: Name or class: positional, sinusoidal, fourier, random, octave, raw
    :param time_dim: Number of features of the time embedding
    :param time_arch: Widths of the MLP behind the embedding; None means ``[time_dim, time_dim]``, no MLP for octave and raw
    :param state_arch: Widths of the state network, all layers activated; empty feeds the features to the trunk directly
    :param layer_norm: Layer norms in the trunk, see the backbone
    :param output_gain: Gain of the output layer's orthogonal initialisation; None takes the backbone's own,
        the square root of two (one for SimBa)
    :param n_times: Numbers that make up a time, 2 for networks of intervals
    :param dropout: Share of the trunk's hidden units that is dropped while it is trained
    :param time_activation: Name or class, for the network of time if it differs
    :param output_scale: Factor of the prediction
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        net_arch: Sequence[int] = (256, 256, 256),
        activation: str | Callable[[], nn.Module] = "mish",
        backbone: str | type[Backbone] = "mlp",
        time_embedding: str | type[TimeEmbedding] = "fourier",
        time_dim: int = 64,
        time_arch: Sequence[int] | None = None,
        state_arch: Sequence[int] = (128, 128),
        layer_norm: bool | str = False,
        output_gain: float | None = None,
        n_times: int = 1,
        dropout: float = 0.0,
        time_activation: str | Callable[[], nn.Module] | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.action_dim = action_dim
        self.output_scale = real("output_scale", output_scale, above=0)
        of_time = activation if time_activation is None else time_activation
        self.time_net = TimeNetwork(time_embedding, time_dim, time_arch, of_time, None, (time_dim, time_dim), n_times)
        self.state_net = MLP([feature_dim], state_arch, None, activation) if len(state_arch) else None
        state_dim = feature_dim if self.state_net is None else self.state_net.output_dim
        build = resolve_backbone(backbone, DENOISER_BACKBONES)
        self.trunk = build(
            (action_dim, self.time_net.output_dim, state_dim),
            net_arch,
            action_dim,
            activation,
            layer_norm=layer_norm,
            output_gain=output_gain,
            **dropout_argument(build, dropout),
        )

    def encode_state(self, features: th.Tensor) -> th.Tensor:
        """
        The state's share of the first layer, bias included; once per state.

        :param features: (..., feature_dim)
        :return: (..., width)
        """
        if (encoded := self.compiled_states(features)) is not None:
            return encoded
        state = features if self.state_net is None else self.state_net.full(features)
        return self.trunk.share(STATE, state, bias=True)

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        """
        The time's share of the first layer; once per diffusion time.

        :param t: (..., n_times)
        :return: (..., width)
        """
        if (encoded := self.compiled_times(t)) is not None:
            return encoded
        return self.trunk.share(TIME, self.time_net(t))

    def forward(self, x: th.Tensor, c: th.Tensor, e: th.Tensor) -> th.Tensor:
        """
        Prediction for noisy actions of encoded states and times.

        :param x: Noisy actions, (batch, action_dim), or n per state: (batch, n, action_dim)
        :param c: Encoded states, (batch, width)
        :param e: Encoded times: (width,) one for all, (batch, width) one per state, or (batch, n, width) one per action
        :return: Tensor of the shape of ``x``
        """
        if e.dim() == 3:
            c = c.unsqueeze(1)
        # the dictionary skips nn.Module's slow attribute lookup, which counts in a chain of one-row calls
        trunk: Any = self._modules["trunk"]
        return self._scaled(trunk.evaluate(ACTION, x, c + e))

    def at_times(self, x: th.Tensor, c: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        :meth:`forward` for times that nothing else needs encoded.

        :param x: Noisy actions, (batch, action_dim), or n per state: (batch, n, action_dim)
        :param c: Encoded states, (batch, width)
        :param t: Diffusion times: (n_times,), (batch, n_times) or (batch, n, n_times)
        :return: Tensor of the shape of ``x``
        """
        ours = (type(self).forward, type(self).encode_time) == (Denoiser.forward, Denoiser.encode_time)
        out = self.compiled_with_times(x, c, t) if ours and t.dim() == 3 else None
        return self(x, c, self.encode_time(t)) if out is None else self._scaled(out)  # type: ignore[no-any-return]

    def bind(self, c: th.Tensor, e: th.Tensor) -> "BoundDenoiser":
        """
        :meth:`forward` for fixed states and a sequence of times, as a chain calls it.

        :param c: Encoded states, (batch, width)
        :param e: Encoded times of the evaluations, (n_evaluations, width)
        :return: Function of noisy actions, (batch, action_dim) or (batch, n, action_dim), and the number of the evaluation
        """
        return BoundDenoiser(self, c, e)

    def bind_features(self, features: th.Tensor, t: th.Tensor) -> FreshDenoiser:
        """
        :meth:`bind` for states and times that nothing else needs encoded.

        :param features: State features, (batch, feature_dim)
        :param t: Diffusion times of the evaluations, (n_evaluations, n_times)
        :return: Function of noisy actions, (batch, action_dim) or (batch, n, action_dim), and the number of the evaluation
        """
        return FreshDenoiser(self, features, t)

    def full(self, x: th.Tensor, t: th.Tensor, features: th.Tensor) -> th.Tensor:
        """
        The same prediction with nothing shared: every row passes through the whole network.

        :param x: (batch, action_dim) or (batch, n, action_dim)
        :param t: (1,), (batch, 1) or (batch, n, 1)
        :param features: (batch, feature_dim)
        :return: Tensor of the shape of ``x``
        """
        state = features if self.state_net is None else self.state_net.full(features)
        time = self.time_net(t)
        if x.dim() == 3:
            state = state.unsqueeze(1)
            time = time.unsqueeze(1) if time.dim() == 2 else time
        lead = x.shape[:-1]
        return self._scaled(self.trunk.full(x, time.expand(*lead, -1), state.expand(*lead, -1)))

    def _scaled(self, prediction: th.Tensor) -> th.Tensor:
        return prediction if self.output_scale == 1.0 else self.output_scale * prediction
