"""QGPO: its losses by hand, its energies beside exact ones, and values that are computed once."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion import QGPO
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from tests.cases import MethodCase
from tests.helpers import assert_identical, flat_parameters, make, make_filled, point_data, sample_batch
from tests.lobes import guided_draws, know_lobes, lobe_actions, lobe_batch, lobe_model, near_a_lobe, pulls, right_mass

CASE = MethodCase(
    tiny={
        "n_support": 3,
        "energy_net_arch": (16,),
        "actor_learning_rate": None,
        "behavior_batch_size": 8,
        "behavior_updates": 2,
        "critic_updates": 3,
        "energy_updates": 3,
    },
    # without noise in its steps, a fresh chain ends in a corner of the box
    tiny_policy={"solver": "ddpm", "noise_schedule": "cosine"},
    wrong_arguments=[
        ({"beta": -1.0}, ["beta=-1.0", "greedier"]),
        ({"inverse_temperature": -1.0}, ["inverse_temperature=-1.0", "at least 0"]),
        ({"guidance_scale": -0.5}, ["guidance_scale=-0.5", "no guidance"]),
        ({"n_support": 0}, ["n_support=0", "at least 1"]),
        ({"behavior_updates": 0}, ["behavior_updates=0", "at least 1"]),
        ({"critic_updates": 0}, ["critic_updates=0", "at least 1"]),
        ({"energy_updates": 0}, ["energy_updates=0", "at least 1"]),
        ({"energy_learning_rate": -1.0}, ["energy_learning_rate=-1.0"]),
        ({"policy_kwargs": {"guide": "critics"}}, ["guide='critics'", "QGPO requires"]),
    ],
    operation_counts={"operations": 1917, "kflop": 1881, "synchronisations": 0},
)


def test_the_defaults_are_the_papers() -> None:
    model = QGPO("DiffusionPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    trunk: Any = model.critic.ensemble.trunk
    assert (model.critic.n_critics, trunk.first.out_features, len(trunk.hidden), model.batch_size) == (2, 256, 2, 256)
    assert (model.actor.update_chain.steps, model.policy.n_action_candidates, model.n_support) == (15, 1, 16)
    assert (model.beta, model.inverse_temperature, model.guidance_scale) == (3.0, 1.0, 1.0)
    assert model.actor_lr_schedule(1.0) == 1e-4 and model.energy_lr_schedule(1.0) == 3e-4
    stages = [(stage.name, stage.parts, stage.updates, stage.batch_size) for stage in model.stages()]
    assert stages == [
        ("behavior", ("actor",), 600_000, 4096),
        ("critic", ("critic", "energy"), 500_000, None),
        ("energy", ("energy",), 500_000, None),
    ]


# -- by hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("energies", "expected"), [((0.0, 0.0), 0.693147), ((6.0, 7.0), 0.582203), ((2.0, 1.0), 1.044320)])
def test_the_contrast_between_two_actions(energies: tuple[float, float], expected: float) -> None:
    """Values of 1 and 2: equal energies cost ln 2, those of the values, whatever their offset, the entropy of the labels."""
    model = make_filled(QGPO, beta=0.5)
    batch = sample_batch(model)._replace(extras={"support": th.zeros(8, 2, 2), "support_values": th.tensor([[2.0, 4.0]] * 8)})
    model.noisy_energies = lambda batch, actions: th.tensor([energies] * 8)
    assert model.energy_loss(batch)[0].item() == pytest.approx(expected, abs=1e-5)


def test_the_value_of_the_next_state_and_the_critics() -> None:
    """Values of 1 and 2 average to 1.731; half of the sum over the critics is minimised."""
    model = make_filled(QGPO)
    batch = sample_batch(model)._replace(extras={"next_support": th.zeros(8, 2, 2)})
    model.target_values = lambda observations, actions: th.tensor([[1.0, 2.0]] * 8)
    values, _ = model.next_values(batch)
    th.testing.assert_close(values, th.full((8,), 1.731059))
    with th.no_grad():
        found = th.stack(model.critic(batch.observations, batch.actions)).squeeze(-1)
    error = (found - batch.rewards - batch.discounts * values).square()
    th.testing.assert_close(model.critic_loss(batch)[0], 0.5 * error.mean(1).sum())


# -- on lobes of actions --------------------------------------------------------------------------------------------------


def supported(n: int, n_support: int) -> Any:
    """States of the lobes, with imitated actions."""
    return lobe_batch(n)._replace(extras={"support": lobe_actions(n * n_support).view(n, n_support, 2)})


def test_the_exact_energy_is_where_the_loss_is_smallest() -> None:
    """For many imitated actions; with few of them the labels are biased. The value is ``a_x`` and the critics know it."""
    model = lobe_model(QGPO, beta=2.0)
    exact, biased = pulls(model, supported(100, 1000))
    assert exact < 0.01 and biased > 0.03


@pytest.mark.expensive
def test_guided_actions_have_the_density_of_the_theory() -> None:
    """With 16 imitated actions per state, a little less of the better lobe than with many, which is 0.881."""
    model = lobe_model(QGPO, beta=2.0, energy_net_arch=(128, 128), learning_rate=3e-3)
    model.policy.set_training_mode(True)
    energy, updates = next(part for part in model.parts() if part.name == "energy"), 4000
    for update in range(updates):
        for group in energy.optimizer.param_groups:
            group["lr"] = 3e-3 * (1.0 - update / updates)
        model.step(energy, energy.loss(supported(128, 16))[0])
    know_lobes(model)
    actions = guided_draws(model, 1.0)
    assert right_mass(actions) == pytest.approx(0.875, abs=0.03) and near_a_lobe(actions) > 0.95
    assert right_mass(guided_draws(model, 0.0)) == pytest.approx(0.5, abs=0.02)
    assert right_mass(guided_draws(model, 2.0)) > 0.94


# -- learning from data ---------------------------------------------------------------------------------------------------


def test_the_values_that_the_energy_learns_from_are_computed_once() -> None:
    model = make(QGPO, dataset=point_data(), with_env=False)
    model.learn_offline(5)
    target = flat_parameters(model.critic_target)
    assert not th.equal(target, flat_parameters(model.critic))
    model.learn_offline(3, reset_num_updates=False)
    assert model._stage == 2 and th.equal(flat_parameters(model.critic_target), target)  # nor do they move any more
    batch = model._data_sampler().sample(8, None, model.prepared, model.state_tables)
    assert batch.extras["support"].shape == (8, 3, 2)
    with th.no_grad():
        expected = model.target_values(batch.observations, batch.extras["support"])
        th.testing.assert_close(batch.extras["support_values"], expected, rtol=1e-4, atol=1e-5)
    model.target_values = None  # is asked no more
    model.energy_loss(batch)


def test_support_comes_from_the_behavior_without_guidance() -> None:
    tables = []
    for scale in (0.0, 50.0):
        model = make(QGPO, dataset=point_data(), with_env=False, guidance_scale=scale)
        model.learn_offline(3)
        tables.append(model.state_tables["support"])
    assert th.equal(*tables)


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt(BaseCallback):
    """Kills at an update, once."""

    at: int | None = None

    def _on_step(self) -> bool:
        if self.model._n_updates == KillAt.at:
            KillAt.at = None
            raise Killed
        return True


def run(folder: Path, kill: int | None = None, resume: bool = False) -> Any:
    """All stages, with a checkpoint every second update."""
    KillAt.at = kill
    checkpoints = TrainingCheckpoints(folder, every=2, resume=resume, max_share=None, verbose=0)
    return make(QGPO, dataset=point_data(), with_env=False).learn_offline(8, callback=[KillAt(), checkpoints])


def test_killed_anywhere_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    for update in (3, 5, 7):
        with pytest.raises(Killed):
            run(tmp_path / f"killed-{update}", kill=update)
        resumed = run(tmp_path / f"killed-{update}", resume=True)
        assert_identical(resumed.get_parameters(), expected.get_parameters())
