"""DIME: soft values, the joint batch, signs of the entropy and its weight, and the distribution that it converges to."""

import pathlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_diffusion import DIME
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.controlled import PathSample
from sb3_diffusion.networks.norms import BatchRenorm
from sb3_diffusion.policies.parts import own_parameters
from tests.bandits import bandit_model, draw, fit, gaussian_log_density, give_critic, total_variation, uniform_batch
from tests.cases import MethodCase
from tests.environments import PointEnv
from tests.helpers import assert_identical, make, make_filled, parameters, sample_batch, with_logger

CASE = MethodCase(
    tiny={"gradient_steps": 1, "policy_delay": 1, "v_min": -50.0, "v_max": 50.0, "n_atoms": 11},
    tiny_policy={"output_gain": 0.5},
    with_targets={"target_critics": True},
    learns_with={
        "v_min": -25.0,
        "v_max": 5.0,
        "initial_alpha": 0.1,
        "learning_rate": 0.001,
        "gradient_steps": 1,
        "policy_delay": 1,
        "batch_renorm": {"warmup": 500},
    },
    critic_width=2048,
    wrong_arguments=[
        ({"target_run_cost": "automatic"}, ["'automatic'", "'auto'"]),
        ({"max_actor_grad": 0.0}, ["max_actor_grad=0.0", "positive", "None"]),
        ({"initial_alpha": 0.0}, ["initial_alpha=0.0", "positive"]),
        ({"v_min": 20.0, "v_max": 10.0}, ["v_min=20.0", "v_max=10.0"]),
        ({"n_atoms": 1}, ["n_atoms=1", "at least 2"]),
        ({"batch_renorm": {"momentum": 1.0}}, ["momentum=1.0", "[0, 1)"]),
        ({"policy_kwargs": {"process": "discrete"}}, ["'discrete'", "noise", "DIME", "control"]),
        ({"policy_kwargs": {"solver": "ddim"}}, ["'ddim'", "'controlled'", "none"]),
        ({"policy_kwargs": {"time_input": "logsnr"}}, ["'logsnr'", "'controlled'", "signal-to-noise"]),
        ({"policy_kwargs": {"process_kwargs": {"prior_std": 0.0}}}, ["prior_std=0.0", "positive"]),
    ],
    operation_counts={"operations": 2453, "kflop": 365, "synchronisations": 0},
)

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": {"pi": [64, 64], "qf": [16]}}}


class Path:
    """Stands in for the method's chain: the same action and log ratio in every row."""

    def __init__(self, run_cost: float, prior: float = 0.0):
        self.run_cost, self.prior = run_cost, prior

    def __call__(self, observations: th.Tensor, label: str) -> PathSample:
        rows = observations.shape[0]
        return PathSample(th.zeros(rows, 1), th.full((rows,), self.run_cost), th.full((rows,), self.prior))


class FixedLogits(nn.Module):
    """Ensemble whose members predict given probabilities in every row."""

    def __init__(self, model: Any, probabilities: list[list[float]]):
        super().__init__()
        self.logits = th.tensor(probabilities).clamp(min=1e-12).log()
        self.critics = model.critic.ensemble
        self.log_probs = self.critics.log_probs
        self.n_calls = 0

    def encode_state(self, features: th.Tensor) -> th.Tensor:
        return features

    def forward(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        self.n_calls += 1
        return self.logits.unsqueeze(1).expand(-1, len(actions), -1)


# -- the policy ---------------------------------------------------------------------------------------------------------


def test_dime_samples_the_boltzmann_distribution_and_bounds_its_entropy() -> None:
    """With temperature 1 the optimum is exp(Q) / Z, and the mean log ratio at most half a nat above its mean log density."""
    log_density = gaussian_log_density(0.3, 0.25)
    model = bandit_model(DIME, learning_rate=1e-2, alpha_learning_rate=0.0, **SMALL)
    give_critic(model, log_density)
    fit(model, 300, 128)
    assert total_variation(draw(model), log_density) <= 0.15
    with th.no_grad():
        path = model.sample_path(th.zeros(20_000, 1), "test")
    counts = th.histc(path.samples, 100, -1.0, 1.0)
    share = counts / counts.sum()
    mean_log_density = (share * (share * 50.0).clamp(min=1e-12).log()).sum().item()
    gap = path.log_ratio.mean().item() - mean_log_density
    assert -0.05 <= gap < 0.5


def test_a_fresh_policy_is_the_prior_behind_tanh() -> None:
    model = bandit_model(DIME, **SMALL)
    prior = th.tanh(2.5 * th.randn(20_000, 1))
    edges = th.linspace(-1.0, 1.0, 21)
    shares = [th.histogram(samples[:, 0], edges).hist / 20_000 for samples in (prior, draw(model, 20_000))]
    assert 0.5 * float((shares[0] - shares[1]).abs().sum()) < 0.03


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_actor_minimises_its_cost_minus_the_mean_value(temperature: float) -> None:
    model = bandit_model(DIME, initial_alpha=temperature, **SMALL)
    give_critic(model, lambda actions: actions[..., 0])
    model.critic.q = lambda actions, context: th.stack([actions[:, 0] + 3.0, actions[:, 0] + 5.0])
    model.sample_path = Path(0.7, prior=-2.0)
    loss, metrics = model.actor_loss(uniform_batch(model, 4))
    assert loss.item() == pytest.approx(temperature * (0.7 - 2.0) - 4.0)
    assert metrics["entropy_bound"].item() == pytest.approx(1.3) and metrics["run_cost"].item() == pytest.approx(0.7)


def test_entries_of_the_actors_gradient_are_limited() -> None:
    for bound in (None, 1e-4):
        model = make_filled(DIME, max_actor_grad=bound)
        model.train(1, 8)
        actor, critic = (
            max(float(p.grad.abs().max()) for p in network if p.grad is not None)
            for network in (own_parameters(model.actor), own_parameters(model.critic))
        )
        assert critic > 1e-2
        assert actor > 1e-2 if bound is None else actor == pytest.approx(bound)


# -- temperature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run_cost", "sign"), [(5.0, 1.0), (3.0, -1.0)])
def test_too_little_entropy_raises_the_temperature(run_cost: float, sign: float) -> None:
    """The target of the run cost is 4 per action dimension; Adam's first step is the learning rate."""
    model = bandit_model(DIME, initial_alpha=0.5, alpha_learning_rate=0.01, **SMALL)
    metrics = model.update_temperature(th.tensor(run_cost))
    expected = 0.5 * np.exp(sign * 0.01)
    assert metrics["alpha"].item() == model.temperature().item() == pytest.approx(expected, rel=1e-5)


def test_target_of_the_run_cost() -> None:
    model = bandit_model(DIME, target_run_cost=-1.0, **SMALL)
    assert model.update_temperature(th.tensor(0.0))["alpha"].item() > 1.0


@pytest.mark.parametrize(("run_cost", "bound"), [(1e6, 5.0), (-1e6, -10.0)])
def test_the_temperature_stops_at_its_bound_and_comes_back(run_cost: float, bound: float) -> None:
    model = bandit_model(DIME, alpha_learning_rate=2.0, **SMALL)
    log_value = model.temperature.log_value
    for _ in range(20):
        metrics = model.update_temperature(th.tensor(run_cost))
        assert -10.0 <= log_value.item() <= 5.0 and bool(metrics["alpha"].isfinite())
    assert log_value.item() == bound
    for _ in range(200):
        model.update_temperature(th.tensor(-run_cost))
    assert log_value.item() != bound


def test_the_temperature_follows_the_actors_delay_and_is_saved(tmp_path: pathlib.Path) -> None:
    model = make_filled(DIME, policy_delay=3, alpha_learning_rate=0.1)
    values = []
    for _ in range(6):
        model.train(1, 8)
        values.append(model.temperature().item())
    assert values[0] == values[1] == 1.0 != values[2] == values[3] == values[4] != values[5]
    model.save(tmp_path / "model")
    loaded = with_logger(DIME.load(tmp_path / "model", device="cpu"))
    assert loaded.temperature().item() == values[5]
    assert_identical(loaded.temperature.optimizer.state_dict(), model.temperature.optimizer.state_dict())


# -- critics ------------------------------------------------------------------------------------------------------------


def by_hand(**batch: Any) -> tuple[Any, Batch]:
    """A model with three atoms -1, 0, 1, temperature 2, log ratio 0.1, and target critics that predict 1 and -1."""
    settings: dict[str, Any] = {"v_min": -1.0, "v_max": 1.0, "n_atoms": 3, "initial_alpha": 2.0, "batch_renorm": False}
    model = bandit_model(DIME, target_critics=True, critic_entropy_coef=0.25, **settings, **SMALL)
    model.sample_path = Path(0.4, prior=-0.3)
    model.critic_target.ensemble = FixedLogits(model, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    return model, uniform_batch(model, 2)._replace(**batch)


def test_critic_loss_by_hand() -> None:
    """
    First row: atoms 0.5 - 0.5 * 2 * 0.1 + 0.5 * (-1, 1) = -0.1 and 0.9, half of the mass each.
    Second row: terminal, no value and no entropy.
    """
    model, batch = by_hand(rewards=th.tensor([0.5, -0.25]), discounts=th.tensor([0.5, 0.0]))
    loss, metrics = model.critic_loss(batch)
    target = th.tensor([[0.05, 0.5, 0.45], [0.25, 0.75, 0.0]])
    logits = model.critic.ensemble(batch.actions, model.critic.encode(batch.observations))
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    expected = (-(target * log_probs).sum(-1) - 0.25 * entropy).mean(1).sum(0)
    th.testing.assert_close(loss, expected)
    assert metrics["below_v_min"].item() == metrics["above_v_max"].item() == 0.0
    th.testing.assert_close(metrics["q_mean"], (log_probs.exp() @ th.tensor([-1.0, 0.0, 1.0])).mean().detach())


def test_clipped_shares_by_hand() -> None:
    """Atoms 0.5 and 1.3 in the first row, -1.6 and -1.4 in the second: 0.25 of the mass is above, 0.5 below."""
    model, batch = by_hand(rewards=th.tensor([0.98, -1.48]), discounts=th.tensor([0.4, 0.1]))
    _, metrics = model.critic_loss(batch)
    assert metrics["above_v_max"].item() == pytest.approx(0.25)
    assert metrics["below_v_min"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("target_critics", [False, True])
def test_terminal_transitions_have_no_future(target_critics: bool) -> None:
    for terminal in (True, False):
        env = PointEnv(**{"terminate_after" if terminal else "truncate_after": 1})  # type: ignore[arg-type]
        model = make_filled(DIME, env, batch_renorm=False, target_critics=target_critics)
        batch = sample_batch(model)
        losses = []
        for next_observations in (batch.next_observations, -batch.next_observations):  # type: ignore[operator]
            th.manual_seed(0)
            losses.append(model.critic_loss(batch._replace(next_observations=next_observations))[0].item())
        assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) == terminal


def test_both_halves_of_the_joint_batch_are_normalised_together() -> None:
    model = make_filled(DIME)
    model.policy.set_training_mode(True)
    batch = sample_batch(model)
    batch = batch._replace(next_observations=batch.next_observations + 2.0)  # type: ignore[operator, arg-type]
    norm = model.critic.ensemble.input_norms[0]
    norm.running_mean.zero_()
    model.critic_loss(batch)
    both = th.cat((batch.observations, batch.next_observations))  # type: ignore[arg-type]
    th.testing.assert_close(norm.running_mean, 0.01 * both.mean(0))
    assert norm.running_batches == 1.0


def test_the_joint_batch_is_one_forward_pass_whose_second_half_is_fixed() -> None:
    model = make_filled(DIME)
    batch, next_actions = sample_batch(model), th.rand(8, 2)
    model.critic.ensemble.train()
    now, following = model.log_probs(batch, next_actions)
    context = model.critic.encode(th.cat((batch.observations, batch.next_observations)))  # type: ignore[arg-type]
    both = model.critic.ensemble(th.cat((batch.actions, next_actions)), context).log_softmax(-1)
    th.testing.assert_close(th.cat((now, following), dim=1), both)
    assert now.requires_grad and not following.requires_grad


def test_the_actor_sees_running_statistics_and_does_not_change_them() -> None:
    model = make_filled(DIME)
    model.train(3, 8)
    model.policy.set_training_mode(True)
    batch = sample_batch(model)
    before = {name: value for name, value in parameters(model.critic).items() if "running_" in name}
    assert len(before) == 9  # two inputs and one layer, three numbers each
    model.actor_loss(batch)
    after = parameters(model.critic)
    assert all(th.equal(after[name], value) for name, value in before.items())
    model.critic_loss(batch)
    after = parameters(model.critic)
    assert not any(th.equal(after[name], value) for name, value in before.items())


def test_statistics_of_the_critics_are_saved(tmp_path: pathlib.Path) -> None:
    model = make(DIME, n_action_candidates=4).learn(30)
    model.save(tmp_path / "model")
    loaded = DIME.load(tmp_path / "model", device="cpu")
    for one, other in zip(model.critic.modules(), loaded.critic.modules(), strict=True):
        if isinstance(one, BatchRenorm):
            assert one.running_batches == other.running_batches == 20.0
            th.testing.assert_close(one.running_var, other.running_var, rtol=0.0, atol=0.0)


def test_without_target_critics_there_is_one_ensemble() -> None:
    model = make_filled(DIME)
    assert model.critic_target is model.critic is model.policy.critic_target
    before = parameters(model.critic)
    model.update_targets()
    assert_identical(parameters(model.critic), before)
    assert make(DIME, target_critics=True).critic_target is not model.critic


def test_batch_renorm_takes_arguments() -> None:
    model = make(DIME, batch_renorm={"warmup": 5})
    assert {module.warmup for module in model.critic.modules() if isinstance(module, BatchRenorm)} == {5}
    assert not any(isinstance(module, BatchRenorm) for module in make(DIME, batch_renorm=False).critic.modules())


@pytest.mark.parametrize(("reward", "name", "change"), [(30.0, "v_max=5.0", "Raise"), (-30.0, "v_min=-5.0", "Lower")])
def test_returns_that_leave_the_support_are_reported_once(reward: float, name: str, change: str) -> None:
    model = make_filled(DIME, v_min=-5.0, v_max=5.0)
    model.replay_buffer.rewards[:] = reward
    with pytest.warns(UserWarning, match="leave the support") as caught:
        model.train(2, 8)
        model.train(2, 8)
    messages = [str(warning.message) for warning in caught if "leave the support" in str(warning.message)]
    assert len(messages) == 1
    assert name in messages[0] and change in messages[0] and "100%" in messages[0]


def test_returns_inside_the_support_are_not_reported() -> None:
    model = make_filled(DIME, v_min=-200.0, v_max=200.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train(3, 8)
    assert model.logger.name_to_value["train/above_v_max"] < 0.1
