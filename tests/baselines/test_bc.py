"""BC: what it clones, and that nothing is made which it does not train."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import BC, load_agent, save_agent
from tests.bandits import SMALL_NET, BanditEnv
from tests.cases import MethodCase
from tests.helpers import act, flat_parameters, make, make_filled, observations, sample_batch
from tests.lobes import lobe_actions, near_a_lobe, right_mass, train

CASE = MethodCase(
    wrong_arguments=[
        ({"policy_kwargs": {"process": "controlled"}}, ["process='controlled'", "BC"]),
        ({"policy_kwargs": {"process": "meanflow"}}, ["process='meanflow'", "BC"]),
        ({"policy_kwargs": {"critics": True}}, ["critics=True", "BC requires"]),
        ({"policy_kwargs": {"n_action_candidates": 4}}, ["n_action_candidates=4", "no critics"]),
        ({"policy_kwargs": {"n_behavior_candidates": 2}}, ["n_behavior_candidates=2", "no critics"]),
    ],
    operation_counts={"operations": 357, "kflop": 87, "synchronisations": 0},
)


def test_the_loss_by_hand() -> None:
    """The mean squared error of the predicted noise at the time that was drawn."""
    model = make_filled(BC)
    batch, generator = sample_batch(model), th.get_rng_state()
    noisy = model.actor.add_noise(batch.actions, model.randomness, "actor")
    predicted = model.actor.denoise(noisy.x_t, noisy.t, model.actor.encode(batch.observations))
    th.set_rng_state(generator)
    th.testing.assert_close(model.actor_loss(batch)[0], (predicted - noisy.eps).square().mean())


@pytest.mark.expensive
@pytest.mark.parametrize("process", ["continuous", "flow"])
def test_it_draws_what_it_has_seen(process: str) -> None:
    settings: dict[str, Any] = {**SMALL_NET, "net_arch": [128, 128], "process": process}
    model = BC("DiffusionPolicy", BanditEnv(action_dim=2), learning_rate=3e-3, seed=0, policy_kwargs=settings, device="cpu")
    train(model, ("actor",), 4000)
    with th.no_grad():
        actions = model.actor.act(th.zeros(8000, 1), model.randomness, "test")
    assert right_mass(actions) == pytest.approx(0.5, abs=0.03)
    assert near_a_lobe(actions) > 0.95
    th.testing.assert_close(actions.abs().mean(0), lobe_actions(8000).abs().mean(0), rtol=0.0, atol=0.03)


@pytest.mark.parametrize("process", ["discrete", "flow"])
def test_other_processes_are_cloned_with_their_own_targets(process: str) -> None:
    model = make_filled(BC, policy_kwargs={"process": process})
    batch, generator = sample_batch(model), th.get_rng_state()
    noisy = model.actor.add_noise(batch.actions, model.randomness, "actor")
    target = batch.actions - noisy.eps if process == "flow" else noisy.eps
    predicted = model.actor.denoise(noisy.x_t, noisy.t, model.actor.encode(batch.observations))
    th.set_rng_state(generator)
    th.testing.assert_close(model.actor_loss(batch)[0], (predicted - target).square().mean())


def test_nothing_but_the_actor_is_made_and_kept(tmp_path: Path) -> None:
    model = make_filled(BC)
    model.train(3, 8)
    assert model.critic is model.critic_target is None and list(model.policy.trained) == ["actor"]
    assert all(name.startswith("actor.") for name in model.policy.state_dict())
    assert set(model.get_parameters()) == {"policy", "actor.optimizer"}
    assert "train/critic_loss" not in model.logger.name_to_value and "train/actor_loss" in model.logger.name_to_value
    obs = observations(model.observation_space)
    save_agent(model, tmp_path / "agent.zip", optimizer_state=False)
    for loaded in (BC.load(tmp_path / "agent.zip", device="cpu"), load_agent(tmp_path / "agent.zip", device="cpu")):
        np.testing.assert_array_equal(act(loaded, obs), act(model, obs))


def test_it_clones_online_too() -> None:
    model = make(BC)
    before = flat_parameters(model.actor)
    model.learn(40)
    assert model._n_updates == 30 and not th.equal(flat_parameters(model.actor), before)
