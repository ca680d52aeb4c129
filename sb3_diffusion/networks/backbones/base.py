"""What the backbones have in common: a first layer in parts, so that what stays the same is computed once."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_diffusion.kernels import hooked
from sb3_diffusion.networks.layers import Initialiser, SplitLinear, orthogonal_
from sb3_diffusion.numeric import integer


class Backbone(nn.Module):
    """
    Base class of the backbones: a split first layer, then ``body``, which a subclass supplies.

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param width: Size of the first layer's output
    :param features_dim: Size of the last hidden layer
    :param output_dim: Size of the linear output layer, None for no such layer
    :param n_members: Number of stacked members, None for a single network
    :param initialiser: Of the first layer
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        width: int,
        features_dim: int,
        output_dim: int | None,
        n_members: int | None,
        initialiser: Initialiser = orthogonal_,
    ) -> None:
        super().__init__()
        self.n_members = n_members
        self.output_dim = features_dim if output_dim is None else output_dim
        self.first = SplitLinear(in_dims, width, n_members, initialiser)
        # rows of a single network are a matrix, those of an ensemble a stack of matrices
        self._row_axes = 2 if n_members is None else 3

    @abstractmethod
    def body(self, x: th.Tensor, owned: bool) -> th.Tensor:
        """
        Everything after the first layer.

        :param x: The first layer's output before any activation, (rows, width) or (members, rows, width)
        :param owned: Whether ``x`` may be overwritten
        :return: (rows, output_dim) or (members, rows, output_dim)
        """

    def share(self, i: int, part: th.Tensor, bias: bool = False, per_member: bool = False) -> th.Tensor:
        """Contribution of input ``i`` to the first layer, see :meth:`SplitLinear.share`."""
        return self.first.share(i, part, bias, per_member)

    def add_share(self, i: int, part: th.Tensor, others: th.Tensor) -> th.Tensor:
        """Contribution of input ``i`` plus that of the other inputs, see :meth:`SplitLinear.add_share`."""
        # the dictionary skips nn.Module's slow attribute lookup, which counts in a chain of one-row calls
        first: Any = self._modules["first"]
        return first.add_share(i, part, others)  # type: ignore[no-any-return]

    def forward(self, pre_activation: th.Tensor, owned: bool = False) -> th.Tensor:
        """
        :param pre_activation: The first layer's output before any activation, (..., width), or (members, ..., width)
        :param owned: Whether the caller gives up ``pre_activation``, so that it may be overwritten
        :return: (..., output_dim), or (members, ..., output_dim)
        """
        owned = owned and not hooked(self)  # a hook may have kept it
        if pre_activation.dim() == self._row_axes:
            return self.body(pre_activation, owned)
        shape = pre_activation.shape
        rows = pre_activation.reshape(*shape[: self._row_axes - 2], -1, shape[-1])
        return self.body(rows, owned).view(*shape[:-1], self.output_dim)

    def evaluate(self, i: int, part: th.Tensor, others: th.Tensor) -> th.Tensor:
        """
        The output for input ``i``, given what the other inputs contributed to the first layer.

        :param i: Position of the input
        :param part: (batch, in_i) or (batch, n, in_i)
        :param others: See :meth:`SplitLinear.add_share`
        :return: (batch, output_dim) or (batch, n, output_dim), with the member axis for an ensemble
        """
        return self(self.add_share(i, part, others), owned=True)  # type: ignore[no-any-return]

    def evaluate_with_gradient(self, i: int, part: th.Tensor, others: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """
        :meth:`evaluate`, and the gradient of the first output with respect to ``part``, without autograd.

        :param i: See :meth:`evaluate`
        :param part: See :meth:`evaluate`
        :param others: See :meth:`evaluate`
        :return: Outputs, and a gradient of the shape of ``part`` (with the member axis for an ensemble);
            None where there is no faster way than autograd
        """
        return None

    def single(self, x: th.Tensor) -> th.Tensor:
        """
        The output of a network that has one input.

        :param x: (..., in_0)
        :return: (..., output_dim)
        """
        return self.evaluate(0, x, self.first.bias.unsqueeze(0)) if x.dim() == 2 else self.full(x)

    def full(self, *parts: th.Tensor, per_member: bool = False) -> th.Tensor:
        """
        The whole network on the concatenated inputs, without sharing anything.

        :param parts: One (..., in_i) per input, leading axes equal
        :param per_member: Whether each member of an ensemble has its own inputs, (members, ..., in_i)
        :return: (..., output_dim), or (members, ..., output_dim)
        """
        pre_activation = self.first(*parts, per_member=per_member)
        return self(pre_activation, owned=not hooked(self.first))  # type: ignore[no-any-return]


def check_widths(net_arch: Sequence[int], equal: bool, who: str) -> tuple[int, ...]:
    """
    Refuse architectures a backbone cannot build.

    :param net_arch: Widths of the hidden layers
    :param equal: Whether all widths have to agree
    :param who: Name of the backbone, for the message
    :return: The widths as a tuple
    """
    widths = tuple(integer(f"net_arch[{index}]", width) for index, width in enumerate(net_arch))
    if not widths or min(widths) < 1:
        raise ValueError(
            f"net_arch={list(widths)} of {who} must name at least one hidden layer, each with a positive width "
            "(a linear network, net_arch=[], has the backbone 'mlp')."
        )
    if equal and len(set(widths)) > 1:
        raise ValueError(f"net_arch={list(widths)} of {who} must repeat one width, once per block, for example [256, 256].")
    return widths
