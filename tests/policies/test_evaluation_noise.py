"""Noise of deterministic actions: a fixed one, or drawn anew at each call as the reference implementation does."""

import io
import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DACER, DIME, FPMD, IQL, QSM, FPOpp, load_agent, save_agent
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.kernels import switched_off
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.taxonomy import Method
from tests import rollouts
from tests.conftest import OFF_POLICY, ON_POLICY
from tests.helpers import act, make, observations, point_data, soften, to_tensors

SPREAD = {"output_gain": 0.3}
"""Without it, most actions of a fresh denoiser lie on the edge of the box, whatever their noise."""


def build(method: Method, **kwargs: Any) -> Any:
    """A tiny model of any method."""
    algorithm: Any = method.load()
    if method in ON_POLICY:
        return rollouts.make(algorithm, **kwargs)
    data = {"dataset": point_data()} if method.setting == "offline" else {}
    model = make(algorithm, **data, **kwargs)
    soften(model)
    return model


@pytest.mark.parametrize("method", [*OFF_POLICY, *ON_POLICY], ids=lambda method: method.zoo_name)
def test_fresh_noise_of_every_method(method: Method) -> None:
    model = build(method)
    policy, obs = model.policy, observations(model.observation_space, 40)
    assert policy.evaluation_noise == "fixed"
    fixed, state = act(model, obs), th.get_rng_state()
    np.testing.assert_array_equal(act(model, obs), fixed)
    assert th.equal(th.get_rng_state(), state)
    policy.evaluation_noise = "fresh"
    model.set_random_seed(5)
    one, other = act(model, obs), act(model, obs)
    model.set_random_seed(5)
    np.testing.assert_array_equal(act(model, obs), one)
    assert one.shape == fixed.shape and np.abs(one).max() <= np.abs(model.action_space.high).max()
    assert np.array_equal(one, other) != policy.draws_when_evaluated
    if not policy.draws_when_evaluated:  # the mean of a Gaussian, or the only action there is
        np.testing.assert_array_equal(one, fixed)
    policy.evaluation_noise = "fixed"
    np.testing.assert_array_equal(act(model, obs), fixed)


@pytest.mark.parametrize("method", [*OFF_POLICY, *ON_POLICY], ids=lambda method: method.zoo_name)
def test_the_number_of_candidates_of_every_method_may_change(method: Method) -> None:
    model = build(method)
    policy, obs = model.policy, observations(model.observation_space, 20)
    own, fixed = policy.n_action_candidates, act(model, obs)
    if getattr(policy, "critic", None) is None:
        with pytest.raises(ValueError, match=r"n_action_candidates=7 must be 1: the method has no critics"):
            policy.n_action_candidates = 7
    else:
        policy.n_action_candidates = 7
        seven = act(model, obs)
        np.testing.assert_array_equal(act(model, obs), seven)
        with policy.evaluated_with("fresh"):
            assert act(model, obs).shape == seven.shape == fixed.shape
    for wrong in (0, 1.5, True, "3", 10**6):
        with pytest.raises((ValueError, TypeError), match="n_action_candidates"):
            policy.n_action_candidates = wrong
    policy.n_action_candidates = own
    np.testing.assert_array_equal(act(model, obs), fixed)


def test_candidates_that_were_asked_for_later_are_those_that_a_policy_is_made_with() -> None:
    few, many = (make(QSM, n_action_candidates=n, seed=0, policy_kwargs=SPREAD) for n in (1, 5))
    obs = observations(few.observation_space, 40)
    assert not np.array_equal(act(few, obs), act(many, obs))
    few.policy.n_action_candidates = 5
    np.testing.assert_array_equal(act(few, obs), act(many, obs))


def test_which_policies_have_something_to_draw() -> None:
    """All of them but Gaussians, whose only deterministic action is the mean."""
    still = {method.zoo_name for method in (*OFF_POLICY, *ON_POLICY) if not build(method).policy.draws_when_evaluated}
    assert still == {"iql", "dtql", "tensor_ppo"}  # DTQL with a single candidate, as its tiny case has
    several = make(IQL, n_action_candidates=3).policy
    assert isinstance(several.actor, GaussianActor) and several.draws_when_evaluated
    assert not make(IQL, n_action_candidates=3, policy_kwargs={"deterministic_actor": True}).policy.draws_when_evaluated


@pytest.mark.parametrize("target", [False, True])
def test_fresh_noise_keeps_the_choice_among_candidates(target: bool) -> None:
    n, steps, rows = 5, 3, 4
    model = make(QSM, policy_kwargs={**SPREAD, "n_action_candidates": n, "choose_with_target": target})
    policy, obs = model.policy, to_tensors(model, observations(model.observation_space, rows))
    with th.no_grad():
        for parameter in policy.critic_target.parameters():
            parameter.neg_()  # so that the two disagree
        draws = RecordedDraws({"act.x_T": th.randn(rows, n, 2), "act.step_noise": th.randn(steps, rows, n, 2)})
        candidates = policy.actor.act(obs, draws, "act", n)
        critic = policy.critic_target if target else policy.critic
        best = critic.q(candidates, critic.encode(obs)).amin(0).argmax(1)
        policy.randomness, policy.evaluation_noise = draws, "fresh"
        th.testing.assert_close(policy(obs, deterministic=True), candidates[th.arange(rows), best])


def test_fresh_noise_adds_none_of_the_exploration() -> None:
    """A chain without noise of its own, started at a recorded point, ends where it ends without exploration."""
    model = make(DACER, policy_kwargs={**SPREAD, "solver": "ddim", "exploration_noise": 0.5})
    obs = to_tensors(model, observations(model.observation_space))
    model.policy.randomness = RecordedDraws({"act.x_T": th.ones(())})
    model.policy.evaluation_noise = "fresh"
    with th.no_grad():
        th.testing.assert_close(
            model.policy(obs, deterministic=True), model.actor.act(obs, model.policy.randomness, "act", evaluating=True)
        )


def test_fresh_noise_takes_the_steps_and_the_actor_of_evaluations() -> None:
    flow = make(FPMD, n_action_candidates=1, evaluation_steps=1, policy_kwargs=SPREAD)
    obs = observations(flow.observation_space)
    flow.policy.evaluation_noise = "fresh"
    flow.set_random_seed(1)
    fresh = act(flow, obs)
    flow.set_random_seed(1)
    noise = th.randn(len(obs), 2)
    assert flow.actor.evaluation_chain.steps == 1 != flow.actor.acting_chain.steps
    with th.no_grad():
        expected = flow.actor.act(to_tensors(flow, obs), RecordedDraws({"act.x_T": noise}), "act", evaluating=True)
    np.testing.assert_allclose(fresh, expected.numpy(), atol=1e-6)

    averaged = rollouts.make(FPOpp)
    averaged.policy.evaluation_noise = "fresh"
    obs = observations(averaged.observation_space)
    outcomes = []
    for _ in range(2):
        averaged.set_random_seed(1)
        outcomes.append(act(averaged, obs))
        with th.no_grad():
            for parameter in averaged.actor.parameters():  # evaluations take the average instead
                parameter.zero_()
    np.testing.assert_array_equal(outcomes[0], outcomes[1])


def test_kernels_draw_the_same_fresh_noise() -> None:
    for algorithm in (DACER, DIME, QSM):
        model = make(algorithm, policy_kwargs=SPREAD if algorithm is not DIME else {})
        model.policy.evaluation_noise = "fresh"
        obs = observations(model.observation_space)
        model.set_random_seed(2)
        compiled = act(model, obs)
        model.set_random_seed(2)
        with switched_off():
            np.testing.assert_allclose(act(model, obs), compiled, atol=1e-5)


# -- an argument of the policy, and a fact that may be changed ----------------------------------------------------------------


def test_it_is_an_argument() -> None:
    model = make(QSM, policy_kwargs={"evaluation_noise": "fresh"})
    assert model.policy.evaluation_noise == "fresh"
    with pytest.raises(ValueError, match=r"evaluation_noise='fres'.*fixed, fresh"):
        make(QSM, policy_kwargs={"evaluation_noise": "fres"})
    with pytest.raises(ValueError, match=r"evaluation_noise='new'.*fixed, fresh"):
        model.policy.evaluation_noise = "new"
    assert model.policy.evaluation_noise == "fresh"


def test_another_noise_for_a_while() -> None:
    model = make(QSM)
    with pytest.raises(ZeroDivisionError), model.policy.evaluated_with("fresh") as policy:
        assert policy is model.policy and policy.evaluation_noise == "fresh"
        _ = 1 / 0
    assert model.policy.evaluation_noise == "fixed"


@pytest.mark.parametrize("on_policy", [False, True])
def test_the_last_one_is_saved(on_policy: bool, tmp_path: pathlib.Path) -> None:
    model: Any = rollouts.make(FPOpp) if on_policy else make(QSM)
    for noise in ("fresh", "fixed", "fresh"):
        model.policy.evaluation_noise = noise
        path, stream = save_agent(model, tmp_path / "agent"), io.BytesIO()
        model.save(stream)
        model.policy.save(str(tmp_path / "policy"))
        for loaded in (load_agent(path, device="cpu"), type(model).load(stream, device="cpu")):
            assert loaded.policy.evaluation_noise == noise  # type: ignore[union-attr]
            assert act(loaded, observations(model.observation_space)).shape == (6, *model.action_space.shape)
        assert DiffusionPolicy.load(str(tmp_path / "policy"), device="cpu").evaluation_noise == noise
    asked: Any = load_agent(path, device="cpu", policy_kwargs={"evaluation_noise": "fixed"})
    assert asked.policy.evaluation_noise == "fixed"


def test_agents_of_before_say_nothing_of_it(tmp_path: pathlib.Path) -> None:
    model = make(QSM)
    model.policy.evaluation_noise = "fixed"
    stream = io.BytesIO()
    model.save(stream)
    assert "evaluation_noise" not in model.policy_kwargs
    assert QSM.load(stream, device="cpu").policy.evaluation_noise == "fixed"


# -- what leaves the library --------------------------------------------------------------------------------------------------


def test_an_exported_policy_keeps_the_noise_it_had() -> None:
    model = make(QSM, policy_kwargs=SPREAD)
    model.policy.set_training_mode(False)
    obs = to_tensors(model, observations(model.observation_space))
    shapes = {"obs": {0: th.export.Dim("batch")}, "deterministic": None}

    def run(noise: str) -> list[th.Tensor]:
        with model.policy.evaluated_with(noise):
            program = th.export.export(model.policy, (obs,), {"deterministic": True}, dynamic_shapes=shapes).module()
        return [program(obs, deterministic=True) for _ in range(2)]

    assert th.equal(*run("fixed"))
    one, other = run("fresh")
    assert one.shape == other.shape == (6, 2) and not th.equal(one, other)


def test_an_actor_alone_is_silent() -> None:
    model = make(DACER, policy_kwargs=SPREAD)
    obs = observations(model.observation_space)
    model.policy.evaluation_noise = "fresh"
    np.testing.assert_array_equal(act(model.actor, obs), act(model.actor, obs))
    with model.policy.evaluated_with("fixed"):
        np.testing.assert_allclose(act(model.actor, obs), act(model, obs), atol=1e-6)
