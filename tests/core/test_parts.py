"""Methods that are made of other parts than a critic and an actor: written as the next ones will be."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion import DACER, DIME, DPMD, DPS, QSM, QVPO, MaxEntDP, save_agent
from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Part, due_parts
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.policies.values.state_value import StateValue
from tests.helpers import act, flat_parameters, make, make_filled, observations, sample_batch


class Expectiles(OffPolicyDiffusion):
    """
    Implicit Q-learning with a diffusion policy that imitates (the IDQL of the paper, on a replay buffer): the value is an
    expectile of Q over the actions of the data, and the best of many imitated actions acts, drawn from an averaged actor.
    """

    value_lr_schedule = PartSchedule()

    def __init__(self, *args: Any, expectile: float = 0.7, value_learning_rate: float | Schedule | None = None, **kwargs: Any):
        self.expectile = expectile
        self.value_learning_rate = value_learning_rate
        super().__init__(*args, **kwargs)

    def policy_requirements(self) -> dict[str, Any]:
        return {"networks": {"value": {"kind": "value"}}, "actor_target": True, "acting": "actor_target"}

    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": 4}

    @property
    def value(self) -> StateValue:
        return self.policy.trained["value"]  # type: ignore[return-value]

    def parts(self) -> Sequence[Part]:
        return [Part("value", self.value_loss, self.value), *super().parts()]

    def value_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        with th.no_grad():
            q = self.critic_target.q(batch.actions, self.critic_target.encode(batch.observations)).amin(0)
        value = self.value(batch.observations)
        weight = th.where(q > value, self.expectile, 1.0 - self.expectile)
        return (weight * (q - value).square()).mean(), {"v_mean": value.detach().mean()}

    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        return self.value(batch.next_observations), {}

    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        predicted = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        return (predicted - noisy.eps).square().mean(), {}

    def update_targets(self) -> None:
        super().update_targets()
        assert self.actor_target is not None
        polyak_update(self.actor_target, self.actor, self.tau)


def test_a_third_network_is_trained_logged_and_saved(tmp_path: Path) -> None:
    model = make_filled(Expectiles, value_learning_rate=1e-2)
    before = flat_parameters(model.policy.value)
    model.train(3, 8)
    assert not th.equal(flat_parameters(model.policy.value), before)
    logged = model.logger.name_to_value
    assert {"train/value_loss", "train/critic_loss", "train/actor_loss", "train/v_mean"} <= set(logged)
    assert logged["train/value_learning_rate"] == 1e-2 and "train/actor_learning_rate" not in logged
    assert model.policy.value.optimizer.param_groups[0]["lr"] == 1e-2
    model.value_lr_schedule = lambda progress: 5e-2  # as callbacks do
    model.train(1, 8)
    assert model.policy.value.optimizer.param_groups[0]["lr"] == 5e-2

    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "policy.value.optimizer.pth" in archive.namelist()
    loaded: Any = Expectiles.load(tmp_path / "model.zip", device="cpu")
    moments = loaded.policy.value.optimizer.state_dict()["state"]
    assert len(moments) == len(list(model.policy.value.parameters()))
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))


def test_gradients_stay_within_their_part() -> None:
    model = make_filled(Expectiles)
    model.policy.set_training_mode(True)
    assert model.policy.value.training
    model.train(1, 8)
    networks = [part.network for part in model.parts()]
    assert len(networks) == 3
    for part in model.parts():
        loss, _ = part.loss(sample_batch(model))
        for network in networks:
            network.optimizer.zero_grad(set_to_none=True)
        model.step(part, loss)
        for network in networks:
            got = [parameter.grad is not None for parameter in network.parameters()]
            assert all(got) if network is part.network else not any(got)


def test_parts_that_are_due() -> None:
    model = make_filled(Expectiles, policy_delay=3)
    parts = model.parts()
    assert [due_parts(parts, n) for n in (1, 2, 3)] == [("value", "critic")] * 2 + [("value", "critic", "actor")]
    metrics = model.update(sample_batch(model))
    assert "value_loss" in metrics and "actor_loss" not in metrics


@pytest.mark.expensive
def test_compiled_parts_are_the_eager_ones() -> None:
    trained = []
    for execution in ("eager", "compile"):
        model = make_filled(Expectiles, execution=execution)
        model.train(4, 8)
        trained.append(flat_parameters(model.policy))
    th.testing.assert_close(trained[0], trained[1], rtol=1e-4, atol=1e-5)


def test_the_average_acts_and_is_what_is_published(tmp_path: Path) -> None:
    """Publishing keeps the weights of one actor: the one that acts."""
    model = make_filled(Expectiles, tau=0.01)
    model.train(20, 8)
    obs = observations(model.observation_space)
    assert not th.equal(flat_parameters(model.actor), flat_parameters(model.actor_target))
    averaged = act(model, obs)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.zero_()  # does not act
    np.testing.assert_array_equal(act(model, obs), averaged)
    save_agent(model, tmp_path / "agent.zip", optimizer_state=False)
    loaded: Any = Expectiles.load(tmp_path / "agent.zip", device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), averaged)
    assert th.equal(flat_parameters(loaded.actor), flat_parameters(model.actor_target))


def test_further_actors_and_critics() -> None:
    """A behaviour denoiser with other steps, and critics of their own kind."""

    class Further(QSM):
        def policy_requirements(self) -> dict[str, Any]:
            behavior = {"kind": "actor", "diffusion_steps": 5, "target": True}
            return {"networks": {"behavior": behavior, "energy": {"kind": "critic", "n_critics": 1}}}

    policy = make(Further).policy
    assert policy.behavior.update_chain.steps == 5 and policy.actor.update_chain.steps == 3
    assert not any(parameter.requires_grad for parameter in policy.behavior_target.parameters())
    assert th.equal(flat_parameters(policy.behavior), flat_parameters(policy.behavior_target))
    obs = th.as_tensor(observations(policy.observation_space))
    assert len(policy.energy(obs, th.zeros(6, policy.actor.action_dim))) == 1
    assert set(policy.trained) == {"actor", "critic", "behavior", "energy"}


@pytest.mark.parametrize(
    "networks, message",
    [
        ({"actor": {"kind": "value"}}, "has 'actor' already"),
        ({"value": {"kind": "values"}}, "known are value, actor, critic, edm, energy, one_step"),
    ],
)
def test_networks_that_cannot_be(networks: Any, message: str) -> None:
    class Wrong(QSM):
        def policy_requirements(self) -> dict[str, Any]:
            return {"networks": networks}

    with pytest.raises(ValueError, match=message):
        make(Wrong)


@pytest.mark.parametrize(
    "algorithm, name, value",
    [
        (DPMD, "actor_target", False),
        (DPMD, "multipliers", {}),
        (QVPO, "actor_target", False),
        (DACER, "critic_head", "scalar"),
        (DACER, "critic_head", "categorical"),
        (DACER, "multipliers", {}),
        (DACER, "exploration_multiplier", None),
        (DIME, "multipliers", {}),
        (DIME, "critic_head", "scalar"),
        (DIME, "critic_kwargs", {"n_atoms": 11}),
        (DIME, "target_critics", True),
        (MaxEntDP, "choose_with_target", False),
        (QSM, "critic_head", "gaussian"),
        (QSM, "actor_target", True),
        (QSM, "target_critics", False),
        (QSM, "multipliers", {"x": {"initial": 1.0, "learning_rate": 0.1}}),
        (QSM, "networks", {"value": {"kind": "value"}}),
        (QSM, "acting", "actor_target"),
        (DPS, "target_critics", False),
    ],
    ids=str,
)
def test_what_a_method_requires_is_not_overridden(algorithm: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^policy_kwargs: {name}=") as caught:
        make(algorithm, policy_kwargs={name: value})
    assert algorithm.__name__ in str(caught.value)


def test_guidance_belongs_to_the_method() -> None:
    online: dict[str, Any] = {"score_injection": "online", "normalize_gradient": False}
    for name, value in (("temperature", 3.0), ("n_particles", 1), ("proposal", "normal")):
        with pytest.raises(ValueError, match=rf"^policy_kwargs: {name}=.*which DPS requires"):
            make(DPS, **online, policy_kwargs={name: value})


def test_what_the_method_requires_may_be_repeated() -> None:
    assert make(DACER, policy_kwargs={"critic_head": "gaussian"}).policy_kwargs["critic_head"] == "gaussian"
