"""SimBa: a residual network with pre-layer-norm blocks (https://arxiv.org/abs/2410.09754)."""

from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_diffusion.networks.activations import resolve_activation
from sb3_diffusion.networks.backbones.base import Backbone, check_widths
from sb3_diffusion.networks.backbones.mlp import ResidualBlock
from sb3_diffusion.networks.layers import Linear, he_normal_, orthogonal_with
from sb3_diffusion.networks.norms import LayerNorm


class SimBa(Backbone):
    """
    Linear layer, one block ``x + Linear(act(Linear(norm(x))))`` per entry of ``net_arch``, layer norm, optional linear output.

    The running observation normalisation of the paper is not part of the network.

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param net_arch: The common width, once per block
    :param output_dim: Size of the linear output layer; None returns the normalised features
    :param activation: Name or class
    :param n_members: Number of stacked members, None for a single network
    :param layer_norm: Accepted because all backbones take it; SimBa always normalises
    :param output_gain: Gain of the output layer's orthogonal initialisation, one if None
    :param expansion: The inner layer of a block is this many times as wide as the block
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
        expansion: int = 4,
    ) -> None:
        widths = check_widths(net_arch, equal=True, who="SimBa")
        width = widths[0]
        super().__init__(in_dims, width, width, output_dim, n_members, orthogonal_with(1.0))
        activation_class = resolve_activation(activation)
        self.blocks = nn.ModuleList(
            ResidualBlock(width, width, expansion, activation_class, n_members, True, he_normal_) for _ in widths
        )
        self.norm = LayerNorm(width, n_members)
        self.output: Linear | None = None
        if output_dim is not None:
            gain = 1.0 if output_gain is None else output_gain
            self.output = Linear(width, output_dim, n_members, orthogonal_with(gain))

    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        """See :meth:`Backbone.body`."""
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x if self.output is None else self.output(x)
