"""A chain for observations that are seen once, as when acting."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.guard import Watch, allows, is_plain
from sb3_diffusion.kernels.network import Network, pad
from sb3_diffusion.kernels.pieces import Pieces
from sb3_diffusion.kernels.task import Task


class _Times(NamedTuple):
    """Encoded times, and what they depended on."""

    sources: Pieces
    encoded: th.Tensor


class EncodedChain:
    """
    A chain together with the network that encodes its states, in one call and without autograd.

    Encoded times are kept for the next call, together with a copy of all that they depend on. They are used again if that
    is still the same, bit by bit, as between the actions of an evaluation. Comparing takes a tenth of the time of encoding
    (docs: speed).

    :param network: the network of the chain
    :param states: network that encodes the states
    :param state_owner: module whose ``bias`` is that of the first layer of ``states``
    :param encode_times: function of times ``(n_steps, n_times)`` that encodes them, ``(n_steps, width)``
    :param sources: modules and names of their parameters and buffers, all that ``encode_times`` depends on; None where that is
        unknown
    :param watch: the modules that all of it comes from
    """

    def __init__(
        self,
        network: Network,
        states: Network,
        state_owner: nn.Module,
        encode_times: Callable[[th.Tensor], th.Tensor],
        sources: Iterable[tuple[nn.Module, str]] | None,
        watch: Watch,
    ):
        self.watch = watch
        self._network, self._states = network, states
        # the dictionaries skip nn.Module's slow attribute lookup
        self._state_parameters: Any = state_owner._parameters
        self._encode_times = encode_times
        self._sources: list[tuple[Any, str]] | None = None
        if sources is not None:
            self._sources = [(m._parameters if name in m._parameters else m._buffers, name) for m, name in sources]
        self._times: _Times | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and pickles of the owner make their own when they need it
        return type(None), ()

    def run(
        self,
        x: th.Tensor,
        features: th.Tensor,
        t: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor | None:
        """
        See :meth:`Network.run_chain`.

        :param x: starting points ``(batch, in)`` or ``(batch, n, in)``
        :param features: inputs of the states' network ``(batch, features)`` or ``(1, features)``
        :param t: times of the evaluations ``(n_steps, n_times)``
        :param steps: coefficients
        :param draws: noise of the first steps
        :param clip: bounds of the state where a step clips it
        :return: all points, the sample as the last one; None where PyTorch has to do it
        """
        task = Task(steps, draws, clip)
        if not allows(x, features, t, *task.tensors()) or not self._takes(x, features, task):
            return None
        if not self.watch.silent() or not self.watch.same() or loader.load_kernels() is None:
            return None
        members, states = self._network.members(self._network.parameters()), self._states.members(self._states.parameters())
        bias = self._state_bias()
        if members is None or states is None or bias is None:
            return None
        times = self._encoded(t.contiguous())
        if times.shape != (len(steps), self._network.first_width) or not is_plain(times):
            return None
        ((network, _),), ((state_network, _),) = members, states
        # names keep what is not contiguous alive during the call
        x, features, draws = x.contiguous(), features.contiguous(), task.contiguous_draws()
        points = x.new_empty((len(steps) + 1, *x.shape))
        loader.compiled().encode_and_run_chain(
            state_network,
            bias.data_ptr(),
            features.data_ptr(),
            len(features),
            network,
            times.data_ptr(),
            steps.data_ptr(),
            len(steps),
            *((None, 0) if draws is None else (draws.data_ptr(), len(draws))),
            *clip,
            x.data_ptr(),
            points.data_ptr(),
            x.numel() // x.shape[-1],
            th.get_num_threads(),
        )
        return points

    def _takes(self, x: th.Tensor, features: th.Tensor, task: Task) -> bool:
        size, encoded = x.shape, features.shape
        if len(size) not in (2, 3) or size[-1] != self._network.input_dim or not self._network.runs(x, task):
            return False
        return len(encoded) == 2 and encoded[1] == self._states.input_dim and encoded[0] in (size[0], 1)

    def _state_bias(self) -> th.Tensor | None:
        """What the first layer of the states' network adds, padded."""
        bias = self._state_parameters.get("bias")
        if bias is None or not is_plain(bias) or bias.shape != (self._states.context_dim,):
            return None
        return pad(bias)

    def _encoded(self, t: th.Tensor) -> th.Tensor:
        if self._sources is None:
            return pad(self._encode_times(t))
        sources = [t, *[owner.get(name) for owner, name in self._sources]]
        if any(source is None for source in sources):  # PyTorch says what is missing
            return pad(self._encode_times(t))
        kept = self._times
        if kept is None or not kept.sources.equal(sources):
            encoded = pad(self._encode_times(t))
            if not Pieces.can_copy(sources):
                return encoded
            # assigned as a whole, for the sake of other threads that act with the same network
            kept = self._times = _Times(Pieces(sources), encoded)
        return kept.encoded
