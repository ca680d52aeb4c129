"""Multi-layer perceptrons as the compiled kernels see them."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.loader import LayerStruct, NetworkStruct
from sb3_diffusion.kernels.nodes import Chain, Evaluation

#: Names of the activations, and the numbers that ``mlp.cpp`` gives them.
ACTIVATIONS = {"relu": 1, "mish": 2}
PANEL = 32  # columns of the widest tile
#: A module, and the names of its parameters that are a layer's weight and bias (None for no bias).
KernelLayer = tuple[nn.Module, str, str | None]


def padded(columns: int) -> int:
    return columns + -columns % PANEL


def pad(x: th.Tensor) -> th.Tensor:
    """Rows as the kernels read them: contiguous, with zeros up to a multiple of the widest tile."""
    missing = padded(x.shape[-1]) - x.shape[-1]
    return nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


class Network:
    """
    A multi-layer perceptron as the kernels see it. It follows its parameters when they change or move in memory; a module that
    takes the place of another is not seen.

    :param layers: for each layer the module that owns the parameters, and the names of weight ``(in, out)`` and bias
        ``(out,)``, or ``(members, in, out)`` and ``(members, 1, out)``; that of the first is part of the context
    :param activation: a key of :data:`ACTIVATIONS`, used behind all layers but the last
    :param n_members: number of stacked members, ``None`` for a single network
    """

    def __init__(self, layers: Sequence[KernelLayer], activation: str, n_members: int | None = None):
        # the dictionaries skip nn.Module's slow attribute lookup
        weights: list[tuple[Any, str]] = [(module._parameters, weight) for module, weight, _ in layers]
        self._biased = [i for i, (_, _, bias) in enumerate(layers) if bias is not None]
        self._parameters = weights + [(module._parameters, bias) for module, _, bias in layers if bias is not None]
        self._activation = ACTIVATIONS[activation]
        self.n_members = n_members
        self._addresses: list[int] = []
        self._members: list[tuple[NetworkStruct, Any]] = []
        shapes: list[tuple[int, int]] = [tuple(parameters[name].shape[-2:]) for parameters, name in weights]
        self.output_dim = shapes[-1][1]
        self.first_width = padded(shapes[0][1])
        self._n_hidden, self._width = len(shapes) - 1, max(padded(width) for _, width in shapes)
        #: for each parameter the offset and strides of its gradient in a row of ``n_gradients`` numbers
        self._places: list[tuple[int, tuple[int, int]]] = []
        self.n_gradients = 0
        for rows, columns in shapes[:-1]:
            self._places.append((self.n_gradients, (padded(columns), 1)))
            self.n_gradients += rows * padded(columns)
        self._places.append((self.n_gradients, (1, padded(shapes[-1][0]))))  # by output
        self.n_gradients += shapes[-1][1] * padded(shapes[-1][0])
        for i, (_, columns) in enumerate(shapes[1:], start=1):
            if i in self._biased:
                self._places.append((self.n_gradients, (1, 1)))
            self.n_gradients += padded(columns)

    def __reduce__(self) -> tuple[Any, ...]:
        # copies and pickles of the owner make their own when they need it
        return type(None), ()

    def parameters(self) -> list[th.Tensor]:
        """All weights in order, then the biases of the layers that have one."""
        return [parameters[name] for parameters, name in self._parameters]

    def members(self) -> list[tuple[NetworkStruct, Any]]:
        """The structures of all members, with what has to stay alive beside them."""
        addresses = [parameters[name].data_ptr() for parameters, name in self._parameters]
        if addresses != self._addresses:
            self._members = [self._view(addresses, member) for member in range(self.n_members or 1)]
            self._addresses = addresses
        return self._members

    def _view(self, addresses: list[int], member: int) -> tuple[NetworkStruct, Any]:
        layers = (LayerStruct * (self._n_hidden + 1))()
        for layer, address, (parameters, name) in zip(layers, addresses, self._parameters, strict=False):
            layer.inputs, layer.outputs = parameters[name].shape[-2:]
            layer.weight = address + 4 * member * layer.inputs * layer.outputs
        for i, address in zip(self._biased, addresses[len(layers) :], strict=True):
            layers[i].bias = address + 4 * member * layers[i].outputs
        return NetworkStruct(layers, len(layers), self._activation), layers

    def new_record(self, like: th.Tensor, *rows: int) -> th.Tensor:
        """Memory for what a backward pass needs: ``([members,] 2, hidden layers, *rows, width)``, values and slopes."""
        return like.new_empty((*self._lead, 2, self._n_hidden, *rows, self._width))

    def new_chain_record(self, x: th.Tensor, n_steps: int) -> tuple[th.Tensor, th.Tensor]:
        """The same for a chain: predictions ``(n_steps, rows, in)``, and the record of all evaluations."""
        rows = x.numel() // x.shape[-1]
        return x.new_empty((n_steps, rows, x.shape[-1])), self.new_record(x, n_steps, rows)

    def evaluate(self, x: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        :param x: ``(rows, in)``, the same for all members
        :param context: what the first layer adds, ``(contexts, width)``, or ``(members, contexts, width)``; each serves
            ``rows / contexts`` consecutive rows
        :return: ``(rows, output_dim)`` or ``(members, rows, output_dim)``
        """
        if th.is_grad_enabled():
            return Evaluation.apply(self, x, context, *self.parameters())  # type: ignore[no-any-return]
        return self._evaluate(x, context)

    def evaluate_with_gradient(self, x: th.Tensor, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Without autograd, for constants of a loss.

        :param x: see :meth:`evaluate`
        :param context: see :meth:`evaluate`
        :return: what :meth:`evaluate` returns, and the gradient of the first output with respect to ``x``,
            ``(rows, in)`` or ``(members, rows, in)``
        """
        gradient = x.new_empty((*self._lead, *x.shape))
        return self._evaluate(x, context, gradient), gradient

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self.n_members is None else (self.n_members,)

    def _evaluate(
        self, x: th.Tensor, context: th.Tensor, gradient: th.Tensor | None = None, record: th.Tensor | None = None
    ) -> th.Tensor:
        kernels, threads = loader.compiled(), th.get_num_threads()
        x, context = x.contiguous(), pad(context)
        (rows, inputs), contexts = x.shape, context.shape[-2]
        out = x.new_empty((*self._lead, rows, self.output_dim))
        for m, (network, _) in enumerate(self.members()):
            kernels.evaluate(
                network,
                context.data_ptr() + 4 * m * contexts * context.shape[-1],
                rows // max(contexts, 1),
                x.data_ptr(),
                out.data_ptr() + 4 * m * rows * self.output_dim,
                None if gradient is None else gradient.data_ptr() + 4 * m * rows * inputs,
                None if record is None else record.data_ptr() + 4 * m * record[0].numel(),
                rows,
                threads,
            )
        return out

    def run_chain(
        self,
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor:
        """
        Run a reverse chain.

        :param x: starting points ``(..., in)``
        :param context: encoded states ``(contexts, width)``; each serves ``rows / contexts`` consecutive rows of ``x``
        :param times: encoded times, ``(n_steps, width)``
        :param steps: coefficients, one row per evaluation; the columns are the members of ``Step`` in ``mlp.cpp``
        :param draws: standard normal noise ``(n_noisy, ..., in)`` of the first steps, constants
        :param clip: bounds of the state where a step clips it
        :return: all points at which the network was evaluated, and the sample as the last one, ``(n_steps + 1, ..., in)``
        """
        if th.is_grad_enabled():
            return Chain.apply(self, steps, draws, clip, x, context, times, *self.parameters())  # type: ignore[no-any-return]
        return self._run_chain(steps, draws, clip, x, context, times)

    def _run_chain(
        self,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        kept: tuple[th.Tensor, th.Tensor] | None = None,
    ) -> th.Tensor:
        kernels = loader.compiled()
        points = x.new_empty((len(steps) + 1, *x.shape))
        points[0] = x
        context, times = pad(context), pad(times)
        rows = x.numel() // x.shape[-1]
        draws_address, n_noisy = None, 0
        if draws is not None:
            draws = draws.contiguous()
            draws_address, n_noisy = draws.data_ptr(), len(draws)
        ((network, _),) = self.members()
        kernels.run_chain(
            network,
            context.data_ptr(),
            rows // max(context.shape[0], 1),
            times.data_ptr(),
            steps.data_ptr(),
            len(steps),
            draws_address,
            n_noisy,
            *clip,
            points.data_ptr(),
            *((None, None) if kept is None else (kept[0].data_ptr(), kept[1].data_ptr())),
            rows,
            th.get_num_threads(),
        )
        return points

    def split_gradients(self, sums: th.Tensor, needs: Sequence[bool]) -> list[th.Tensor | None]:
        """
        What a backward pass has summed up, see ``Gradients`` in ``mlp.cpp``.

        :param sums: contiguous ``([members,] threads, numbers)``, the first thread's are the result
        :param needs: which of :meth:`parameters` need a gradient
        :return: gradients of :meth:`parameters`
        """
        lead = () if self.n_members is None else (sums.stride(0),)
        return [
            sums.as_strided(parameter.shape, (*lead, *strides)[-parameter.dim() :], offset) if need else None
            for parameter, (offset, strides), need in zip(self.parameters(), self._places, needs, strict=True)
        ]
