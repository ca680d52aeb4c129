"""What Stable-Baselines3's names and calls mean there, they mean here: policies, networks, parts, buffers, modes."""

import contextlib
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from sb3_diffusion import DACER, DIME, DPS, QSM, DiffusionPolicy, load_agent, save_agent
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.networks.activations import Mish
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.guided import GuidedCnnPolicy, GuidedMlpPolicy, GuidedPolicy
from sb3_diffusion.policies.names import POLICIES, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_diffusion.policies.values.critic import ObservationCritic
from tests import every_method
from tests.conftest import DIFFUSION
from tests.environments import PointEnv, vector_env
from tests.every_method import OTHERS
from tests.helpers import (
    BatchNormExtractor,
    act,
    all_finite,
    assert_identical,
    flat_parameters,
    make,
    make_filled,
    observations,
    point_data,
    sample_batch,
    to_tensors,
    with_logger,
)

Algorithm = type[OffPolicyDiffusion]
GUIDED: dict[str, Any] = {"score_injection": "online", "normalize_gradient": False}


class Showing(gym.Env[Any, np.ndarray]):
    """
    An environment that shows random observations.

    :param space: Observation space
    """

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, space: spaces.Space):
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, self.np_random.random() < 0.2, {}


def image(*shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255 if dtype is np.uint8 else 1.0, shape, dtype)


SPACES: dict[str, spaces.Space] = {
    "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (3, 2), np.float32),
    "discrete": spaces.Discrete(4),
    "bits": spaces.MultiBinary(4),
    "kinds": spaces.MultiDiscrete([3, 2]),
    "image": image(36, 36, 3),
    "image, channels first": image(3, 36, 36),
    "normalised image": image(1, 36, 36, dtype=np.float32),
    "volume": spaces.Box(-1.0, 1.0, (4, 3, 2), np.float32),
    "dict": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Discrete(3)}),
    "dict with image": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": image(36, 36, 1)}),
    "dict with normalised image": spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": image(1, 36, 36, dtype=np.float32)}),
}


def reading(model: Any) -> Any:
    """Kind of the features extractor and of its parts, and the number of features."""
    act(model, observations(model.observation_space, 2))
    extractor = model.actor.features_extractor
    parts = {key: type(part) for key, part in getattr(extractor, "extractors", {}).items()}
    return type(extractor), parts, extractor.features_dim


@pytest.mark.parametrize("normalize_images", [True, False])
@pytest.mark.parametrize("name", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize("space", SPACES)
def test_a_policy_name_means_what_it_means_with_sac(space: str, name: str, normalize_images: bool) -> None:
    env = Showing(SPACES[space])
    arguments: dict[str, Any] = {"buffer_size": 1, "device": "cpu"}
    expected = None
    with contextlib.suppress(Exception):  # whatever it says to what cannot be
        expected = reading(SAC(name, env, policy_kwargs={"normalize_images": normalize_images}, **arguments))
    if expected is None:
        with pytest.raises((ValueError, AssertionError), match=r"MultiInputPolicy|MlpPolicy|CnnPolicy"):
            make(QSM, env, name, policy_kwargs={"normalize_images": normalize_images}, **arguments)
    else:
        model = make(QSM, env, name, policy_kwargs={"normalize_images": normalize_images}, **arguments)
        assert reading(model) == expected and type(model.policy) is POLICIES[name]


@pytest.mark.parametrize("space", SPACES)
def test_diffusion_policy_chooses_by_the_space(space: str) -> None:
    model = make(QSM, Showing(SPACES[space]), buffer_size=1)
    found = {"image": NatureCNN, "image, channels first": NatureCNN}.get(space, FlattenExtractor)
    assert type(model.actor.features_extractor) is (CombinedExtractor if "dict" in space else found)
    assert type(model.policy) is DiffusionPolicy


def test_a_cnn_for_normalised_images(algorithm: Algorithm, tmp_path: pathlib.Path) -> None:
    env = Showing(SPACES["normalised image"])
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 12}}
    model = make(algorithm, env, "CnnPolicy", policy_kwargs=kwargs, batch_size=4).learn(14)
    for network in (model.actor, model.critic, model.critic_target):
        assert type(network.features_extractor) is NatureCNN and network.features_extractor.features_dim == 12
    assert model.policy_kwargs["features_extractor_kwargs"] == {"features_dim": 12}  # nothing was added to it
    obs = observations(model.observation_space)
    model.save(tmp_path / "model")
    save_agent(model, tmp_path / "agent")
    model.policy.save(str(tmp_path / "policy"))
    loaded = [
        algorithm.load(tmp_path / "model", device="cpu"),
        load_agent(tmp_path / "agent", device="cpu"),
        type(model.policy).load(str(tmp_path / "policy"), device="cpu"),
        DiffusionPolicy.load(str(tmp_path / "policy"), device="cpu"),
    ]
    assert [type(one.policy) for one in loaded[:2]] == [CnnPolicy, CnnPolicy]
    for one in loaded:
        np.testing.assert_array_equal(act(one, obs), act(model, obs))


def test_what_a_cnn_cannot_read_is_explained() -> None:
    with pytest.raises(AssertionError, match="You should use NatureCNN only with images"):
        make(QSM, policy="CnnPolicy")
    for name in ("CnnPolicy", "DiffusionPolicy"):
        with pytest.raises(ValueError, match=r"NatureCNN cannot read Box.*\(3, 20, 20\).*at least 36 x 36.*'MlpPolicy'"):
            make(QSM, Showing(image(20, 20, 3)), name)
    with pytest.raises(ValueError, match="channels first"):
        make(QSM, Showing(image(36, 36, 3, dtype=np.float32)), "CnnPolicy", policy_kwargs={"normalize_images": False})
    with pytest.raises(ValueError, match=r"CombinedExtractor cannot read Dict.*at least 36 x 36"):
        make(QSM, Showing(spaces.Dict({"a": image(20, 20, 3)})))
    for policy in (MlpPolicy, CnnPolicy):
        with pytest.raises(ValueError, match=r"cannot read Dict.*MultiInputPolicy"):
            make(QSM, PointEnv("dict"), policy)
    with pytest.raises(ValueError, match=r"CombinedExtractor cannot read Box.*MlpPolicy"):
        make(QSM, policy="MultiInputPolicy")


def test_an_extractor_of_ones_own_wins_over_the_name() -> None:
    env = PointEnv("image")
    for name in ("MlpPolicy", "CnnPolicy", "DiffusionPolicy"):
        for extractor in (FlattenExtractor, BatchNormExtractor, NatureCNN):
            model = make(QSM, env, name, policy_kwargs={"features_extractor_class": extractor}, buffer_size=1)
            assert type(model.actor.features_extractor) is type(model.critic.features_extractor) is extractor


def test_stacked_frames() -> None:
    env = VecFrameStack(
        DummyVecEnv([lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)]), 4
    )
    model = make(QSM, env, "CnnPolicy", batch_size=4).learn(12)
    assert model.observation_space.shape == (4, 36, 36)
    first = model.actor.features_extractor.cnn[0]
    assert isinstance(first, nn.Conv2d) and first.in_channels == 4


@pytest.mark.parametrize("name", POLICIES)
def test_the_name_is_kept_in_files(name: str, tmp_path: pathlib.Path) -> None:
    env = Showing(SPACES["dict" if name == "MultiInputPolicy" else "image"])
    for algorithm, kwargs in ((QSM, {}), (DPS, GUIDED)):
        model = make(algorithm, env, name, buffer_size=1, **kwargs)
        assert isinstance(model.policy, POLICIES[name]) and issubclass(GuidedPolicy, DiffusionPolicy)
        assert isinstance(model.policy, GuidedPolicy) == bool(kwargs)
        path = save_agent(model, tmp_path / "agent")
        for loaded in (algorithm.load(path, device="cpu"), load_agent(path, device="cpu")):
            assert type(loaded.policy) is type(model.policy)
            obs = observations(model.observation_space, 2)
            np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    assert GuidedMlpPolicy.default_features_extractor is FlattenExtractor
    assert GuidedCnnPolicy.default_features_extractor is NatureCNN


def test_a_subclass_of_a_named_policy_has_its_extractor() -> None:
    class Own(MultiInputPolicy):
        """A user's policy."""

    model = make(QSM, PointEnv("dict with image"), Own, buffer_size=1)
    assert type(model.actor.features_extractor) is CombinedExtractor and type(model.policy) is Own


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net_arch", [[], {"pi": [8], "qf": []}], ids=str)
def test_without_hidden_layers_networks_are_linear(algorithm: Algorithm, net_arch: Any, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, policy_kwargs={"net_arch": net_arch}, learning_rate=1e-4)
    before = flat_parameters(model.actor), flat_parameters(model.critic)
    model.learn(14)
    assert all_finite(model) and model.policy_kwargs["net_arch"] == net_arch
    assert not th.equal(flat_parameters(model.actor), before[0]) and not th.equal(flat_parameters(model.critic), before[1])
    with th.no_grad():
        context = model.critic.encode(th.zeros(1, 3))
        a, b = th.full((1, 2), 0.3), th.full((1, 2), -0.1)
        left, right, middle = (model.critic.ensemble.outputs(x, context) for x in (a, b, (a + b) / 2.0))
        th.testing.assert_close((left + right) / 2.0, middle)
    model.save(tmp_path / "model")
    obs = observations(model.observation_space)
    for loaded in (algorithm.load(tmp_path / "model", device="cpu"), load_agent(tmp_path / "model", device="cpu")):
        np.testing.assert_array_equal(act(loaded, obs), act(model, obs))


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


@pytest.mark.parametrize("made_by", [partial(nn.LeakyReLU, 0.2, inplace=True), leaky, lambda: leaky()])
def test_an_activation_may_be_a_function(made_by: Callable[[], nn.Module], tmp_path: pathlib.Path) -> None:
    for algorithm in (QSM, DIME):
        plain = make(algorithm, policy_kwargs={"activation_fn": {"pi": made_by}})
        assert not any(isinstance(part, Mish) for part in plain.actor.modules())
        model = make(algorithm, policy_kwargs={"activation_fn": made_by}).learn(14)
        slopes = [part.negative_slope for part in model.policy.modules() if isinstance(part, nn.LeakyReLU)]
        assert set(slopes) == {0.2} and all_finite(model)
        model.save(tmp_path / "model")
        obs = observations(model.observation_space)
        for loaded in (
            algorithm.load(tmp_path / "model", device="cpu"),
            load_agent(tmp_path / "model", device="cpu", policy_kwargs={"activation_fn": made_by}),
        ):
            np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    with pytest.raises(ValueError, match="pass policy_kwargs="):
        load_agent(tmp_path / "model", device="cpu")


# -- parts of the policy ----------------------------------------------------------------------------------------------


class Halving(BaseFeaturesExtractor):
    """An extractor of a user's own, with a parameter."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 3)
        self.factor = nn.Parameter(th.tensor(0.5))

    def forward(self, observation: th.Tensor) -> th.Tensor:
        return self.factor * observation


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("method", [m for m in DIFFUSION if m.name != "BC"], ids=lambda method: method.zoo_name)
def test_actor_and_critic_can_be_saved_alone(method: Any, share: bool, tmp_path: pathlib.Path) -> None:
    kwargs = {"features_extractor_class": Halving, "share_features_extractor": share, "sampling_steps": 2, "n_critics": 3}
    model = make(method.load(), PointEnv(action_space=spaces.Box(-3.0, 7.0, (2,), np.float32)), policy_kwargs=kwargs)
    obs = observations(model.observation_space, 5)
    for actor in {model.actor, model.actor_target or model.actor}:
        actions, state = actor.predict(obs, deterministic=True)
        assert actions.shape == (5, 2) and state is None and actions.min() >= -3.0 and 3.0 < actions.max() <= 7.0
        np.testing.assert_allclose(actor.predict(obs[1], deterministic=True)[0], actions[1], atol=1e-5)
        actor.save(str(tmp_path / "actor"))
        loaded = DiffusionActor.load(str(tmp_path / "actor"), device="cpu")
        np.testing.assert_array_equal(act(loaded, obs), actions)
        assert_identical(loaded.state_dict(), actor.state_dict())
        for seed in (0, 0, 1):
            th.manual_seed(seed)
            drawn = act(actor, obs, deterministic=False)
            th.manual_seed(seed)
            np.testing.assert_array_equal(act(loaded, obs, deterministic=False), drawn)
        th.manual_seed(0)
        assert not np.array_equal(act(actor, obs, deterministic=False), drawn)

    model.critic.save(str(tmp_path / "critic"))
    critic = ObservationCritic.load(str(tmp_path / "critic"), device="cpu")
    inputs = to_tensors(model, obs), th.rand(5, 2) - 0.5
    with th.no_grad():
        for value, expected in zip(critic(*inputs), model.critic(*inputs), strict=True):
            th.testing.assert_close(value, expected, rtol=0.0, atol=0.0)
    assert len(critic(*inputs)) == 3


def test_the_only_chain_of_a_policy_is_that_of_its_actor() -> None:
    model = make(DACER)
    obs = observations(model.observation_space)
    np.testing.assert_allclose(act(model.actor, obs), act(model, obs), atol=1e-6)
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        model.actor.predict((obs, {}))


def test_a_guided_actor_is_saved_with_its_policy(tmp_path: pathlib.Path) -> None:
    model = make(DPS, **GUIDED)
    obs = observations(model.observation_space)
    assert act(model.actor, obs).shape == act(model.actor, obs, deterministic=False).shape == (6, 2)
    with pytest.raises(NotImplementedError, match=r"model\.policy\.save"):
        model.actor.save(str(tmp_path / "actor"))
    assert not (tmp_path / "actor").exists()


def test_asking_the_actor_does_not_leave_training_half_switched_off() -> None:
    model = make(QSM, policy_kwargs={"features_extractor_class": BatchNormExtractor})
    model.policy.set_training_mode(True)
    act(model.actor, observations(model.observation_space))
    assert not model.actor.training
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        modes = {module.training for network in (model.actor, model.critic) for module in network.modules()}
        assert modes == {mode}


# -- the replay buffer and its model ----------------------------------------------------------------------------------


def discounts(model: Any) -> list[float]:
    return sorted({round(float(value), 5) for value in sample_batch(model, 200).discounts})


def returns_of(gamma: float, n_steps: int = 3) -> list[float]:
    return sorted(round(gamma**n, 5) for n in range(1, n_steps + 1))


@pytest.fixture(scope="module")
def buffer_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A buffer of 20 transitions that was filled with gamma=0.99 and n_steps=3."""
    path = tmp_path_factory.mktemp("buffers") / "buffer"
    make_filled(QSM, n_steps=3).save_replay_buffer(path)
    return path


def test_a_buffer_discounts_as_its_model_does(algorithm: Algorithm, buffer_file: pathlib.Path) -> None:
    model = make(algorithm, n_steps=3, gamma=0.5)
    model.load_replay_buffer(buffer_file)
    assert discounts(model) == returns_of(0.5)
    seen: list[Any] = []

    def spy(batch: Any, due: Any) -> Any:
        seen.append(batch.discounts)
        return {"actor_loss": th.zeros(())}

    with_logger(model)._run_update = spy
    model.train(1, 200)
    model.gamma = 0.9  # as callbacks do
    model.train(1, 200)
    assert [sorted({round(float(value), 5) for value in one}) for one in seen] == [returns_of(0.5), returns_of(0.9)]
    model.replay_buffer.gamma = 0.2  # ... and the model remains the owner
    assert discounts(model) == returns_of(0.9)


def test_returns_after_a_change_are_those_of_a_buffer_made_so(buffer_file: pathlib.Path) -> None:
    model, buffer = make(QSM, n_steps=3), load_from_pkl(buffer_file)
    model.load_replay_buffer(buffer_file)
    model.gamma, model.n_steps = 0.5, 2
    buffer.gamma, buffer.n_steps = 0.5, 2
    np.random.seed(3)
    batch = sample_batch(model, 50)
    np.random.seed(3)
    assert_identical(batch, Batch.from_replay(buffer.sample(50), 0.5))


def test_loading_with_another_discount(buffer_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make(QSM, n_steps=3).save(tmp_path / "model")
    load: Any
    for load in (QSM.load, load_agent):
        loaded = load(tmp_path / "model", env=PointEnv(), device="cpu", gamma=0.5)
        loaded.load_replay_buffer(buffer_file)
        assert discounts(loaded) == returns_of(0.5)
    other = make(QSM, gamma=0.5)  # one step
    other.load_replay_buffer(buffer_file)
    assert discounts(other) == [0.5]
    other.replay_buffer = loaded.replay_buffer
    assert discounts(other) == [0.5] and discounts(loaded) == returns_of(0.5)


def test_stable_baselines3s_n_step_buffer_follows_too() -> None:
    kwargs: dict[str, Any] = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 2}}
    model = make_filled(QSM, gamma=0.5, **kwargs)
    assert discounts(model) == returns_of(0.5, 2)
    model.gamma = 0.9
    assert discounts(model) == returns_of(0.9, 2)
    goals = make_filled(QSM, BitFlippingEnv(n_bits=3, continuous=True), gamma=0.5, replay_buffer_class=HerReplayBuffer)
    goals.gamma = 0.9
    assert discounts(goals) in ([0.9], [0.0, 0.9])


@pytest.mark.parametrize(
    "kwargs, fragments",
    [
        ({"replay_buffer_kwargs": {"gamma": 0.9}}, ["gamma=0.9", "gamma=0.99"]),
        ({"replay_buffer_kwargs": {"n_steps": 2}, "n_steps": 3}, ["n_steps=2", "n_steps=3"]),
        (
            {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9}},
            ["gamma=0.9", "gamma=0.99"],
        ),
    ],
    ids=str,
)
def test_two_numbers_for_one_thing_are_refused(kwargs: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make(QSM, **kwargs)
    assert [part for part in [*fragments, "leave it out of replay_buffer_kwargs"] if part not in str(caught.value)] == []


UNSAFE: dict[str, Any] = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}


@pytest.mark.parametrize(
    "filled, loading, fragments",
    [
        ({}, {"env": PointEnv("dict")}, ["observation shape", "(3,)", "point"]),
        ({}, {"env": PointEnv(action_space=spaces.Box(-1.0, 1.0, (3,)))}, ["size of the action is 2 there and 3 here"]),
        ({"replay_buffer_class": ReplayBuffer}, {"n_steps": 3}, ["ReplayBuffer", "n_steps is 1 there and 3 here"]),
        ({}, UNSAFE, ["handle_timeout_termination is True there and False here"]),
        (UNSAFE, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}, ["optimize_memory_usage is True there"]),
    ],
    ids=["observation", "action", "one-step class", "time limits", "memory"],
)
def test_a_buffer_that_does_not_fit_is_refused(
    filled: dict[str, Any], loading: dict[str, Any], fragments: list[str], tmp_path: pathlib.Path
) -> None:
    make_filled(QSM, **filled).save_replay_buffer(tmp_path / "buffer")
    model = make(QSM, **loading)
    before = model.replay_buffer
    with pytest.raises(ValueError) as caught:
        model.load_replay_buffer(tmp_path / "buffer")
    assert [part for part in [*fragments, "does not fit"] if part not in str(caught.value)] == []
    assert model.replay_buffer is before
    same = make(QSM, **filled)
    same.load_replay_buffer(tmp_path / "buffer")
    assert same.replay_buffer.pos == 20


def test_a_buffer_of_other_environments_is_learned_from_but_not_added_to(buffer_file: pathlib.Path) -> None:
    model = make(QSM, vector_env(2), n_steps=3)
    model.load_replay_buffer(buffer_file)
    with_logger(model).train(1, 8)
    with pytest.raises(ValueError, match=r"n_envs=1.*has 2; make 1"):
        model.learn(4)


def test_a_memory_optimised_buffer_has_one_step() -> None:
    model = make_filled(QSM, **UNSAFE)
    model.n_steps = 3
    with pytest.raises(ValueError, match="optimize_memory_usage=True does not work with n_steps=3"):
        model.train(1, 8)


# -- modes of PyTorch -------------------------------------------------------------------------------------------------


def autocast() -> AbstractContextManager[Any]:
    return th.autocast("cpu", dtype=th.bfloat16)


@pytest.mark.parametrize(
    "mode, named", [(autocast, "autocast"), (th.no_grad, "no_grad"), (th.inference_mode, "inference_mode")]
)
def test_training_in_a_mode_that_spoils_it_is_refused(
    algorithm: Algorithm, mode: Callable[[], AbstractContextManager[Any]], named: str
) -> None:
    model = make_filled(algorithm)
    before = flat_parameters(model.policy)
    for train in (lambda: model.learn(12), lambda: model.train(1, 8)):
        with mode(), pytest.raises(RuntimeError, match=named) as caught:
            train()
        assert "\n" not in str(caught.value)
    assert th.equal(flat_parameters(model.policy), before) and model.num_timesteps == 20
    model.train(1, 8)


def test_acting_under_autocast(algorithm: Algorithm) -> None:
    model = make(algorithm)
    obs = observations(model.observation_space)
    expected = act(model, obs)
    with autocast():
        assert act(model, obs, deterministic=False).dtype == np.float32
        actions = act(model, obs)
    assert actions.dtype == np.float32 and actions.shape == expected.shape and np.isfinite(actions).all()
    np.testing.assert_array_equal(act(model, obs), expected)  # nothing of it stays


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.zoo_name)
def test_modes_and_offline_and_on_policy_methods(method: Any) -> None:
    """Training is refused under autocast, with a remedy that exists; acting is in numbers that NumPy knows."""
    model = every_method.make(method.load())
    before, obs = flat_parameters(model.policy), observations(model.observation_space)
    demonstrations = point_data()
    imitates = hasattr(model, "pretrain")
    with autocast():
        for train in (every_method.train, *([lambda m: m.pretrain(demonstrations, 2)] if imitates else [])):
            with pytest.raises(RuntimeError, match=r"autocast.*particle_precision") as caught:
                train(model)
            assert "\n" not in str(caught.value)
        for actor in (model, model.actor):
            for deterministic in (True, False):
                actions = act(actor, obs, deterministic)
                assert actions.dtype == np.float32 and np.isfinite(actions).all()
    assert th.equal(flat_parameters(model.policy), before)
    every_method.make(method.load(), policy_kwargs={"particle_precision": "bfloat16"})
    every_method.train(model)


def test_another_default_number_format_is_refused() -> None:
    th.set_default_dtype(th.float64)
    try:
        with pytest.raises(ValueError, match=r"float32, not torch\.float64.*set_default_dtype"):
            make(QSM)
    finally:
        th.set_default_dtype(th.float32)
