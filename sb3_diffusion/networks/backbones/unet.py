"""A U-shaped denoiser: the noisy action alone is narrowed and widened again, time and state enter at every level."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th
from torch import nn
from typing_extensions import override

from sb3_diffusion.networks.activations import resolve_activation
from sb3_diffusion.networks.backbones.base import Backbone, check_widths
from sb3_diffusion.networks.layers import Linear, orthogonal_with


class ConditionedBlock(nn.Module):
    """
    ``act(W2 (act(W1 x) + W_t act(embedding))) + skip(x)``; the skip is linear where the width changes.

    :param in_features: Width of the input
    :param out_features: Width of the output
    :param embedding_dim: Width of the embedding
    :param activation: Makes the activation
    """

    def __init__(self, in_features: int, out_features: int, embedding_dim: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.enter = Linear(in_features, out_features)
        self.condition = Linear(embedding_dim, out_features)
        self.leave = Linear(out_features, out_features)
        self.skip = Linear(in_features, out_features) if in_features != out_features else None
        self.activation = activation()

    def forward(self, x: th.Tensor, embedding: th.Tensor) -> th.Tensor:
        """
        :param x: (batch, in_features) or (batch, n, in_features)
        :param embedding: Activated embedding, (batch, embedding_dim), or with as many axes as ``x``
        :return: (batch, out_features) or (batch, n, out_features)
        """
        condition = self.condition(embedding)
        condition = condition if condition.dim() == x.dim() else condition.unsqueeze(1)
        inner = self.activation(self.enter(x)) + condition
        return self.activation(self.leave(inner)) + (x if self.skip is None else self.skip(x))  # type: ignore[no-any-return]


class ActionUNet(Backbone):
    """
    U-Net over the noisy action (Chen et al. 2023, https://arxiv.org/abs/2209.14548); time and state are one embedding, which
    every block adds to its inner layer. The embedding is computed once per state and time, however many actions there are.

    :param in_dims: Sizes of action, time features and state features
    :param net_arch: Widths on the way down, at least one; the last is also that of the embedding
    :param output_dim: Size of the linear output layer
    :param activation: Name or class
    :param n_members: None; there is no ensemble of these
    :param layer_norm: Has to be False
    :param output_gain: Gain of the output layer's orthogonal initialisation, one if None
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        net_arch: Sequence[int],
        output_dim: int | None = None,
        activation: str | Callable[[], nn.Module] = "silu",
        n_members: int | None = None,
        layer_norm: bool | str = False,
        output_gain: float | None = None,
    ) -> None:
        if len(in_dims) != 3 or output_dim is None or n_members is not None or layer_norm:
            raise ValueError(
                "backbone='unet' is that of a denoiser without layer_norm, of an action, a time and a state; use another one."
            )
        widths = check_widths(net_arch, equal=False, who="ActionUNet")
        action_dim, *others = in_dims
        super().__init__(others, widths[-1], 2 * widths[0], output_dim, None)
        make = resolve_activation(activation)
        embedding_dim = widths[-1]
        self.activation = make()
        self.embed = Linear(embedding_dim, embedding_dim)
        self.down = nn.ModuleList(
            ConditionedBlock(n_in, n_out, embedding_dim, make) for n_in, n_out in pairwise((action_dim, *widths))
        )
        self.middle = ConditionedBlock(widths[-1], widths[-1], embedding_dim, make)
        self.up = nn.ModuleList(
            ConditionedBlock(2 * n_in, n_out, embedding_dim, make) for n_in, n_out in pairwise(reversed(widths))
        )
        gain = 1.0 if output_gain is None else output_gain
        self.output = Linear(2 * widths[0], output_dim, None, orthogonal_with(gain))

    @override
    def share(self, i: int, part: th.Tensor, bias: bool = False, per_member: bool = False) -> th.Tensor:
        # the action does not enter the first layer, which makes the embedding
        return self.first.share(i - 1, part, bias, per_member)

    @override
    def evaluate(self, i: int, part: th.Tensor, others: th.Tensor) -> th.Tensor:
        embedding = self.activation(self.embed(self.activation(others)))
        x, passed = part, []
        for block in self.down:
            x = block(x, embedding)
            passed.append(x)
        x = self.middle(x, embedding)
        for block in self.up:
            x = block(th.cat((x, passed.pop()), dim=-1), embedding)
        return self.output(th.cat((x, passed.pop()), dim=-1))  # type: ignore[no-any-return]

    @override
    def full(self, *parts: th.Tensor, per_member: bool = False) -> th.Tensor:
        action, *others = parts
        return self.evaluate(0, action, self.first(*others))

    @override
    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        raise NotImplementedError("The output of an ActionUNet is that of evaluate() and full(), which know the action.")
