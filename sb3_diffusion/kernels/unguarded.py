"""Multi-layer perceptrons as the compiled kernels see them: where their numbers are, and the bare calls."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.guard import PLAIN_TYPES, is_plain
from sb3_diffusion.kernels.pieces import Layout, layout_of
from sb3_diffusion.kernels.records import Records
from sb3_diffusion.kernels.structures import LayerStruct, NetworkStruct
from sb3_diffusion.kernels.task import Task

#: Names of the activations, and the numbers that ``mlp.cpp`` gives them.
ACTIVATIONS = {"relu": 1, "mish": 2, "elu": 3, "silu": 4, "gelu": 5, "tanh": 6}
PANEL = 32  # columns of the widest tile
#: A module, and the names of its parameters that are a layer's weight and bias (None for no bias).
KernelLayer = tuple[nn.Module, str, str | None]
#: The structure of a member, with what has to stay alive beside it.
Member = tuple[NetworkStruct, Any]


def padded(columns: int) -> int:
    """Columns as the kernels lay them out: up to a multiple of the widest tile."""
    return columns + -columns % PANEL


def pad(x: th.Tensor) -> th.Tensor:
    """Rows as the kernels read them: contiguous, with zeros up to a multiple of the widest tile."""
    missing = padded(x.shape[-1]) - x.shape[-1]
    return nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def fit_together(layers: Sequence[KernelLayer], n_members: int | None) -> bool:
    """
    Whether these are the layers of a network with at least one hidden layer: whether all parameters are there and their sizes
    follow from each other.

    :param layers: See :class:`UnguardedNetwork`
    :param n_members: See :class:`UnguardedNetwork`
    """
    lead = () if n_members is None else (n_members,)
    width = None
    for module, weight_name, bias_name in layers:
        weight = module._parameters.get(weight_name)
        if (
            weight is None
            or weight.shape[:-2] != lead
            or weight.dim() != len(lead) + 2
            or width not in (None, weight.shape[-2])
        ):
            return False
        width = weight.shape[-1]
        bias = None if bias_name is None else module._parameters.get(bias_name)
        if bias_name is not None and (bias is None or bias.shape != ((width,) if n_members is None else (*lead, 1, width))):
            return False
    return len(layers) > 1


class UnguardedNetwork:
    """
    The parameters of a multi-layer perceptron as structures of ``mlp.cpp``, and the calls that compute with them. Nothing here
    asks whether a call is allowed; :class:`~sb3_diffusion.kernels.network.Network` does.

    :param layers: For each layer the module that owns the parameters, and the names of weight ``(in, out)`` and bias
        ``(out,)``, or ``(members, in, out)`` and ``(members, 1, out)``; that of the first is part of the context
    :param activation: A key of :data:`ACTIVATIONS`, used behind all layers but the last
    :param n_members: Number of stacked members, ``None`` for a single network
    :param beside: Names of further weights of the first layer, whose inputs stand behind those of the first one in the rows
    """

    def __init__(
        self, layers: Sequence[KernelLayer], activation: str, n_members: int | None, beside: Sequence[str] = ()
    ) -> None:
        if not fit_together(layers, n_members):
            raise ValueError(f"layers={layers} are no network with at least one hidden layer; see fit_together().")
        # the dictionaries skip nn.Module's slow attribute lookup
        weights: list[tuple[Any, str]] = [(module._parameters, weight) for module, weight, _ in layers]
        self._biased = [i for i, (_, _, bias) in enumerate(layers) if bias is not None]
        #: where the parameters are found: all weights in order, then the biases of the layers that have one
        self.places = weights + [(module._parameters, bias) for module, _, bias in layers if bias is not None]
        self._activation = ACTIVATIONS[activation]
        self.n_members = n_members
        self.records = Records()
        #: layout of the parameters, and the members that were made of them
        self._views: tuple[Layout | None, list[Member]] = (None, [])
        self._shapes = [parameters[name].shape for parameters, name in self.places]
        #: where the weights of the first layer are found, and their shapes
        self._first: list[tuple[Any, str]] = [weights[0], *((layers[0][0]._parameters, name) for name in beside)]
        self._first_shapes = [parameters[name].shape for parameters, name in self._first]
        rows = sum(shape[-2] for shape in self._first_shapes)
        self._shapes[0] = th.Size((*self._shapes[0][:-2], rows, self._shapes[0][-1]))
        shapes: list[tuple[int, int]] = [(shape[-2], shape[-1]) for shape in self._shapes[: len(weights)]]
        self.input_dim, self.context_dim = shapes[0]
        self.output_dim = shapes[-1][1]
        self.first_width = padded(self.context_dim)
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

    def parameters(self) -> list[Any]:
        """All weights in order, then the biases of the layers that have one; None for those that are gone."""
        values = [parameters.get(name) for parameters, name in self.places]
        if len(self._first) > 1:
            values[0] = self._joined()
        return values

    def _joined(self) -> th.Tensor | None:
        """The weights of the first layer as one, which are kilobytes; None where they are not what they were."""
        parts: list[Any] = [parameters.get(name) for parameters, name in self._first]
        if not PLAIN_TYPES.issuperset(map(type, parts)) or not all(map(is_plain, parts)):
            return None
        return th.cat(parts, dim=-2) if [part.shape for part in parts] == self._first_shapes else None

    def members(self, parameters: Sequence[Any]) -> list[Member] | None:
        """
        The structures of all members, None where the parameters are not what the network was compiled for.

        :param parameters: Values of :meth:`parameters`
        """
        if not PLAIN_TYPES.issuperset(map(type, parameters)):
            return None
        try:
            # other numbers behind an old parameter (``.data``) may begin at the same address
            layout = layout_of(parameters)
        except RuntimeError:  # not an array: sparse, opaque
            return None
        known, members = self._views
        if layout != known:
            addresses, shapes, _, contiguous = layout
            if shapes != self._shapes or not all(contiguous) or not all(map(is_plain, parameters)):
                return None
            members = [self._view(addresses, member) for member in range(self.n_members or 1)]
            self._views = layout, members  # as a whole, for the sake of other threads
        return members

    def _view(self, addresses: list[int], member: int) -> Member:
        layers = (LayerStruct * (self._n_hidden + 1))()
        for layer, address, shape in zip(layers, addresses, self._shapes, strict=False):
            layer.inputs, layer.outputs = shape[-2:]
            layer.weight = address + 4 * member * layer.inputs * layer.outputs
        for i, address in zip(self._biased, addresses[len(layers) :], strict=True):
            layers[i].bias = address + 4 * member * layers[i].outputs
        return NetworkStruct(layers, len(layers), self._activation), layers

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self.n_members is None else (self.n_members,)

    def new_record(self, like: th.Tensor, *rows: int) -> th.Tensor:
        """Memory for what a backward pass needs: ``([members,] 2, hidden layers, *rows, width)``, values and slopes."""
        return self.records.new(like, (*self._lead, 2, self._n_hidden, *rows, self._width))

    def new_chain_record(self, x: th.Tensor, n_steps: int) -> tuple[th.Tensor, th.Tensor]:
        """The same for a chain: predictions ``(n_steps, rows, in)``, and the record of all evaluations."""
        rows = x.numel() // x.shape[-1]
        return x.new_empty((n_steps, rows, x.shape[-1])), self.new_record(x, n_steps, rows)

    def compute(
        self,
        x: th.Tensor,
        context: th.Tensor,
        parameters: Sequence[th.Tensor],
        gradient: th.Tensor | None = None,
        record: th.Tensor | None = None,
    ) -> th.Tensor:
        """
        The evaluation behind the guard.

        :param x: ``(rows, in)``
        :param context: ``([members,] contexts, width)``
        :param parameters: Values of :meth:`parameters`
        :param gradient: Takes the gradient of the first output, ``([members,] rows, in)``
        :param record: See :meth:`new_record`
        :return: ``([members,] rows, output_dim)``
        """
        kernels, threads, members = loader.compiled(), th.get_num_threads(), self.members(parameters)
        assert members is not None
        x, context = x.contiguous(), pad(context)
        (rows, inputs), contexts = x.shape, context.shape[-2]
        out = x.new_empty((*self._lead, rows, self.output_dim))
        for m, (network, _) in enumerate(members):
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

    def compute_chain(
        self,
        task: Task,
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        parameters: Sequence[th.Tensor],
        kept: tuple[th.Tensor, th.Tensor] | None = None,
    ) -> th.Tensor:
        """
        The chain behind the guard.

        :param task: The steps
        :param x: See :meth:`~sb3_diffusion.kernels.network.Network.run_chain`
        :param context: See :meth:`~sb3_diffusion.kernels.network.Network.run_chain`
        :param times: See :meth:`~sb3_diffusion.kernels.network.Network.run_chain`
        :param parameters: Values of :meth:`parameters`
        :param kept: See :meth:`new_chain_record`
        :return: See :meth:`~sb3_diffusion.kernels.network.Network.run_chain`
        """
        kernels, members = loader.compiled(), self.members(parameters)
        assert members is not None
        ((network, _),) = members
        points = x.new_empty((len(task.steps) + 1, *x.shape))
        points[0] = x
        context, times = pad(context), pad(times)
        rows, draws = x.numel() // x.shape[-1], task.contiguous_draws()
        kernels.run_chain(
            network,
            context.data_ptr(),
            rows // max(context.shape[0], 1),
            times.data_ptr(),
            task.steps.data_ptr(),
            len(task.steps),
            *((None, 0) if draws is None else (draws.data_ptr(), len(draws))),
            *task.clip,
            points.data_ptr(),
            *((None, None) if kept is None else (kept[0].data_ptr(), kept[1].data_ptr())),
            rows,
            th.get_num_threads(),
        )
        return points

    def split_gradients(
        self, sums: th.Tensor, parameters: Sequence[th.Tensor], needs: Sequence[bool]
    ) -> list[th.Tensor | None]:
        """
        What a backward pass has summed up, see ``Gradients`` in ``mlp.cpp``.

        :param sums: Contiguous ``([members,] threads, numbers)``, the first thread's are the result
        :param parameters: Values of :meth:`parameters`
        :param needs: Which of them need a gradient
        :return: Their gradients
        """
        lead = () if self.n_members is None else (sums.stride(0),)
        return [
            sums.as_strided(parameter.shape, (*lead, *strides)[-parameter.dim() :], offset) if need else None
            for parameter, (offset, strides), need in zip(parameters, self._places, needs, strict=True)
        ]
