"""BroNet: a residual network with post-layer-norm blocks (https://arxiv.org/abs/2405.16158)."""

import math
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_diffusion.kernels import hooked
from sb3_diffusion.networks.activations import activate, resolve_activation
from sb3_diffusion.networks.backbones.base import Backbone, check_widths
from sb3_diffusion.networks.layers import Linear, orthogonal_with
from sb3_diffusion.networks.norms import LayerNorm


class BroBlock(nn.Module):
    """
    ``x + norm(Linear(act(norm(Linear(x)))))``.

    :param width: Width of the block
    :param activation: Activation class
    :param n_members: Number of stacked members, None for a single network
    """

    def __init__(self, width: int, activation: Callable[[], nn.Module], n_members: int | None) -> None:
        super().__init__()
        self.inner = Linear(width, width, n_members)
        self.inner_norm = LayerNorm(width, n_members)
        self.outer = Linear(width, width, n_members)
        self.outer_norm = LayerNorm(width, n_members)
        self.activation = activation()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (rows, width) or (members, rows, width); left untouched
        :return: Tensor of the shape of ``x``
        """
        inner = activate(self.activation, self.inner_norm(self.inner(x)), owned=not hooked(self.inner_norm))
        out = self.outer_norm(self.outer(inner))
        return out + x if hooked(self.outer_norm) else out.add_(x)


class BroNet(Backbone):
    """
    Linear layer, layer norm, activation, one :class:`BroBlock` per entry of ``net_arch``, optional linear output.

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param net_arch: The common width, once per block
    :param output_dim: Size of the linear output layer; None returns the output of the last block
    :param activation: Name or class
    :param n_members: Number of stacked members, None for a single network
    :param layer_norm: Accepted because all backbones take it; BroNet always normalises
    :param output_gain: Gain of the output layer's orthogonal initialisation, square root of two if None
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        net_arch: Sequence[int],
        output_dim: int | None = None,
        activation: str | Callable[[], nn.Module] = "relu",
        n_members: int | None = None,
        layer_norm: bool = True,
        output_gain: float | None = None,
    ) -> None:
        widths = check_widths(net_arch, equal=True, who="BroNet")
        width = widths[0]
        super().__init__(in_dims, width, width, output_dim, n_members)
        activation_class = resolve_activation(activation)
        self.activation = activation_class()
        self.norm = LayerNorm(width, n_members)
        self.blocks = nn.ModuleList(BroBlock(width, activation_class, n_members) for _ in widths)
        self.output: Linear | None = None
        if output_dim is not None:
            gain = math.sqrt(2.0) if output_gain is None else output_gain
            self.output = Linear(width, output_dim, n_members, orthogonal_with(gain))

    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        """See :meth:`Backbone.body`."""
        x = activate(self.activation, self.norm(x), owned=not hooked(self.norm))
        for block in self.blocks:
            x = block(x)
        return x if self.output is None else self.output(x)
