"""Diffusion-DICE: its dual problem by hand, its energies and guided actions beside exact ones, and who chooses."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DiffusionDICE
from sb3_diffusion.networks.backbones.unet import ActionUNet
from sb3_diffusion.policies.guides import EnergyGuide
from sb3_diffusion.q_guidance.diffusiondice import density_ratio, dual, log_mean_error
from tests.cases import MethodCase
from tests.helpers import act, flat_parameters, make, make_filled, observations, part, point_data, sample_batch
from tests.lobes import (
    ExactEnergy,
    guided_draws,
    know_lobes,
    lobe_batch,
    lobe_model,
    near_a_lobe,
    pulls,
    right_mass,
    train,
)

CASE = MethodCase(
    tiny={
        "n_noisy": 3,
        "n_selection_critics": 0,  # the shared suites ask the critics
        "n_action_candidates": 3,
        "n_behavior_candidates": 2,
        "guidance_scale": 1.0,
        "energy_net_arch": (16,),
        "actor_learning_rate": None,
        "behavior_batch_size": 8,
        "behavior_updates": 2,
        "training_updates": 4,
    },
    # without noise in its steps, a fresh chain ends in a corner of the box
    tiny_policy={"solver": "ddpm", "noise_schedule": "cosine"},
    wrong_arguments=[
        ({"alpha": 0.0}, ["alpha=0.0", "greedier"]),
        ({"guidance_scale": -1.0}, ["guidance_scale=-1.0", "no guidance"]),
        ({"n_noisy": 0}, ["n_noisy=0", "at least 1"]),
        ({"max_weight": 0.0}, ["max_weight=0.0"]),
        ({"n_selection_critics": -1}, ["n_selection_critics=-1", "at least 0"]),
        ({"selection": "mean"}, ["selection='mean'", "argmax", "softmax"]),
        ({"selection_temperature": 0.0}, ["selection_temperature=0.0", "greedier"]),
        ({"n_behavior_candidates": 0}, ["n_behavior_candidates=0", "at least 1"]),
        ({"weight_decay": -1.0}, ["weight_decay=-1.0"]),
        ({"behavior_batch_size": 0}, ["behavior_batch_size=0", "at least 1"]),
        ({"behavior_updates": 0}, ["behavior_updates=0", "at least 1"]),
        ({"training_updates": 0}, ["training_updates=0", "at least 1"]),
        ({"value_learning_rate": -1.0}, ["value_learning_rate=-1.0"]),
        ({"energy_learning_rate": -1.0}, ["energy_learning_rate=-1.0"]),
        ({"policy_kwargs": {"guidance_scale": 2.0}}, ["guidance_scale=2.0", "DiffusionDICE requires"]),
        (
            {"policy_kwargs": {"process": "flow", "solver": None, "noise_schedule": None}},
            ["'flow'", "velocity", "DiffusionDICE", "noise"],
        ),
    ],
    operation_counts={"operations": 1185, "kflop": 521, "synchronisations": 0},
)


def test_the_defaults_are_the_papers() -> None:
    model = DiffusionDICE("DiffusionPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    assert isinstance(model.actor.denoiser.trunk, ActionUNet)
    chain = model.actor.update_chain
    assert (chain.solver, chain.steps, model.policy.n_action_candidates) == ("dpm++2m", 15, 8)
    assert (model.critic.n_critics, model.ensemble.n_critics, model.batch_size) == (2, 10, 512)
    energy: Any = model.energy.network.trunk
    assert energy.first.in_dims == (3, 1, 32) and [layer.out_features for layer in energy.hidden] == [256] * 3
    assert len(model.value.mlp.norms) == 2
    for network in (model.critic, model.ensemble, model.value, model.energy):
        assert type(network.optimizer) is th.optim.AdamW and network.optimizer.defaults["weight_decay"] == 1e-4
    assert type(model.actor.optimizer) is th.optim.Adam
    rates = {part.name: model.lr_schedule_of(part.name)(1.0) for part in model.parts()}
    assert rates == {"value": 3e-4, "critic": 3e-4, "actor": 1e-4, "energy": 3e-4, "ensemble": 3e-4}
    stages = [(stage.name, stage.parts, stage.updates, stage.batch_size) for stage in model.stages()]
    training = ("training", ("value", "critic", "energy", "ensemble"), 1_000_000, None)
    assert stages == [("behavior", ("actor",), 600_000, 4096), training]


# -- by hand --------------------------------------------------------------------------------------------------------------


def test_the_dual_function_and_its_slope() -> None:
    u = th.tensor([2.0, -1.0, 500.0], requires_grad=True)
    th.testing.assert_close(dual(u)[:2], th.tensor([3.0, -0.632121]))
    th.testing.assert_close(density_ratio(u)[:2], th.tensor([2.0, 0.367879]))
    (slope,) = th.autograd.grad(dual(u).sum(), u)
    th.testing.assert_close(slope, density_ratio(u.detach()))  # finite where an exponential would not be


class Fixed:
    """Stands in for target critics, the smaller of which has these values."""

    def __init__(self, values: th.Tensor):
        self.values = th.stack((values, values + 5.0))

    def encode(self, observations: Any) -> None:
        return None

    def q(self, actions: th.Tensor, context: None) -> th.Tensor:
        return self.values


def test_the_mean_density_ratio_is_one_at_the_optimal_value() -> None:
    """Of two equally likely actions of value 0 and 1, at temperature one."""
    model = make_filled(DiffusionDICE, alpha=1.0)
    model.critic_target = Fixed(th.tensor([0.0, 1.0] * 4))
    values = th.full((8,), 0.374823, requires_grad=True)
    model.policy.trained["value"] = lambda observations: values
    batch = sample_batch(model)
    (slope,) = th.autograd.grad(model.value_loss(batch)[0], values)
    assert slope.sum().item() == pytest.approx(0.0, abs=1e-5)
    assert model.density_ratios(batch).mean().item() == pytest.approx(1.0, abs=1e-5)
    model.max_weight = 0.9
    assert model.density_ratios(batch).max().item() == pytest.approx(0.9)


def test_the_energy_becomes_the_logarithm_of_the_mean_ratio() -> None:
    weights, slopes = th.tensor([[2.0], [0.367879]]), []
    for offset in (-0.5, 0.0, 0.5):
        energies = th.full((2, 1), 0.168848 + offset, requires_grad=True)
        slopes.append(th.autograd.grad(log_mean_error(weights, energies), energies)[0].sum().item())
    assert slopes[0] < -0.1 and slopes[1] == pytest.approx(0.0, abs=1e-5) and slopes[2] > 0.1


def test_the_loss_of_a_hopeless_energy_is_finite() -> None:
    energies = th.tensor([[-200.0, 0.0]], requires_grad=True)
    loss = log_mean_error(th.ones(1, 1), energies)
    (slope,) = th.autograd.grad(loss, energies)
    assert loss.isfinite() and slope.isfinite().all() and slope[0, 0] < 0.0  # and it is led upwards


def test_copies_of_an_action_share_their_time() -> None:
    model = make_filled(DiffusionDICE)
    batch, seen = sample_batch(model), []
    draw = model.randomness.uniform

    def noted(shape: Any, *args: Any, **kwargs: Any) -> th.Tensor:
        seen.append(shape)
        return draw(shape, *args, **kwargs)  # type: ignore[no-any-return]

    model.randomness.uniform = noted
    energies = model.noisy_energies(batch, batch.actions.unsqueeze(1).expand(-1, 3, -1))
    assert seen == [(8, 1)] and energies.shape == (8, 3)


def test_the_critics_follow_the_value() -> None:
    model = make_filled(DiffusionDICE, n_selection_critics=3)
    batch = sample_batch(model)
    with th.no_grad():
        target = batch.rewards + batch.discounts * model.value(batch.next_observations)
        values = th.stack(model.critic(batch.observations, batch.actions)).squeeze(-1)
        chosen = th.stack(model.ensemble(batch.observations, batch.actions)).squeeze(-1)
    assert values.shape == (2, 8) and chosen.shape == (3, 8)
    th.testing.assert_close(part(model, "critic").loss(batch)[0], (values - target).square().mean(1).sum())
    th.testing.assert_close(part(model, "ensemble").loss(batch)[0], (chosen - target).square().mean())


# -- on lobes of actions --------------------------------------------------------------------------------------------------


def exponential(model: Any) -> Any:
    """The model with the density ratio ``exp(2 a_x)``."""
    model.density_ratios = lambda batch: (2.0 * batch.actions[:, 0]).exp()
    return model


def test_the_exact_energy_is_where_the_loss_is_smallest() -> None:
    """The logarithm of the mean ratio behind a noisy action is known for these lobes; that at the noisy action is another."""
    model = exponential(lobe_model(DiffusionDICE, n_noisy=2, n_selection_critics=0))
    exact, biased = pulls(model, lobe_batch(50_000))
    assert exact < 0.002 and biased > 5.0 * exact


def test_a_chain_that_follows_the_exact_energy_has_the_density_of_the_theory() -> None:
    model = know_lobes(lobe_model(DiffusionDICE, n_selection_critics=0, policy_kwargs={"sampling_steps": 100}))
    model.actor.follow(EnergyGuide(ExactEnergy(model.actor.process, 2.0)))  # type: ignore[arg-type]
    actions = guided_draws(model, 1.0)
    assert right_mass(actions) == pytest.approx(0.8808, abs=0.015)
    right = actions[actions[:, 0] > 0.0]
    assert right.mean(0).tolist() == pytest.approx([0.52, 0.0], abs=0.01)  # moved by the slope times the variance
    assert right.std(0).tolist() == pytest.approx([0.1, 0.1], abs=0.01)


@pytest.fixture(scope="module")
def trained() -> Any:
    """The energy of ``exp(2 a_x)``, learned from the lobes; nothing is drawn from the actor meanwhile."""
    model = exponential(
        lobe_model(DiffusionDICE, n_noisy=2, energy_net_arch=(128, 128), n_selection_critics=0, learning_rate=3e-3)
    )
    draw, sample = model.actor.act, model.actor.sample
    model.actor.act = model.actor.sample = None
    train(model, ("energy",), 4000, 1024)
    model.actor.act, model.actor.sample = draw, sample
    return know_lobes(model)


@pytest.mark.expensive
@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.5), (1.0, 0.8808)])
def test_guided_actions_have_the_density_of_the_theory(trained: Any, scale: float, expected: float) -> None:
    actions = guided_draws(trained, scale)
    assert right_mass(actions) == pytest.approx(expected, abs=0.03) and near_a_lobe(actions) > 0.95


@pytest.mark.expensive
def test_a_larger_scale_is_greedier(trained: Any) -> None:
    assert right_mass(guided_draws(trained, 2.0)) > 0.94


# -- learning and acting --------------------------------------------------------------------------------------------------


def test_no_action_is_drawn_while_it_learns_from_data() -> None:
    model = make(DiffusionDICE, dataset=point_data(), n_selection_critics=2, with_env=False)
    before = {name: flat_parameters(network) for name, network in model.policy.trained.items()}
    assert set(before) == {"actor", "critic", "value", "energy", "ensemble"}
    draw, sample = model.actor.act, model.actor.sample
    model.actor.act = model.actor.sample = None
    model.learn_offline(6)
    model.actor.act, model.actor.sample = draw, sample
    assert model._stage == 1 and model._stage_updates == 4
    for name, network in model.policy.trained.items():
        assert not th.equal(flat_parameters(network), before[name]), name


def test_the_ensemble_chooses() -> None:
    model = make(DiffusionDICE, n_selection_critics=3, n_action_candidates=8)
    obs = observations(model.observation_space, 20)
    expected = act(model, obs)
    for critics in (model.critic, model.critic_target):
        for parameter in critics.parameters():
            parameter.data.neg_()
    np.testing.assert_array_equal(act(model, obs), expected)
    for parameter in model.ensemble.parameters():
        parameter.data.neg_()
    assert not np.array_equal(act(model, obs), expected)


def test_a_draw_by_the_target_critics() -> None:
    model = make(DiffusionDICE, selection="softmax", n_behavior_candidates=8, selection_temperature=1e-6)
    rule = model.policy.selection
    assert (rule.rule, rule.critics, rule.target) == ("softmax", "critic", True)
    assert model.policy.choosing_critic(rule.target) is model.critic_target
    obs = observations(model.observation_space)
    assert not np.array_equal(act(model, obs, deterministic=False), act(model, obs, deterministic=False))
    np.testing.assert_array_equal(act(model, obs), act(model, obs))
