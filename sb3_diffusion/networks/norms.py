"""Normalisation layers, each for one network or for an ensemble with stacked weights."""

import torch as th
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from sb3_diffusion.numeric import integer, real


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
        shape = (dim,) if n_members is None else (n_members, 1, dim)
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
