"""EDM preconditioning and noise levels."""

import pytest
import torch as th

from sb3_diffusion.generative.edm import EDM
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.golden_tools import close, load

GOLDEN = load("01_schedules")


def test_scalings_equal_the_reference() -> None:
    scalings = EDM().scalings(GOLDEN["inputs/sigma"])
    for name, got in {
        "c_skip": scalings.skip,
        "c_out": scalings.out,
        "c_in": scalings.input,
        "c_noise": scalings.noise,
    }.items():
        close(got, GOLDEN[f"expected/edm/{name}"], 1e-4, 1e-6)


def test_law_of_the_noise_levels_equals_the_reference() -> None:
    edm = EDM()
    close(th.tensor(edm.distribution_bounds()), GOLDEN["expected/edm/cdf_bounds"], 1e-3, 1e-6)
    draws = RecordedDraws({"bc.u": GOLDEN["inputs/edm_u"]})
    sigma = edm.sample_sigma((9,), draws, "bc.u", like=th.zeros(0))
    assert sigma.dtype == th.float32
    close(sigma, GOLDEN["expected/edm/loglogistic_sigma"], 1e-4, 1e-6)


def test_noise_levels_cover_their_range() -> None:
    edm = EDM(sigma_data=0.5, sigma_min=0.01, sigma_max=20.0)
    low, high = edm.distribution_bounds()
    ends = edm.sigma_of_quantile(th.tensor([low, high], dtype=th.float64))
    close(ends, th.tensor([0.01, 20.0]), 1e-6, 0.0)
    sigma = edm.sample_sigma((50_000, 1), Randomness(th.Generator().manual_seed(0)), "bc.u", like=th.zeros(0))
    assert float(sigma.min()) >= 0.01 and float(sigma.max()) <= 20.0
    assert float(sigma.median()) == pytest.approx(0.5, rel=0.02)  # the logistic law is symmetric in log(sigma)


def test_preconditioning_is_optimal_for_gaussian_data() -> None:
    # with data N(0, sigma_data^2) the posterior mean is what the denoiser returns when the network outputs zero
    edm = EDM(sigma_data=0.7)
    sigma = th.logspace(-3, 1.5, 20, dtype=th.float64).unsqueeze(-1)
    clean, noise = th.randn(2, 20, 3, dtype=th.float64, generator=th.Generator().manual_seed(0))
    x = edm.add_noise(clean, sigma, noise)
    close(edm.denoised(x, sigma, th.zeros_like(x)), x * 0.7**2 / (0.7**2 + sigma**2), 1e-9, 1e-12)
    scalings = edm.scalings(sigma)
    # unit variance of the network's input and of its target
    close(scalings.input**2 * (0.7**2 + sigma**2), th.ones_like(sigma), 1e-9, 0.0)
    target_variance = ((1 - scalings.skip) ** 2 * 0.7**2 + scalings.skip**2 * sigma**2) / scalings.out**2
    close(target_variance, th.ones_like(sigma), 1e-9, 0.0)


def test_wrong_range_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"sigma_min=2\.0, sigma_max=1\.0"):
        EDM(sigma_min=2.0, sigma_max=1.0)
    assert not EDM().state_dict()
