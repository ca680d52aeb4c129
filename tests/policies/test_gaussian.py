"""The policy whose actor is a Gaussian: what it shares with a diffusion policy, how it acts, and its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_diffusion import IQL, QSM, DiffusionPolicy, GaussianPolicy, load_agent, save_agent
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES
from tests.environments import PointEnv
from tests.helpers import act, assert_identical, make, make_filled, observations, parameters, to_tensors


@pytest.mark.parametrize(
    ("policy", "observation"),
    [("GaussianPolicy", "box"), ("MlpPolicy", "image"), ("CnnPolicy", "image"), ("MultiInputPolicy", "dict")],
)
def test_names(policy: str, observation: str, tmp_path: Path) -> None:
    model = make(IQL, PointEnv(observation), policy=policy)
    assert type(model.policy) is GAUSSIAN_POLICIES[policy]
    save_agent(model, tmp_path / "agent.zip")
    loaded: Any = load_agent(tmp_path / "agent.zip", device="cpu")
    assert type(loaded.policy) is GAUSSIAN_POLICIES[policy]
    obs = observations(model.observation_space)
    np.testing.assert_array_equal(act(loaded, obs), act(model, obs))
    assert_identical(loaded.get_parameters(), model.get_parameters())


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        (
            IQL,
            "DiffusionPolicy",
            "policy='DiffusionPolicy' has another kind of actor.*IQL.*known are GaussianPolicy, MlpPolicy",
        ),
        (IQL, DiffusionPolicy, "is no GaussianPolicy, which IQL needs; pass 'GaussianPolicy' by name"),
        (
            QSM,
            "GaussianPolicy",
            "policy='GaussianPolicy' has another kind of actor.*QSM.*known are DiffusionPolicy, MlpPolicy",
        ),
        (QSM, GaussianPolicy, "is no DiffusionPolicy, which QSM needs; pass 'DiffusionPolicy' by name"),
        (IQL, "Gaussan", "Unknown policy='Gaussan'; known are GaussianPolicy"),
    ],
)
def test_a_policy_of_the_wrong_kind(algorithm: Any, policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(algorithm, policy=policy)


def test_what_reads_no_dict_says_what_does() -> None:
    with pytest.raises(ValueError, match="pass 'GaussianPolicy', which chooses by the space"):
        make(IQL, PointEnv("dict"), policy_kwargs={"features_extractor_class": FlattenExtractor})


@pytest.mark.parametrize("settings", [{}, {"squash": "action"}, {"squash": "none", "state_dependent_std": True}], ids=str)
def test_samples_have_the_density_of_the_actor(settings: dict[str, Any]) -> None:
    """Where nothing is clipped, the errors of samples average to the entropy; the deterministic action is without noise."""
    model = make(IQL, policy_kwargs={**settings, "log_std_bounds": (-5.0, -2.0)})
    obs = to_tensors(model, observations(model.observation_space, 1)).expand(20_000, -1)
    actor: GaussianActor = model.actor
    with th.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(0.3)
        samples = actor.sample(actor.encode(obs), model.randomness, "test", clip_output=False)
        error, mean = actor.imitation_error(obs, samples).mean(), samples.mean(0)
        covariance = th.cov(samples.T)
        gaussian_entropy = 0.5 * th.logdet(2.0 * th.pi * th.e * covariance)
    assert error.item() == pytest.approx(gaussian_entropy.item(), abs=0.05)
    np.testing.assert_allclose(act(model, obs[:1].numpy())[0], mean.numpy(), atol=0.02)


def test_an_actor_without_density() -> None:
    model = make(IQL, policy_kwargs={"deterministic_actor": True})
    obs = observations(model.observation_space)
    tensors = to_tensors(model, obs)
    np.testing.assert_array_equal(act(model, obs), act(model, obs, deterministic=False))
    with th.no_grad():
        actions = model.actor(tensors)
        th.testing.assert_close(model.actor.imitation_error(tensors, actions + 0.5), th.full((6,), 0.5))
    noisy = make(IQL, policy_kwargs={"deterministic_actor": True, "exploration_noise": 0.1})
    assert not np.array_equal(act(noisy, obs), act(noisy, obs, deterministic=False))


def test_the_best_of_several_actions() -> None:
    few, many = (make(IQL, n_action_candidates=n) for n in (1, 16))
    assert_identical(parameters(few.policy), parameters(many.policy))
    obs = observations(few.observation_space, 20)
    tensors = to_tensors(few, obs)
    with th.no_grad():
        values = [th.stack(m.critic(tensors, th.as_tensor(act(m, obs)))).amin(0) for m in (few, many)]
    assert bool((values[1] >= values[0]).all()) and bool((values[1] > values[0]).any())
    np.testing.assert_allclose(act(many, obs[3]), act(many, obs)[3], atol=1e-6)


def test_recorded_draws() -> None:
    model = make(IQL, policy_kwargs={"squash": "none"})
    tensors = to_tensors(model, observations(model.observation_space))
    with th.no_grad():
        mean, std = model.actor.network(tensors)
        drawn = model.actor.act(tensors, RecordedDraws({"a.x_T": th.tensor([0.0, 0.5])}), "a", n_candidates=3)
    assert drawn.shape == (6, 3, 2)
    th.testing.assert_close(drawn[:, 1], (mean + std * th.tensor([0.0, 0.5])).clamp(-1.0, 1.0))


def test_the_policy_alone_can_be_saved(tmp_path: Path) -> None:
    model = make_filled(IQL, policy_kwargs={"optimizer_class": {"pi": "AdamW"}, "optimizer_kwargs": {"qf": {"eps": 1e-5}}})
    model.train(3, 8)
    assert type(model.actor.optimizer) is th.optim.AdamW and type(model.critic.optimizer) is th.optim.Adam
    assert [model.policy.trained[name].optimizer.defaults["eps"] for name in ("actor", "critic", "value")] == [
        1e-8,
        1e-5,
        1e-5,
    ]
    obs = observations(model.observation_space)
    model.policy.save(tmp_path / "policy")
    loaded = GaussianPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded.actor.optimizer) is th.optim.AdamW
    for part in ("actor", "policy"):
        one, other = (model.actor, loaded.actor) if part == "actor" else (model.policy, loaded)
        np.testing.assert_array_equal(act(one, obs), act(other, obs))
    model.actor.save(tmp_path / "actor")
    np.testing.assert_array_equal(act(GaussianActor.load(str(tmp_path / "actor"), device="cpu"), obs), act(model.actor, obs))
