"""What every off-policy algorithm of the taxonomy promises to a user of Stable-Baselines3."""

import copy
import functools
import inspect
import json
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import DiffusionPolicy
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.policies.actor_critic import ActorCritic
from sb3_diffusion.policies.values.critic import reduce_critics
from tests.cases import case_of, wrong_arguments
from tests.conftest import OFF_POLICY
from tests.environments import PointEnv, vector_env
from tests.helpers import (
    BatchNormExtractor,
    act,
    all_finite,
    assert_identical,
    collect,
    first_policy,
    flat_parameters,
    make,
    make_filled,
    observations,
    parameters,
    point_data,
    sample_batch,
    soften,
    tensors_in,
    to_tensors,
    with_logger,
)

Algorithm = type[OffPolicyDiffusion]


@pytest.fixture(params=OFF_POLICY, ids=lambda method: method.zoo_name)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    """Every method that learns from transitions."""
    return request.param.load()  # type: ignore[no-any-return]


# -- constructor ------------------------------------------------------------------------------------------------------


def test_signature_is_stable_baselines3s(algorithm: Algorithm) -> None:
    names = list(inspect.signature(algorithm).parameters)
    expected = [name for name in inspect.signature(SAC).parameters if "sde" not in name]
    head, tail = expected[: expected.index("n_steps") + 1], expected[expected.index("stats_window_size") :]
    assert names[: len(head)] == head and names[-len(tail) :] == tail
    assert names[-1] == "_init_setup_model"


def test_signature_is_what_can_be_called(algorithm: Algorithm) -> None:
    parameters_ = inspect.signature(algorithm).parameters
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters_.values())
    assert all(p.default is not p.empty for name, p in parameters_.items() if name not in ("policy", "env"))
    positional = [name for name, p in parameters_.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional[:2] == ["policy", "env"]
    values = {name: p.default for name, p in parameters_.items()} | {
        "policy": first_policy(algorithm).general_name,
        "env": PointEnv(),
        "buffer_size": 9,
    }
    model = algorithm(
        *(values[name] for name in positional), **{name: value for name, value in values.items() if name not in positional}
    )
    assert model.replay_buffer.buffer_size == 9


def test_every_parameter_is_documented(algorithm: Algorithm) -> None:
    manual = "".join(inspect.getdoc(cls) or "" for cls in algorithm.__mro__ if issubclass(cls, OffPolicyDiffusion))
    assert [name for name in inspect.signature(algorithm).parameters if f":param {name}:" not in manual] == []


def test_can_be_built_as_load_builds_it(algorithm: Algorithm) -> None:
    model = algorithm(policy=DiffusionPolicy, env=None, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    assert not hasattr(model, "actor") and not hasattr(model, "policy")


def test_setup_can_run_twice_and_keeps_the_users_arguments(algorithm: Algorithm) -> None:
    model = make(algorithm)
    before = {name: getattr(model, name) for name in inspect.signature(algorithm).parameters if name in vars(model)}
    before = copy.copy(before)
    model._setup_model()
    for name in set(before) - {"policy", "env", "train_freq"}:
        assert getattr(model, name) is before[name], name
    assert model.policy_kwargs == make(algorithm).policy_kwargs  # nothing of the method's own leaks into it
    model.learn(12)


@pytest.mark.parametrize(
    "policy, observation",
    [
        (0, "box"),
        (0, "dict"),
        ("MlpPolicy", "image"),
        ("CnnPolicy", "image"),
        ("MultiInputPolicy", "dict"),
    ],
)
@pytest.mark.parametrize("by_name", [True, False], ids=["name", "class"])
def test_policy_names(algorithm: Algorithm, policy: Any, observation: str, by_name: bool) -> None:
    name = policy or first_policy(algorithm).general_name
    expected: Any = algorithm.policy_aliases[name]
    model = make(algorithm, PointEnv(observation), policy=name if by_name else expected)
    assert type(model.policy) is expected and issubclass(expected, ActorCritic) and model.policy.squash_output
    assert model.actor is model.policy.actor
    assert model.critic is model.policy.critic and model.critic_target is model.policy.critic_target


def test_actor_and_critic_can_be_called_like_stable_baselines3s(critic_algorithm: Algorithm) -> None:
    model = make(critic_algorithm)
    obs = to_tensors(model, observations(model.observation_space, 5))
    with th.no_grad():
        actions = model.actor(obs)
        values = model.critic(obs, actions)
    assert actions.shape == (5, 2) and actions.abs().max() <= 1.0
    assert isinstance(values, tuple) and [value.shape for value in values] == [(5, 1)] * model.critic.ensemble.n_critics
    assert model.policy(obs, deterministic=True).shape == (5, 2)


BAD_ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"policy": "DifusionPolicy"}, ["DifusionPolicy", "DiffusionPolicy", "MlpPolicy", "CnnPolicy", "MultiInputPolicy"]),
    ({"policy_delay": 0}, ["policy_delay=0", "at least 1"]),
    ({"execution": "fast"}, ["'fast'", "auto", "eager", "compile", "cuda_graph"]),
    ({"execution": "cuda_graph"}, ["cuda_graph", "device='cuda'", "'cpu'"]),
    ({"policy_kwargs": {"net_arc": [16]}}, ["net_arc", "net_arch", "backbone", "diffusion_steps"]),
    ({"policy_kwargs": {"activation_fn": "swosh"}}, ["'swosh'", "relu", "mish", "tanh"]),
    ({"policy_kwargs": {"activation_fn": {"pi": "mish", "vf": "relu"}}}, ["'vf'", "pi", "qf"]),
    ({"policy_kwargs": {"backbone": "transformer"}}, ["'transformer'", "mlp", "residual", "simba", "bronet"]),
    ({"policy_kwargs": {"solver": "dpm3"}}, ["'dpm3'", "ddpm", "ddim", "dpm2", "dpm++2m"]),
    ({"policy_kwargs": {"variance": "big"}}, ["'big'", "beta", "posterior"]),
    ({"policy_kwargs": {"noise_schedule": "sigmoid"}}, ["'sigmoid'", "cosine", "linear"]),
    ({"policy_kwargs": {"process": "discrete", "noise_schedule": "sigmoid"}}, ["'sigmoid'", "cosine", "linear", "vp"]),
    ({"policy_kwargs": {"process": "flowing"}}, ["'flowing'", "continuous", "discrete"]),
    ({"policy_kwargs": {"optimizer_class": "Adamm"}}, ["'Adamm'", "Adam", "AdamW"]),
    ({"policy_kwargs": {"critic_head": "quantile"}}, ["critic_head='quantile'", "policy_kwargs"]),
    ({"policy_kwargs": {"diffusion_steps": 0}}, ["diffusion_steps=0", "at least 1"]),
    ({"policy_kwargs": {"sampling_steps": 0}}, ["sampling_steps=0", "at least 1"]),
    ({"policy_kwargs": {"n_critics": 0}}, ["n_critics=0", "at least 1"]),
    ({"policy_kwargs": {"exploration_noise": -0.1}}, ["exploration_noise=-0.1", ">= 0"]),
    ({"n_action_candidates": 0}, ["n_action_candidates=0", "at least 1"]),
]


@pytest.mark.parametrize("kwargs, fragments", BAD_ARGUMENTS, ids=lambda value: str(value))
def test_a_bad_argument_is_named_with_its_remedy(
    chain_algorithm: Algorithm, kwargs: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        make(chain_algorithm, **copy.deepcopy(kwargs))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


@pytest.mark.parametrize(
    "method, kwargs, fragments",
    wrong_arguments(OFF_POLICY),
    ids=lambda value: getattr(value, "zoo_name", str(value)),
)
def test_a_bad_argument_of_the_method_is_named(method: Any, kwargs: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make(method.load(), **kwargs)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_spaces_that_are_not_supported(algorithm: Algorithm) -> None:
    with pytest.raises(AssertionError, match="only supports"):
        make(algorithm, gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make(algorithm, PointEnv("dict"), policy="MlpPolicy")


# -- saving and loading -----------------------------------------------------------------------------------------------


@functools.cache
def trained_once(algorithm: Algorithm) -> Any:
    """A model after ten updates."""
    return make(algorithm).learn(20)


@pytest.fixture
def trained(algorithm: Algorithm) -> Iterator[Any]:
    """A model after ten updates, which the tests of this file share and leave as it is."""
    model = trained_once(algorithm)
    policy, before = model.policy, parameters(model.policy)
    yield model
    assert model.policy is policy and (model.num_timesteps, model._n_updates, model.verbose) == (20, 10, 0)
    assert_identical(parameters(model.policy), before)


def test_saved_and_loaded_model_is_the_same(trained: Any, tmp_path: pathlib.Path) -> None:
    obs = observations(trained.observation_space)
    trained.save(tmp_path / "model")
    first, second = (type(trained).load(tmp_path / "model", device="cpu") for _ in range(2))
    assert_identical(trained.get_parameters(), first.get_parameters())
    assert_identical(first.get_parameters(), second.get_parameters())
    np.testing.assert_array_equal(act(trained, obs), act(first, obs))
    assert (first.num_timesteps, first._n_updates) == (20, 10)
    assert first.policy_kwargs == trained.policy_kwargs

    first.save(tmp_path / "again")
    again = type(trained).load(tmp_path / "again", device="cpu")
    assert_identical(first.get_parameters(), again.get_parameters())
    np.testing.assert_array_equal(act(trained, obs), act(again, obs))


def test_every_member_of_the_file_is_readable_without_pickle(trained: Any, tmp_path: pathlib.Path) -> None:
    trained.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = [name.removesuffix(".pth") for name in archive.namelist() if name.endswith(".pth")]
        assert set(names) == {*trained.get_parameters(), "pytorch_variables"}
        critics = {"critic.optimizer"} if trained.critic is not None else set()
        assert {"policy", "actor.optimizer", *critics} <= set(names)
        for name in set(names) - {"pytorch_variables"}:
            with archive.open(f"{name}.pth") as member:
                assert_identical(th.load(member, weights_only=True), trained.get_parameters()[name])
        data = json.loads(archive.read("data"))
    assert not {"policy", "actor", "critic", "critic_target", "randomness", "replay_buffer"} & set(data)


def test_what_is_learned_is_floating_and_nothing_else_is_saved(trained: Any) -> None:
    state = trained.policy.state_dict()
    assert all(value.is_floating_point() for value in state.values())
    buffers = {name for name, _ in trained.policy.named_buffers()} & set(state)
    assert all("running_" in name for name in buffers)  # no schedule, no table, no bank of noise


def test_nothing_outside_the_policy_holds_tensors(trained: Any) -> None:
    excluded = set(trained._excluded_save_params()) | {"policy", "actor", "critic", "critic_target"}
    saved = {name: value for name, value in vars(trained).items() if name not in excluded}
    assert list(tensors_in(saved, "model")) == []


def test_set_parameters_alone_reproduces_the_actions(algorithm: Algorithm, trained: Any, tmp_path: pathlib.Path) -> None:
    obs = observations(trained.observation_space)
    trained.save(tmp_path / "model")
    for source in (str(tmp_path / "model.zip"), trained.get_parameters()):
        other = make(algorithm, seed=7)
        assert not np.array_equal(act(other, obs), act(trained, obs))
        other.set_parameters(source, device="cpu")
        np.testing.assert_array_equal(act(other, obs), act(trained, obs))
        assert_identical(other.get_parameters(), trained.get_parameters())

    incomplete = trained.get_parameters()
    del incomplete["actor.optimizer"]
    with pytest.raises(ValueError, match=r"actor\.optimizer"):
        make(algorithm).set_parameters(incomplete, exact_match=True)


def test_a_fresh_interpreter_predicts_the_same_actions(tmp_path: pathlib.Path) -> None:
    for method in OFF_POLICY:
        model = soften(make(method.load()))
        model.save(tmp_path / method.class_name)
        np.save(tmp_path / f"{method.class_name}.npy", act(model, observations(model.observation_space)))
    script = f"""
import numpy as np, sb3_diffusion
from tests.helpers import act, observations
from sb3_diffusion.policies.parts import own_parameters
for name in {[method.class_name for method in OFF_POLICY]}:
    path = {str(tmp_path)!r} + "/" + name
    model = getattr(sb3_diffusion, name).load(path, device="cpu")
    np.testing.assert_array_equal(act(model, observations(model.observation_space)), np.load(path + ".npy"))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=pathlib.Path(__file__).parent.parent, check=False
    )
    assert result.returncode == 0, result.stderr


def test_loading_with_other_arguments(trained: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model"
    trained.save(path)
    cls = type(trained)
    loaded = cls.load(path, env=PointEnv(), device="cpu", buffer_size=30, learning_rate=0.0)
    assert loaded.replay_buffer.buffer_size == 30
    before = flat_parameters(loaded.policy.actor)
    loaded.learn(12)
    assert th.equal(flat_parameters(loaded.policy.actor), before)  # the new learning rate counts, not the stored optimizer's
    assert cls.load(path, custom_objects={"gamma": 0.5}, device="cpu").gamma == 0.5
    assert cls.load(path, device="cpu", policy_kwargs=trained.policy_kwargs).policy_kwargs == trained.policy_kwargs
    with pytest.raises(ValueError, match="policy kwargs"):
        cls.load(path, device="cpu", policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match="Action spaces do not match"):
        cls.load(path, env=PointEnv(action_space=spaces.Box(-1.0, 1.0, (3,), np.float32)), device="cpu")


def test_excluding_and_including_members(trained: Any, tmp_path: pathlib.Path) -> None:
    with mock.patch.object(trained, "verbose", 1):
        trained.save(tmp_path / "model", exclude=["verbose"], include=["replay_buffer"])
    loaded = type(trained).load(tmp_path / "model", device="cpu")
    assert loaded.verbose == 0
    assert loaded.replay_buffer.size() == 20


def test_learning_goes_on_after_loading(trained: Any, tmp_path: pathlib.Path) -> None:
    trained.save(tmp_path / "model")
    loaded = type(trained).load(tmp_path / "model", env=vector_env(3), device="cpu")  # another number of environments
    assert loaded.n_envs == 3
    before = flat_parameters(loaded.actor)
    loaded.learn(12, reset_num_timesteps=False)
    assert loaded.num_timesteps == 32 and not th.equal(flat_parameters(loaded.actor), before)

    with pytest.raises(AssertionError, match="set the environment"):
        type(trained).load(tmp_path / "model", device="cpu").learn(10)


def test_resumed_updates_equal_uninterrupted_ones(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make_filled(algorithm, policy_delay=2, **case_of(algorithm).every_update)
    model.train(5, 8)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = with_logger(algorithm.load(tmp_path / "model", device="cpu"))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == model.replay_buffer.size() == 20
    for one in (model, loaded):
        th.manual_seed(5)
        np.random.seed(5)
        one.train(6, 8)
    assert_identical(loaded.get_parameters(), model.get_parameters())
    assert loaded._n_updates == 11


def test_the_policy_alone_can_be_saved(trained: Any, tmp_path: pathlib.Path) -> None:
    obs = observations(trained.observation_space)
    trained.policy.save(tmp_path / "policy")
    loaded = first_policy(type(trained)).load(str(tmp_path / "policy"), device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), act(trained, obs))
    assert_identical(parameters(loaded), parameters(trained.policy))


def test_the_policy_can_be_copied(trained: Any) -> None:
    obs = observations(trained.observation_space)
    twin = copy.deepcopy(trained.policy)
    actions = act(trained, obs)
    np.testing.assert_array_equal(act(twin, obs), actions)
    assert {id(p) for group in twin.actor.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in twin.actor.parameters()
    }
    with th.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(act(trained, obs), actions)


def test_a_policy_compiled_by_the_user(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    model = make(algorithm).learn(12)
    obs = observations(model.observation_space)
    expected, names = act(model, obs), set(model.policy.state_dict())
    model.policy = th.compile(model.policy, backend="eager")
    np.testing.assert_array_equal(act(model, obs), expected)
    assert set(model.get_parameters()["policy"]) == names
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), expected)
    model.learn(12)


# -- acting -----------------------------------------------------------------------------------------------------------

ACTION_SPACES: dict[str, spaces.Box] = {
    "symmetric": spaces.Box(-3.0, 3.0, (1,), np.float32),
    "asymmetric": spaces.Box(np.array([-1.0, 0.25], np.float32), np.array([2.0, 0.5], np.float32)),
    "matrix": spaces.Box(-0.4, 1.7, (2, 3), np.float32),
    "float64": spaces.Box(-3.0, 1.0, (2,), np.float64),
}


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_action_spaces(algorithm: Algorithm, name: str) -> None:
    space = ACTION_SPACES[name]
    env = PointEnv(action_space=space)
    model = make(algorithm, env).learn(20)
    for deterministic in (True, False):
        batch = act(model, observations(model.observation_space, 40), deterministic)
        assert batch.shape == (40, *space.shape)
        assert act(model, observations(model.observation_space, 1)[0], deterministic).shape == space.shape
        for actions in (batch, np.array(env.executed)):
            assert (actions >= space.low - 1e-6).all() and (actions <= space.high + 1e-6).all()
            assert len(np.unique(actions.reshape(len(actions), -1), axis=0)) > 3

    buffer = model.replay_buffer
    stored = buffer.actions[: buffer.size(), 0]
    assert np.abs(stored).max() <= 1.0
    executed = np.array(env.executed).reshape(stored.shape)
    np.testing.assert_allclose(
        executed, space.low.ravel() + 0.5 * (stored + 1.0) * (space.high - space.low).ravel(), atol=1e-5
    )


def test_deterministic_actions_do_not_touch_the_random_generators(algorithm: Algorithm) -> None:
    model = soften(make(algorithm))
    obs = observations(model.observation_space, 20)
    th.manual_seed(0)
    expected = act(model, obs)
    assert len(np.unique(expected.round(4))) > 6  # the actions depend on the observation, so the comparisons mean something
    for seed in (1, 2):
        th.manual_seed(seed)
        np.random.seed(seed)
        before, before_numpy = th.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
        np.testing.assert_array_equal(act(model, obs), expected)
        assert th.equal(th.get_rng_state(), before)
        np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index]


def test_stochastic_actions_come_from_the_global_generator(algorithm: Algorithm) -> None:
    model = soften(make(algorithm))
    obs = observations(model.observation_space)
    th.manual_seed(0)
    first, second = act(model, obs, deterministic=False), act(model, obs, deterministic=False)
    assert not np.array_equal(first, second)
    th.manual_seed(0)
    np.testing.assert_array_equal(act(model, obs, deterministic=False), first)


@pytest.mark.parametrize("n_action_candidates", [1, 4])
def test_deterministic_actions_do_not_depend_on_the_rest_of_the_batch(
    critic_algorithm: Algorithm, n_action_candidates: int
) -> None:
    kwargs = {"features_extractor_class": BatchNormExtractor}  # would mix the rows in training mode
    model = soften(make(critic_algorithm, n_action_candidates=n_action_candidates, policy_kwargs=kwargs))
    model.policy.set_training_mode(True)
    obs = observations(model.observation_space, 9)
    expected = act(model, obs)
    assert len(np.unique(expected.round(4))) > 9
    for index in range(9):
        np.testing.assert_allclose(act(model, obs[index]), expected[index], atol=1e-5)
    np.testing.assert_allclose(act(model, obs[::-1]), expected[::-1], atol=1e-5)
    np.testing.assert_allclose(act(model, obs[2:5]), expected[2:5], atol=1e-5)


def test_best_of_n_is_best_under_the_critics(critic_algorithm: Algorithm) -> None:
    few, many = (soften(make(critic_algorithm, n_action_candidates=n)) for n in (1, 16))
    assert_identical(parameters(few.policy), parameters(many.policy))
    obs = observations(few.observation_space, 20)

    def value(model: Any) -> th.Tensor:
        actions = th.as_tensor(act(model, obs))
        return reduce_critics(th.stack(model.critic(to_tensors(model, obs), actions)), model.policy.selection.reduction)

    with th.no_grad():
        assert bool((value(many) >= value(few) - 1e-6).all()) and bool((value(many) > value(few) + 1e-6).any())


def ends_of_chains(model: Any, obs: Any) -> dict[str, th.Tensor]:
    """Where the three chains of an actor end, from the same points, without step noise and without clipping."""
    start = th.randn(len(obs), 2, generator=th.Generator().manual_seed(0))
    draws = RecordedDraws({"chain.x_T": start, "chain.step_noise": th.zeros(())})
    tensors = to_tensors(model, obs)
    with th.no_grad():
        return {
            "update": model.actor.sample(model.actor.encode(tensors), draws, "chain", clip_output=False),
            "acting": model.actor.act(tensors, draws, "chain", clip_output=False),
            "evaluation": model.actor.act(tensors, draws, "chain", evaluating=True, clip_output=False),
        }


@pytest.mark.parametrize(
    ("argument", "shortened"), [("sampling_steps", {"acting", "evaluation"}), ("evaluation_steps", {"evaluation"})]
)
def test_steps_of_acting_change_nothing_else(chain_algorithm: Algorithm, argument: str, shortened: set[str]) -> None:
    # a chain of two steps through a table of four is not one through a table of two
    arguments = make(chain_algorithm).policy.constructor_arguments
    is_short_table = arguments.get("process") == "discrete" and not arguments["process_kwargs"]
    table = {"process_kwargs": {"diffusion_steps": 4}} if is_short_table else {}
    settings = ({"diffusion_steps": 4, argument: 2}, {"diffusion_steps": 2, **table}, {"diffusion_steps": 4})
    mixed, short, long = (make(chain_algorithm, policy_kwargs=kwargs) for kwargs in settings)
    assert_identical(parameters(mixed.policy), parameters(long.policy))
    obs = observations(mixed.observation_space, 20)
    np.testing.assert_array_equal(act(mixed, obs), act(short, obs))
    ends, short_ends, long_ends = (ends_of_chains(model, obs) for model in (mixed, short, long))
    for chain, end in ends.items():
        equal, other = (short_ends, long_ends) if chain in shortened else (long_ends, short_ends)
        assert th.equal(end, equal[chain])
        # a share of the box that the networks of all kinds clear by far: noise 1.3, velocity 0.2, control 0.14
        assert (end - other[chain]).abs().max() > 0.05


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_seed_fixes_the_training(algorithm: Algorithm) -> None:
    runs = [make(algorithm, seed=seed).learn(20) for seed in (3, 3, 4)]
    assert_identical(runs[0].get_parameters(), runs[1].get_parameters())
    np.testing.assert_array_equal(runs[0].replay_buffer.actions, runs[1].replay_buffer.actions)
    assert not np.array_equal(runs[0].replay_buffer.actions, runs[2].replay_buffer.actions)
    assert not th.equal(flat_parameters(runs[0].policy), flat_parameters(runs[2].policy))


def test_training_changes_every_network(algorithm: Algorithm) -> None:
    model = make(algorithm)
    before = parameters(model.policy)
    model.learn(20)
    after = parameters(model.policy)
    learned = [name for name in after if name.startswith(("actor.", "critic")) and "running_" not in name]
    assert [name for name in learned if th.equal(before[name], after[name])] == []
    assert all_finite(model)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_several_environments(algorithm: Algorithm, n_steps: int) -> None:
    model = make(algorithm, vector_env(4), gradient_steps=-1, learning_starts=20, n_steps=n_steps).learn(32)
    assert model._n_updates == 12  # three vector steps after the 20 random ones, four transitions each
    assert model.replay_buffer.size() == 8
    model.gradient_steps = 1
    model.learn(24, reset_num_timesteps=False)
    assert model._n_updates == 12 + 6


def test_updates_after_episodes(algorithm: Algorithm) -> None:
    model = make(algorithm, train_freq=(1, "episode"), gradient_steps=-1, learning_starts=10).learn(30)
    assert model._n_updates == 20  # two episodes of ten steps


def test_no_gradient_steps(algorithm: Algorithm) -> None:
    model = make(algorithm, gradient_steps=0)
    before = flat_parameters(model.policy)
    model.learn(20)
    assert model._n_updates == 0 and th.equal(flat_parameters(model.policy), before)


@pytest.mark.parametrize("size", [1, 4])
def test_smallest_batch_and_buffer(algorithm: Algorithm, size: int) -> None:
    model = make(algorithm, learning_starts=0, batch_size=size, buffer_size=1).learn(8)
    assert model._n_updates == 8 and model.replay_buffer.size() == 1
    assert all_finite(model)
    assert np.isfinite(act(model, observations(model.observation_space))).all()


def test_n_step_returns(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, PointEnv(truncate_after=5), n_steps=3, gamma=0.9)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    discounts = sample_batch(model, 200).discounts
    np.testing.assert_allclose(np.unique(discounts.numpy()), [0.9**3, 0.9**2, 0.9], rtol=1e-6)
    model.train(4, 8)
    assert all_finite(model)


def test_memory_optimized_buffer(algorithm: Algorithm) -> None:
    kwargs = {"handle_timeout_termination": False}
    model = make(algorithm, optimize_memory_usage=True, replay_buffer_kwargs=kwargs, buffer_size=15).learn(20)
    assert model.replay_buffer.optimize_memory_usage and model.replay_buffer.full
    assert model._n_updates == 10 and all_finite(model)


def test_hindsight_experience_replay(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=True)
    model = make(algorithm, env, policy="MultiInputPolicy", replay_buffer_class=HerReplayBuffer, learning_starts=15).learn(24)
    assert model._n_updates == 9 and all_finite(model)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    loaded.learn(6, reset_num_timesteps=False)


def test_vec_normalize(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    env = VecNormalize(vector_env(2))
    model = make(algorithm, env, learning_starts=20).learn(36)
    buffer = model.replay_buffer
    raw = buffer.observations[: buffer.pos].reshape(-1, 3)
    assert raw[:, 2].min() >= 0.0 and raw[:, 2].max() < 1.0  # the buffer holds what the environment said
    normalized: Any = env.normalize_obs(raw)
    batches: list[Batch] = []
    update = model._run_update

    def spy(batch: Batch, due: Any) -> Any:
        batches.append(batch)
        return update(batch, due)

    model._run_update = spy
    model.train(2, 16)
    for batch in batches:  # ... and the update sees normalised observations and rewards
        assert isinstance(batch.observations, th.Tensor)
        assert np.abs(batch.observations.numpy()[:, None] - normalized[None]).max(-1).min(1).max() < 1e-5
        rewards = env.normalize_reward(buffer.rewards[: buffer.pos].ravel())
        assert np.abs(batch.rewards.numpy()[:, None] - rewards[None]).min(1).max() < 1e-5

    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))
    loaded_env = VecNormalize.load(str(tmp_path / "statistics.pkl"), vector_env(2))
    loaded = algorithm.load(tmp_path / "model", env=loaded_env, device="cpu")
    np.testing.assert_array_equal(act(loaded, loaded_env.normalize_obs(raw)), act(model, normalized))
    assert loaded.get_vec_normalize_env() is loaded_env
    loaded.learn(24)


def test_action_noise_is_added_to_the_actions(algorithm: Algorithm, trained: Any) -> None:
    noise = NormalActionNoise(mean=np.full(2, 10.0), sigma=np.zeros(2))
    model = make(algorithm, action_noise=noise).learn(20)
    actions = model.replay_buffer.actions[:20, 0]
    np.testing.assert_array_equal(actions, 1.0)  # the noise is added in the normalised box, and clipped to it
    assert np.abs(trained.replay_buffer.actions[:20, 0]).min() < 0.9


def test_learning_rate_schedule(critic_algorithm: Algorithm) -> None:
    model = make(critic_algorithm, learning_rate=LinearSchedule(1e-2, 0.0, 1.0)).learn(16)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    model.learn(16)
    model._current_progress_remaining = 0.5
    model.train(1, 8)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(5e-3)
    assert model.critic.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)


def test_actor_and_critic_learning_rates(critic_algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    rates = {"actor_learning_rate": 2e-4, "critic_learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}
    model = make_filled(critic_algorithm, **rates)
    model.save(tmp_path / "model")
    for one in (model, with_logger(critic_algorithm.load(tmp_path / "model", env=PointEnv(), device="cpu"))):
        collect(one)
        one._current_progress_remaining = 0.25
        one.train(1, 8)
        logged = one.logger.name_to_value
        assert logged["train/actor_learning_rate"] == one.actor.optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
        assert logged["train/critic_learning_rate"] == one.critic.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-4)
        assert logged["train/learning_rate"] == pytest.approx(1e-3)
    only_actor = make_filled(critic_algorithm, actor_learning_rate=5e-5)
    only_actor.train(1, 8)
    assert only_actor.critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert "train/critic_learning_rate" not in only_actor.logger.name_to_value


def test_logged_quantities(critic_algorithm: Algorithm) -> None:
    model = make_filled(critic_algorithm)
    model.train(4, 8)
    logged = model.logger.name_to_value
    assert {"train/actor_loss", "train/critic_loss", "train/q_mean", "train/learning_rate", "train/n_updates"} <= set(logged)
    assert logged["train/n_updates"] == 4
    assert all(np.isfinite(value) for value in logged.values())
    assert len({name[:36] for name in logged}) == len(logged)


def test_environment_can_be_replaced(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(12)
    env = PointEnv(truncate_after=3)
    model.set_env(env)
    model.learn(12, reset_num_timesteps=False)
    assert model.num_timesteps == 24 and len(env.executed) == 12


# -- callbacks and logs -----------------------------------------------------------------------------------------------


class ProgressRecorder(BaseCallback):
    """Remembers what a callback can see at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.remaining: list[float] = []

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.remaining.append(self.model._current_progress_remaining)
        return True


def test_callbacks(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    recorder = ProgressRecorder()
    evaluation = EvalCallback(
        vector_env(1, truncate_after=3),
        eval_freq=8,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    checkpoints = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True)
    model = make(algorithm, gradient_steps=1)
    assert model.learn(20, callback=[recorder, evaluation, checkpoints]) is model
    assert recorder.steps == list(range(1, 21)) and recorder.remaining[0] > recorder.remaining[-1] >= 0.0

    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [8, 16] and results["results"].shape == (2, 2)
    best = algorithm.load(tmp_path / "best_model", device="cpu")
    assert best.num_timesteps in (8, 16)
    last = algorithm.load(tmp_path / "rl_model_20_steps", device="cpu")
    assert (last.num_timesteps, last._n_updates) == (20, model._n_updates - 1)  # saved before the update of its step
    assert (tmp_path / "rl_model_replay_buffer_10_steps.pkl").exists()


def test_training_can_be_continued(algorithm: Algorithm) -> None:
    model = make(algorithm).learn(12)
    recorder = ProgressRecorder()
    model.learn(12, callback=recorder, reset_num_timesteps=False)
    assert recorder.steps == list(range(13, 25)) and model._n_updates == 14
    model.learn(12, callback=recorder)
    assert recorder.steps[-12:] == list(range(1, 13))


def test_it_learns_from_data_and_goes_on_in_an_environment(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    data = point_data()
    model = make(algorithm, dataset=data, with_env=False)
    model.learn_offline(8, callback=CheckpointCallback(4, str(tmp_path)))
    assert model._n_updates == 8 and model.num_timesteps == 0 and all_finite(model)
    loaded: Any = algorithm.load(tmp_path / "rl_model_8_steps.zip", dataset=data, device="cpu")
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    loaded.learn_offline(2, reset_num_updates=False)
    loaded.set_env(PointEnv())
    loaded.learn(14)
    assert loaded._n_updates > 10 and loaded.num_timesteps == 14 and all_finite(loaded)


def test_tensorboard_run_is_named_after_the_algorithm(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    make(algorithm, tensorboard_log=str(tmp_path)).learn(12).learn(12, reset_num_timesteps=True)
    make(algorithm, tensorboard_log=str(tmp_path)).learn(12, tb_log_name="mine")
    assert {path.name for path in tmp_path.iterdir()} == {f"{algorithm.__name__}_1", f"{algorithm.__name__}_2", "mine_1"}


def test_progress_bar(algorithm: Algorithm) -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    assert make(algorithm).learn(12, progress_bar=True).num_timesteps == 12


def test_learning_by_environment_id(algorithm: Algorithm) -> None:
    model = make(algorithm, "Pendulum-v1", verbose=0).learn(14)
    actions = act(model, observations(model.observation_space))
    assert actions.shape == (6, 1) and np.abs(actions).max() <= 2.0


def test_a_misspelt_argument_is_named_with_a_suggestion(algorithm: Algorithm) -> None:
    with pytest.raises(TypeError, match=rf"{algorithm.__name__} has no argument 'learning_rat'; did you mean learning_rate\?"):
        algorithm("DiffusionPolicy", PointEnv(), learning_rat=1e-3)  # type: ignore[call-arg]
