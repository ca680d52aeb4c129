"""
Conversions between the quantities a generative network can predict.

Everywhere ``x = alpha * clean + sigma * noise``. The score is the gradient of the log density of ``x``. The
variance-preserving velocity is ``alpha * noise - sigma * clean`` (Salimans & Ho 2022); the flow velocity is
``clean - noise`` on the straight path with ``alpha = t`` and ``sigma = 1 - t`` (Lipman et al. 2023), so ``t = 1`` is data.
The coefficients broadcast against the samples, usually as ``(..., 1)`` against ``(..., action_dim)``. No guard is added
to the divisions: keep the coefficient in the denominator away from zero by choosing the times.
"""

import torch as th


def noise_to_clean(x: th.Tensor, noise: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x - sigma noise) / alpha``."""
    return (x - sigma * noise) / alpha


def clean_to_noise(x: th.Tensor, clean: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x - alpha clean) / sigma``."""
    return (x - alpha * clean) / sigma


def noise_to_score(noise: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-noise / sigma``."""
    return -noise / sigma


def score_to_noise(score: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-sigma score``."""
    return -sigma * score


def clean_to_score(x: th.Tensor, clean: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-(x - alpha clean) / sigma^2``."""
    return (alpha * clean - x) / sigma**2


def score_to_clean(x: th.Tensor, score: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``(x + sigma^2 score) / alpha`` (Tweedie's formula)."""
    return (x + sigma**2 * score) / alpha


def vp_velocity(clean: th.Tensor, noise: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``alpha noise - sigma clean``."""
    return alpha * noise - sigma * clean


def vp_velocity_to_clean(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``alpha x - sigma velocity``; needs ``alpha^2 + sigma^2 = 1``."""
    return alpha * x - sigma * velocity


def vp_velocity_to_noise(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``sigma x + alpha velocity``; needs ``alpha^2 + sigma^2 = 1``."""
    return sigma * x + alpha * velocity


def vp_velocity_to_score(x: th.Tensor, velocity: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """``-(sigma x + alpha velocity) / sigma``; needs ``alpha^2 + sigma^2 = 1``."""
    return noise_to_score(vp_velocity_to_noise(x, velocity, alpha, sigma), sigma)


def flow_velocity(clean: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """``clean - noise``."""
    return clean - noise


def flow_velocity_to_clean(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``x + (1 - t) velocity``."""
    return x + (1 - t) * velocity


def flow_velocity_to_noise(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``x - t velocity``."""
    return x - t * velocity


def flow_velocity_to_score(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``-(x - t velocity) / (1 - t)``."""
    return (t * velocity - x) / (1 - t)


def score_to_flow_velocity(x: th.Tensor, score: th.Tensor, t: th.Tensor) -> th.Tensor:
    """``(x + (1 - t) score) / t``."""
    return (x + (1 - t) * score) / t


def log_snr(alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """Logarithm of the signal-to-noise ratio, ``log(alpha^2 / sigma^2)``."""
    return 2 * th.log(alpha / sigma)
