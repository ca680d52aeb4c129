"""SfBC: values of states, labels, stages and how it goes on after an interruption and online."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion import OfflineDataset, SfBC
from sb3_diffusion.checkpoints.trainings import TrainingCheckpoints
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.networks.backbones.unet import ActionUNet
from sb3_diffusion.policies.actors.selection import Selection
from tests.cases import MethodCase
from tests.helpers import act, assert_identical, flat_parameters, make, make_filled, observations, sample_batch, soften
from tests.lobes import lobe_actions

CASE = MethodCase(
    tiny={
        "n_support": 3,
        "n_action_candidates": 3,
        "n_behavior_candidates": 2,
        "n_averaged": 1,
        "critic_learning_rate": None,
        "behavior_updates": 2,
        "critic_updates": 2,
    },
    tiny_policy={"n_critics": 2},  # the shared suites count on two
    wrong_arguments=[
        ({"n_iterations": 0}, ["n_iterations=0", "at least 1"]),
        ({"inverse_temperature": -1.0}, ["inverse_temperature=-1.0", "at least 0"]),
        ({"n_support": 0}, ["n_support=0", "at least 1"]),
        ({"label_rule": "mine"}, ["label_rule='mine'", "paper", "official"]),
        ({"n_behavior_candidates": 0}, ["n_behavior_candidates=0", "at least 1"]),
        ({"n_averaged": 0}, ["n_averaged=0", "at least 1"]),
        ({"behavior_updates": 0}, ["behavior_updates=0", "at least 1"]),
        ({"critic_updates": 0}, ["critic_updates=0", "at least 1"]),
        ({"critic_learning_rate": -1.0}, ["critic_learning_rate=-1.0"]),
        ({"policy_kwargs": {"critic_head": "scalar"}}, ["critic_head='scalar'", "SfBC requires"]),
        ({"policy_kwargs": {"backbone": {"qf": "unet"}}}, ["'unet'", "mlp"]),
        ({"policy_kwargs": {"layer_norm": {"pi": True}}}, ["backbone='unet'", "layer_norm"]),
    ],
    operation_counts={"operations": 1149, "kflop": 1086, "synchronisations": 0},
)


@pytest.fixture
def data() -> OfflineDataset:
    """Episodes of three and five steps in the box of the tiny environment, the second one cut."""
    generator = np.random.default_rng(0)
    states = generator.uniform(size=(9, 3)).astype(np.float32)
    ends, cuts = np.zeros(8, bool), np.zeros(8, bool)
    ends[2], cuts[7] = True, True
    env = make(SfBC).env.envs[0]
    actions = np.stack([env.action_space.sample() for _ in range(8)])
    rewards = generator.normal(size=8).astype(np.float32)
    spaces: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
    return OfflineDataset.from_arrays(states[:-1], actions, rewards, ends, cuts, states[1:], **spaces)


def test_the_defaults_are_the_papers() -> None:
    model = SfBC("DiffusionPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    trunk: Any = model.actor.denoiser.trunk
    assert isinstance(trunk, ActionUNet)
    blocks: Any = trunk
    down = [(block.enter.in_features, block.enter.out_features) for block in blocks.down]
    up = [(block.enter.in_features, block.enter.out_features) for block in blocks.up]
    assert down == [(1, 512), (512, 256), (256, 128)] and up == [(256, 256), (512, 512)]
    assert (blocks.output.in_features, blocks.embed.in_features) == (1024, 128)
    assert (model.batch_size, model.critic.n_critics, model.actor.update_chain.steps) == (4096, 1, 15)
    assert model.critic_lr_schedule(1.0) == 1e-3 and model.actor_lr_schedule(1.0) == 1e-4
    schedule = model.actor.process.schedule
    alpha, sigma = schedule.alpha_sigma(th.tensor([0.25, 0.5, 1.0]))
    th.testing.assert_close(alpha, th.tensor([0.723657, 0.281183, 0.006572]), rtol=1e-4, atol=1e-6)
    th.testing.assert_close(sigma, th.tensor([0.690160, 0.959654, 0.999978]), rtol=1e-4, atol=1e-6)
    stages = [(stage.name, stage.parts, stage.updates) for stage in model.stages()]
    critics = [("critic 1", ("critic",), 24_000), ("critic 2", ("critic",), 24_000)]
    assert stages == [("behavior", ("actor",), 600_000), *critics]


# -- values and labels ----------------------------------------------------------------------------------------------------


class Known:
    """Stands in for a critic with known values of the actions that it is asked for."""

    def __init__(self, values: list[float], std: float):
        self.values = th.tensor([[values]])
        self.ensemble = type("Ensemble", (), {"running_std": th.tensor(std)})

    def encode(self, observations: Any) -> None:
        return None

    def q(self, actions: th.Tensor, context: None) -> th.Tensor:
        return self.values


@pytest.mark.parametrize(
    ("inverse_temperature", "std", "expected"),
    [(1.0, 1.0, 1.731059), (1e6, 1.0, 2.0), (0.0, 1.0, 1.5), (10.0, 10.0, 1.731059)],
)
def test_the_value_of_a_state(inverse_temperature: float, std: float, expected: float) -> None:
    """Q = (1, 2): between the mean and the larger one; the temperature is in units of the spread of the returns."""
    model = make(SfBC, inverse_temperature=inverse_temperature)
    value = model.state_values(Known([1.0, 2.0], std), None, th.zeros(1, 2, 2))
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_the_critic_learns_in_units_of_the_spread() -> None:
    model = make_filled(SfBC)
    batch = sample_batch(model)._replace(extras={"labels": th.linspace(50.0, 90.0, 8)})
    model.critic.ensemble.standardize(th.tensor([60.0, 80.0]), 0.1)
    assert (model.critic.ensemble.running_mean, model.critic.ensemble.running_std) == (70.0, 10.0)
    values = th.stack(model.critic(batch.observations, batch.actions)).squeeze()
    assert 40.0 < values.mean() < 100.0
    loss = ((values - batch.extras["labels"]) / 10.0).square().mean()
    th.testing.assert_close(model.critic_loss(batch)[0], loss)
    model.critic.ensemble.standardize(th.full((5,), 3.0), 0.1)
    assert model.critic.ensemble.running_std == pytest.approx(0.1)


def test_labels_of_the_iterations(data: OfflineDataset) -> None:
    """First the returns of the data; then those with values of imitated actions under the critic of before."""
    model = make(SfBC, dataset=data, batch_size=4, gamma=0.9, learning_rate=1e-2)
    model.learn_offline(1)  # the behaviour
    model._stage, model._stage_updates = 1, 0
    model.prepare_labels(0)
    first = model.prepared["labels"]
    assert first[2] == data.rewards[2] and first[7] == data.rewards[7]
    th.testing.assert_close(first[0], data.rewards[0] + 0.9 * data.rewards[1] + 0.81 * data.rewards[2])
    before = flat_parameters(model.critic)
    model._stage = 2
    model.prepare_labels(1)
    second = model.prepared["labels"]
    assert second[2] == data.rewards[2] and second[7] != data.rewards[7] and not th.equal(first, second)
    assert th.equal(flat_parameters(model.critic_target), before) and not th.equal(flat_parameters(model.critic), before)
    # repeated in the middle of the stage, nothing changes
    again, model._stage_updates = flat_parameters(model.critic), 1
    model.prepare_labels(1)
    assert th.equal(model.prepared["labels"], second) and th.equal(flat_parameters(model.critic), again)


# -- learning -------------------------------------------------------------------------------------------------------------


def trained(data: OfflineDataset) -> Any:
    return make(SfBC, dataset=data, batch_size=4, behavior_updates=4, critic_updates=8)


def test_the_stages_train_their_parts(data: OfflineDataset) -> None:
    model = trained(data)
    actor, critic = flat_parameters(model.actor), flat_parameters(model.critic)
    model.learn_offline(12)
    assert model._stage == 2 and model._n_updates == 12
    assert not th.equal(flat_parameters(model.actor), actor) and not th.equal(flat_parameters(model.critic), critic)
    steps = {name: int(next(iter(getattr(model, name).optimizer.state.values()))["step"]) for name in ("actor", "critic")}
    assert steps == {"actor": 4, "critic": 4}  # the critic's began anew


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


def run(data: OfflineDataset, folder: Path, kill: int | None = None, resume: bool = False) -> Any:
    """All stages, with a checkpoint every second update."""
    model = trained(data)
    KillAt.at = kill
    checkpoints = TrainingCheckpoints(folder, every=2, resume=resume, max_share=None, verbose=0)
    return model.learn_offline(12, callback=[KillAt(), checkpoints])


@pytest.mark.parametrize("update", [3, 5, 7, 9, 11])
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(update: int, data: OfflineDataset, tmp_path: Path) -> None:
    expected = run(data, tmp_path / "whole")
    with pytest.raises(Killed):
        run(data, tmp_path / "killed", kill=update)
    resumed = run(data, tmp_path / "killed", resume=True)
    assert resumed._n_updates == 12
    assert_identical(resumed.get_parameters(), expected.get_parameters())


def test_online_it_bootstraps_from_imitated_actions() -> None:
    model = make_filled(SfBC)
    batch = sample_batch(model)
    target = flat_parameters(model.critic_target)
    model.randomness = Randomness(th.Generator().manual_seed(0))
    with th.no_grad():
        following, _ = model.next_values(batch)
        model.randomness = Randomness(th.Generator().manual_seed(0))
        values = model.critic.q(batch.actions, model.critic.encode(batch.observations))
        th.testing.assert_close(
            model.critic_loss(batch)[0], (values - batch.rewards - batch.discounts * following).square().mean()
        )
    model.train(3, 8)
    assert not th.equal(flat_parameters(model.critic_target), target)


# -- acting ---------------------------------------------------------------------------------------------------------------


def test_the_mean_of_the_best_acts() -> None:
    one, four = (soften(make(SfBC, n_action_candidates=8, n_averaged=n)) for n in (1, 4))
    obs = observations(one.observation_space, 10)
    assert not np.array_equal(act(one, obs), act(four, obs))
    np.testing.assert_array_equal(act(four, obs), act(four, obs))
    np.testing.assert_allclose(act(four, obs[2]), act(four, obs)[2], atol=1e-5)


@pytest.mark.parametrize(("n", "expected"), [(4, 0.8098), (16, 0.8695), (32, 0.8755), (64, 0.8782)])
def test_resampling_has_the_bias_of_finitely_many_candidates(n: int, expected: float) -> None:
    """Of infinitely many candidates, exp(2 a_x / 0.5) would put 0.8808 into the better lobe."""
    th.manual_seed(0)
    rows = 8000
    candidates = lobe_actions(rows * n).view(rows, n, 2)
    values = candidates[..., 0].sign()
    actions = Selection("softmax").choose(candidates, values, Randomness(), "act")
    assert (actions[:, 0] > 0).float().mean().item() == pytest.approx(expected, abs=0.015)
