"""Noise schedules: reference tables, published values, closed forms."""

import math
import warnings
from itertools import pairwise

import pytest
import torch as th

from sb3_diffusion.generative import schedules
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.schedules import (
    CosineSchedule,
    LinearSchedule,
    discrete_betas,
    linear_betas,
    scaled_linear_betas,
)
from tests.golden_tools import close, load, sub

GOLDEN = load("01_schedules")
RTOL, ATOL = 1e-4, 1e-6

# T, schedule, betas 1..T, squared signal 1..T
TABLES = [
    (5, "cosine", ".1013 .2795 .4736 .7241 .9990", ".89871 .64748 .34081 .09405 .00009"),
    (5, "vp", ".1959 .4588 .6358 .7549 .8350", ".80413 .43518 .15850 .03885 .00641"),
    (5, "linear", ".0001 .0051 .0100 .0150 .0200", ".99990 .99483 .98483 .97003 .95063"),
    (
        10,
        "cosine",
        ".0279 .0755 .1244 .1772 .2373 .3099 .4040 .5370 .7438 .9990",
        ".97209 .89871 .78691 .64748 .49384 .34081 .20312 .09405 .02409 .00002",
    ),
    (
        10,
        "vp",
        ".0578 .1466 .2270 .2999 .3659 .4256 .4798 .5288 .5732 .6135",
        ".94224 .80413 .62157 .43518 .27596 .15850 .08246 .03885 .01658 .00641",
    ),
    (
        20,
        "cosine",
        ".0080 .0201 .0323 .0447 .0575 .0710 .0852 .1005 .1173 .1359 .1570 .1814 .2102 .2454 .2897 .3481 .4294 .5510 "
        ".7485 .9990",
        ".99201 .97209 .94074 .89871 .84701 .78691 .71986 .64748 .57153 .49384 .41631 .34081 .26917 .20312 .14427 .09405 "
        ".05366 .02409 .00606 .00001",
    ),
    (
        20,
        "vp",
        ".0172 .0413 .0647 .0876 .1099 .1316 .1528 .1736 .1938 .2135 .2327 .2515 .2698 .2876 .3050 .3220 .3386 .3548 "
        ".3705 .3859",
        ".98278 .94224 .88128 .80413 .71579 .62157 .52657 .43518 .35086 .27596 .21174 .15850 .11574 .08246 .05730 .03885 "
        ".02570 .01658 .01044 .00641",
    ),
]


def numbers(text: str) -> th.Tensor:
    return th.tensor([float(number) for number in text.split()], dtype=th.float64)


@pytest.mark.parametrize("steps", [5, 20, 100])
@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
@pytest.mark.filterwarnings("ignore:The .* noise schedule")
def test_discrete_tables_equal_the_reference(name: str, steps: int) -> None:
    want = sub(GOLDEN, f"expected/discrete/{name}/T{steps}")
    process = DiscreteDiffusion(name, steps)
    betas = discrete_betas(name, steps)
    close(betas, want["betas"], RTOL, ATOL)
    close(betas, want["postvar_beta"], RTOL, ATOL)
    close(1 - betas, want["alphas"], RTOL, ATOL)
    close(th.cumprod(1 - betas, 0), want["alpha_hats"], RTOL, ATOL)
    close(process.posterior_variance, want["postvar_exact"], 3e-3 if steps == 100 else RTOL, ATOL)
    close(process.alpha**2, want["alpha_hats"], RTOL, ATOL)
    close(process.alpha**2 + process.sigma**2, th.ones(steps + 1))


def test_linear_table_with_other_ends() -> None:
    close(linear_betas(20, 0.003, 0.4), GOLDEN["expected/discrete/linear_custom/T20/betas_raw"], RTOL, ATOL)


@pytest.mark.parametrize(("steps", "name", "betas", "signal"), TABLES, ids=lambda value: str(value)[:6])
@pytest.mark.filterwarnings("ignore:The .* noise schedule")
def test_discrete_tables_equal_published_values(steps: int, name: str, betas: str, signal: str) -> None:
    table = discrete_betas(name, steps)
    close(table[1:], numbers(betas), 1e-3, 5e-5)
    close(th.cumprod(1 - table, 0)[1:], numbers(signal), 1e-3, 5e-6)


def test_posterior_std_of_the_cosine_table() -> None:
    want = numbers("0 .1442 .2432 .3273 .4065 .4878 .5781 .6873 .8310 .9874")
    close(DiscreteDiffusion("cosine", 10).posterior_variance[1:].sqrt(), want, 1e-3, 5e-5)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("linear", LinearSchedule()), ("cosine", CosineSchedule()), ("linear_b0.5_b6", LinearSchedule(0.5, 6.0))],
)
def test_continuous_schedules_equal_the_reference(name: str, schedule: schedules.ContinuousSchedule) -> None:
    t = GOLDEN["inputs/t"]
    alpha, sigma = schedule.alpha_sigma(t)
    close(alpha, GOLDEN[f"expected/continuous/{name}/alpha"], RTOL, ATOL)
    small = t <= 0.01
    close(sigma[small], GOLDEN[f"expected/continuous/{name}/sigma"][small], 3e-3, ATOL)
    close(sigma[~small], GOLDEN[f"expected/continuous/{name}/sigma"][~small], RTOL, ATOL)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_time_grids_equal_the_reference(name: str, steps: int, power: int) -> None:
    want = sub(GOLDEN, f"expected/tgrid/{name}/T{steps}_n{power}")
    process = ContinuousDiffusion(name)
    times = process.time_grid(steps, power=float(power))
    alpha, sigma = process.coefficients(times)
    close(times, want["t"], RTOL, ATOL)
    close(alpha, want["alpha"], RTOL, ATOL)
    beta = 1 - (alpha[1:] / alpha[:-1]) ** 2
    close(beta[:1], want["step_beta"][1:2], 5e-3, ATOL)
    close(beta[1:], want["step_beta"][2:], RTOL, ATOL)
    half_log_snr = th.log(alpha / sigma)
    close(half_log_snr[:1], want["lambda"][:1], 5e-3, ATOL)
    close(half_log_snr[1:], want["lambda"][1:], RTOL, ATOL)


@pytest.mark.parametrize(
    ("index", "time", "alpha", "sigma", "beta"),
    [
        (0, 0.0010, 0.99998, 0.00643, None),
        (1, 0.0507, 0.99590, 0.09047, 0.00814),
        (2, 0.1004, 0.98585, 0.16761, 0.02007),
        (10, 0.4978, 0.70518, 0.70903, 0.13431),
        (19, 0.9449, 0.08573, 0.99632, 0.72178),
        (20, 0.9946, 0.00842, 0.99996, 0.99036),
    ],
)
def test_cosine_grid_of_twenty_steps(index: int, time: float, alpha: float, sigma: float, beta: float | None) -> None:
    process = ContinuousDiffusion("cosine")
    times = process.time_grid(20)
    alphas, sigmas = process.coefficients(times)
    assert float(times[index]) == pytest.approx(time, abs=1e-4)
    assert float(alphas[index]) == pytest.approx(alpha, abs=1e-5)
    assert float(sigmas[index]) == pytest.approx(sigma, abs=1e-5)
    if beta is not None:
        assert float(1 - (alphas[index] / alphas[index - 1]) ** 2) == pytest.approx(beta, abs=1e-5)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), LinearSchedule(1.0, 1.0)])
def test_continuous_schedule_properties(schedule: schedules.ContinuousSchedule) -> None:
    t = th.linspace(schedule.t_min, schedule.t_max, 200, dtype=th.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    close(alpha**2 + sigma**2, th.ones_like(t), 1e-12, 1e-12)
    assert bool((alpha.diff() < 0).all())
    close(schedule.time_of_alpha(alpha), t, 1e-6, 1e-9)
    # float32 keeps the relative precision of sigma at the clean end
    close(schedule.alpha_sigma(t.float())[1], sigma, 1e-5, 0.0)


def test_sigma_vanishes_at_time_zero_and_time_is_limited() -> None:
    zero, late = th.zeros(1), th.tensor([0.9946, 0.9999, 1.0])
    for schedule in (CosineSchedule(), LinearSchedule()):
        assert float(schedule.alpha_sigma(zero)[1]) == 0.0
    alpha, _ = CosineSchedule().alpha_sigma(late)
    assert float(alpha.min()) > 0.008
    close(alpha, alpha[:1].expand(3), 1e-6, 0.0)  # without a limit, the second would be a fiftieth of the first


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_grid_even_in_log_snr(name: str) -> None:
    process = ContinuousDiffusion(name)
    times = process.time_grid(12, grid="logsnr")
    assert [float(times[0]), float(times[-1])] == [process.schedule.t_min, process.schedule.t_max]
    alpha, sigma = process.coefficients(times)
    widths = th.log(alpha / sigma).diff()
    close(widths, widths.mean().expand(12), 1e-9, 0.0)


def test_step_indices_of_a_shortened_chain() -> None:
    process = DiscreteDiffusion("cosine", 20)
    assert process.step_indices(20) == list(range(21))
    assert process.step_indices(5) == [0, 4, 8, 12, 16, 20]
    indices = process.step_indices(7)
    assert (indices[0], indices[-1], len(indices)) == (0, 20, 8)
    assert {high - low for low, high in pairwise(indices)} == {2, 3}


def test_schedule_that_does_not_reach_noise_warns_once() -> None:
    schedules._already_warned.clear()
    with pytest.warns(UserWarning, match=r"'linear' noise schedule with 20 steps leaves a signal of 0\.82"):
        DiscreteDiffusion("linear", 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiscreteDiffusion("linear", 20)
        DiscreteDiffusion("linear", 1000)
        DiscreteDiffusion("cosine", 5)
        DiscreteDiffusion("vp", 5)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"noise_schedule='sigmoid'.*cosine.*linear.*vp"):
        DiscreteDiffusion("sigmoid")
    with pytest.raises(ValueError, match=r"noise_schedule='vp'.*cosine.*linear"):
        ContinuousDiffusion("vp")
    with pytest.raises(ValueError, match="diffusion_steps must be at least 1, got 0"):
        DiscreteDiffusion("cosine", 0)
    process = ContinuousDiffusion()
    with pytest.raises(ValueError, match=r"grid='sqrt'.*logsnr"):
        process.time_grid(5, grid="sqrt")
    with pytest.raises(ValueError, match="power must be positive"):
        process.time_grid(5, grid="logsnr", power=2.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        process.time_grid(0)
    with pytest.raises(ValueError, match="21 sampling steps are more than the 20 diffusion steps"):
        DiscreteDiffusion("cosine", 20).sampler(21)


def test_schedule_object_can_be_passed() -> None:
    schedule = LinearSchedule(0.5, 6.0)
    process = ContinuousDiffusion(schedule)
    alpha, _ = process.coefficients(th.ones(1, 1, dtype=th.float64))
    assert float(alpha) == pytest.approx(math.exp(-(6.0 - 0.5) / 4 - 0.25))


def test_a_scaled_linear_table_ends_in_noise() -> None:
    """Of 100 steps the plain one leaves a squared signal of 0.36."""
    assert th.equal(scaled_linear_betas(1000), linear_betas(1000))
    th.testing.assert_close(scaled_linear_betas(100)[[0, -1]], numbers(".001 .2"))
    for steps in (20, 100, 1000):
        assert float(th.prod(1 - discrete_betas("scaled_linear", steps))) < 1e-4
    assert scaled_linear_betas(5).max() == 0.999  # 4 would be no variance
