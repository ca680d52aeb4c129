"""Gaussian actors: densities against torch.distributions, numerics at the border, gradients."""

import pytest
import torch as th
from torch import distributions as dist

from sb3_diffusion.networks.gaussian import DeterministicActor, GaussianActor, squashed_log_prob


def test_squashed_density_against_torch() -> None:
    u = th.linspace(-7.9, 7.9, 200, dtype=th.float64).reshape(100, 2)
    mean, std = th.tensor([0.3, -1.0]).double(), th.tensor([0.7, 2.0]).double()
    base = dist.Independent(dist.Normal(mean, std), 1)
    # the transform caches u, so that torch does not have to invert its own tanh
    transform = dist.TanhTransform(cache_size=1)
    want = dist.TransformedDistribution(base, [transform]).log_prob(transform(u))
    th.testing.assert_close(squashed_log_prob(u, mean, std), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_squashed_density_is_finite_far_out(dtype: th.dtype) -> None:
    u = th.tensor([[20.0], [-20.0], [100.0], [-100.0]], dtype=dtype, requires_grad=True)
    log_prob = squashed_log_prob(u, th.zeros(1, dtype=dtype), th.ones(1, dtype=dtype))
    (slope,) = th.autograd.grad(log_prob.sum(), u)
    assert log_prob.isfinite().all() and slope.isfinite().all()


def test_squashed_density_integrates_to_one() -> None:
    u = th.linspace(-12, 12, 20_001, dtype=th.float64).unsqueeze(-1)
    action = u.tanh().squeeze(-1)
    density = squashed_log_prob(u, th.full((1,), 0.4).double(), th.full((1,), 0.8).double()).exp()
    assert abs(th.trapezoid(density, action).item() - 1.0) < 1e-5


def test_samples_stay_inside_and_carry_gradients() -> None:
    actor = GaussianActor(5, 2, (16, 16))
    features = th.randn(64, 5)
    action, log_prob = actor.sample(features, 10 * th.randn(64, 2))
    assert action.abs().max() < 1.0 and action.atanh().isfinite().all() and log_prob.isfinite().all()
    (action.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in actor.parameters())


@pytest.mark.parametrize("squash", ["action", "mean", "none"])
@pytest.mark.parametrize("state_dependent_std", [True, False])
def test_sample_density_matches_log_prob(squash: str, state_dependent_std: bool) -> None:
    actor = GaussianActor(5, 2, (16, 16), squash=squash, state_dependent_std=state_dependent_std, log_std_bounds=(-2.0, -1.0))
    actor.double()
    features = 0.1 * th.randn(32, 5, dtype=th.float64)
    action, log_prob = actor.sample(features, th.randn(32, 2, dtype=th.float64))
    th.testing.assert_close(actor.log_prob(features, action), log_prob, rtol=1e-6, atol=1e-6)
    if squash == "action":
        with pytest.raises(ValueError, match="entropy"):
            actor.entropy(features)
    else:
        mean, std = actor(features)
        th.testing.assert_close(actor.entropy(features), dist.Normal(mean, std).entropy().sum(-1))


def test_unsquashed_deterministic_actor() -> None:
    actor = DeterministicActor(5, 2, (16, 16), squash=False)
    features = 10 * th.randn(32, 5)
    assert actor(features).abs().max() > 1
    actor.squash = True
    assert actor(features).abs().max() <= 1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="squash"):
        GaussianActor(5, 2, squash="both")
    with pytest.raises(ValueError, match="log_std_bounds"):
        GaussianActor(5, 2, log_std_bounds=(1.0, -1.0))
