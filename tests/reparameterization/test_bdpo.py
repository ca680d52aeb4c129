"""BDPO: penalties of steps and paths, its stages, lobes of actions, and its numbers beside those of the reference."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import BDPO
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.paths import PathDivergence
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.networks.reducers import state_values
from tests.bandits import SMALL_NET, bandit_model, uniform_batch
from tests.cases import MethodCase
from tests.golden_algorithms import check_gradients, draws, golden_batch, golden_model
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import (
    critic_gradients,
    critic_weights,
    denoiser_gradients,
    denoiser_weights,
    load_critics,
    load_denoiser,
)
from tests.helpers import assert_identical, flat_parameters, make, make_filled, parameters, part, point_data, sample_batch
from tests.lobes import inside_the_data, lobe_batch, lobe_model, near_a_lobe, right_mass, train

CASE = MethodCase(
    tiny={
        "n_target_candidates": 2,
        "n_action_candidates": 2,
        "actor_learning_rate": None,
        "actor_decay": "none",
        "policy_delay": 2,
        "behavior_updates": 2,
        "critic_updates": 1,
        "training_updates": 3,
    },
    tiny_policy={"n_critics": 2, "time_arch": [8]},  # the shared suites count on two critics
    wrong_arguments=[
        ({"eta": -1.0}, ["eta=-1.0", "forgets the behaviour"]),
        ({"target_reduction": "mean"}, ["target_reduction='mean'", "lcb, min, convex"]),
        ({"rho": -1.0}, ["rho=-1.0", "more pessimistic"]),
        ({"n_target_candidates": 0}, ["n_target_candidates=0", "at least 1"]),
        ({"actor_decay": "linear"}, ["actor_decay='linear'", "partial_cosine, cosine, none"]),
        ({"behavior_learning_rate": -1.0}, ["behavior_learning_rate=-1.0"]),
        ({"training_updates": 0}, ["training_updates=0", "at least 1"]),
        ({"policy_kwargs": {"variance": "posterior"}}, ["variance='posterior'", "'beta'"]),
        ({"policy_kwargs": {"process": "continuous"}}, ["process='continuous'", "'discrete'"]),
    ],
    operation_counts={"operations": 0, "kflop": 0, "synchronisations": 0},
)


# -- golden -----------------------------------------------------------------------------------------------------------------


def bdpo_model(name: str, **kwargs: Any) -> tuple[Any, Case]:
    """The method with the settings and all weights of a case of the reference."""
    case = load(name)
    networks = {"net_arch": {"pi": [16, 16], "qf": [16, 16]}, "time_arch": None, "n_critics": 2}
    method = {"eta": 0.7, "rho": 0.5, "n_target_candidates": 3, "policy_delay": 1, "max_grad_norm": None}
    model = golden_model(BDPO, case, policy_kwargs=networks, **{**method, **kwargs})
    denoisers = {"actor": model.actor, "actor_target": model.averaged_actor}
    denoisers |= {"behavior": model.behavior, "behavior_target": model.averaged_behavior}
    for path, actor in denoisers.items():
        if sub(case, f"params/{path}"):
            load_denoiser(actor.denoiser, sub(case, f"params/{path}"))
    critics = {"q0": model.critic, "q0_target": model.critic_target}
    critics |= {"vt": model.step_value, "vt_target": model.step_value_target}
    for path, critic in critics.items():
        if sub(case, f"params/{path}"):
            load_critics(critic.ensemble, sub(case, f"params/{path}"))
    model.randomness = model.policy.randomness = draws(case)
    return model, case


def check_part(model: Any, case: Case, name: str, path: str, loss: th.Tensor) -> None:
    """Gradients of a part, its network after a step, and its average after that."""
    one = part(model, name)
    model.step(one, loss)
    one.then()
    average = {"critic": model.critic_target, "actor": model.averaged_actor}.get(name) or getattr(
        model.policy, f"{name}_target"
    )
    is_critic = path in ("q0", "vt")
    module, moved = (net.ensemble if is_critic else net.denoiser for net in (one.network, average))
    gradients = (critic_gradients if is_critic else denoiser_gradients)(module)
    check_gradients(gradients, sub(case, f"expected/grads/{path}"))
    read = critic_weights if is_critic else denoiser_weights
    largest = max(float(value.abs().max()) for value in gradients.values())
    for key, value in sub(case, f"expected/new_params/{path}").items():
        clear = gradients[key].abs() > 1e-5 * largest
        close(read(module)[key][clear], value[clear], rtol=0.0, atol=1e-5)
    for key, value in sub(case, f"expected/new_params/{path}_target").items():
        close(read(moved)[key], value, atol=1e-4)


def test_bdpo_imitates() -> None:
    model, case = bdpo_model("05_bdpo_pretrain")
    batch = golden_batch(case)
    noisy = model.behavior.add_noise(batch.actions, model.randomness, "behavior")
    close(noisy.x_t, case["expected/a_t"])
    loss, _ = model.behavior_loss(batch)
    close(loss, case["expected/loss/behavior"])
    check_part(model, case, "behavior", "behavior", loss)


def test_bdpo_update() -> None:
    model, case = bdpo_model("05_bdpo_rl")
    batch = golden_batch(case)
    with th.no_grad():
        values, metrics = model.next_values(batch)
    close(metrics["path_penalty"], case["expected/q0_penalty"].mean())
    close(batch.rewards + batch.discounts * values, case["expected/q0_target_value"].squeeze(-1), atol=2e-5)
    noisy = model.actor.add_noise(batch.actions, model.randomness, "value")
    close(noisy.x_t, case["expected/value_a_t"])
    with th.no_grad():
        value, penalty = model.value_of_step(model.averaged_actor, noisy, batch, "value")
    close(penalty, case["expected/vt_penalty"].sum(-1), atol=2e-5)
    close(value - 0.7 * penalty, case["expected/vt_target_value"].squeeze(-1), atol=2e-5)

    order = [one.name for one in model.parts()]
    assert order == ["step_value", "critic", "actor", "behavior"]
    for name, path in zip(order, ("vt", "q0", "actor", "behavior"), strict=True):
        loss, _ = part(model, name).loss(batch)
        close(loss, case[f"expected/loss/{path}"])
        check_part(model, case, name, path, loss)


def test_bdpo_acts_by_the_mean_of_the_target_critics() -> None:
    model, case = bdpo_model("05_bdpo_rl", n_action_candidates=6)
    with th.no_grad():
        candidates = model.averaged_actor.act(case["batch/obs"], model.randomness, "act", 6)
        q = model.critic_target.q(candidates, model.critic_target.encode(case["batch/obs"])).mean(0)
        close(q, case["expected/act/q"], atol=2e-5)
        actions = model.policy.explore(case["batch/obs"])
    assert th.equal(q.argmax(1), case["expected/act/index"].long())
    close(actions, case["expected/act/action"], atol=2e-5)
