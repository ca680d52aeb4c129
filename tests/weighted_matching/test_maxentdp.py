"""MaxEntDP: its soft value, its target and its theorem on bandits."""

import math
from typing import Any

import pytest
import torch as th

from sb3_diffusion import SDAC, MaxEntDP
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import (
    AnalyticCritic,
    bandit_model,
    bimodal_log_density,
    check_bimodal,
    draw,
    fit,
    flat,
    give_critic,
    total_variation,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.helpers import part

CASE = MethodCase(
    tiny={"n_particles": 4, "n_action_candidates": 3, "n_likelihood_steps": 3, "n_likelihood_samples": 2},
    learns_with={"n_particles": 16, "n_likelihood_steps": 10, "n_likelihood_samples": 8, "learning_rate": 0.001},
    operation_counts={"operations": 1529, "kflop": 226, "synchronisations": 0},
)


@pytest.mark.parametrize(("backup_entropy", "value"), [(True, 0.3 * math.log(2.0)), (False, 0.0)])
def test_critics_learn_the_soft_value_of_a_uniform_policy(
    backup_entropy: bool, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Q = gamma (Q + temperature log 2)`` without rewards; a sign error would give the negative."""
    model = bandit_model(MaxEntDP, temperature=0.3, backup_entropy=backup_entropy, tau=0.1, learning_rate=1e-2)
    monkeypatch.setattr(model.actor, "sample", lambda context, *_, **__: th.rand(len(context), 1) * 2.0 - 1.0)
    monkeypatch.setattr(model, "log_prob", lambda actions, context: th.full((len(actions),), -math.log(2.0)))
    for update in range(300):
        for group in model.critic.optimizer.param_groups:
            group["lr"] = 1e-2 * (1.0 - update / 300)
        batch = uniform_batch(model, 64)._replace(discounts=th.full((64,), 0.5))
        loss, metrics = model.critic_loss(batch)
        model.step(part(model, "critic"), loss)
        model.update_targets()
    assert metrics["q_mean"].item() == pytest.approx(value, abs=0.01)
    assert ("entropy" in metrics) == backup_entropy


def test_target_value_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bandit_model(MaxEntDP, temperature=0.5)
    give_critic(model, lambda actions: 10.0 * actions[..., 0])
    monkeypatch.setattr(model.actor, "sample", lambda context, *_, **__: th.tensor([[0.2], [-0.4]]))
    monkeypatch.setattr(model, "log_prob", lambda actions, context: 2.0 * actions[:, 0] + 1.0)
    values, metrics = model.next_values(uniform_batch(model, 2))
    th.testing.assert_close(values, th.tensor([2.0 - 0.5 * 1.4, -4.0 - 0.5 * 0.2]))
    th.testing.assert_close(metrics["entropy"], th.tensor(-0.8))


def loss_with(model: Any, draws: dict[str, th.Tensor]) -> th.Tensor:
    model.randomness = RecordedDraws(draws)
    return model.actor_loss(uniform_batch(model, 1)._replace(actions=th.tensor([[0.1]])))[0]


def test_actor_matches_the_weighted_reverse_noise_of_the_target_critics() -> None:
    model = bandit_model(MaxEntDP, temperature=0.3, n_particles=2)
    values = th.tensor([0.0, 0.3 * math.log(3.0)])  # weights 1/4 and 3/4
    model.critic_target = AnalyticCritic(lambda actions: values.expand(actions.shape[:-1]))
    model.critic = None  # must not be asked
    reverse = th.tensor([[[0.4], [-0.2]]])
    t, eps = th.tensor([[0.5]]), th.tensor([[0.3]])
    loss = loss_with(model, {"actor.t": t, "actor.eps": eps, "actor.eps_reverse": reverse})
    alpha, sigma = model.actor.process.coefficients(t)
    context = model.actor.encode(th.zeros(1, 1))
    predicted = model.actor.denoise(alpha * 0.1 + sigma * eps, t, context)
    th.testing.assert_close(loss, (predicted + (0.25 * 0.4 + 0.75 * -0.2)).square().mean())


def test_one_particle() -> None:
    model = bandit_model(MaxEntDP, n_particles=1, n_likelihood_samples=1, n_likelihood_steps=1)
    batch = uniform_batch(model)._replace(discounts=th.ones(256))
    assert model.actor_loss(batch)[0].isfinite() and model.critic_loss(batch)[0].isfinite()


def test_flat_value_gives_the_uniform_policy_and_its_entropy() -> None:
    model = bandit_model(MaxEntDP, temperature=1.0, n_particles=32)
    give_critic(model, flat)
    fit(model, 2000, batch_size=128)
    samples = draw(model)
    assert total_variation(samples, flat) <= 0.08
    assert samples.std().item() == pytest.approx(0.577, abs=0.04)
    # estimated from the errors of the trained network
    with th.no_grad():
        _, metrics = model.next_values(uniform_batch(model))
    assert metrics["entropy"].item() == pytest.approx(math.log(2.0), abs=0.1)


def test_samples_the_boltzmann_distribution() -> None:
    model = bandit_model(MaxEntDP, temperature=1.0, n_particles=64)
    give_critic(model, bimodal_log_density(left_mass=0.7))
    fit(model, 3000, batch_size=128)
    check_bimodal(draw(model), 0.7, distance=0.10, mass_error=0.05)


def test_the_network_is_told_the_signal_to_noise_ratio() -> None:
    ours, other = bandit_model(MaxEntDP).actor, bandit_model(SDAC).actor
    t = th.tensor([[0.001], [0.4978], [0.9946]])
    log_snr = ours.process.log_snr(t)
    th.testing.assert_close(log_snr, th.tensor([[10.09], [-0.01], [-9.55]]), atol=0.01, rtol=0.0)
    th.testing.assert_close(ours.encode_time(t), ours.denoiser.encode_time(log_snr))
    th.testing.assert_close(other.encode_time(t), other.denoiser.encode_time(t))


def test_the_target_critics_choose_when_evaluating() -> None:
    policy = bandit_model(MaxEntDP, n_action_candidates=16).policy
    assert policy.choose_with_target and not bandit_model(SDAC).policy.choose_with_target
    observations = th.zeros(1, 1)
    bank = RecordedDraws({"act.x_T": policy.bank_x, "act.step_noise": policy.bank_steps})
    candidates = policy.actor.act(observations, bank, "act", 16)
    actions = {}
    for name, sign in (("critic_target", 1.0), ("critic", -1.0)):
        del policy._modules[name]
        setattr(policy, name, AnalyticCritic(lambda actions, sign=sign: sign * actions[..., 0]))  # type: ignore[misc]
    for choose_with_target in (True, False):
        policy.choose_with_target = choose_with_target
        actions[choose_with_target] = policy._predict(observations, deterministic=True).item()
    assert actions == {True: pytest.approx(candidates.max().item()), False: pytest.approx(candidates.min().item())}


def test_the_authors_rule_of_integration() -> None:
    rules = {rule: bandit_model(MaxEntDP, likelihood_rule=rule).likelihood for rule in ("trapezoid", "rectangle")}
    assert {rule: estimator.rule for rule, estimator in rules.items()} == {rule: rule for rule in rules}
    # the authors' times: uniform between 0.001 and 0.9946, without the cleaner end
    times = bandit_model(MaxEntDP, likelihood_rule="rectangle").actor.process.time_grid(20)[1:]
    th.testing.assert_close(rules["rectangle"].times, times.float())


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("temperature", 0.0, "must be positive"),
        ("n_particles", 0, "at least 1"),
        ("n_likelihood_steps", 0, "at least 1"),
        ("n_likelihood_samples", 0, "at least 1"),
        ("likelihood_rule", "simpson", "known are trapezoid, rectangle"),
    ],
)
def test_bad_arguments(argument: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}=.*{remedy}"):
        bandit_model(MaxEntDP, **{argument: value})
    with pytest.raises(ValueError, match="time_input='snr'; known are t, logsnr"):
        bandit_model(MaxEntDP, policy_kwargs={"time_input": "snr"})
