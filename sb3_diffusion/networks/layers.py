"""
The linear layers, layer norms and initialisers that every network is made of.

Each layer exists once for a single network and once for an ensemble: with ``n_members`` its weights are stacked along a
leading member axis and one batched matrix product serves all members. Weights are stored as ``(in, out)``, because
a product with a row-major ``(in, out)`` matrix is the faster one for the few rows of an action request.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from sb3_diffusion.kernels import hooked, observed
from sb3_diffusion.numeric import integer, real

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


class LayerNorm(nn.Module):
    """
    Layer normalisation over the last axis, for one network or for an ensemble.

    Parameters: ``weight`` and ``bias`` (dim,); for an ensemble (members, 1, dim).

    :param dim: Size of the last axis
    :param n_members: Number of stacked members, None for a single network
    :param eps: Added to the variance; 1e-6 as in the reference implementation, torch's own default is 1e-5
    """

    def __init__(self, dim: int, n_members: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        shape = (dim,) if n_members is None else (n_members, 1, dim)
        self.n_members = n_members
        self.eps = eps
        self.weight = nn.Parameter(th.ones(shape))
        self.bias = nn.Parameter(th.zeros(shape))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., dim), or (members, rows, dim) for an ensemble
        :return: Tensor of the shape of ``x``
        """
        weight, bias = self.weight, self.bias
        if self.n_members is None:
            return F.layer_norm(x, weight.shape, weight, bias, self.eps)
        return th.addcmul(bias, F.layer_norm(x, weight.shape[-1:], None, None, self.eps), weight)


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


class BatchRenorm(nn.Module):
    """
    Batch renormalisation (Ioffe 2017, https://arxiv.org/abs/1702.03275), for one network or for an ensemble.

    In training mode a batch is normalised by its own mean and deviation, corrected by ``r`` and ``d``, which are constants for
    the gradient and make the result that of the running statistics unless these are too far off. During the first ``warmup``
    batches there is no correction (batch normalisation). In evaluation mode the running statistics are used, so that rows do
    not influence each other.

    Parameters: ``weight`` and ``bias`` (dim,); for an ensemble (members, 1, dim). The running statistics, of the same shape,
    and the number of batches seen, ``running_batches``, are saved with them.

    :param dim: Size of the last axis
    :param n_members: Number of stacked members, None for a single network
    :param momentum: Share of the running statistics that survives a batch
    :param warmup: Number of batches without correction
    :param r_max: Largest ratio of the deviations that is corrected, and its inverse the smallest
    :param d_max: Largest difference of the means that is corrected, in running deviations
    :param eps: Added to variances
    """

    running_mean: th.Tensor
    running_var: th.Tensor
    running_batches: th.Tensor

    def __init__(
        self,
        dim: int,
        n_members: int | None = None,
        momentum: float = 0.99,
        warmup: int = 100_000,
        r_max: float = 3.0,
        d_max: float = 5.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        slowly = "close to 1 the running statistics change slowly"
        momentum = real("momentum", momentum, 0, below=1, remedy=slowly)
        warmup = integer("warmup", warmup, low=0)
        r_max = real("r_max", r_max, low=1, remedy="1 corrects no deviation")
        d_max = real("d_max", d_max, low=0, remedy="0 corrects no mean")
        eps = real("eps", eps, low=0)
        shape = _stacked((dim,) if n_members is None else (1, dim), n_members)
        self.n_members = n_members
        self.momentum = momentum
        self.warmup = warmup
        self.r_max = r_max
        self.d_max = d_max
        self.eps = eps
        self.weight = nn.Parameter(th.ones(shape))
        self.bias = nn.Parameter(th.zeros(shape))
        self.register_buffer("running_mean", th.zeros(shape))
        self.register_buffer("running_var", th.ones(shape))
        self.register_buffer("running_batches", th.zeros(()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., dim), or (members, rows, dim) for an ensemble; every leading axis but that of the members is the batch
        :return: Tensor of the shape of ``x``
        """
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return th.addcmul(self.bias - self.running_mean * scale, x, scale)
        axes = list(range(x.dim() - 1)) if self.n_members is None else [1]
        var, mean = th.var_mean(x, dim=axes, correction=0, keepdim=self.n_members is not None)
        std = (var + self.eps).sqrt()
        with th.no_grad():
            running_std = (self.running_var + self.eps).sqrt()
            # decided on the device: a Python condition would wait for it, and could not be part of a CUDA graph
            warm = self.running_batches >= self.warmup
            r = th.where(warm, (std / running_std).clamp(1.0 / self.r_max, self.r_max), 1.0)
            d = th.where(warm, ((mean - self.running_mean) / running_std).clamp(-self.d_max, self.d_max), 0.0)
            self.running_mean.lerp_(mean, 1.0 - self.momentum)
            self.running_var.lerp_(var, 1.0 - self.momentum)
            self.running_batches.add_(1.0)
        # weight * ((x - mean) / std * r + d) + bias
        scale = self.weight * (r / std)
        return th.addcmul(self.bias + self.weight * d - mean * scale, x, scale)

    @override
    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, warmup={self.warmup}, n_members={self.n_members}"


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
