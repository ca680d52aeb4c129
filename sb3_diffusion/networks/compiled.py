"""A denoiser's way into the compiled kernels: its encoders, its trunk and whole chains, where the kernels can do them."""

from abc import abstractmethod
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.kernels import EncodedChain, KeptTimes, Network, Watch, hooked, observed, usable
from sb3_diffusion.networks.backbones.base import Backbone
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.embeddings import TIME_EMBEDDINGS, TimeNetwork

#: Positions of the inputs in the first layer of the trunk.
ACTION, TIME, STATE = 0, 1, 2


class CompiledDenoiser(nn.Module):
    """
    The networks of a denoiser in compiled form: made when they are first needed, and anew where a module was replaced. Every
    method answers None where PyTorch has to do it.
    """

    time_net: TimeNetwork
    state_net: MLP | None  # None where the features are fed to the trunk directly
    trunk: Backbone
    output_scale: float

    def __init__(self) -> None:
        super().__init__()
        self._compiled_state: Network | None = None
        self._compiled_time: Network | None = None
        self._encoded_chain: EncodedChain | None = None
        self._kept_times: KeptTimes | None = None

    @abstractmethod
    def encode_time(self, t: th.Tensor) -> th.Tensor:
        """
        The time's share of the first layer.

        :param t: (..., n_times)
        :return: (..., width)
        """

    def compiled_states(self, features: th.Tensor) -> th.Tensor | None:
        """
        The state's share of the first layer, bias included.

        :param features: (..., feature_dim)
        :return: (..., width), or None
        """
        network = self._state_kernel()
        if network is None:
            return None
        assert self.state_net is not None
        return network.evaluate(features, self.state_net.first.bias.unsqueeze(0))

    @property
    def _is_concatenated(self) -> bool:
        """Whether action, time and state enter the trunk side by side."""
        return len(self.trunk.first.in_dims) == 3

    def _state_kernel(self) -> Network | None:
        """State network and state share of the first layer as one compiled network, None where there is none."""
        if self.state_net is None or not self._is_concatenated or th.compiler.is_compiling():
            return None
        if self._compiled_state is None or not self._compiled_state.watch.same():
            share = (self.trunk.first, f"weight_{STATE}", "bias")
            self._compiled_state = self.state_net.make_kernel(0, share, (self, self.trunk, self.trunk.first))
        return self._compiled_state

    def compiled_times(self, t: th.Tensor) -> th.Tensor | None:
        """
        The time's share of the first layer.

        :param t: (..., n_times)
        :return: (..., width), or None
        """
        network = self._time_kernel()
        # asked before, because the embedding is called here in its place
        if network is None or not network.watch.silent() or t.dim() == 0 or not usable(t, differentiable=True):
            return None
        assert self.time_net.mlp is not None
        features = self.time_net.embed(t)
        rows = network.evaluate(features.reshape(-1, features.shape[-1]), self.time_net.mlp.first.bias.unsqueeze(0))
        return None if rows is None else rows.view(*features.shape[:-1], network.output_dim)

    def compiled_with_times(self, x: th.Tensor, c: th.Tensor, t: th.Tensor) -> th.Tensor | None:
        """
        What the trunk says of noisy actions with a time of their own each. Their times' features enter the first layer in the
        rows of the actions; as encoded times they would be rows of the first layer's width, which take longer to write and to
        read than to compute (docs: speed).

        :param x: Noisy actions, (batch, n, action_dim)
        :param c: Encoded states, (batch, width)
        :param t: Diffusion times, (batch, n, n_times)
        :return: (batch, n, action_dim), or None
        """
        trunk: Any = self._modules["trunk"]
        if not isinstance(trunk, MLP) or not self._is_concatenated or c.dim() != 2 or x.shape[:-1] != t.shape[:-1]:
            return None
        # this module is not called, and what is refused later has been computed in vain
        if hooked(self) or "forward" in self.__dict__ or not usable(x, c, t, differentiable=True):
            return None
        network = trunk.kernel(ACTION, TIME)
        if network is None or not network.watch.silent():
            return None
        return network.evaluate(th.cat((x, self.time_net(t)), dim=-1), c)

    def kept_times(self, t: th.Tensor) -> th.Tensor | None:
        """
        The time's share of the first layer as it was in the last call, if nothing has changed since; for denoisers without a
        state network, whose chains are not one call with their encoders.

        :param t: (n_evaluations, n_times)
        :return: (n_evaluations, width), or None
        """
        if self.state_net is not None or th.compiler.is_compiling():
            return None
        kept = self._kept_times
        if kept is None or not kept.watch.same():
            sources = self._time_sources()
            if sources is None or observed():
                return None
            self._kept_times = kept = KeptTimes(self.encode_time, sources, Watch(self.modules()))
        return kept.encode(t)

    def _time_kernel(self) -> Network | None:
        """Time network and time share of the first layer as one compiled network, None where there is none."""
        mlp = self.time_net.mlp
        if mlp is None or not self._is_concatenated or th.compiler.is_compiling():
            return None
        if self._compiled_time is None or not self._compiled_time.watch.same():
            share = (self.trunk.first, f"weight_{TIME}", None)
            self._compiled_time = mlp.make_kernel(0, share, (self, self.time_net, self.trunk, self.trunk.first))
        return self._compiled_time

    def trunk_kernel(self) -> Network | None:
        """
        The network behind the encoders in compiled form; None where there is none, this module's calls are hooked, or
        something follows the trunk.
        """
        trunk: Any = self._modules["trunk"]
        if not isinstance(trunk, MLP) or hooked(self) or "forward" in self.__dict__ or self.output_scale != 1.0:
            return None
        return trunk.kernel(ACTION)

    def run_chain(
        self,
        x: th.Tensor,
        features: th.Tensor,
        t: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor | None:
        """
        Encoders and a whole reverse chain by one call of the compiled kernels, without autograd.

        :param x: Starting points, (batch, action_dim) or (batch, n, action_dim)
        :param features: State features, (batch, feature_dim)
        :param t: Diffusion times of the evaluations, (n_evaluations, n_times)
        :param steps: Coefficients, see :meth:`~sb3_diffusion.kernels.Network.run_chain`
        :param draws: Standard normal noise of the first steps, ``(n_noisy, ...)`` with the shape of ``x`` behind
        :param clip: Bounds of the state where a step clips it
        :return: All points at which the network was evaluated, and the samples as the last one, ``(n_evaluations + 1, ...)``;
            None where the kernels cannot do it
        """
        if th.compiler.is_compiling():
            return None
        encoded = self._encoded_chain
        points = None if encoded is None else encoded.run(x, features, t, steps, draws, clip)
        if points is not None or (encoded is not None and encoded.watch.same()):
            return points
        self._encoded_chain = encoded = self._make_encoded_chain()
        return None if encoded is None else encoded.run(x, features, t, steps, draws, clip)

    def _make_encoded_chain(self) -> EncodedChain | None:
        states, network = self._state_kernel(), self.trunk_kernel()
        if states is None or network is None:
            return None
        assert self.state_net is not None
        return EncodedChain(
            network, states, self.state_net.first, self.encode_time, self._time_sources(), Watch(self.modules())
        )

    def _time_sources(self) -> list[tuple[nn.Module, str]] | None:
        """All parameters and buffers on which :meth:`encode_time` depends, None if it may depend on something else."""
        if type(self.time_net.embedding) not in TIME_EMBEDDINGS.values():
            return None
        own = [
            (m, name)
            for m in self.time_net.modules()
            for name, value in (m._parameters | m._buffers).items()
            if value is not None
        ]
        return [*own, (self.trunk.first, f"weight_{TIME}")]
