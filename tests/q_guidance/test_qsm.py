"""QSM: its target, the bias of its field, and its numbers beside those of the reference implementation."""

import torch as th

from sb3_diffusion import QSM
from tests.bandits import (
    bandit_model,
    draw,
    fit,
    gaussian_log_density,
    give_critic,
    uniform_batch,
)
from tests.cases import MethodCase
from tests.golden_algorithms import actor_step, check_targets, critic_step, draws, golden_batch, golden_model
from tests.golden_tools import close, load

CASE = MethodCase(
    tiny={"n_action_candidates": 3},
    learns_with={"learning_rate": 0.001},
    wrong_arguments=[
        ({"temperature": -1.0}, ["temperature=-1.0", "positive"]),
        ({"score_form": "x0"}, ["'x0'", "eps", "raw"]),
        ({"exploration_noise": -0.5}, ["exploration_noise=-0.5", ">= 0"]),
    ],
    operation_counts={"operations": 853, "kflop": 172, "synchronisations": 0},
)


def test_qsm_target_of_a_linear_value() -> None:
    sigma = th.tensor([[0.2], [0.9]])
    cases = ((True, "eps", 0.1, -10.0 * sigma), (False, "raw", 1 / 50, th.full((2, 1), -150.0)))
    for normalize, form, temperature, expected in cases:
        model = bandit_model(QSM, temperature=temperature, normalize_gradient=normalize, score_form=form)
        give_critic(model, lambda actions: 3.0 * actions[..., 0])
        target, _ = model.noise_target(uniform_batch(model, 2), th.tensor([[0.5], [-2.0]]), sigma)
        th.testing.assert_close(target, expected, rtol=1e-5, atol=1e-4)


def test_qsm_is_narrower_than_the_boltzmann_distribution() -> None:
    """Its field is not the score of a diffused density: sd 0.18 instead of 0.25 with the exact field."""
    model = bandit_model(QSM, temperature=1.0, normalize_gradient=False)
    give_critic(model, gaussian_log_density(0.3, 0.25))
    fit(model, 3000)
    samples = draw(model)
    assert 0.25 <= samples.mean().item() <= 0.36
    assert 0.14 <= samples.std().item() <= 0.22


def test_qsm() -> None:
    case = load("04_qsm")
    model = golden_model(QSM, case, temperature=0.1)
    model.randomness, batch = draws(case), golden_batch(case)
    close(model.target_actions(batch), case["expected/next_action"], atol=2e-5)
    critic_step(model, batch, case)
    # the reference averages the target before the actor's step
    check_targets(model, case)
    a_t, *_, sigma, _ = model.actor.add_noise(batch.actions, model.randomness, "actor")
    close(a_t, case["expected/a_t"])
    target, _ = model.noise_target(batch, a_t, sigma)
    close(target, case["expected/eps_target"])
    loss, _ = model.actor_loss(batch)
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)


def test_qsm_actions() -> None:
    case = load("04_qsm")
    model = golden_model(QSM, case)
    recorded = draws(case)
    close(
        model.policy.select_actions(case["batch/obs"], 10, recorded, "act_best"), case["expected/act_best/action"], atol=2e-5
    )
    recorded.draws["act_explore.x_T"] = recorded.draws["act_explore.x_T"].squeeze(1)
    recorded.draws["act_explore.step_noise"] = recorded.draws["act_explore.step_noise"].squeeze(2)
    exploring = model.policy.select_actions(case["batch/obs"], 1, recorded, "act_explore")
    exploring = model.policy.exploration(exploring, recorded, "act_explore.additive")
    # ours clips exploring actions, the reference stores them outside the box
    close(exploring, case["expected/act_explore/action"].clamp(-1.0, 1.0), atol=2e-5)
