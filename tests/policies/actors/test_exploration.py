"""Entropy of batched Gaussian mixtures."""

import pytest
import torch as th

from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.policies.actors.exploration import mixture_entropy


@pytest.mark.parametrize("dim", [1, 3])
def test_mixture_entropy_of_separated_gaussians(dim: int) -> None:
    """Three separated components: entropy = log 3 + that of one component."""
    th.manual_seed(0)
    centres = th.tensor([-20.0, 0.0, 20.0])[th.randint(3, (8, 3000))].unsqueeze(-1)
    samples = centres + 0.5 * th.randn(8, 3000, dim)
    exact = th.log(th.tensor(3.0)) + dim * (0.5 * th.log(th.tensor(2 * th.pi * th.e)) + th.log(th.tensor(0.5)))
    entropy = mixture_entropy(samples, Randomness())
    assert ((entropy - exact).abs() < 0.1 * dim).all()


def test_mixture_entropy_of_identical_samples_is_finite() -> None:
    entropy = mixture_entropy(th.ones(2, 50, 6), Randomness())
    assert entropy.isfinite().all() and (entropy < -30).all()


def test_mixture_of_fewer_samples_than_components() -> None:
    assert mixture_entropy(th.rand(2, 1, 2), Randomness()).isfinite().all()


def test_batched_mixtures_equal_separate_ones() -> None:
    th.manual_seed(0)
    samples = th.randn(3, 100, 2)
    centres = th.rand(3, 3, 1)
    together = mixture_entropy(samples, RecordedDraws({"mixture.centres": centres}))
    for row in range(3):
        alone = mixture_entropy(samples[row : row + 1], RecordedDraws({"mixture.centres": centres[:, row : row + 1]}))
        th.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)
