"""QIPO: weights, what the weighted regression tends to, stages and renewals, and how it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion import QIPO
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.networks.backbones.unet import ActionUNet
from tests.cases import MethodCase
from tests.helpers import assert_identical, flat_parameters, make, make_filled, point_data, sample_batch
from tests.lobes import lobe_actions, lobe_batch, lobe_model, near_a_lobe, right_mass

CASE = MethodCase(
    tiny={"n_support": 3, "n_renewals": 1, "behavior_updates": 2, "critic_updates": 2, "policy_updates": 2},
    wrong_arguments=[
        ({"variant": "euler"}, ["variant='euler'", "flow", "diffusion"]),
        ({"proposal": "policy"}, ["proposal='policy'", "support", "dataset"]),
        ({"proposal": "dataset"}, ["n_renewals=1", "proposal='dataset'", "leave it out"]),
        ({"inverse_temperature": -1.0}, ["inverse_temperature=-1.0", "at least 0"]),
        ({"backup_inverse_temperature": -1.0}, ["backup_inverse_temperature=-1.0", "at least 0"]),
        ({"max_weight": 0.0}, ["max_weight=0.0", "positive"]),
        ({"n_renewals": -1}, ["n_renewals=-1", "at least 0"]),
        ({"n_support": 0}, ["n_support=0", "at least 1"]),
        ({"actor_tau": 1.5}, ["actor_tau=1.5", "between 0 and 1"]),
        ({"behavior_learning_rate": -1.0}, ["behavior_learning_rate=-1.0"]),
        ({"behavior_updates": 0}, ["behavior_updates=0", "at least 1"]),
        ({"critic_updates": 0}, ["critic_updates=0", "at least 1"]),
        ({"policy_updates": 0}, ["policy_updates=0", "at least 1"]),
        ({"policy_kwargs": {"acting": "actor"}}, ["acting='actor'", "QIPO requires"]),
        ({"policy_kwargs": {"process": "continuous"}}, ["'continuous'", "noise", "QIPO", "velocity"]),
        ({"variant": "diffusion", "policy_kwargs": {"process": "flow"}}, ["'flow'", "velocity", "QIPO", "noise"]),
    ],
    operation_counts={"operations": 869, "kflop": 274, "synchronisations": 0},
)
DATA = point_data()


def test_the_defaults() -> None:
    options: Any = {"buffer_size": 10, "device": "cpu"}
    flow = QIPO("DiffusionPolicy", "Pendulum-v1", **options)
    diffusion = QIPO("DiffusionPolicy", "Pendulum-v1", variant="diffusion", **options)
    trunk: Any = diffusion.actor.denoiser.trunk
    assert isinstance(trunk, ActionUNet)
    blocks: Any = trunk
    assert [block.enter.out_features for block in blocks.down] == [512, 256, 128]
    assert (flow.actor.update_chain.steps, diffusion.actor.update_chain.steps) == (10, 15)
    assert (flow.n_support, flow.inverse_temperature, flow.batch_size) == (16, 3.0, 256)
    stages = [(stage.name, stage.parts, stage.updates) for stage in flow.stages()]
    first = [("behavior", ("behavior",), 600_000), ("critic", ("critic",), 500_000)]
    assert stages == [*first, *((name, ("actor",), 50_000) for name in ("policy", "renewal 1", "renewal 2"))]
    assert [stage.name for stage in QIPO("MlpPolicy", "Pendulum-v1", proposal="dataset", **options).stages()][2:] == ["policy"]


# -- weights ---------------------------------------------------------------------------------------------------------------


def known(model: Any, values: list[float], *own: float) -> Any:
    """The values of the support actions of one state, and of its own action."""
    model.smaller_values = lambda observations, actions: th.tensor([own or values]).view(actions.shape[:-1])
    batch = sample_batch(model, 1)
    table = th.zeros(1, len(values), 2)
    return batch._replace(extras={"support": table, "next_support": table, "energies": th.tensor([values])})


def test_the_loss_of_two_actions() -> None:
    """Exponents 1 and 2 and errors 4 and 8: 0.268941 * 4 + 0.731059 * 8."""
    model = make_filled(QIPO, inverse_temperature=0.5)
    batch = known(model, [2.0, 4.0])
    model.actor.denoising_error = lambda *_: th.tensor([[[3.0, 5.0], [8.0, 8.0]]])
    loss, logged = model.actor_loss(batch)
    assert loss.item() == pytest.approx(6.924234, abs=1e-5)
    assert logged["effective_actions"].item() == pytest.approx(1.0 / (0.268941**2 + 0.731059**2), abs=1e-4)
    assert model.next_values(known(model, [1.0, 2.0]))[0].item() == pytest.approx(1.731059, abs=1e-5)


def test_equal_values_are_plain_matching() -> None:
    model = make_filled(QIPO)
    batch = known(model, [7.0, 7.0, 7.0])
    th.manual_seed(0)
    loss = model.actor_loss(batch)[0]
    th.manual_seed(0)
    context = model.actor.encode(batch.observations)
    th.testing.assert_close(loss, model.actor.denoising_error(batch.extras["support"], context, model.randomness, "x").mean())


@pytest.mark.parametrize(("value", "weight"), [(1.5, 0.629949), (0.0, 0.031363), (20.0, 100.0)])
def test_weights_of_the_data(value: float, weight: float) -> None:
    """``exp(2 (Q - 1.731059))``, at most 100."""
    model = make_filled(QIPO, proposal="dataset", n_renewals=None, inverse_temperature=2.0)
    weights = model.data_weights(known(model, [1.0, 2.0], value))
    assert weights.shape == (1,) and weights.item() == pytest.approx(weight, rel=1e-4)


# -- what it tends to -----------------------------------------------------------------------------------------------------

KAPPA = 2.0


def match(model: Any, pool: th.Tensor, updates: int) -> None:
    """The policy, on support actions that were drawn at once: there is one state."""
    base = model.lr_schedule(1)
    part = next(part for part in model.parts() if part.name == "actor")
    for update in range(updates):
        actions = pool[th.randint(len(pool), (64, 16))]
        batch = lobe_batch(64)._replace(extras={"support": actions, "energies": actions[..., 0]})
        for group in part.optimizer.param_groups:
            group["lr"] = base * (1.0 - update / updates)
        model.step(part, model.actor_loss(batch)[0])


def samples(model: Any) -> th.Tensor:
    with th.no_grad():
        return model.actor.sample(model.actor.encode(th.zeros(16_384, 1)), model.randomness, "test")


@pytest.mark.parametrize("variant", ["flow", "diffusion"])
def test_the_policy_is_the_behavior_tilted_by_the_value_and_renewals_tilt_again(variant: str) -> None:
    """``mu exp(kappa a_x / 0.5)``: 0.8808 of the mass right, with 16 actions per state 0.8695; renewed once, 0.982."""
    networks: Any = {} if variant == "flow" else {"policy_kwargs": {"backbone": "mlp"}}
    model = lobe_model(QIPO, variant=variant, inverse_temperature=KAPPA, **networks)
    match(model, lobe_actions(16_384), 700)
    actions = samples(model)
    assert right_mass(actions) == pytest.approx(0.8695, abs=0.03) and near_a_lobe(actions) > 0.7
    if variant == "flow":
        match(model, actions, 300)
        assert right_mass(samples(model)) == pytest.approx(0.982, abs=0.015)


def test_actions_of_the_data_have_no_bias_of_finitely_many() -> None:
    model = lobe_model(QIPO, proposal="dataset", inverse_temperature=KAPPA, backup_inverse_temperature=0.0)
    part = next(part for part in model.parts() if part.name == "actor")
    base = model.lr_schedule(1)
    for update in range(600):
        batch = lobe_batch(256)._replace(extras={"support": th.zeros(256, 1, 2), "energies": th.zeros(256, 1)})
        for group in part.optimizer.param_groups:
            group["lr"] = base * (1.0 - update / 600)
        model.step(part, model.actor_loss(batch)[0])
    assert right_mass(samples(model)) == pytest.approx(0.8808, abs=0.03)


# -- stages ---------------------------------------------------------------------------------------------------------------


def trained(**kwargs: Any) -> Any:
    return make(QIPO, **{"dataset": DATA, "batch_size": 4, "policy_updates": 4, **kwargs})


def weights_of(model: Any) -> dict[str, th.Tensor]:
    names = ("actor", "actor_target", "behavior", "critic", "critic_target")
    return {name: flat_parameters(getattr(model.policy, name)) for name in names}


def changed(before: dict[str, th.Tensor], after: dict[str, th.Tensor]) -> set[str]:
    return {name for name, weights in after.items() if not th.equal(weights, before[name])}


class Recorder(BaseCallback):
    """Weights at the end of every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, dict[str, th.Tensor]] = {}

    def _on_step(self) -> bool:
        model: Any = self.model
        self.ends[model._stage] = weights_of(model)
        return True


def test_every_stage_trains_its_part_and_what_follows_it() -> None:
    """Two updates each of the behaviour, of the critics, of the policy, and of the policy after a renewal."""
    model, recorder = trained(), Recorder()
    before = weights_of(model)
    model.learn_offline(8, callback=recorder)
    behavior, critic, policy, renewed = (recorder.ends[stage] for stage in range(4))
    assert changed(before, behavior) == {"behavior", "actor_target"}
    assert changed(behavior, critic) == {"critic", "critic_target"}
    # the policy begins where the behaviour is
    assert changed({**critic, **dict.fromkeys(("actor", "actor_target"), critic["behavior"])}, policy) == {
        "actor",
        "actor_target",
    }
    assert (policy["actor"] - critic["behavior"]).abs().max() < 0.01
    # and is then what draws
    assert changed(policy, renewed) == {"actor", "actor_target", "behavior"}
    assert th.equal(renewed["behavior"], policy["actor_target"])


def test_values_of_the_support_are_computed_once() -> None:
    model = trained().learn_offline(6)
    batch = model._data_sampler().sample(20, None, model.prepared, model.state_tables)
    assert model._stage >= 2
    th.testing.assert_close(
        batch.extras["energies"], model.smaller_values(batch.observations, model.support(batch)), rtol=1e-4, atol=1e-5
    )


def test_it_learns_online_from_actions_drawn_anew() -> None:
    model = make_filled(QIPO)
    before = weights_of(model)
    model.train(3, 8)
    assert changed(before, weights_of(model)) == set(before)


# -- interruptions --------------------------------------------------------------------------------------------------------


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
    KillAt.at = kill
    checkpoints = TrainingCheckpoints(folder, every=1, resume=resume, max_share=None, verbose=0)
    return trained(policy_updates=6).learn_offline(10, callback=[KillAt(), checkpoints])


@pytest.mark.parametrize("update", [2, 4, 6, 7, 8, 9])
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(update: int, tmp_path: Path) -> None:
    """In the middle of a round the behaviour model draws the same actions again, although the policy has gone on."""
    expected = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", update)
    resumed = run(tmp_path / "killed", resume=True)
    assert_identical(resumed.get_parameters(), expected.get_parameters())
