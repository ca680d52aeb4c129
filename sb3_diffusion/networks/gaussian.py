"""Deterministic and Gaussian actors, for the baselines and for one-step policies distilled from a diffusion."""

import math
from collections.abc import Callable, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.networks.backbones import dropout_argument, resolve_backbone
from sb3_diffusion.networks.backbones.base import Backbone

# the largest float32 below 1: samples stay strictly inside the box, so that their inverse tanh is finite
_ALMOST_ONE = 1.0 - 2.0**-23
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def gaussian_log_density(x: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    Log-density of every coordinate of a diagonal Gaussian.

    :param x: (..., dim)
    :param mean: (..., dim)
    :param std: Broadcasts against them
    :return: (..., dim)
    """
    return -0.5 * ((x - mean) / std).square() - std.log() - _HALF_LOG_2_PI


def gaussian_log_prob(x: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    Log-density of a diagonal Gaussian.

    :param x: (..., dim)
    :param mean: (..., dim)
    :param std: (..., dim)
    :return: (...,), summed over the last axis
    """
    return gaussian_log_density(x, mean, std).sum(dim=-1)


def gaussian_entropy(std: th.Tensor) -> th.Tensor:
    """
    Entropy of a diagonal Gaussian.

    :param std: (..., dim)
    :return: (...,), summed over the last axis
    """
    return (0.5 + _HALF_LOG_2_PI + std.log()).sum(dim=-1)


def gaussian_divergence(
    first_mean: th.Tensor, first_std: th.Tensor, second_mean: th.Tensor, second_std: th.Tensor
) -> th.Tensor:
    """
    Kullback-Leibler divergence of two diagonal Gaussians, ``KL(first || second)``.

    :param first_mean: (..., dim)
    :param first_std: (..., dim)
    :param second_mean: (..., dim)
    :param second_std: (..., dim)
    :return: (...,), summed over the last axis
    """
    spread = (first_std.square() + (first_mean - second_mean).square()) / second_std.square()
    return ((second_std / first_std).log() + 0.5 * (spread - 1.0)).sum(dim=-1)


def tanh_log_slope(u: th.Tensor) -> th.Tensor:
    """``log(1 - tanh(u)^2)``, written so that it stays finite and exact for large ``u``."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


def squashed_log_prob(u: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    Log-density of ``tanh(u)`` for Gaussian ``u``, as a function of ``u`` (inverting the tanh would lose digits).

    :param u: Value before the tanh, (..., dim)
    :param mean: Of the Gaussian, (..., dim)
    :param std: Of the Gaussian, (..., dim)
    :return: (...,)
    """
    return gaussian_log_prob(u, mean, std) - tanh_log_slope(u).sum(dim=-1)


class DeterministicActor(nn.Module):
    """
    One action per state.

    :param feature_dim: Size of the state features
    :param action_dim: Size of the action
    :param net_arch: Widths of the trunk
    :param activation: Name or class
    :param backbone: Name or class of the trunk
    :param layer_norm: Layer norms in the trunk, see the backbone
    :param squash: Whether a tanh keeps the action in the box
    :param dropout: Share of the trunk's hidden units that is dropped while it is trained
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        backbone: str | type[Backbone] = "mlp",
        layer_norm: bool | str = False,
        squash: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.trunk = _trunk(feature_dim, net_arch, action_dim, activation, backbone, layer_norm, dropout)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: (..., feature_dim)
        :return: Action, (..., action_dim)
        """
        action = self.trunk.single(features)
        return action.tanh() if self.squash else action


class GaussianActor(nn.Module):
    """
    Gaussian actor with any of the three usual ways to keep actions in the box.

    :param feature_dim: Size of the state features
    :param action_dim: Size of the action
    :param net_arch: Widths of the trunk
    :param activation: Name or class
    :param backbone: Name or class of the trunk
    :param layer_norm: Layer norms in the trunk, see the backbone
    :param squash: ``"action"`` applies tanh to the samples (as in SAC), ``"mean"`` to the mean only, ``"none"`` nowhere
    :param state_dependent_std: Whether the network predicts the standard deviation; otherwise it is a
        learned vector that starts at one
    :param log_std_bounds: Smallest and largest logarithm of the standard deviation
    :param soft_bounds: Reach the bounds smoothly through a tanh instead of by clamping
    :param dropout: Share of the trunk's hidden units that is dropped while it is trained
    :param init_std: Standard deviation at the beginning, of a learned vector
    :param output_gain: Gain of the initialisation of the last layer; ``None`` for the square root of two
    """

    def __init__(
        self,
        feature_dim: int,
        action_dim: int,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        backbone: str | type[Backbone] = "mlp",
        layer_norm: bool | str = False,
        squash: str = "action",
        state_dependent_std: bool = True,
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        soft_bounds: bool = False,
        dropout: float = 0.0,
        init_std: float = 1.0,
        output_gain: float | None = None,
    ) -> None:
        super().__init__()
        if squash not in ("action", "mean", "none"):
            raise ValueError(f"squash={squash!r} is unknown; choose one of action, mean, none.")
        if not log_std_bounds[0] < log_std_bounds[1]:
            raise ValueError(f"log_std_bounds={log_std_bounds} must be an increasing pair.")
        self.action_dim = action_dim
        self.squash = squash
        self.log_std_bounds = log_std_bounds
        self.soft_bounds = soft_bounds
        n_outputs = 2 * action_dim if state_dependent_std else action_dim
        self.trunk = _trunk(feature_dim, net_arch, n_outputs, activation, backbone, layer_norm, dropout, output_gain)
        start = th.full((action_dim,), math.log(init_std))
        self.log_std = None if state_dependent_std else nn.Parameter(start)

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param features: (..., feature_dim)
        :return: Mean (before the tanh of squashed samples) and standard deviation, (..., action_dim) each
        """
        out = self.trunk.single(features)
        if self.log_std is None:
            mean, raw = out.chunk(2, dim=-1)
        else:
            mean, raw = out, self.log_std.expand_as(out)
        low, high = self.log_std_bounds
        log_std = low + 0.5 * (high - low) * (1.0 + raw.tanh()) if self.soft_bounds else raw.clamp(low, high)
        return mean.tanh() if self.squash == "mean" else mean, log_std.exp()

    def mode(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: (..., feature_dim)
        :return: The action without noise, (..., action_dim)
        """
        mean, _ = self.forward(features)
        return mean.tanh() if self.squash == "action" else mean

    def sample(self, features: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Reparameterised sample.

        :param features: (..., feature_dim)
        :param noise: Standard normal, (..., action_dim)
        :return: Action (..., action_dim) and its log-density (...,)
        """
        mean, std = self.forward(features)
        u = mean + std * noise
        if self.squash == "action":
            # the density belongs to u, before the cut
            return u.tanh().clamp(-_ALMOST_ONE, _ALMOST_ONE), squashed_log_prob(u, mean, std)
        return u, gaussian_log_prob(u, mean, std)

    def log_prob(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param features: (..., feature_dim)
        :param actions: (..., action_dim); squashed ones are cut to the inside of the box
        :return: Log-density, (...,)
        """
        return self.log_density(actions, *self.forward(features))

    def act(self, mean: th.Tensor, std: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Actions as :meth:`log_density` knows them, and without a limit where nothing squashes them.

        :param mean: What :meth:`forward` returned, (..., action_dim)
        :param std: The same
        :param noise: Standard normal, (..., action_dim)
        :return: Actions, (..., action_dim)
        """
        u = mean + std * noise
        return u.tanh().clamp(-_ALMOST_ONE, _ALMOST_ONE) if self.squash == "action" else u

    def log_density(self, actions: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
        """
        :param actions: (..., action_dim); squashed ones are cut to the inside of the box
        :param mean: What :meth:`forward` returned, (..., action_dim)
        :param std: The same
        :return: Log-density, (...,)
        """
        if self.squash == "action":
            return squashed_log_prob(actions.clamp(-_ALMOST_ONE, _ALMOST_ONE).atanh(), mean, std)
        return gaussian_log_prob(actions, mean, std)

    def entropy(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: (..., feature_dim)
        :return: Entropy, (...,); squashed samples have no closed form and raise ``ValueError``
        """
        if self.squash == "action":
            raise ValueError('squash="action" has no closed-form entropy; average -log_prob over samples instead.')
        return gaussian_entropy(self.forward(features)[1])


def _trunk(
    feature_dim: int,
    net_arch: Sequence[int],
    n_outputs: int,
    activation: str | Callable[[], nn.Module],
    backbone: str | type[Backbone],
    layer_norm: bool | str,
    dropout: float,
    output_gain: float | None = None,
) -> Backbone:
    build = resolve_backbone(backbone)
    gain, dropped = math.sqrt(2.0) if output_gain is None else output_gain, dropout_argument(build, dropout)
    return build((feature_dim,), net_arch, n_outputs, activation, None, layer_norm, output_gain=gain, **dropped)
