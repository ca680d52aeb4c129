"""Diffusion-DICE: its dual problem by hand, its energies and guided actions beside exact ones, and who chooses."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DiffusionDICE
from sb3_diffusion.networks.backbones.unet import ActionUNet
from sb3_diffusion.q_guidance.diffusiondice import density_ratio, dual, log_mean_error
from tests.cases import MethodCase
from tests.helpers import make_filled, part, sample_batch
from tests.lobes import energy_gradients, guided_draws, know_lobes, lobe_model, right_mass, train

CASE = MethodCase(
    tiny={
        "n_noisy": 3,
        "n_selection_critics": 0,  # the shared suites ask the critics
        "n_action_candidates": 3,
        "n_behavior_candidates": 2,
        "guidance_scale": 0.1,  # fresh energies are steep
        "energy_net_arch": (16,),
        "actor_learning_rate": None,
        "behavior_batch_size": 8,
        "behavior_updates": 2,
        "training_updates": 4,
    },
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
        ({"policy_kwargs": {"process": "flow"}}, ["'flow'", "velocity", "DiffusionDICE", "noise"]),
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
    weights, energies = th.tensor([[2.0], [0.367879]]), th.full((2, 1), 0.168848, requires_grad=True)
    (slope,) = th.autograd.grad(log_mean_error(weights, energies), energies)
    assert slope.sum().item() == pytest.approx(0.0, abs=1e-5)
    loss = log_mean_error(weights, energies)
    th.testing.assert_close(loss, th.exp(-th.ones(())) * 0.0 + loss)
    for offset in (-0.5, 0.5):
        assert log_mean_error(weights, energies + offset).item() > loss.item()


def test_the_loss_of_a_hopeless_energy_is_finite() -> None:
    energies = th.tensor([[-200.0, 0.0]], requires_grad=True)
    loss = log_mean_error(th.ones(1, 1), energies)
    (slope,) = th.autograd.grad(loss, energies)
    assert loss.isfinite() and slope.isfinite().all() and slope[0, 0] < 0.0  # and it is led upwards


def test_copies_of_an_action_share_their_time() -> None:
    model = make_filled(DiffusionDICE)
    batch, seen = sample_batch(model), []
    draw = model.randomness.uniform
    model.randomness.uniform = lambda shape, *args, **kwargs: seen.append(shape) or draw(shape, *args, **kwargs)
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


@pytest.fixture(scope="module")
def trained() -> Any:
    """The energy of ``exp(2 a_x)``, learned from the lobes; nothing is drawn from the actor meanwhile."""
    model = lobe_model(DiffusionDICE, n_noisy=4, energy_net_arch=(64, 64), n_selection_critics=0)
    model.density_ratios = lambda batch: (2.0 * batch.actions[:, 0] / 0.5).exp()
    draw, sample = model.actor.act, model.actor.sample
    model.actor.act = model.actor.sample = None
    train(model, ("energy",), 1500)
    model.actor.act, model.actor.sample = draw, sample
    return know_lobes(model)


def test_energies_are_the_exact_ones(trained: Any) -> None:
    got, exact = energy_gradients(trained, 4.0)
    print((got - exact).square().mean(), exact.square().mean())
    assert (got - exact).square().mean() < 0.1 * exact.square().mean()


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.5), (1.0, 0.982)])
def test_guided_actions_have_the_density_of_the_theory(trained: Any, scale: float, expected: float) -> None:
    print(right_mass(guided_draws(trained, scale)))
    assert right_mass(guided_draws(trained, scale)) == pytest.approx(expected, abs=0.03)
