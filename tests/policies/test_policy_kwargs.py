"""Every entry of ``policy_kwargs`` reaches the networks, and models with it train, save and load."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.controlled import ControlledDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FLOW_SOLVERS, FlowMatching
from sb3_diffusion.networks.activations import Mish
from sb3_diffusion.networks.backbones import BACKBONES
from sb3_diffusion.networks.norms import LayerNorm
from sb3_diffusion.policies.parts import own_parameters
from tests.cases import case_of
from tests.helpers import (
    CautiousPolicy,
    act,
    all_finite,
    assert_identical,
    flat_parameters,
    make,
    make_filled,
    observations,
    tiny_policy,
    to_tensors,
)

Algorithm = type[OffPolicyDiffusion]

PROCESSES: list[dict[str, Any]] = [
    *(
        {"process": "continuous", "solver": solver, "noise_schedule": "cosine"}
        for solver in ("ddpm", "ddim", "dpm2", "dpm++2m")
    ),
    {"process": "continuous", "noise_schedule": "linear", "variance": "posterior"},
    {"process": "continuous", "noise_schedule": "linear", "sampling_steps": 5},
    *({"process": "discrete", "noise_schedule": schedule} for schedule in ("cosine", "linear", "vp")),
    {"process": "discrete", "solver": "ddim", "diffusion_steps": 6, "sampling_steps": 3},
]

FLOWS: list[dict[str, Any]] = [
    *({"solver": solver} for solver in FLOW_SOLVERS),
    {"process": "flow", "sampling_steps": 5},
    {"evaluation_steps": 1},
]

CONTROLLED: list[dict[str, Any]] = [
    {"noise_schedule": "cosine", "sampling_steps": 5},
    {"noise_schedule": "linear", "process_kwargs": {"prior_std": 1.5}},
]

NETWORKS: list[dict[str, Any]] = [
    {"net_arch": {"pi": [12], "qf": [10, 10]}},
    {"activation_fn": nn.Tanh},
    {"activation_fn": "mish"},
    {"activation_fn": {"pi": "silu", "qf": nn.ELU}},
    *({"backbone": backbone} for backbone in BACKBONES),
    {"backbone": {"pi": "residual", "qf": "bronet"}, "net_arch": [8, 8]},
    {"layer_norm": True},
    {"layer_norm": {"qf": True}},
    {"n_critics": 1},
    {"n_critics": 3},
    {"state_arch": []},
]

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}},
    {"optimizer_class": "AdamW", "optimizer_kwargs": {"weight_decay": 0.1, "betas": [0.8, 0.9]}},
    {"optimizer_kwargs": {"foreach": True}},
]


@pytest.mark.parametrize("policy_kwargs", NETWORKS + OPTIMIZERS, ids=str)
def test_trains_saves_and_loads(algorithm: Algorithm, policy_kwargs: dict[str, Any], tmp_path: pathlib.Path) -> None:
    check_trains_saves_and_loads(algorithm, policy_kwargs, tmp_path)


@pytest.mark.parametrize("policy_kwargs", PROCESSES, ids=str)
def test_diffusions_train_save_and_load(
    diffusion_algorithm: Algorithm, policy_kwargs: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    check_trains_saves_and_loads(diffusion_algorithm, policy_kwargs, tmp_path)


@pytest.mark.parametrize("policy_kwargs", FLOWS, ids=str)
def test_flows_train_save_and_load(flow_algorithm: Algorithm, policy_kwargs: dict[str, Any], tmp_path: pathlib.Path) -> None:
    check_trains_saves_and_loads(flow_algorithm, policy_kwargs, tmp_path)


@pytest.mark.parametrize("policy_kwargs", CONTROLLED, ids=str)
def test_controlled_diffusions_train_save_and_load(
    controlled_algorithm: Algorithm, policy_kwargs: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    check_trains_saves_and_loads(controlled_algorithm, policy_kwargs, tmp_path)


def check_trains_saves_and_loads(algorithm: Algorithm, policy_kwargs: dict[str, Any], tmp_path: pathlib.Path) -> None:
    model = make(algorithm, policy_kwargs=policy_kwargs, learning_rate=1e-4)
    before = flat_parameters(model.actor), flat_parameters(model.critic)
    model.learn(16)
    assert not th.equal(flat_parameters(model.actor), before[0]) and not th.equal(flat_parameters(model.critic), before[1])
    assert all_finite(model)

    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    assert_identical(loaded.get_parameters(), model.get_parameters())
    assert loaded.policy_kwargs == {**tiny_policy(algorithm), **policy_kwargs}


@pytest.mark.parametrize("policy_kwargs", NETWORKS, ids=str)
def test_hoisted_and_naive_paths_agree(algorithm: Algorithm, policy_kwargs: dict[str, Any]) -> None:
    model = make(algorithm, policy_kwargs=policy_kwargs)
    obs = to_tensors(model, observations(model.observation_space, 5))
    actor, critic = model.actor, model.critic
    with th.no_grad():
        for parameter in model.policy.parameters():  # a fresh bias is zero, and a fresh norm does nothing
            parameter.add_(0.1 * th.randn_like(parameter))
        actor_features = actor.extract_features(obs, actor.features_extractor)
        critic_features = critic.extract_features(obs, critic.features_extractor)
        times = th.rand(5, 1)
        for x in (th.rand(5, 2) * 2.0 - 1.0, th.rand(5, 4, 2) * 2.0 - 1.0):
            # one time for all rows, as in the sampling chains
            hoisted = actor.denoiser(x, actor.encode(obs), actor.denoiser.encode_time(times[0]))
            th.testing.assert_close(hoisted, actor.denoiser.full(x, times[0], actor_features), rtol=1e-5, atol=1e-5)
            values = critic.ensemble(x, critic.encode(obs))
            th.testing.assert_close(values, critic.ensemble.full(critic_features, x), rtol=1e-5, atol=1e-5)
        # bound to states and times, as the samplers use it; one state at a time, several, and more than fit the cache
        for n in (1, 5, 600):
            features, x = actor_features[:1].expand(n, -1), th.rand(n, 3, 2) * 2.0 - 1.0
            bound = actor.denoiser.bind(actor.denoiser.encode_state(features), actor.denoiser.encode_time(times))
            for k, part in ((0, x), (4, x), (3, x[:, 0])):
                naive = actor.denoiser.full(part, times[k], features)
                th.testing.assert_close(bound(part, k), naive, rtol=1e-5, atol=1e-5)
        # one time per row, as in the regression losses
        x = th.rand(5, 2) * 2.0 - 1.0
        embedded = times if actor.time_input == "t" else actor.process.log_snr(times)
        naive = actor.denoiser.full(x, embedded, actor_features)
        th.testing.assert_close(actor.denoise(x, times, actor.encode(obs)), naive, rtol=1e-5, atol=1e-5)


def contains(module: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in module.modules())


def test_net_arch(algorithm: Algorithm) -> None:
    model = make(algorithm, policy_kwargs={"net_arch": {"pi": [12, 13], "qf": [9]}, "state_arch": [6]})
    assert model.actor.denoiser.encode_state(th.zeros(1, 3)).shape == (1, 12)
    assert model.critic.encode(th.zeros(1, 3)).shape == (2, 1, 9)
    assert {12, 13} <= {size for p in model.actor.denoiser.trunk.parameters() for size in p.shape}
    assert {6} <= {size for p in model.actor.denoiser.parameters() for size in p.shape}
    default = algorithm("DiffusionPolicy", "Pendulum-v1", buffer_size=1, device="cpu")
    if "net_arch" not in default.policy_settings():
        assert default.actor.encode(th.zeros(1, 3)).shape == (1, 256)
    assert default.critic.encode(th.zeros(1, 3)).shape == (2, 1, case_of(algorithm).critic_width)


def test_activation(algorithm: Algorithm) -> None:
    default = make(algorithm)
    if "activation_fn" not in default.policy_settings():
        assert contains(default.actor, Mish) and contains(default.critic, nn.ReLU) and not contains(default.critic, Mish)
    both = make(algorithm, policy_kwargs={"activation_fn": nn.Tanh})
    assert contains(both.actor, nn.Tanh) and contains(both.critic, nn.Tanh) and not contains(both.actor, Mish)
    named = make(algorithm, policy_kwargs={"activation_fn": {"pi": nn.SiLU, "qf": "mish"}})
    assert contains(named.actor, nn.SiLU) and contains(named.critic, Mish) and contains(named.critic_target, Mish)


def test_backbone_and_layer_norm(algorithm: Algorithm) -> None:
    for name, cls in BACKBONES.items():
        model = make(algorithm, policy_kwargs={"backbone": name})
        assert type(model.actor.denoiser.trunk) is type(model.critic.ensemble.trunk) is cls
    mixed = make(algorithm, policy_kwargs={"backbone": {"qf": "bronet"}})
    assert type(mixed.actor.denoiser.trunk) is BACKBONES["mlp"] and type(mixed.critic.ensemble.trunk) is BACKBONES["bronet"]
    default = make(algorithm)
    assert contains(default.policy, LayerNorm) == ("layer_norm" in default.policy_settings())
    normalized = make(algorithm, policy_kwargs={"layer_norm": {"qf": True}})
    assert contains(normalized.critic, LayerNorm) and not contains(normalized.actor, LayerNorm)


@pytest.mark.parametrize("n_critics", [1, 3])
def test_number_of_critics(algorithm: Algorithm, n_critics: int) -> None:
    model = make(algorithm, policy_kwargs={"n_critics": n_critics})
    obs = to_tensors(model, observations(model.observation_space, 4))
    values = model.critic(obs, th.zeros(4, 2))
    assert len(values) == len(model.critic_target(obs, th.zeros(4, 2))) == n_critics
    assert len({value.sum().item() for value in values}) == n_critics  # members start differently


def test_process(diffusion_algorithm: Algorithm) -> None:
    algorithm = diffusion_algorithm
    plain = {"process": "continuous", "noise_schedule": "cosine"}
    continuous = make(algorithm, policy_kwargs={**plain, "diffusion_steps": 7})
    assert type(continuous.actor.process) is ContinuousDiffusion and len(continuous.actor.update_chain.times) == 7
    assert continuous.actor.acting_chain is continuous.actor.update_chain
    discrete = make(algorithm, policy_kwargs={"process": "discrete", "diffusion_steps": 7, "noise_schedule": "vp"})
    assert type(discrete.actor.process) is DiscreteDiffusion
    times = {
        solver: len(make(algorithm, policy_kwargs={**plain, "solver": solver}).actor.update_chain.times)
        for solver in ("ddpm", "ddim", "dpm2", "dpm++2m")
    }
    assert times["ddpm"] == times["ddim"] == times["dpm++2m"] == 3 and times["dpm2"] > 3  # dpm2 evaluates between the steps
    obs = observations(continuous.observation_space, 20)
    variants: list[dict[str, Any]] = [{}, {"solver": "ddim"}, {"solver": "dpm++2m"}, {"noise_schedule": "linear"}]
    actions = [act(make(algorithm, policy_kwargs={**plain, **kwargs}), obs) for kwargs in variants]
    assert all(not np.allclose(a, b) for i, a in enumerate(actions) for b in actions[:i])


def test_flow_process(flow_algorithm: Algorithm) -> None:
    default = make(flow_algorithm, policy_kwargs={"diffusion_steps": 7})
    assert type(default.actor.process) is FlowMatching and len(default.actor.update_chain.times) == 7
    times = {
        solver: len(make(flow_algorithm, policy_kwargs={"solver": solver}).actor.update_chain.times)
        for solver in ("euler", "midpoint", "heun", "rk4")
    }
    assert times == {"euler": 3, "midpoint": 6, "heun": 6, "rk4": 12}
    obs = observations(default.observation_space, 20)
    models = [make(flow_algorithm, policy_kwargs={"solver": solver}) for solver in ("euler", "heun", "rk4")]
    actions = [act(model.actor, obs) for model in models]
    assert all(not np.allclose(a, b) for i, a in enumerate(actions) for b in actions[:i])


def test_controlled_process(controlled_algorithm: Algorithm) -> None:
    default = make(controlled_algorithm, policy_kwargs={"diffusion_steps": 7})
    assert type(default.actor.process) is ControlledDiffusion and len(default.actor.update_chain.times) == 7
    obs = observations(default.observation_space, 20)
    variants: list[dict[str, Any]] = [{}, {"noise_schedule": "linear"}, {"process_kwargs": {"prior_std": 1.5}}]
    actions = [act(make(controlled_algorithm, policy_kwargs=kwargs), obs) for kwargs in variants]
    assert all(not np.allclose(a, b) for i, a in enumerate(actions) for b in actions[:i])


@pytest.mark.parametrize("n_action_candidates", [1, 4])
def test_evaluation_steps_change_deterministic_actions_only(algorithm: Algorithm, n_action_candidates: int) -> None:
    settings: list[dict[str, Any]] = [
        {"diffusion_steps": 4, "sampling_steps": 3, "evaluation_steps": 2},
        {"diffusion_steps": 4, "sampling_steps": 3},
        {"diffusion_steps": 4, "sampling_steps": 2},
    ]
    models = [make(algorithm, policy_kwargs=kwargs, n_action_candidates=n_action_candidates) for kwargs in settings]
    if models[0].policy.acting not in ("actor", "actor_target"):
        pytest.skip("another actor acts, which has no chain")
    obs = observations(models[0].observation_space, 20)
    evaluated = [act(model, obs) for model in models]
    np.testing.assert_array_equal(evaluated[0], evaluated[2])
    assert not np.allclose(evaluated[0], evaluated[1])
    explored = []
    for model in models:
        th.manual_seed(0)
        explored.append(act(model, obs, deterministic=False))
    np.testing.assert_array_equal(explored[0], explored[1])
    assert not np.allclose(explored[0], explored[2])
    with th.no_grad():
        np.testing.assert_allclose(
            models[0].actor(to_tensors(models[0], obs)), models[2].actor(to_tensors(models[2], obs)), rtol=0.0, atol=0.0
        )


def test_optimizer(algorithm: Algorithm) -> None:
    default = make(algorithm)
    assert type(default.actor.optimizer) is type(default.critic.optimizer) is th.optim.Adam
    named = make(algorithm, policy_kwargs={"optimizer_class": "AdamW", "optimizer_kwargs": {"weight_decay": 0.25}})
    for optimizer in (named.actor.optimizer, named.critic.optimizer):
        assert type(optimizer) is th.optim.AdamW and optimizer.param_groups[0]["weight_decay"] == 0.25
    assert named.policy_kwargs["optimizer_kwargs"] == {"weight_decay": 0.25}
    given = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}
    assert type(make(algorithm, policy_kwargs=given).actor.optimizer) is th.optim.SGD


def test_gradient_clipping(algorithm: Algorithm) -> None:
    norms: dict[float | None, list[float]] = {}
    for bound in (None, 1e-3):
        model = make_filled(algorithm, max_grad_norm=bound, policy_delay=1)
        model.train(1, 8)
        networks = (own_parameters(model.actor), own_parameters(model.critic))
        norms[bound] = [float(th.stack([p.grad.norm() for p in net if p.grad is not None]).norm()) for net in networks]
    assert min(norms[None]) > 1e-2
    np.testing.assert_allclose(norms[1e-3], 1e-3, rtol=1e-3)


def test_a_users_own_policy_class(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, policy=CautiousPolicy, policy_kwargs={"caution": 0.5}).learn(20)
    obs = observations(model.observation_space)
    actions = act(model, obs)
    plain = make(algorithm)
    plain.set_parameters(model.get_parameters())
    np.testing.assert_allclose(actions, 0.5 * act(plain, obs), atol=1e-6)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(act(algorithm.load(tmp_path / "model", device="cpu"), obs), actions)
    model.policy.save(tmp_path / "policy")
    np.testing.assert_array_equal(act(CautiousPolicy.load(str(tmp_path / "policy"), device="cpu"), obs), actions)
