"""Parameters that the user froze with ``requires_grad_(False)`` stay where they are, and the rest is trained as before."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_diffusion import DACER, DIME, DPMD, QSM, SfBC
from sb3_diffusion.checkpoints.agents import load_agent
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.update.execution import Update
from sb3_diffusion.core.update.graphs import CudaGraphUpdate
from sb3_diffusion.policies.parts import own_parameters
from sb3_diffusion.taxonomy import Method
from tests import every_method, rollouts
from tests.cases import case_of
from tests.environments import PointEnv
from tests.every_method import OTHERS
from tests.helpers import (
    act,
    assert_identical,
    collect,
    make,
    make_filled,
    observations,
    point_data,
    sample_batch,
    with_logger,
)

Algorithm = type[OffPolicyDiffusion]
DECAY: dict[str, Any] = {"optimizer_class": "AdamW", "optimizer_kwargs": {"weight_decay": 0.5}}


class PretrainedExtractor(BaseFeaturesExtractor):
    """
    A frozen backbone with running statistics, and a head that is trained.

    :param observation_space: Box space
    """

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=5)
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3, 7), nn.BatchNorm1d(7), nn.ReLU()).requires_grad_(False)
        self.head = nn.Linear(7, 5)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.head(self.backbone(obs))


def snapshot(model: Any, keep: Callable[[str], bool]) -> dict[str, th.Tensor]:
    """What the networks hold, parameters and statistics, under the names that are to be kept."""
    return {name: value.clone() for name, value in model.policy.state_dict().items() if keep(name)}


def trainable(model: Any) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.named_parameters() if value.requires_grad}


def assert_all_moved(model: Any, before: dict[str, th.Tensor]) -> None:
    assert before
    now = dict(model.policy.named_parameters())
    assert [name for name, value in before.items() if th.equal(now[name], value)] == []


def in_backbone(name: str) -> bool:
    return "backbone" in name


@pytest.mark.parametrize("share", [False, True])
def test_a_pretrained_backbone_stays_as_it_is(algorithm: Algorithm, share: bool, tmp_path: pathlib.Path) -> None:
    policy_kwargs = {"features_extractor_class": PretrainedExtractor, "share_features_extractor": share, **DECAY}
    settings = {"policy_delay": 1, "policy_kwargs": policy_kwargs, **case_of(algorithm).every_update}
    model = make(algorithm, **settings)
    frozen, free = snapshot(model, in_backbone), trainable(model)
    model.learn(16)
    assert len(frozen) > 4
    assert_identical(snapshot(model, in_backbone), frozen)
    assert_all_moved(model, free)

    model.save(tmp_path / "model.zip")
    extractor: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": PretrainedExtractor}}
    loaded: tuple[Any, ...] = (
        algorithm.load(tmp_path / "model.zip", env=PointEnv(), device="cpu"),
        load_agent(tmp_path / "model.zip", env=PointEnv(), device="cpu", **extractor),
    )
    for again in loaded:
        assert_identical(again.policy.state_dict(), model.policy.state_dict())
        collect(with_logger(again)).train(3, 8)
        assert_identical(snapshot(again, in_backbone), frozen)
        assert not th.equal(again.actor.features_extractor.head.weight, model.actor.features_extractor.head.weight)


PARTS: dict[str, Callable[[Any], list[Any]]] = {
    "the actor": lambda model: [model.actor],
    "the critics": lambda model: [model.critic],
    "inner parts": lambda model: [model.actor.denoiser.state_net, model.critic.ensemble.trunk.first],
    "biases": lambda model: [value for name, value in model.policy.named_parameters() if name.endswith("bias")],
    "everything": lambda model: [model.policy],
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_can_be_frozen_in_the_middle_of_a_training(algorithm: Algorithm, part: str) -> None:
    """Neither decay nor momentum of before moves them; unfrozen, they go on."""
    model = make_filled(algorithm, policy_delay=1, policy_kwargs=DECAY, **case_of(algorithm).every_update)
    model.train(2, 8)
    before = trainable(model)
    for module in PARTS[part](model):
        module.requires_grad_(False)
    free = trainable(model)
    model.train(3, 8)
    now = dict(model.policy.named_parameters())
    assert len(free) < len(before)
    assert_identical({name: now[name] for name in before if name not in free}, {n: before[n] for n in before if n not in free})
    if free:
        assert_all_moved(model, free)
    for name in before:
        now[name].requires_grad_(True)
    model.train(2, 8)
    assert_all_moved(model, before)


def test_the_rest_gets_the_gradient_that_it_would_get_anyway(algorithm: Algorithm) -> None:
    results = []
    for parts in ((), ("denoiser.time_net", "denoiser.trunk.hidden", "ensemble.trunk.hidden", "ensemble.trunk.output")):
        model = make_filled(algorithm, policy_delay=1, policy_kwargs={"net_arch": [16, 16]})
        chosen = [value for name, value in model.policy.named_parameters() if any(part in name for part in parts)]
        for parameter in chosen:
            parameter.requires_grad_(False)
        assert bool(chosen) == bool(parts)
        th.manual_seed(1)
        batch = sample_batch(model)
        model.actor_loss(batch)[0].backward(inputs=[p for p in own_parameters(model.actor) if p.requires_grad])
        model.critic_loss(batch)[0].backward(inputs=[p for p in own_parameters(model.critic) if p.requires_grad])
        results.append({name: value.grad for name, value in model.policy.named_parameters() if value.grad is not None})
    full, partial = results
    assert 4 < len(partial) < len(full)
    for name, gradient in partial.items():
        th.testing.assert_close(gradient, full[name], rtol=1e-4, atol=1e-6, msg=name)


def test_clipping_counts_what_is_trained(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, policy_delay=1, max_grad_norm=1e-3)
    model.train(1, 8)  # frozen parameters have gradients of before
    model.actor.denoiser.trunk.requires_grad_(False)
    model.critic.ensemble.trunk.first.requires_grad_(False)
    model.train(1, 8)
    for network in (own_parameters(model.actor), own_parameters(model.critic)):
        assert [p for p in network if not p.requires_grad and p.grad is not None] == []
        norm = th.stack([p.grad.norm() for p in network if p.grad is not None]).norm()
        np.testing.assert_allclose(float(norm), 1e-3, rtol=1e-3)


def test_the_targets_of_frozen_critics_stay_equal_to_them(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, tau=0.3, policy_delay=1)
    model.critic.ensemble.trunk.first.requires_grad_(False)
    model.train(3, 8)
    assert_identical(model.critic_target.ensemble.trunk.first.state_dict(), model.critic.ensemble.trunk.first.state_dict())


@pytest.mark.parametrize(
    "algorithm, find",
    [
        (DACER, lambda model: model.noise_factor.log_value),
        (DIME, lambda model: model.temperature.log_value),
        (DPMD, lambda model: model.temperature.log_value),
    ],
)
def test_a_temperature_can_be_frozen(algorithm: Algorithm, find: Callable[[Any], th.nn.Parameter]) -> None:
    model = make_filled(algorithm, policy_delay=1, **case_of(algorithm).every_update)
    number = find(model).requires_grad_(False)
    number.fill_(20.0)  # outside its range, to which a learned one is held
    model.train(3, 8)
    assert float(number) == 20.0
    number.fill_(0.0).requires_grad_(True)
    model.train(3, 8)
    assert float(number) != 0.0


def test_statistics_of_renormalised_critics_are_frozen_with_them() -> None:
    model = make_filled(DIME)
    model.train(2, 8)
    norm = model.critic.ensemble.input_norms[0].requires_grad_(False)
    before, others = norm.running_mean.clone(), model.critic.ensemble.input_norms[1].running_mean.clone()
    model.train(2, 8)
    assert th.equal(norm.running_mean, before) and not norm.training
    assert not th.equal(model.critic.ensemble.input_norms[1].running_mean, others)
    norm.requires_grad_(True)
    model.train(2, 8)
    assert not th.equal(norm.running_mean, before)


def test_a_modules_own_rule_for_its_mode_is_kept() -> None:
    """Stable-Baselines3's way to keep statistics still; a frozen module may also insist on training mode."""

    class AlwaysTraining(PretrainedExtractor):
        def train(self, mode: bool = True) -> "AlwaysTraining":
            super().train(True)
            return self

    model = make_filled(QSM, policy_kwargs={"features_extractor_class": AlwaysTraining})
    before = snapshot(model, lambda name: "running_mean" in name and name.startswith("critic."))
    model.train(2, 8)
    assert list(before) and not th.equal(next(iter(before.values())), model.critic.features_extractor.backbone[2].running_mean)


# -- offline and on-policy --------------------------------------------------------------------------------------------

GROUPS: dict[str, Callable[[Any], list[Any]]] = {
    "the actor": lambda model: [model.actor],
    "all but the actor": lambda model: [network for name, network in model.policy.trained.items() if name != "actor"],
    "biases": lambda model: [value for name, value in model.policy.named_parameters() if name.endswith("bias")],
    "everything": lambda model: [model.policy],
}


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.zoo_name)
def test_offline_and_on_policy_methods_leave_a_backbone_as_it_is(method: Method, tmp_path: pathlib.Path) -> None:
    model = every_method.make(method.load(), policy_kwargs={"features_extractor_class": PretrainedExtractor, **DECAY})
    frozen, free = snapshot(model, in_backbone), trainable(model)
    every_method.train(model)
    assert len(frozen) > 4
    assert_identical(snapshot(model, in_backbone), frozen)
    assert_all_moved(model, free)
    model.save(tmp_path / "model.zip")
    on_policy = method.setting == "on-policy"
    extra: Any = {"env": rollouts.tensor_env()} if on_policy else {"env": PointEnv(), "dataset": point_data()}
    again: Any = method.load().load(tmp_path / "model.zip", device="cpu", **extra)
    assert_identical(again.policy.state_dict(), model.policy.state_dict())
    every_method.train(again)
    assert_identical(snapshot(again, in_backbone), frozen)


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.zoo_name)
def test_offline_and_on_policy_methods_leave_parts_as_they_are(method: Method) -> None:
    """Networks that begin as copies of others, or anew, leave out what is frozen."""
    model = every_method.make(method.load(), policy_kwargs=DECAY)
    every_method.train(model)
    for group in GROUPS.values():
        before = trainable(model)
        for part in group(model):
            part.requires_grad_(False)
        free, now = trainable(model), dict(model.policy.named_parameters())
        held = {name: value for name, value in before.items() if name not in free}
        every_method.train(model)
        assert_identical({name: now[name] for name in held}, held)
        if free:
            assert_all_moved(model, free)
        for name in before:
            now[name].requires_grad_(True)
    before = trainable(model)
    every_method.train(model)
    assert_all_moved(model, before)


@pytest.mark.parametrize("method", [m for m in OTHERS if m.setting == "on-policy"], ids=lambda method: method.zoo_name)
def test_a_frozen_actor_acts_as_before(method: Method) -> None:
    """The statistics by which it standardises stand still too; those of the value go on."""
    model = every_method.make(method.load())
    every_method.train(model)
    obs = observations(model.observation_space)
    model.actor.requires_grad_(False)
    if getattr(model, "move_average", None):  # what acts is an average of the actor
        model.move_average = lambda: None
    before, seen = act(model, obs), model.value.features_extractor.count.clone()
    every_method.train(model)
    np.testing.assert_array_equal(act(model, obs), before)
    assert model.value.features_extractor.count > seen


def test_statistics_of_a_frozen_critic_stand_still() -> None:
    model = every_method.make(SfBC)
    model.critic.ensemble.requires_grad_(False)
    every_method.train(model)
    assert float(model.critic.ensemble.running_mean) == 0.0 and float(model.critic.ensemble.running_std) == 1.0
    model.critic.ensemble.requires_grad_(True)
    every_method.train(model)
    assert float(model.critic.ensemble.running_mean) != 0.0


def graphs_on_paper(monkeypatch: pytest.MonkeyPatch, model: Any) -> tuple[CudaGraphUpdate, list[str]]:
    """An update whose graphs only note what would happen."""
    calls: list[str] = []

    class Graph:
        def replay(self) -> None:
            calls.append(f"replay {id(self)}")

    def capture(update: CudaGraphUpdate, batch: Any, due: Any) -> Any:
        calls.append("capture")
        return Graph(), batch, {}

    monkeypatch.setattr(th.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(CudaGraphUpdate, "_eager", lambda update, batch, due: calls.append("eager"))
    monkeypatch.setattr(CudaGraphUpdate, "_capture", capture)
    eager = Update(model.parts, model.step, model.finish_update)
    return CudaGraphUpdate(eager, lambda: model.optimizers, model.device, n_warmup=1), calls


def test_a_graph_belongs_to_what_was_trained_when_it_was_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen or unfrozen in between, an update is not replayed from a graph of another set of parameters."""
    model = make_filled(QSM)
    (update, calls), batch = graphs_on_paper(monkeypatch, model), sample_batch(model)
    for frozen in (False, True, False):
        model.actor.denoiser.trunk.requires_grad_(not frozen)
        update(batch, ("critic", "actor"))
        update(batch, ("critic", "actor"))
    kinds = [call.split()[0] for call in calls]
    assert kinds == ["eager", "capture", "replay", "eager", "capture", "replay", "replay", "replay"]
    assert calls[2] == calls[6] == calls[7] != calls[5]


def test_a_graph_belongs_to_the_form_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of another stage are larger, or bring what was prepared for them; the graph has no room for either."""
    model = make_filled(QSM)
    (update, calls), batch = graphs_on_paper(monkeypatch, model), sample_batch(model)
    parts: Any = batch[:-1]
    smaller = type(batch)(*(part[:3] for part in parts))
    for form in (batch, batch._replace(extras={"labels": batch.rewards}), smaller, batch):
        update(form, ("critic", "actor"))
        update(form, ("critic", "actor"))
    replays = [call for call in calls if call.startswith("replay")]
    assert calls.count("capture") == 3 == len(set(replays)) and replays[0] == replays[-1]


@pytest.mark.expensive
def test_compiled_updates_follow_what_is_frozen(algorithm: Algorithm) -> None:
    rare = case_of(algorithm).every_update
    model = make_filled(algorithm, execution="compile", policy_delay=1, policy_kwargs=DECAY, **rare)
    model.train(2, 8)
    for frozen in (True, False):
        for module in (model.actor.denoiser.trunk, model.critic.ensemble.trunk.first):
            module.requires_grad_(not frozen)
        free, before = trainable(model), {name: value.clone() for name, value in model.policy.named_parameters()}
        model.train(2, 8)
        assert_all_moved(model, free)
        now = dict(model.policy.named_parameters())
        held = [name for name, value in now.items() if not value.requires_grad and "target" not in name]
        assert_identical({name: now[name] for name in held}, {name: before[name] for name in held})
