"""
The linear layers, their initialisers, and dropout.

Each layer exists once for a single network and once for an ensemble: with ``n_members`` its weights are stacked along a
leading member axis and one batched matrix product serves all members. Weights are stored as ``(in, out)``, because
a product with a row-major ``(in, out)`` matrix is the faster one for the few rows of an action request.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from sb3_diffusion.kernels import hooked, observed
from sb3_diffusion.numeric import real

Initialiser = Callable[[th.Tensor], th.Tensor]


def orthogonal_(weight: th.Tensor, gain: float = math.sqrt(2.0)) -> th.Tensor:
    """
    Orthogonal initialisation in place, member by member.

    :param weight: (in, out) or (members, in, out)
    :param gain: Scale of the singular values
    :return: ``weight``
    """
    for member in weight if weight.dim() == 3 else (weight,):
        nn.init.orthogonal_(member, gain)
    return weight


def he_normal_(weight: th.Tensor) -> th.Tensor:
    """
    He initialisation in place: standard deviation sqrt(2 / in), drawn from a normal cut at two of its own deviations.

    :param weight: (in, out) or (members, in, out)
    :return: ``weight``
    """
    # the cut shrinks the standard deviation of a normal by the factor 0.8796...
    std = math.sqrt(2.0 / weight.shape[-2]) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


def orthogonal_with(gain: float) -> Initialiser:
    """An initialiser with another gain than the default square root of two."""

    def initialise(weight: th.Tensor) -> th.Tensor:
        return orthogonal_(weight, gain)

    return initialise


# up to this many outputs the library's products are slow: 78 us instead of 14 for 256 rows of 256 and three outputs, one core
_NARROW = 8


class _NarrowProduct(th.autograd.Function):
    """
    ``x @ weight + bias`` for a handful of outputs on a CPU, computed as ``(weight^T @ x^T)^T``, and its gradients likewise.

    Members of an ensemble are multiplied one by one: batched products are even slower (142 -> 23 us for two with one output).
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        if weight.dim() == 2:
            return th.addmm(bias.unsqueeze(1), weight.t(), x.t()).t().clone(memory_format=th.contiguous_format)
        out = [th.addmm(b.t(), w.t(), rows.t()).t() for rows, w, b in zip(x, weight, bias, strict=True)]
        return th.stack(out)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        if weight.dim() == 2:
            return (
                gradient @ weight.t() if needs_x else None,
                (gradient.t() @ x).t() if needs_weight else None,
                gradient.sum(0) if needs_bias else None,
            )
        members = list(zip(gradient, x, weight, strict=True))
        return (
            th.stack([g @ w.t() for g, _, w in members]) if needs_x else None,
            th.stack([(g.t() @ rows).t() for g, rows, _ in members]) if needs_weight else None,
            gradient.sum(1, keepdim=True) if needs_bias else None,
        )


def _use_narrow(x: th.Tensor, outputs: int) -> bool:
    # neither compilers, nor exporters, nor transforms look into the function above
    return outputs <= _NARROW and x.is_cpu and not observed()


def _parameter(module: nn.Module, name: str) -> th.Tensor:
    """
    A parameter, or what a parametrisation (weight norm, pruning) has put in its place.

    The dictionary skips nn.Module's slow attribute lookup, a seventh of the time of a one-row product.
    """
    value = module._parameters.get(name)
    return getattr(module, name) if value is None else value  # type: ignore[no-any-return]


def _stacked(shape: tuple[int, ...], n_members: int | None) -> tuple[int, ...]:
    return shape if n_members is None else (n_members, *shape)


class Linear(nn.Module):
    """
    Affine layer, for one network or for an ensemble.

    Parameters: ``weight`` (in, out) and ``bias`` (out,); for an ensemble (members, in, out) and (members, 1, out).

    :param in_features: Size of the input
    :param out_features: Size of the output
    :param n_members: Number of stacked members, None for a single network
    :param initialiser: Fills the weight in place; the bias starts at zero
    """

    def __init__(
        self, in_features: int, out_features: int, n_members: int | None = None, initialiser: Initialiser = orthogonal_
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.n_members = n_members
        weight = th.empty(_stacked((in_features, out_features), n_members))
        self.weight = nn.Parameter(initialiser(weight))
        self.bias = nn.Parameter(th.zeros((out_features,) if n_members is None else (n_members, 1, out_features)))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., in) for a single network; (members, rows, in), or (rows, in) shared by all members, for an ensemble
        :return: (..., out), or (members, rows, out)
        """
        weight, bias = _parameter(self, "weight"), _parameter(self, "bias")
        if self.n_members is not None:
            if x.dim() == 2:
                x = x.expand(self.n_members, -1, -1)
            if _use_narrow(x, self.out_features):
                return _NarrowProduct.apply(x, weight, bias)  # type: ignore[no-any-return]
            return th.baddbmm(bias, x, weight)
        if x.dim() == 2:
            if _use_narrow(x, self.out_features):
                return _NarrowProduct.apply(x, weight, bias)  # type: ignore[no-any-return]
            return th.addmm(bias, x, weight)
        return th.matmul(x, weight) + bias

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, n_members={self.n_members}"


class SplitLinear(nn.Module):
    """
    The first layer of a network with several inputs, held as one weight per input.

    ``W [x, y] + b`` equals ``W_x x + (W_y y + b)``: the share of an input that stays the same (the state, during the steps
    of a diffusion chain) is computed once and added. The pieces are initialised together, as one matrix over the
    concatenated inputs.

    Parameters: ``weight_0``, ``weight_1``, ... (in_i, out) and ``bias`` (out,); for an ensemble (members, in_i, out)
    and (members, 1, out).

    :param in_dims: Sizes of the inputs, in the order of their concatenation
    :param out_features: Size of the output
    :param n_members: Number of stacked members, None for a single network
    :param initialiser: Fills the joint weight in place; the bias starts at zero
    """

    def __init__(
        self, in_dims: Sequence[int], out_features: int, n_members: int | None = None, initialiser: Initialiser = orthogonal_
    ) -> None:
        super().__init__()
        if not in_dims or min(in_dims) < 1:
            raise ValueError(f"in_dims={tuple(in_dims)} must name at least one input, each with a positive size.")
        self.in_dims = tuple(in_dims)
        self.out_features = out_features
        self.n_members = n_members
        joint = initialiser(th.empty(_stacked((sum(self.in_dims), out_features), n_members)))
        for i, piece in enumerate(joint.split(self.in_dims, dim=-2)):
            self.register_parameter(f"weight_{i}", nn.Parameter(piece.clone()))
        self.bias = nn.Parameter(th.zeros((out_features,) if n_members is None else (n_members, 1, out_features)))
        self._names = tuple(f"weight_{i}" for i in range(len(self.in_dims)))

    def share(self, i: int, x: th.Tensor, bias: bool = False, per_member: bool = False) -> th.Tensor:
        """
        What input ``i`` contributes to the output.

        :param i: Position of the input
        :param x: (..., in_i), shared by all members of an ensemble unless ``per_member``
        :param bias: Whether to add the bias; it has to be added to exactly one share
        :param per_member: Whether each member of an ensemble has its own input, (members, ..., in_i)
        :return: (..., out), or (members, ..., out) for an ensemble
        """
        if not hooked(self):
            return self._share(i, x, bias, per_member)
        parts = [x if j == i else None for j in range(len(self.in_dims))]
        return self(*parts, per_member=per_member, bias=bias)  # type: ignore[no-any-return]

    def _share(self, i: int, x: th.Tensor, bias: bool, per_member: bool) -> th.Tensor:
        weight, offset = _parameter(self, self._names[i]), _parameter(self, "bias")
        if self.n_members is None:
            if not bias:
                return th.matmul(x, weight)
            return th.addmm(offset, x, weight) if x.dim() == 2 else th.matmul(x, weight) + offset
        rows = x.reshape(self.n_members if per_member else 1, -1, x.shape[-1]).expand(self.n_members, -1, -1)
        out = th.baddbmm(offset, rows, weight) if bias else th.bmm(rows, weight)
        return out.view(self.n_members, *x.shape[1 if per_member else 0 : -1], self.out_features)

    def add_share(self, i: int, x: th.Tensor, others: th.Tensor) -> th.Tensor:
        """
        The share of input ``i`` plus what the other inputs contributed; broadcasts, never repeats.

        :param i: Position of the input
        :param x: (batch, in_i) or (batch, n, in_i)
        :param others: (batch, out), broadcast over ``n``, or (batch, n, out); in both cases a leading axis
            of size 1 broadcasts, and for an ensemble a member axis comes first
        :return: A new tensor, (batch, out) or (batch, n, out), with the member axis for an ensemble
        """
        is_hooked = hooked(self)
        if x.dim() == 2 and not is_hooked:
            weight = _parameter(self, self._names[i])
            if self.n_members is None:
                return th.addmm(others, x, weight)
            return th.baddbmm(others, x.expand(self.n_members, -1, -1), weight)
        own = self.share(i, x)
        others = others if others.dim() == own.dim() else others.unsqueeze(-2)
        return own + others if is_hooked else own.add_(others)

    def forward(self, *parts: th.Tensor | None, per_member: bool = False, bias: bool = True) -> th.Tensor:
        """
        The layer on the concatenated inputs; the plain way, against which the shares are tested.

        :param parts: One (..., in_i) per input, leading axes equal; or one, and None for the others: its share
        :param per_member: Whether each member of an ensemble has its own inputs, (members, ..., in_i)
        :param bias: Whether to add the bias
        :return: (..., out), or (members, ..., out) for an ensemble
        """
        given = [(i, part) for i, part in enumerate(parts) if part is not None]
        if len(given) < len(self.in_dims):
            ((i, part),) = given
            return self._share(i, part, bias, per_member)
        weight = th.cat([getattr(self, name) for name in self._names], dim=-2)
        x = th.cat([part for _, part in given], dim=-1)
        offset = self.bias if bias else 0.0
        if self.n_members is None:
            return th.matmul(x, weight) + offset
        lead = x.shape[1 if per_member else 0 : -1]
        rows = x.reshape(self.n_members if per_member else 1, -1, x.shape[-1])
        return (th.matmul(rows, weight) + offset).view(self.n_members, *lead, self.out_features)

    @override
    def extra_repr(self) -> str:
        return f"in_dims={self.in_dims}, out_features={self.out_features}, n_members={self.n_members}"


class Dropout(nn.Module):
    """
    Sets entries to zero at random in training mode, where a gradient is recorded: what is computed without one, targets and
    actions, is exact.

    :param share: Share of the entries, from 0 to below 1
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = real("dropout", share, 0, below=1, remedy="0 drops nothing")

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (...)
        :return: Tensor of the shape of ``x``
        """
        return F.dropout(x, self.share) if self.training and th.is_grad_enabled() else x

    @override
    def extra_repr(self) -> str:
        return f"share={self.share}"
