"""A chain for observations that are seen once, as when acting."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.loader import Pieces
from sb3_diffusion.kernels.network import Network, pad


class _Times(NamedTuple):
    """Encoded times, and where they come from: number of times, addresses, memory, and a copy of it made then."""

    layout: list[int]
    pieces: Pieces
    copy: th.Tensor
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
    """

    def __init__(
        self,
        network: Network,
        states: Network,
        state_owner: nn.Module,
        encode_times: Callable[[th.Tensor], th.Tensor],
        sources: Iterable[tuple[nn.Module, str]] | None,
    ):
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

    @property
    def weight(self) -> th.Tensor:
        """One of the parameters, for :func:`~sb3_diffusion.kernels.usable`."""
        return self._state_parameters["bias"]  # type: ignore[no-any-return]

    def run(
        self,
        x: th.Tensor,
        features: th.Tensor,
        t: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor:
        """
        See :meth:`Network.run_chain`.

        :param x: starting points ``(..., in)``
        :param features: inputs of the states' network ``(contexts, features)``
        :param t: times of the evaluations ``(n_steps, n_times)``
        :param steps: coefficients
        :param draws: noise of the first steps
        :param clip: bounds of the state where a step clips it
        :return: all points, the sample as the last one
        """
        ((network, _),), ((states, _),) = self._network.members(), self._states.members()
        # names keep what is not contiguous alive during the call
        times, bias = self._encoded(t.contiguous()), pad(self._state_parameters["bias"])
        x, features = x.contiguous(), features.contiguous()
        draws_address, n_noisy = None, 0
        if draws is not None:
            draws = draws.contiguous()
            draws_address, n_noisy = draws.data_ptr(), len(draws)
        points = x.new_empty((len(steps) + 1, *x.shape))
        loader.compiled().encode_and_run_chain(
            states,
            bias.data_ptr(),
            features.data_ptr(),
            len(features),
            network,
            times.data_ptr(),
            steps.data_ptr(),
            len(steps),
            draws_address,
            n_noisy,
            *clip,
            x.data_ptr(),
            points.data_ptr(),
            x.numel() // x.shape[-1],
            th.get_num_threads(),
        )
        return points

    def _encoded(self, t: th.Tensor) -> th.Tensor:
        if self._sources is None:
            return pad(self._encode_times(t))
        layout = [len(t), t.data_ptr(), *[owner[name].data_ptr() for owner, name in self._sources]]
        kept = self._times
        if kept is None or kept.layout != layout or not kept.pieces.equal(kept.copy):
            pieces = Pieces([t, *[owner[name] for owner, name in self._sources]])
            # assigned as a whole, for the sake of other threads that act with the same network
            kept = self._times = _Times(layout, pieces, pieces.copy(), pad(self._encode_times(t)))
        return kept.encoded
