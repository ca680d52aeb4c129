"""Random draws: distributions, reproducibility, replay."""

import ast
import math
from pathlib import Path

import pytest
import torch as th

import sb3_diffusion
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.golden_tools import close

LIKE = th.zeros(0)


def seeded(seed: int = 0) -> Randomness:
    return Randomness(th.Generator().manual_seed(seed))


def truncated_moments(low: float, high: float) -> tuple[float, float]:
    """Mean and variance of the truncated standard normal by quadrature in float64."""
    x = th.linspace(low, high, 200_001, dtype=th.float64)
    weight = th.exp(-0.5 * (x**2 - min(low**2, high**2)))
    mean = th.trapezoid(weight * x, x) / th.trapezoid(weight, x)
    variance = th.trapezoid(weight * (x - mean) ** 2, x) / th.trapezoid(weight, x)
    return float(mean), float(variance)


@pytest.mark.parametrize(
    "draw",
    [
        lambda noise: noise.normal((3, 2), "a.b", LIKE),
        lambda noise: noise.uniform((3, 2), "a.b", LIKE),
        lambda noise: noise.integers(0, 1000, (3, 2), "a.b", LIKE),
        lambda noise: noise.truncated_normal((3, 2), th.tensor([-1.0, 0.5]), th.tensor([0.2, 2.0]), "a.b"),
    ],
    ids=["normal", "uniform", "integers", "truncated_normal"],
)
def test_draws_follow_the_generator_they_were_given(draw) -> None:  # type: ignore[no-untyped-def]
    first, second = seeded(), seeded()
    assert th.equal(draw(first), draw(second))
    assert not th.equal(draw(first), draw(seeded()))
    # a private generator neither reads nor moves the global one, and the default one is the global one
    state = th.get_rng_state()
    draw(seeded())
    assert th.equal(state, th.get_rng_state())
    th.manual_seed(3)
    one = draw(Randomness())
    th.manual_seed(3)
    assert th.equal(one, draw(Randomness()))


def test_dtype_shape_and_range_of_draws() -> None:
    noise = seeded()
    double = LIKE.double()
    assert noise.normal((2, 3), "a", double).dtype == th.float64
    assert noise.normal((), "a", LIKE).shape == ()
    uniform = noise.uniform((20_000,), "a", LIKE, -2.0, 3.0)
    assert -2.0 <= float(uniform.min()) < -1.99 and 2.99 < float(uniform.max()) < 3.0
    unit = noise.uniform((20_000,), "a", LIKE)
    assert float(unit.min()) >= 0.0 and float(unit.max()) < 1.0
    integers = noise.integers(1, 6, (2000, 1), "a", double)
    assert integers.dtype == th.int64 and sorted(set(integers.flatten().tolist())) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (-0.5, 2.5), (1.0, 1.5), (3.0, 9.0), (-7.0, -6.0), (5.5, 40.0), (-30.0, 1.0), (10.0, 11.0)]
)
def test_truncated_normal_moments(low: float, high: float) -> None:
    sample = seeded().truncated_normal((100_000,), th.tensor(low), th.tensor(high), "a.b")
    mean, variance = truncated_moments(low, high)
    assert low <= float(sample.min()) and float(sample.max()) <= high
    error = math.sqrt(variance / sample.numel())
    assert float(sample.mean()) == pytest.approx(mean, abs=4 * error)
    assert float(sample.var()) == pytest.approx(variance, rel=0.04)


def test_truncated_normal_is_the_inverse_distribution_function() -> None:
    u = th.linspace(0.05, 0.95, 7)

    class Fixed(Randomness):
        def uniform(self, shape, label, like, low=0.0, high=1.0):  # type: ignore[no-untyped-def]
            return u.to(like.dtype).clone()

    low, high = th.tensor(-1.3, dtype=th.float64), th.tensor(0.4, dtype=th.float64)
    sample = Fixed().truncated_normal((7,), low, high, "a.b")
    normal = th.distributions.Normal(0.0, 1.0)
    close((normal.cdf(sample) - normal.cdf(low)) / (normal.cdf(high) - normal.cdf(low)), u, 1e-7, 1e-7)
    # a window on the other side is the mirror image
    close(Fixed().truncated_normal((7,), -high, -low, "a.b"), -sample, 0.0, 1e-12)


def test_truncated_normal_of_the_reverse_posterior() -> None:
    # alpha = sigma, noisy action 0: the window is [-1, 1] and its variance 0.2911
    sample = seeded().truncated_normal((100_000, 1), -th.ones(1), th.ones(1), "actor.eps_reverse")
    assert float(sample.abs().max()) <= 1.0
    assert float(sample.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(sample.var()) == pytest.approx(0.2911, abs=0.01)


def test_truncated_normal_far_outside_the_box() -> None:
    # action 1.4 at the clean end of the cosine schedule: the window lies more than 60 standard deviations away
    alpha, sigma, x = th.tensor(0.99998), th.tensor(0.00643), th.tensor([1.4, -1.4, 1.02])
    low, high = (-alpha - x) / sigma, (alpha - x) / sigma
    sample = seeded().truncated_normal((500, 3), low, high, "actor.eps_reverse")
    assert bool(sample.isfinite().all())
    clean = (x + sigma * sample) / alpha
    assert float(clean.abs().max()) <= 1.0 + 1e-5
    close(clean, th.tensor([1.0, -1.0, 1.0]).expand(500, 3), 0.0, 0.02)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_truncated_normal_stays_inside_any_window(dtype: th.dtype) -> None:
    centre = th.linspace(-60, 60, 241, dtype=dtype)
    for width in (1e-6, 1e-2, 1.0, 100.0):
        low, high = centre - width / 2, centre + width / 2
        sample = seeded().truncated_normal((200, 241), low, high, "a.b")
        assert sample.dtype == dtype
        assert bool(((sample >= low) & (sample <= high)).all())


def test_recorded_draws_are_replayed() -> None:
    stored = th.arange(24.0).reshape(4, 3, 2)
    noise = RecordedDraws({"x.step_noise": stored, "x.t": th.tensor([[0.3], [0.7]]), "x.i": th.tensor([1, 5], dtype=th.int32)})
    assert th.equal(noise.normal((4, 3, 2), "x.step_noise", LIKE), stored)
    assert th.equal(noise.normal((2, 3, 2), "x.step_noise", LIKE), stored[:2])
    assert noise.normal((4, 3, 2), "x.step_noise", LIKE.double()).dtype == th.float64
    assert th.equal(noise.uniform((5, 2, 1), "x.t", LIKE, -1.0, 0.0)[3], th.tensor([[0.3], [0.7]]))
    integers = noise.integers(0, 9, (2,), "x.i", LIKE)
    assert integers.dtype == th.int64 and integers.tolist() == [1, 5]
    low = th.zeros(2, dtype=th.float64)
    assert th.equal(noise.truncated_normal((4, 3, 2), low, low + 1, "x.step_noise"), stored.double())


def test_recorded_draws_complain_clearly() -> None:
    noise = RecordedDraws({"b.eps": th.zeros(3, 2), "a.t": th.zeros(3, 1)})
    with pytest.raises(KeyError, match=r"'c\.eps'.*\['a\.t', 'b\.eps'\]"):
        noise.normal((3, 2), "c.eps", LIKE)
    for shape in [(4, 2), (3, 3), (3,), (2, 4)]:
        with pytest.raises(ValueError, match=r"'b\.eps' has shape \(3, 2\)"):
            noise.normal(shape, "b.eps", LIKE)


def test_the_source_of_draws_has_one_name() -> None:
    """``noise`` is a tensor; what draws it is ``randomness``."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(sb3_diffusion.__file__).parent.rglob("*.py")]
    arguments = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    names = [node.arg for node in arguments if "Randomness" in ast.unparse(node.annotation)]  # type: ignore[arg-type]
    assert len(names) > 20 and set(names) == {"randomness"}
