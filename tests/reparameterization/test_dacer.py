"""DACER: its value targets, temperature and actor, and its numbers beside those of the reference implementation."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DACER
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.policies.actors.exploration import mixture_entropy
from sb3_diffusion.policies.parts import own_parameters
from tests.bandits import (
    bandit_model,
    draw,
    fit,
    give_critic,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.golden_algorithms import actor_step, check_gradients, check_targets, critic_step, draws, golden_batch, golden_model
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import critic_gradients
from tests.helpers import part

CASE = MethodCase(
    tiny={"n_entropy_samples": 8, "n_entropy_states": 4},
    every_update={"alpha_update_interval": 1},
    learns_with={"reward_scale": 1.0, "alpha_update_interval": 20, "learning_rate": 0.001},
    wrong_arguments=[
        ({"target_entropy": "automatic"}, ["'automatic'", "'auto'"]),
        ({"initial_alpha": 0.0}, ["initial_alpha=0.0", "positive"]),
        ({"alpha_update_interval": 0}, ["alpha_update_interval=0", "at least 1"]),
        ({"n_entropy_samples": 0}, ["n_entropy_samples=0", "at least 1"]),
        ({"n_entropy_states": 0}, ["n_entropy_states=0", "at least 1"]),
    ],
    operation_counts={"operations": 913, "kflop": 129, "synchronisations": 0},
)


class FixedHeads:
    """Target critics that predict given means (critic, row) with a standard deviation of one."""

    def __init__(self, mean: th.Tensor):
        self.mean = mean
        self.ensemble = lambda actions, context: (mean, th.ones_like(mean))

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return observations


def test_dacer_takes_the_sample_of_the_more_pessimistic_critic_of_each_row() -> None:
    model = bandit_model(DACER, reward_scale=1.0)
    mean = th.tensor([[1.0, 5.0], [4.0, 2.0]])
    model.critic_target = FixedHeads(mean)
    z = th.tensor([[-0.5, 1.5], [2.0, -1.0]])
    zero = th.zeros(())
    names = ("next_action.x_T", "next_action.step_noise", "next_action.explore")
    model.randomness = RecordedDraws({**dict.fromkeys(names, zero), "target.z": z})
    batch = uniform_batch(model, 2)._replace(discounts=th.ones(2))
    target_mean, target_sample = model.value_targets(batch)
    th.testing.assert_close(target_mean, th.tensor([1.0, 2.0]))
    # critic 0 for the first row, critic 1 for the second
    th.testing.assert_close(target_sample, th.tensor([1.0 - 0.5, 2.0 - 1.0]))


def test_dacer_does_not_bootstrap_terminal_transitions_and_scales_rewards() -> None:
    model = bandit_model(DACER, reward_scale=0.2)
    batch = uniform_batch(model, 2)._replace(rewards=th.tensor([10.0, -5.0]))
    for target in model.value_targets(batch):
        th.testing.assert_close(target, th.tensor([2.0, -1.0]))
    th.testing.assert_close(batch.rewards, th.tensor([10.0, -5.0]))


def test_dacer_backpropagates_through_the_chain() -> None:
    model = bandit_model(DACER, learning_rate=1e-3, policy_kwargs={"diffusion_steps": 5})
    give_critic(model, lambda actions: -((actions[..., 0] - 0.5) ** 2))
    loss, _ = model.actor_loss(uniform_batch(model))
    loss.backward(inputs=own_parameters(model.actor))
    time_weights = model.actor.denoiser.time_net.mlp.first.weight_0
    assert time_weights.grad.abs().max() > 0.0
    fit(model, 500)
    assert draw(model).mean().item() == pytest.approx(0.5, abs=0.05)


def test_dacer_lowers_the_noise_when_the_entropy_is_above_its_target() -> None:
    model = bandit_model(DACER)
    th.manual_seed(0)
    entropy = mixture_entropy(0.5 * th.randn(4, 4000, 1), Randomness(), n_components=1).mean()
    assert entropy.item() == pytest.approx(0.726, abs=0.03)
    before = model.noise_factor.log_value.item()
    model.update_noise_factor(entropy)
    assert model.noise_factor.log_value.item() == pytest.approx(before - 0.03, abs=1e-5)


def test_the_noise_factor_stays_in_its_range() -> None:
    model = bandit_model(DACER, alpha_learning_rate=100.0)
    for entropy in (-1e6, 1e6):
        model.update_noise_factor(th.tensor(entropy))
        assert -5.0 <= model.noise_factor.log_value.item() <= 3.0


def dacer_model(case: Case) -> Any:
    model = golden_model(DACER, case, half_squared_error=True)
    if "params/running_q_std" in case:
        model.critic.ensemble.running_std.copy_(case["params/running_q_std"])
    with th.no_grad():
        model.noise_factor.log_value.copy_(case["params/log_alpha/value"])
    model.randomness = draws(case)
    return model


@pytest.mark.parametrize("name", ["04_dacer_with_actor", "04_dacer_critic_only"])
def test_dacer_critic(name: str) -> None:
    case = load(name)
    model, batch = dacer_model(case), golden_batch(case)
    actions = model.noisy_samples(model.actor.encode(batch.next_observations), "next_action")
    close(actions, case["expected/next_action"], atol=2e-5)
    target_mean, target_sample = model.value_targets(batch)
    close(target_mean, case["expected/q_target_mean"].squeeze(-1))
    close(target_sample, case["expected_fixed/q_target_sample"].squeeze(-1))
    loss, _ = model.critic_loss(batch)
    close(loss, case["expected_fixed/loss/critic"])
    close(model.critic.ensemble.running_std, case["expected/new_running_q_std"])
    model.step(part(model, "critic"), loss)
    check_gradients(critic_gradients(model.critic.ensemble), sub(case, "expected_fixed/grads/critic"))


@pytest.mark.parametrize("name", ["04_dacer_with_actor", "04_dacer_critic_only"])
def test_dacer_critic_with_the_choice_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes one critic's sample for the whole batch, chosen by comparing two rows of the minimum."""
    case = load(name)
    model, batch = dacer_model(case), golden_batch(case)
    target_mean, target_sample = model.value_targets(batch)
    reference_sample = case["expected/q_target_sample"].squeeze(-1)
    assert not th.allclose(target_sample, reference_sample, rtol=1e-3)
    monkeypatch.setattr(model, "value_targets", lambda batch: (target_mean, reference_sample))
    critic_step(model, batch, case)
    check_targets(model, case)


def test_dacer_actor() -> None:
    case = load("04_dacer_with_actor")
    model, batch = dacer_model(case), golden_batch(case)
    actions = model.actor.sample(model.actor.encode(batch.observations), model.randomness, "actor")
    close(actions, case["expected/actor_action"], atol=2e-5)
    loss, _ = model.actor_loss(batch)
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)


def test_the_noise_factor() -> None:
    case = load("04_dacer_alpha")
    model = dacer_model(case)
    samples = model.noisy_samples(model.actor.encode(case["batch/obs"]), "entropy", 20)
    close(samples, case["expected/action_samples"], atol=2e-5)
    for group in model.noise_factor.optimizer.param_groups:
        group["lr"] = 1e-2
    metrics = model.update_noise_factor(case["inputs/entropy"])
    close(metrics["alpha_loss"], case["expected/loss/alpha"], rtol=1e-5)
    close(model.noise_factor.log_value, case["expected/new_params/log_alpha/value"], rtol=1e-5)


def test_dacer_mixture_entropy_is_close_to_the_one_of_the_reference() -> None:
    case = load("04_dacer_alpha")
    entropy = mixture_entropy(case["expected/action_samples"], Randomness()).mean()
    close(entropy, case["expected/gmm_entropy_of_samples"], rtol=0.0, atol=0.3)
