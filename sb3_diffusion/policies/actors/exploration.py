"""Additive Gaussian exploration noise in the normalised action box, and the entropy of the actions that it leads to."""

import math

import torch as th
from torch import nn

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.multiplier import Multiplier


class ExplorationNoise(nn.Module):
    r"""
    Adds ``factor * scale * N(0, I)`` to actions and clips them to [-1, 1].

    :param scale: Standard deviation per unit of the factor, in units of the normalised action; 0 switches the noise off
    :param factor: A learned number, which belongs to the policy; ``None`` for 1
    """

    def __init__(self, scale: float = 0.0, factor: Multiplier | None = None):
        super().__init__()
        self.scale = real("exploration_noise", scale, low=0, remedy="pass a standard deviation >= 0")
        self._factor = (factor,)  # in a tuple, so that the policy's number is not registered a second time

    def forward(self, actions: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        """
        :param actions: Actions in [-1, 1], any shape
        :param randomness: Source of the draw
        :param label: Name of the draw
        :return: Noisy actions in [-1, 1], same shape
        """
        if self.scale == 0.0:
            return actions
        draw, factor = randomness.normal(actions.shape, label, like=actions), self._factor[0]
        if factor is None:
            noisy = th.add(actions, draw, alpha=self.scale)
        elif (
            th.is_inference_mode_enabled() and factor.log_value.is_cpu
        ):  # a number costs less than operations, and nobody waits
            noisy = th.add(actions, draw, alpha=self.scale * math.exp(factor.log_value.item()))
        else:
            noisy = th.addcmul(actions, factor(), draw, value=self.scale)
        return noisy.clamp_(-1.0, 1.0)


def mixture_entropy(
    samples: th.Tensor,
    randomness: Randomness,
    label: str = "mixture",
    n_components: int = 3,
    n_iterations: int = 50,
    regularization: float = 1e-6,
) -> th.Tensor:
    r"""
    Entropy estimate ``sum_k w_k (-log w_k + d/2 log(2 pi e) + 1/2 log det C_k)`` of a full-covariance Gaussian mixture
    fitted by expectation maximisation (Wang et al. 2024, arXiv 2405.15177, eq. 14). It is an upper bound of the mixture's
    entropy, tight for separated components.

    :param samples: ``(batch, n_samples, dim)``; each batch row gets its own mixture
    :param randomness: Source of the initial centres
    :param label: Name of the draws
    :param n_components: Components per mixture (at most ``n_samples``)
    :param n_iterations: Steps of expectation maximisation
    :param regularization: Added to the diagonal of the covariances, so identical samples have a finite entropy
    :return: Entropies in nats, ``(batch,)``
    """
    dtype = samples.dtype
    x = samples.double()  # covariances of nearly deterministic policies do not survive float32
    n, dim = x.shape[1:]
    k = min(n_components, n)
    responsibilities = _nearest(x, _spread_centres(x, k, randomness, label))
    eye = regularization * th.eye(dim, dtype=x.dtype, device=x.device)
    for _ in range(n_iterations):
        weights, means, covariances = _maximize(x, responsibilities, eye)
        responsibilities = th.softmax(weights.log().unsqueeze(1) + _log_density(x, means, covariances), dim=2)
    weights, _, covariances = _maximize(x, responsibilities, eye)
    component_entropy = 0.5 * (dim * math.log(2.0 * math.pi * math.e) + th.logdet(covariances))
    return (weights * (component_entropy - weights.log())).sum(1).to(dtype)


def _spread_centres(x: th.Tensor, k: int, randomness: Randomness, label: str) -> th.Tensor:
    """k-means++: each next centre is a sample drawn with probability proportional to its squared distance to the others."""
    batch, n, _ = x.shape
    uniforms = randomness.uniform((k, batch, 1), f"{label}.centres", like=x)
    rows = th.arange(batch, device=x.device)
    centres = [x[rows, (uniforms[0, :, 0] * n).long().clamp(max=n - 1)]]
    for uniform in uniforms[1:]:
        distance = th.cdist(x, th.stack(centres, dim=1)).amin(2).square()
        cumulative = (distance + 1e-12).cumsum(1)
        index = th.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp(max=n - 1)
        centres.append(x[rows, index[:, 0]])
    return th.stack(centres, dim=1)


def _nearest(x: th.Tensor, centres: th.Tensor, n_iterations: int = 10) -> th.Tensor:
    """k-means from the given centres; the result is a one-hot assignment ``(batch, n_samples, k)``."""
    k = centres.shape[1]
    for _ in range(n_iterations):
        assignment = th.nn.functional.one_hot(th.cdist(x, centres).argmin(2), k).to(x.dtype)
        counts = assignment.sum(1).unsqueeze(2)
        # an empty cluster keeps its centre
        centres = th.where(counts > 0, assignment.transpose(1, 2) @ x / counts.clamp(min=1.0), centres)
    return assignment


def _maximize(x: th.Tensor, responsibilities: th.Tensor, eye: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    counts = responsibilities.sum(1) + 1e-10
    means = responsibilities.transpose(1, 2) @ x / counts.unsqueeze(2)
    centred = x.unsqueeze(1) - means.unsqueeze(2)  # (batch, k, n, dim)
    weighted = centred * responsibilities.transpose(1, 2).unsqueeze(3)
    covariances = weighted.transpose(2, 3) @ centred / counts[:, :, None, None] + eye
    return counts / counts.sum(1, keepdim=True), means, covariances


def _log_density(x: th.Tensor, means: th.Tensor, covariances: th.Tensor) -> th.Tensor:
    """Log densities up to a constant, ``(batch, n_samples, k)``."""
    # without the check of cholesky(), which waits for the device: NaN samples give a NaN entropy, and that is reported
    cholesky = th.linalg.cholesky_ex(covariances).L
    centred = (x.unsqueeze(1) - means.unsqueeze(2)).transpose(2, 3)  # (batch, k, dim, n)
    whitened = th.linalg.solve_triangular(cholesky, centred, upper=False)
    half_logdet = cholesky.diagonal(dim1=2, dim2=3).log().sum(2)
    return -(0.5 * whitened.square().sum(2) + half_logdet.unsqueeze(2)).transpose(1, 2)
