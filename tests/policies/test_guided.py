"""Guidance scales: an argument of acting, for every method whose chains are guided."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DPS, QGPO, DiffusionDICE, load_agent, save_agent
from sb3_diffusion.policies.guided import GuidedPolicy
from tests.environments import vector_env
from tests.helpers import act, make, observations, parameters, rows

GUIDED: dict[str, Any] = {
    "dps": (DPS, {"score_injection": "online", "normalize_gradient": False, "temperature": 10.0}),
    "qgpo": (QGPO, {}),
    "diffusiondice": (DiffusionDICE, {}),
}


@pytest.fixture(params=GUIDED)
def model(request: pytest.FixtureRequest) -> Any:
    algorithm, kwargs = GUIDED[request.param]
    return make(algorithm, guidance_scale=1.0, n_action_candidates=1, **kwargs)


def test_predict_can_be_asked_for_another_scale(model: Any) -> None:
    obs = observations(model.observation_space)
    one, weights = act(model, obs), parameters(model.policy)
    with model.policy.guided(8.0) as policy:
        assert policy is model.policy and model.guidance_scale == 8.0
        eight = act(model, obs)
        np.testing.assert_allclose(act(model, rows(obs, 2)), eight[2], atol=1e-5)
        np.testing.assert_array_equal(act(model, obs), eight)
    assert not np.array_equal(eight, one)
    np.testing.assert_array_equal(act(model, obs), one)
    for owner in (model, model.policy):
        owner.guidance_scale = 8.0
        np.testing.assert_array_equal(act(model, obs), eight)
        owner.guidance_scale = 1.0
    with pytest.raises(ZeroDivisionError), model.policy.guided(8.0):
        _ = 1 / 0
    assert model.policy.guidance_scale == 1.0
    assert all(th.equal(value, weights[name]) for name, value in parameters(model.policy).items())


def test_the_last_scale_is_saved_with_the_agent(model: Any, tmp_path: pathlib.Path) -> None:
    obs = observations(model.observation_space)
    one = act(model, obs)
    model.policy.guidance_scale = 8.0
    eight = act(model, obs)
    path = save_agent(model, tmp_path / "agent")
    model.policy.save(str(tmp_path / "policy"))
    agent: Any = load_agent(path, device="cpu")
    for loaded in (agent, type(model).load(path, device="cpu")):
        assert loaded.guidance_scale == loaded.policy.guidance_scale == 8.0
        np.testing.assert_array_equal(act(loaded, obs), eight)
    for loaded in (
        load_agent(path, device="cpu", guidance_scale=1.0),
        type(model).load(path, device="cpu", guidance_scale=1.0),
    ):
        np.testing.assert_array_equal(act(loaded, obs), one)
    np.testing.assert_array_equal(act(GuidedPolicy.load(str(tmp_path / "policy"), device="cpu"), obs), eight)


def test_without_guidance_it_is_the_behavior() -> None:
    for algorithm in (QGPO, DiffusionDICE):
        model = make(algorithm, n_action_candidates=1)
        obs = observations(model.observation_space)
        with model.policy.guided(0.0):
            np.testing.assert_allclose(act(model, obs), act(model.actor, obs), atol=1e-6)


def test_several_environments_are_guided_alike(model: Any) -> None:
    env = vector_env(3)
    obs: Any = env.reset()
    with model.policy.guided(3.0):
        actions = act(model, obs)
        env.step(actions)
        np.testing.assert_allclose(actions[1], act(model, obs[1]), atol=1e-5)
        assert not np.array_equal(act(model, obs, deterministic=False), act(model, obs, deterministic=False))


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_scales_that_are_none(model: Any, scale: float) -> None:
    for owner in (model, model.policy):
        with pytest.raises(ValueError, match="guidance_scale="):
            owner.guidance_scale = scale
    assert model.guidance_scale == model.policy.guidance_scale == 1.0


def test_a_network_that_has_learned_the_estimate_has_no_scale() -> None:
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0.*score_injection='online'"):
        make(DPS, guidance_scale=2.0)
