"""What the methods' theorems and the papers' formulas promise, on bandits with a known value function."""

from typing import Any

import pytest
import torch as th
from torch.nn import functional as F

from sb3_diffusion import DACER, QSM, SDAC
from sb3_diffusion.core.batch import Batch
from sb3_diffusion.core.distributional import dsac_loss
from sb3_diffusion.core.mixture import mixture_entropy
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.particles import effective_sample_size, particle_values, reverse_sample, self_normalized_weights
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.bandits import (
    AnalyticCritic,
    BanditEnv,
    bimodal_log_density,
    draw,
    fit,
    gaussian_log_density,
    give_critic,
    total_variation,
    uniform_batch,
)

SMALL_NET = {"net_arch": [64, 64], "state_arch": (16, 16), "time_dim": 32}


def bandit_model(algorithm: type[OffPolicyDiffusion], seed: int = 0, **kwargs: Any) -> Any:
    policy_kwargs = {**SMALL_NET, **kwargs.pop("policy_kwargs", {})}
    kwargs.setdefault("learning_rate", 3e-3)
    return algorithm("DiffusionPolicy", BanditEnv(), seed=seed, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


# -- SDAC ----------------------------------------------------------------------------------------------------------------


def sdac_target(model: SDAC, eps_reverse: th.Tensor, values: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Loss of a batch of one with given reverse draws and values, ``(K,)`` each, and the loss that the formula predicts."""
    draws = {"actor.t": th.tensor([[0.5]]), "actor.eps": th.tensor([[0.3]]), "actor.eps_reverse": eps_reverse.view(1, -1, 1)}
    model.randomness = RecordedDraws(draws)
    give_critic(model, lambda actions: values.expand(actions.shape[:-1]))
    batch = uniform_batch(model, 1)
    loss, _ = model.actor_loss(batch)
    noisy, t, *_ = model.actor.add_noise(batch.actions, model.randomness, "actor")
    predicted = model.actor.denoise(noisy, t, model.actor.encode(batch.observations))
    weights = th.softmax(values / model.temperature, dim=0)
    return loss, (predicted + (weights * eps_reverse).sum()).square().mean()


def test_sdac_target_is_minus_the_weighted_reverse_noise() -> None:
    model = bandit_model(SDAC, temperature=0.3, n_particles=1)
    th.testing.assert_close(*sdac_target(model, th.tensor([0.7]), th.tensor([2.0])))

    model = bandit_model(SDAC, temperature=0.3, n_particles=2)
    values = th.tensor([0.0, 0.3 * th.log(th.tensor(3.0)).item()])
    weights = self_normalized_weights(values.unsqueeze(0), 0.3)
    th.testing.assert_close(weights, th.tensor([[0.25, 0.75]]))
    th.testing.assert_close(*sdac_target(model, th.tensor([0.4, -0.2]), values))


def test_reverse_samples_of_a_centred_action() -> None:
    root = th.full((1, 1), 0.5**0.5)
    th.manual_seed(0)
    noise, clean = reverse_sample(th.zeros(1, 1), root, root, 100_000, Randomness(), "test")
    assert noise.abs().max() <= 1.0 and clean.abs().max() <= 1.0
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.var().item() - 0.2911) < 0.01
    th.testing.assert_close(root * clean + root * noise, th.zeros_like(clean), atol=1e-6, rtol=0.0)


def test_reverse_samples_of_an_action_outside_the_box_are_finite() -> None:
    alpha, sigma = th.full((1, 1), 0.99998), th.full((1, 1), 0.00643)
    noise, clean = reverse_sample(th.full((1, 3), 1.4), alpha, sigma, 500, Randomness(), "test")
    assert noise.isfinite().all()
    assert clean.abs().max() <= 1.0


def test_blocks_of_particles_do_not_change_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bandit_model(SDAC)
    actions, observations = th.rand(4, 30, 1), th.rand(4, 1)
    context = model.critic.encode(observations)
    whole = particle_values(model.critic, actions, context)
    monkeypatch.setattr("sb3_diffusion.core.particles.BLOCK_ROWS", 16)
    th.testing.assert_close(particle_values(model.critic, actions, context), whole)
    assert whole.shape == (4, 30)


def test_effective_sample_size_counts_the_particles_that_matter() -> None:
    weights = th.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert effective_sample_size(weights).item() == pytest.approx(2.5)


def test_sdac_with_a_flat_value_is_uniform() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    give_critic(model, lambda actions: th.zeros(actions.shape[:-1]))
    fit(model, 2500)
    samples = draw(model)
    assert total_variation(samples, lambda actions: th.zeros(actions.shape[:-1])) <= 0.08
    assert samples.std().item() == pytest.approx(0.577, abs=0.04)


def test_sdac_samples_the_boltzmann_distribution() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    log_density = bimodal_log_density(left_mass=0.7)
    give_critic(model, log_density)
    fit(model, 3000)
    samples = draw(model)
    assert total_variation(samples, log_density) <= 0.10
    assert (samples < 0).float().mean().item() == pytest.approx(0.7, abs=0.05)


def test_sdac_on_a_gaussian_is_wider_than_qsm() -> None:
    model = bandit_model(SDAC, temperature=1.0, n_particles=64)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    fit(model, 2500)
    assert draw(model).std().item() >= 0.23


# -- QSM -----------------------------------------------------------------------------------------------------------------


def test_qsm_target_of_a_linear_value() -> None:
    sigma = th.tensor([[0.2], [0.9]])
    cases = ((True, "eps", 0.1, -10.0 * sigma), (False, "raw", 1 / 50, th.full((2, 1), -150.0)))
    for normalize, form, temperature, expected in cases:
        model = bandit_model(QSM, temperature=temperature, normalize_gradient=normalize, score_form=form)
        give_critic(model, lambda actions: 3.0 * actions[..., 0])
        target, _ = model.noise_target(uniform_batch(model, 2), th.tensor([[0.5], [-2.0]]), sigma)
        th.testing.assert_close(target, expected, rtol=1e-5, atol=1e-4)


def test_qsm_is_narrower_than_the_boltzmann_distribution() -> None:
    """Its field is not the score of a diffused density: sd 0.18 instead of 0.25 with the exact field."""
    model = bandit_model(QSM, temperature=1.0, normalize_gradient=False)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    fit(model, 3000)
    samples = draw(model)
    assert 0.25 <= samples.mean().item() <= 0.36
    assert 0.14 <= samples.std().item() <= 0.22


# -- DACER ---------------------------------------------------------------------------------------------------------------


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


def test_dsac_loss_value() -> None:
    one = th.ones(1, 1)
    loss = dsac_loss(one, one, 2.0 * one[0], 2.0 * one[0], th.tensor(1.0), half_squared_error=True)
    assert loss.item() == pytest.approx(0.9091 * (0.5 + (1 - 0.5) / 1.1), abs=1e-4)


@pytest.mark.parametrize(("half", "expected"), [(False, 1.0), (True, 0.5**0.5)])
def test_dsac_standard_deviation_approaches_the_error(half: bool, expected: float) -> None:
    """The gradient with respect to the standard deviation vanishes where its square is the (half) expected squared error."""
    std = th.full((1, 2), expected, requires_grad=True)
    targets = th.tensor([1.0, -1.0])  # squared error 1 around a mean of 0
    dsac_loss(th.zeros(1, 2), std, targets, targets, th.tensor(5.0), half_squared_error=half).sum().backward()
    assert std.grad is not None
    th.testing.assert_close(std.grad, th.zeros(1, 2), atol=1e-5, rtol=0.0)


def test_dacer_backpropagates_through_the_chain() -> None:
    model = bandit_model(DACER, learning_rate=1e-3, policy_kwargs={"diffusion_steps": 5})
    give_critic(model, lambda actions: -((actions[..., 0] - 0.5) ** 2))
    loss, _ = model.actor_loss(uniform_batch(model))
    loss.backward(inputs=model.policy.actor_parameters)
    time_weights = model.actor.denoiser.time_net.mlp.first.weight_0
    assert time_weights.grad.abs().max() > 0.0
    fit(model, 500)
    assert draw(model).mean().item() == pytest.approx(0.5, abs=0.05)


def test_dacer_lowers_alpha_when_the_entropy_is_above_its_target() -> None:
    model = bandit_model(DACER)
    th.manual_seed(0)
    entropy = mixture_entropy(0.5 * th.randn(4, 4000, 1), Randomness(), n_components=1).mean()
    assert entropy.item() == pytest.approx(0.726, abs=0.03)
    before = model.policy.exploration.log_alpha.item()
    model.update_alpha(entropy)
    assert model.policy.exploration.log_alpha.item() == pytest.approx(before - 0.03, abs=1e-5)


def test_dacer_alpha_stays_in_its_range() -> None:
    model = bandit_model(DACER, alpha_learning_rate=100.0)
    for entropy in (-1e6, 1e6):
        model.update_alpha(th.tensor(entropy))
        assert -5.0 <= model.policy.exploration.log_alpha.item() <= 3.0


# -- mixtures ------------------------------------------------------------------------------------------------------------


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


# -- critics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SDAC, QSM])
def test_terminal_targets_are_the_reward(algorithm: type[OffPolicyDiffusion]) -> None:
    """With zero discounts the loss is the mean squared distance to the reward."""
    model = bandit_model(algorithm)
    batch: Batch = uniform_batch(model, 16)._replace(rewards=th.randn(16))
    loss, _ = model.critic_loss(batch)
    values = model.critic.q(batch.actions, model.critic.encode(batch.observations))
    th.testing.assert_close(loss, F.mse_loss(values, batch.rewards.expand_as(values)))


def test_target_takes_the_smaller_critic() -> None:
    model = bandit_model(SDAC)
    batch = uniform_batch(model, 4)._replace(discounts=th.full((4,), 0.5), rewards=th.ones(4))

    class Two(AnalyticCritic):
        def q(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
            return th.tensor([[3.0], [-2.0]]).expand(2, len(actions))

    model.critic_target = Two(lambda actions: actions[..., 0])
    loss, _ = model.critic_loss(batch)
    values = model.critic.q(batch.actions, model.critic.encode(batch.observations))
    th.testing.assert_close(loss, values.sub(1.0 + 0.5 * -2.0).square().mean())
