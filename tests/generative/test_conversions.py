"""Conversions between predicted quantities."""

import pytest
import torch as th

from sb3_diffusion.generative import process as c
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FlowMatching
from tests.golden_tools import close


@pytest.fixture
def point() -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    clean, noise = th.randn(2, 64, 3, generator=generator)
    return clean, noise, 0.02 + 0.96 * th.rand(64, 1, generator=generator)


def test_vp_round_trip(point: tuple[th.Tensor, th.Tensor, th.Tensor]) -> None:
    clean, noise, t = point
    alpha, sigma = ContinuousDiffusion().coefficients(t.double())
    clean, noise = clean.double(), noise.double()
    x = alpha * clean + sigma * noise
    back = c.noise_to_clean(x, noise, alpha, sigma)
    close(back, clean, 1e-5, 1e-5)
    score = c.clean_to_score(x, back, alpha, sigma)
    close(score, c.noise_to_score(noise, sigma), 1e-5, 1e-5)
    close(c.score_to_clean(x, score, alpha, sigma), clean, 1e-5, 1e-5)
    eps = c.score_to_noise(score, sigma)
    velocity = c.vp_velocity(clean, eps, alpha, sigma)
    close(c.vp_velocity_to_clean(x, velocity, alpha, sigma), clean, 1e-5, 1e-5)
    close(c.vp_velocity_to_score(x, velocity, alpha, sigma), score, 1e-5, 1e-5)
    close(c.vp_velocity_to_noise(x, velocity, alpha, sigma), noise, 1e-5, 1e-5)
    close(c.clean_to_noise(x, clean, alpha, sigma), noise, 1e-5, 1e-5)
    close(ContinuousDiffusion().log_snr(t.double()), th.log(alpha**2) - th.log(1 - alpha**2), 1e-9, 1e-9)


def test_flow_round_trip(point: tuple[th.Tensor, th.Tensor, th.Tensor]) -> None:
    clean, noise, t = point
    x = t * clean + (1 - t) * noise
    velocity = c.flow_velocity(clean, noise)
    close(c.flow_velocity_to_clean(x, velocity, t), clean, 1e-5, 1e-5)
    close(c.flow_velocity_to_noise(x, velocity, t), noise, 1e-5, 1e-5)
    score = c.flow_velocity_to_score(x, velocity, t)
    close(score, c.noise_to_score(noise, 1 - t), 1e-4, 1e-5)
    close(c.score_to_flow_velocity(x, score, t), velocity, 1e-4, 1e-5)


@pytest.mark.parametrize(
    "process", [ContinuousDiffusion("cosine"), ContinuousDiffusion("linear"), DiscreteDiffusion(), FlowMatching()]
)
def test_process_recovers_the_clean_sample_from_its_own_target(process: c.GenerativeProcess) -> None:
    process = process.double()
    generator = th.Generator().manual_seed(1)
    clean, noise = th.randn(2, 5, 7, 3, generator=generator, dtype=th.float64)
    t = th.full((5, 7, 1), 9.0 if isinstance(process, DiscreteDiffusion) else 0.6, dtype=th.float64)
    x_t = process.add_noise(clean, t, noise)
    assert x_t.shape == clean.shape
    close(process.predicted_clean(x_t, t, process.regression_target(clean, noise)), clean, 1e-6, 1e-6)
