"""Multi-layer perceptrons, plain and residual."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.kernels import KernelLayer, Network, Watch, fit_together, hooked, observed
from sb3_diffusion.networks.activations import GELU, Mish, activate, is_default, resolve_activation
from sb3_diffusion.networks.backbones.base import Backbone, check_widths
from sb3_diffusion.networks.layers import Dropout, Initialiser, Linear, SplitLinear, orthogonal_, orthogonal_with
from sb3_diffusion.networks.norms import BatchRenorm, LayerNorm

LAYER_NORM_PLACES = (False, True, "pre", "post")
# activations of the compiled kernels
_COMPILED: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    Mish: "mish",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    GELU: "gelu",
    nn.Tanh: "tanh",
}


class MLP(Backbone):
    """
    Linear layers, each followed by the activation and optionally a layer norm, then an optional linear output.

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param net_arch: Widths of the hidden layers; without any, the first layer is the output, and the network linear
    :param output_dim: Size of the linear output layer; None returns the last hidden layer
    :param activation: Name, class or function, see :func:`~sb3_diffusion.networks.activations.resolve_activation`
    :param n_members: Number of stacked members, None for a single network
    :param layer_norm: True or ``"pre"`` normalises before the activation, ``"post"`` after it
    :param output_gain: Gain of the output layer's orthogonal initialisation, square root of two if None
    :param batch_renorm: Arguments of the :class:`~sb3_diffusion.networks.norms.BatchRenorm` behind each activation, None
        for no such layers
    :param dropout: Share of the hidden units that is dropped while the network is trained
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        net_arch: Sequence[int],
        output_dim: int | None = None,
        activation: str | Callable[[], nn.Module] = "relu",
        n_members: int | None = None,
        layer_norm: bool | str = False,
        output_gain: float | None = None,
        batch_renorm: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        if layer_norm not in LAYER_NORM_PLACES:
            raise ValueError(f"layer_norm={layer_norm!r} is unknown; choose one of {LAYER_NORM_PLACES}.")
        make_activation: Callable[[], nn.Module] = resolve_activation(activation)
        initialise_output = orthogonal_with(math.sqrt(2.0) if output_gain is None else output_gain)
        widths: tuple[int, ...] = ()
        if len(net_arch) == 0 and output_dim is not None:
            super().__init__(in_dims, output_dim, output_dim, None, n_members, initialise_output)
            make_activation = nn.Identity
        else:
            widths = check_widths(net_arch, equal=False, who="MLP")
            super().__init__(in_dims, widths[0], widths[-1], output_dim, n_members)
        self.activation = make_activation()
        self.dropout = Dropout(dropout) if dropout else None
        self._is_plain = not layer_norm and batch_renorm is None and self.dropout is None
        self._norm_before = layer_norm in (True, "pre")
        self.norms = nn.ModuleList([LayerNorm(width, n_members) for width in widths] if layer_norm else [])
        self.batch_norms = nn.ModuleList(
            [] if batch_renorm is None else [BatchRenorm(width, n_members, **batch_renorm) for width in widths]
        )
        self.hidden = nn.ModuleList(Linear(n_in, n_out, n_members) for n_in, n_out in pairwise(widths))
        self.output: Linear | None = None
        if output_dim is not None and widths:
            self.output = Linear(widths[-1], output_dim, n_members, initialise_output)
        self._kernels: dict[tuple[int, ...], Network | None] = {}

    def kernel(self, *inputs: int) -> Network | None:
        """
        This network as a function of one input, or of several side by side, in compiled form; None where it has none.

        :param inputs: Position of the input, or of each
        """
        output = self._modules.get("output")
        # compilers cannot look into what follows
        if not self._is_plain or output is None or th.compiler.is_compiling():
            return None
        network = self._kernels.get(inputs)
        if network is None or not network.watch.same():  # a copied network has lost it
            i, *beside = inputs
            network = self._kernels[inputs] = self.make_kernel(i, (output, "weight", "bias"), beside=beside)
        return network

    def make_kernel(
        self, i: int, output: KernelLayer, others: Sequence[nn.Module] = (), beside: Sequence[int] = ()
    ) -> Network | None:
        """
        The hidden layers and one behind them as a function of one input, None where that cannot be compiled.

        :param i: Position of the input
        :param output: The last layer
        :param others: Modules, besides those of this network, that have to stay in their places
        :param beside: Positions of further inputs, which stand behind it in the rows
        """
        if observed():  # sizes are no numbers while somebody traces
            return None
        activation = _COMPILED.get(type(self.activation)) if is_default(self.activation) else None
        if not self._is_plain or activation is None or type(self.first) is not SplitLinear:
            return None
        if any(type(layer) is not Linear for layer in self.hidden) or type(output[0]) not in (Linear, SplitLinear):
            return None
        layers = [(self.first, f"weight_{i}", None), *((layer, "weight", "bias") for layer in self.hidden), output]
        if not fit_together(layers, self.n_members):
            return None
        names = [f"weight_{j}" for j in beside]
        if any(self.first._parameters.get(name) is None for name in names):
            return None
        return Network(layers, activation, self.n_members, Watch([*self.modules(), *others]), names)

    def evaluate(self, i: int, part: th.Tensor, others: th.Tensor) -> th.Tensor:
        """See :meth:`Backbone.evaluate`."""
        network = self.kernel(i)
        out = None if network is None else network.evaluate(part, others)
        return super().evaluate(i, part, others) if out is None else out

    def evaluate_with_gradient(self, i: int, part: th.Tensor, others: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """See :meth:`Backbone.evaluate_with_gradient`."""
        network = self.kernel(i)
        return None if network is None else network.evaluate_with_gradient(part, others)

    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        """See :meth:`Backbone.body`."""
        # the dictionary skips nn.Module's slow attribute lookup, which counts in a chain of one-row calls
        modules: Any = self._modules
        activation, output = modules["activation"], modules.get("output")
        if not self._is_plain:
            x = self._normed_body(x)
        else:
            x = activate(activation, x, owned)
            for layer in modules["hidden"]:
                x = activate(activation, layer(x), owned=not hooked(layer))
        return x if output is None else output(x)

    def _normed_body(self, x: th.Tensor) -> th.Tensor:
        x = self._activate_and_norm(0, x)
        for i, layer in enumerate(self.hidden, start=1):
            x = self._activate_and_norm(i, layer(x))
        return x

    def _activate_and_norm(self, i: int, x: th.Tensor) -> th.Tensor:
        if not self.norms:
            x = self.activation(x)
        elif self._norm_before:
            x = activate(self.activation, self.norms[i](x), owned=not hooked(self.norms[i]))
        else:
            x = self.norms[i](self.activation(x))
        x = self.batch_norms[i](x) if self.batch_norms else x
        return x if self.dropout is None else self.dropout(x)


class ResidualBlock(nn.Module):
    """
    ``shortcut(x) + Linear(act(Linear(norm(x))))``; the shortcut is linear where the width changes.

    :param in_features: Width of the input
    :param out_features: Width of the output
    :param expansion: The inner layer is this many times as wide as the output
    :param activation: Activation class
    :param n_members: Number of stacked members, None for a single network
    :param layer_norm: Whether to normalise the input of the inner layers
    :param initialiser: Of the two inner layers
    :param dropout: Share of the inputs of the inner layers that is dropped, before the norm, while the network is trained
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        expansion: int,
        activation: Callable[[], nn.Module],
        n_members: int | None,
        layer_norm: bool,
        initialiser: Initialiser = orthogonal_,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout) if dropout else None
        self.norm = LayerNorm(in_features, n_members) if layer_norm else None
        self.expand = Linear(in_features, expansion * out_features, n_members, initialiser)
        self.contract = Linear(expansion * out_features, out_features, n_members, initialiser)
        self.shortcut = Linear(in_features, out_features, n_members) if in_features != out_features else None
        self.activation = activation()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (rows, in) or (members, rows, in); left untouched
        :return: (rows, out) or (members, rows, out)
        """
        inner = x if self.dropout is None else self.dropout(x)
        inner = inner if self.norm is None else self.norm(inner)
        inner = self.contract(activate(self.activation, self.expand(inner), owned=not hooked(self.expand)))
        x = x if self.shortcut is None else self.shortcut(x)
        return inner + x if hooked(self.contract) else inner.add_(x)


class ResidualMLP(Backbone):
    """
    Linear layer, one :class:`ResidualBlock` per entry of ``net_arch``, activation, optional linear output.

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param net_arch: Width of each block, at least one; the first is also the width of the first layer
    :param output_dim: Size of the linear output layer; None returns the last activations
    :param activation: Name or class
    :param n_members: Number of stacked members, None for a single network
    :param layer_norm: Whether each block normalises its input
    :param output_gain: Gain of the output layer's orthogonal initialisation, square root of two if None
    :param expansion: The inner layer of a block is this many times as wide as its output
    :param dropout: Share of the inputs of each block's inner layers that is dropped while the network is trained
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        net_arch: Sequence[int],
        output_dim: int | None = None,
        activation: str | Callable[[], nn.Module] = "relu",
        n_members: int | None = None,
        layer_norm: bool = False,
        output_gain: float | None = None,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        widths = check_widths(net_arch, equal=False, who="ResidualMLP")
        super().__init__(in_dims, widths[0], widths[-1], output_dim, n_members)
        activation_class = resolve_activation(activation)
        self.activation = activation_class()
        self.blocks = nn.ModuleList(
            ResidualBlock(n_in, n_out, expansion, activation_class, n_members, bool(layer_norm), dropout=dropout)
            for n_in, n_out in pairwise((widths[0], *widths))
        )
        self.output: Linear | None = None
        if output_dim is not None:
            gain = math.sqrt(2.0) if output_gain is None else output_gain
            self.output = Linear(widths[-1], output_dim, n_members, orthogonal_with(gain))

    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        """See :meth:`Backbone.body`."""
        for block in self.blocks:
            x = block(x)
        x = activate(self.activation, x, owned=not hooked(self.blocks[-1]))
        return x if self.output is None else self.output(x)
