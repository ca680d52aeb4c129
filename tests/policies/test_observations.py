"""Every observation that Stable-Baselines3's features extractors understand, with every algorithm."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_diffusion import DiffusionPolicy
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.policies.parts import own_parameters
from tests.cases import case_of
from tests.environments import OBSERVATIONS, PointEnv, vector_env
from tests.helpers import (
    BatchNormExtractor,
    act,
    all_finite,
    assert_identical,
    flat_parameters,
    make,
    make_filled,
    observations,
    parameters,
    rows,
    sample_batch,
    soften,
)

Algorithm = type[OffPolicyDiffusion]

EXTRACTORS = {
    "box": FlattenExtractor,
    "float64": FlattenExtractor,
    "matrix": FlattenExtractor,
    "discrete": FlattenExtractor,
    "image": NatureCNN,
    "dict": CombinedExtractor,
    "dict with image": CombinedExtractor,
}


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_observation_spaces(algorithm: Algorithm, observation: str, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, PointEnv(observation), batch_size=4, learning_rate=1e-5).learn(20)
    assert type(model.actor.features_extractor) is EXTRACTORS[observation]
    assert model._n_updates == 10 and all_finite(model)

    soften(model)
    obs = observations(model.observation_space, 5)
    actions = act(model, obs)
    assert actions.shape == (5, 2) and len(np.unique(actions, axis=0)) > 2
    single = act(model, rows(obs, 1))
    assert single.shape == (2,)
    np.testing.assert_allclose(single, actions[1], atol=1e-5)

    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(act(loaded, obs), actions)
    model.policy.save(tmp_path / "policy")
    np.testing.assert_array_equal(act(DiffusionPolicy.load(str(tmp_path / "policy"), device="cpu"), obs), actions)


@pytest.mark.parametrize("policy, observation", [("CnnPolicy", "image"), ("MultiInputPolicy", "dict"), ("MlpPolicy", "box")])
def test_stable_baselines3s_policy_names(algorithm: Algorithm, policy: str, observation: str) -> None:
    named, ours = (make(algorithm, PointEnv(observation), policy=name) for name in (policy, "DiffusionPolicy"))
    assert_identical(parameters(named.policy), parameters(ours.policy))


def test_float64_observations_are_those_of_float32(algorithm: Algorithm) -> None:
    model = soften(make_filled(algorithm, PointEnv("float64")))
    assert sample_batch(model).observations.dtype == th.float32  # type: ignore[union-attr]
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(model, obs), act(model, obs.astype(np.float32).astype(np.float64)))
    model.train(3, 8)
    assert all(value.dtype == th.float32 for value in model.policy.state_dict().values())


def test_a_discrete_observation_is_one_hot(algorithm: Algorithm) -> None:
    model = make(algorithm, PointEnv("discrete"))
    features = model.actor.extract_features(th.tensor([[2], [5]]), model.actor.features_extractor)
    assert features.tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_images_are_transposed_and_scaled(algorithm: Algorithm) -> None:
    model = make(algorithm, PointEnv("image"))
    assert isinstance(model.env, VecTransposeImage) and model.observation_space.shape == (1, 36, 36)
    seen: list[th.Tensor] = []
    acting = getattr(model.policy, model.policy.acting)
    handle = acting.features_extractor.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = np.full((1, 36, 36), 255, np.uint8)
    transposed = act(model, image)
    handle.remove()
    assert float(seen[0].min()) == float(seen[0].max()) == 1.0
    np.testing.assert_array_equal(act(model, image.transpose(1, 2, 0)), transposed)

    raw = make(algorithm, PointEnv("image"), policy_kwargs={"normalize_images": False})
    assert not raw.actor.normalize_images and not raw.critic.normalize_images and not raw.critic_target.normalize_images


def test_dict_observations_of_several_environments(algorithm: Algorithm) -> None:
    model = make(algorithm, vector_env(4, observation="dict"), gradient_steps=-1, learning_starts=20).learn(40)
    assert model._n_updates == 20 and all_finite(model)


# -- features extractors ----------------------------------------------------------------------------------------------


def custom(**policy_kwargs: Any) -> dict[str, Any]:
    kwargs = {"features_dim": 7}
    return {"features_extractor_class": BatchNormExtractor, "features_extractor_kwargs": kwargs, **policy_kwargs}


@pytest.mark.parametrize("share", [False, True])
def test_custom_features_extractor(algorithm: Algorithm, share: bool, tmp_path: pathlib.Path) -> None:
    model = make(algorithm, policy_kwargs=custom(share_features_extractor=share))
    before = parameters(model.policy)
    model.learn(30)
    for network in (model.actor, model.critic, model.critic_target):
        assert type(network.features_extractor) is BatchNormExtractor and network.features_extractor.features_dim == 7
    learned = [name for name in before if "features_extractor" in name and "num_batches" not in name]
    assert [name for name in learned if th.equal(before[name], model.policy.state_dict()[name])] == []

    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    assert_identical(loaded.get_parameters(), model.get_parameters())
    assert (loaded.critic.features_extractor is loaded.actor.features_extractor) == share


def test_shared_features_extractor_belongs_to_the_actor(algorithm: Algorithm) -> None:
    targets = case_of(algorithm).with_targets
    model = make_filled(algorithm, policy_kwargs=custom(share_features_extractor=True), policy_delay=2, **targets)
    shared = model.actor.features_extractor
    assert model.critic.features_extractor is shared and model.critic_target.features_extractor is not shared
    owned = {id(parameter) for parameter in shared.parameters()}
    assert owned <= {id(parameter) for parameter in own_parameters(model.actor)}
    assert not owned & {id(parameter) for parameter in own_parameters(model.critic)}

    before = flat_parameters(shared)
    model.train(1, 8)  # the critics alone
    assert th.equal(flat_parameters(shared), before)
    model.train(1, 8)  # with the actor
    assert not th.equal(flat_parameters(shared), before)


def test_separate_features_extractors_are_trained_by_their_own_losses(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, policy_kwargs=custom(), policy_delay=2, **case_of(algorithm).with_targets)
    actor, critic, target = (net.features_extractor for net in (model.actor, model.critic, model.critic_target))
    assert len({id(actor), id(critic), id(target)}) == 3
    before_actor, before_critic = flat_parameters(actor), flat_parameters(critic)
    model.train(1, 8)
    assert th.equal(flat_parameters(actor), before_actor) and not th.equal(flat_parameters(critic), before_critic)
    # the target follows slowly ...
    expected = before_critic + model.tau * (flat_parameters(critic) - before_critic)
    th.testing.assert_close(flat_parameters(target), expected)
    # ... except for statistics, which are not learned
    th.testing.assert_close(target.net[1].running_mean, critic.net[1].running_mean, rtol=0.0, atol=0.0)
    th.testing.assert_close(target.net[1].running_var, critic.net[1].running_var, rtol=0.0, atol=0.0)


def test_networks_are_in_the_right_mode(algorithm: Algorithm) -> None:
    model = make_filled(algorithm, policy_kwargs=custom(), **case_of(algorithm).with_targets)
    modes: list[tuple[bool, bool, bool]] = []
    update = model._run_update

    def spy(*args: Any) -> Any:
        modes.append((model.actor.training, model.critic.training, model.critic_target.training))
        return update(*args)

    model._run_update = spy
    model.train(1, 8)
    assert modes == [(True, True, False)]
    act(model, observations(model.observation_space))
    assert not any(module.training for net in (model.actor, model.critic, model.critic_target) for module in net.modules())


def test_extractor_chosen_by_the_space(algorithm: Algorithm) -> None:
    explicit = make(algorithm, PointEnv("image"), policy_kwargs={"features_extractor_kwargs": {"features_dim": 20}})
    assert isinstance(explicit.actor.features_extractor, NatureCNN)
    assert explicit.actor.denoiser.feature_dim == explicit.critic.ensemble.feature_dim == 20
    flat = make(algorithm, PointEnv("image"), policy_kwargs={"features_extractor_class": FlattenExtractor})
    assert flat.actor.denoiser.feature_dim == 36 * 36
    assert isinstance(flat.observation_space, spaces.Box)
