"""Chains for observations that are seen once, as when acting."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.guard import Seen, Watch, allows, is_plain
from sb3_diffusion.kernels.network import Network
from sb3_diffusion.kernels.pieces import Pieces
from sb3_diffusion.kernels.task import Task
from sb3_diffusion.kernels.unguarded import Member, pad


class _Times(NamedTuple):
    """Encoded times, and what they depended on."""

    sources: Pieces
    encoded: th.Tensor


class KeptTimes:
    """
    Encoded times for chains whose states need no network: kept as :class:`EncodedChain` keeps them, without autograd.

    :param encode_times: Function of times ``(n_steps, n_times)`` that encodes them, ``(n_steps, width)``
    :param sources: Modules and names of their parameters and buffers, all that ``encode_times`` depends on
    :param watch: The modules that all of it comes from
    """

    def __init__(self, encode_times: Callable[[th.Tensor], th.Tensor], sources: Iterable[tuple[nn.Module, str]], watch: Watch):
        self.watch = watch
        self._encode_times = encode_times
        self._places: list[tuple[Any, str]] = [
            (m._parameters if name in m._parameters else m._buffers, name) for m, name in sources
        ]
        self._known: _Times | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and pickles of the owner make their own when they need it
        return type(None), ()

    def encode(self, t: th.Tensor) -> th.Tensor | None:
        """
        :param t: Times of the evaluations ``(n_steps, n_times)``
        :return: Encoded times ``(n_steps, width)``, None where it has to be done every time
        """
        tensors = [*[owner.get(name) for owner, name in self._places], t]
        if any(tensor is None for tensor in tensors) or not allows(*tensors) or loader.load_kernels() is None:
            return None
        if not self.watch.silent() or not self.watch.same():
            return None
        known = self._known
        if known is not None and known.sources.equal(tensors):
            return known.encoded
        if not Pieces.can_copy(tensors):
            return None
        self._known = known = _Times(Pieces(tensors), self._encode_times(t))
        return known.encoded


class _Known(NamedTuple):
    """What a call has found out, for the next one like it."""

    seen: Seen
    addresses: list[int]  # of the networks' parameters and of what the times depend on
    network: Member
    states: Member
    times: _Times | None  # where it is unknown what they depend on


class EncodedChain:
    """
    A chain together with the network that encodes its states, in one call and without autograd.

    Encoded times are kept for the next call, together with a copy of all that they depend on. They are used again if that
    is still the same, bit by bit, as between the actions of an evaluation. Comparing takes a tenth of the time of encoding
    (docs: speed).

    :param network: The network of the chain
    :param states: Network that encodes the states
    :param state_owner: Module whose ``bias`` is that of the first layer of ``states``
    :param encode_times: Function of times ``(n_steps, n_times)`` that encodes them, ``(n_steps, width)``
    :param sources: Modules and names of their parameters and buffers, all that ``encode_times`` depends on; None where that is
        unknown
    :param watch: The modules that all of it comes from
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
        self._encode_times = encode_times
        self._knows_sources = sources is not None
        # the dictionaries skip nn.Module's slow attribute lookup; all in one list, which is looked at in one go
        self._places: list[tuple[Any, str]] = [*network.places, *states.places, (state_owner._parameters, "bias")]
        self._n_network, self._n_parameters = len(network.places), len(self._places) - 1  # without that bias
        self._places += [(m._parameters if name in m._parameters else m._buffers, name) for m, name in sources or ()]
        self._known: _Known | None = None

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

        :param x: Starting points ``(batch, in)`` or ``(batch, n, in)``
        :param features: Inputs of the states' network ``(batch, features)`` or ``(1, features)``
        :param t: Times of the evaluations ``(n_steps, n_times)``
        :param steps: Coefficients
        :param draws: Noise of the first steps
        :param clip: Bounds of the state where a step clips it
        :return: All points, the sample as the last one; None where PyTorch has to do it
        """
        if not self.watch.silent() or not self.watch.same():
            return None
        task, t = Task(steps, draws, clip), t.contiguous()
        inputs, tensors = (x, features, *task.tensors()), [*[owner.get(name) for owner, name in self._places], t]
        known = self._known
        recognised = (
            known is not None
            and known.seen.again(*inputs, *tensors)
            # other numbers behind an old parameter (``.data``) look like the old ones
            and known.addresses == list(map(th.Tensor.data_ptr, tensors))
        )
        if known is None or not recognised:
            known = self._admit(x, features, task, tensors)
            if known is None:
                return None
        times, bias = self._encoded(known, tensors, steps.shape[0]), pad(tensors[self._n_parameters])
        if times is None:
            return None
        (network, _), (state_network, _) = known.network, known.states
        # names keep what is not contiguous alive during the call
        x, features, draws = x.contiguous(), features.contiguous(), task.contiguous_draws()
        points = x.new_empty((steps.shape[0] + 1, *x.shape))
        loader.compiled().encode_and_run_chain(
            state_network,
            bias.data_ptr(),
            features.data_ptr(),
            features.shape[0],
            network,
            times.data_ptr(),
            steps.data_ptr(),
            steps.shape[0],
            *((None, 0) if draws is None else (draws.data_ptr(), draws.shape[0])),
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

    def _admit(self, x: th.Tensor, features: th.Tensor, task: Task, tensors: Sequence[Any]) -> _Known | None:
        """What there is to know about these tensors, None where PyTorch has to do it."""
        inputs = (x, features, *task.tensors())
        if not allows(*inputs, tensors[-1]) or not self._takes(x, features, task) or loader.load_kernels() is None:
            return None
        members = self._network.members(tensors[: self._n_network])
        states = self._states.members(tensors[self._n_network : self._n_parameters])
        bias, *sources = tensors[self._n_parameters :]
        if members is None or states is None or any(tensor is None for tensor in (bias, *sources)):
            return None
        if not is_plain(bias) or bias.shape != (self._states.context_dim,) or not Pieces.can_copy(sources):
            return None
        times = None if self._known is None else self._known.times
        if times is not None and not times.sources.equal(sources):
            times = None
        return _Known(Seen(*inputs, *tensors), list(map(th.Tensor.data_ptr, tensors)), members[0], states[0], times)

    def _encoded(self, known: _Known, tensors: Sequence[th.Tensor], n_steps: int) -> th.Tensor | None:
        """The times' share, None where it does not fit."""
        if known.times is not None and known.times.sources.same_bits():
            encoded = known.times.encoded
        else:
            encoded = pad(self._encode_times(tensors[-1]))
            if not is_plain(encoded):
                return None
            kept = _Times(Pieces(tensors[self._n_parameters + 1 :]), encoded) if self._knows_sources else None
            known = known._replace(times=kept)
        # assigned as a whole, for the sake of other threads that act with the same network
        self._known = known
        return encoded if encoded.shape == (n_steps, self._network.first_width) else None
