"""Advantages: beside the reference, and beside a double loop that a reader can check."""

import pytest
import torch as th

from sb3_diffusion.core.ratios.surrogate import clipped_surrogate, divergence_estimate
from sb3_diffusion.core.update.adaptive_rate import adapt_learning_rates
from sb3_diffusion.data.advantages import TIMEOUT_BOOTSTRAPS, following_values, generalized_advantages, standardized
from sb3_diffusion.networks.gaussian import gaussian_divergence
from tests.golden_tools import close, load, sub

CASE = load("06_gae")


@pytest.mark.parametrize("name", ["g0.97_l0.9", "g0.99_l0.95", "g0.9_l1.0"])
def test_beside_the_reference(name: str) -> None:
    gamma, gae_lambda = (float(part[1:]) for part in name.split("_"))
    data = {key: value.squeeze(-1) for key, value in sub(CASE, "inputs").items() if value.shape == (5, 4, 1)}
    truncated = data["truncated"].bool()
    terminated = data["terminated"].bool() & ~truncated  # both flags are a time-out there
    following = following_values("current", data["values"], data["next_values"], terminated, truncated)
    advantages = generalized_advantages(data["rewards"], data["values"], following, terminated | truncated, gamma, gae_lambda)
    want = sub(CASE, f"expected/{name}")
    close(advantages, want["advantages"].squeeze(-1), rtol=1e-5, atol=1e-6)
    close(advantages + data["values"], want["returns"].squeeze(-1), rtol=1e-5, atol=1e-6)
    close(standardized(advantages), want["advantages_normalized"].squeeze(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", TIMEOUT_BOOTSTRAPS)
def test_beside_a_double_loop(rule: str) -> None:
    generator = th.Generator().manual_seed(0)
    shape, gamma, gae_lambda = (7, 5), 0.9, 0.8
    rewards, values, next_values, final_values = th.randn(4, *shape, generator=generator)
    kinds = th.randint(4, shape, generator=generator)
    kinds[-1, :2] = th.tensor([1, 2])
    terminated, truncated = kinds == 1, kinds == 2
    final_valid = truncated & (th.rand(shape, generator=generator) < 0.5)
    assert terminated[-1].any() and truncated[-1].any() and (truncated & ~final_valid).any()
    following = following_values(rule, values, next_values, terminated, truncated, final_values, final_valid)
    got = generalized_advantages(rewards, values, following, terminated | truncated, gamma, gae_lambda)
    for env in range(shape[1]):
        carried = 0.0
        for step in reversed(range(shape[0])):
            at = step, env
            future = float(next_values[at])
            if terminated[at] or (truncated[at] and rule == "off"):
                future = 0.0
            elif truncated[at] and rule == "current":
                future = float(values[at])
            elif truncated[at] and rule == "final_obs":
                future = float(final_values[at] if final_valid[at] else values[at])
            error = float(rewards[at]) + gamma * future - float(values[at])
            carried = error + gamma * gae_lambda * carried * (not (terminated[at] or truncated[at]))
            close(got[at], th.tensor(carried), atol=1e-6)


def test_the_surrogate_beside_the_reference() -> None:
    data = {name: value.squeeze(-1) for name, value in sub(CASE, "inputs").items() if value.shape == (8, 1)}
    for clip_range in (0.2, th.tensor(0.2), th.full((8,), 0.2)):
        loss, metrics = clipped_surrogate(data["new_logp"] - data["old_logp"], data["adv"], clip_range)
        close(loss, CASE["expected/surrogate/loss"], rtol=1e-5, atol=1e-6)
        close(metrics["clip_fraction"], CASE["expected/surrogate/clip_fraction"].float())


def test_a_ratio_of_many_dimensions_does_not_overflow() -> None:
    log_ratio = th.tensor([200.0, -200.0], requires_grad=True)
    loss, _ = clipped_surrogate(log_ratio, th.tensor([-1.0, -1.0]), 0.2)
    loss.backward()
    assert loss.isfinite() and log_ratio.grad is not None and log_ratio.grad.isfinite().all()
    assert divergence_estimate(log_ratio).isfinite()


def test_divergences_beside_the_reference() -> None:
    data = sub(CASE, "inputs")
    got = gaussian_divergence(*(data[f"kl_{name}"] for name in ("mean0", "std0", "mean1", "std1")))
    close(got, CASE["expected/kl"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_rates_beside_the_reference(as_tensor: bool) -> None:
    for kl, expected in zip(CASE["inputs/kl_values"], CASE["expected/adaptive_lr"], strict=True):
        optimizers = [th.optim.SGD([th.zeros(1)], lr=rate) for rate in (1e-3, 8e-3)]
        if as_tensor:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = th.tensor(optimizer.param_groups[0]["lr"])
        adapt_learning_rates(optimizers, kl, 0.01, (1e-5, 1e-2))
        close(th.tensor([float(one.param_groups[0]["lr"]) for one in optimizers]), expected, rtol=1e-5, atol=1e-9)


def test_rates_stay_within_their_bounds() -> None:
    (optimizer,) = optimizers = [th.optim.SGD([th.zeros(1)], lr=2e-5)]
    for _ in range(5):
        adapt_learning_rates(optimizers, th.tensor(1.0), 0.01, (1e-5, 1e-2))
    assert optimizer.param_groups[0]["lr"] == 1e-5
    for _ in range(30):
        adapt_learning_rates(optimizers, th.tensor(1e-4), 0.01, (1e-5, 1e-2))
    assert optimizer.param_groups[0]["lr"] == 1e-2
