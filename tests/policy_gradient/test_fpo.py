"""FPO: its numbers beside those of the reference, what an error says, and the collapse that negative advantages can cause."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import FPO
from sb3_diffusion.core.ratios.flow_matching import REDUCTIONS
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from tests.bandits import BanditEnv
from tests.cases import MethodCase
from tests.golden_rollouts import PAPER, check_epoch, golden_model, golden_rollout
from tests.golden_tools import Case, close, load, recorded, sub
from tests.policy_gradient.error_ratios import SHARED_WRONG_ARGUMENTS, first_batches, learn_from_bad_actions

CASE = MethodCase(
    tiny={"n_draws": 2},
    wrong_arguments=[*SHARED_WRONG_ARGUMENTS, ({"policy_kwargs": {"solver": "ddpm"}}, ["solver='ddpm'", "flow: euler"])],
)
TINY = {"net_arch": [16], "diffusion_steps": 4, "time_dim": 8}


def golden_fpo() -> tuple[Any, Case]:
    case = load("06_fpo")
    preset = FPO.preset("flowrl_paper")
    rules = {key: preset[key] for key in ("positive_only", "output_std", "clip_states", "error")}
    sizes = {"diffusion_steps": 5, "time_dim": 8}
    model = golden_model(FPO, case, n_draws=3, clip_range=0.05, policy_kwargs=sizes, **rules, **PAPER)
    golden_rollout(model, case, {"eps": "cfm_eps", "t": "cfm_t", "error": "cfm_loss"})
    fields = model.rollout_buffer.fields
    fields["error"] = fields["error"].squeeze(-1)
    return model, case


def test_an_epoch_beside_the_reference() -> None:
    model, case = golden_fpo()

    def look(number: int, batch: RolloutBatch, metrics: Metrics) -> None:
        want = sub(case, f"expected/minibatch{number}")
        old, new = model.errors(batch)
        close(new, want["cfm_loss"].squeeze(-1))
        close((old - new).mean(1, keepdim=True).exp(), want["ratio"])
        close(batch.advantages.clamp(min=0).unsqueeze(1), want["advantage_limited"])

    check_epoch(model, case, look)


def test_actions_beside_the_reference() -> None:
    model, case = golden_fpo()
    observations, names = case["batch/obs"][0], {"act.x_T": "act.x_0", "act.step_noise": "act.additive"}
    draws = recorded(case, extra={name: case[f"noise/{file}"] for name, file in names.items()})
    model.randomness = draws
    with th.no_grad():
        actions, fields = model.act(observations)
        close(actions, case["expected/act/action"])
        batch = model.rollout_buffer.rows(slice(0, 4))._replace(actions=actions)
        fields = model.remember(batch)
    close(fields["t"], case["expected/act/t"])
    close(fields["error"], case["expected/act/cfm_loss"].squeeze(-1))
    draws.draws["act.step_noise"] = th.zeros(())  # evaluation of the reference: the same start, no noise behind
    close(model.act(observations)[0], case["expected/act_deterministic/action"])


def test_actions_that_were_no_better_than_expected_teach_nothing() -> None:
    model, _ = golden_fpo()
    batch = model.rollout_buffer.rows(slice(None))
    bad = batch._replace(advantages=-batch.advantages.abs())
    loss, _ = model.actor_loss(bad)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(not parameter.grad.any() for parameter in model.actor.parameters())


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_the_error_of_the_noise_is_that_of_the_velocity_weighted(reduction: str) -> None:
    models = {
        error: FPO(
            "DiffusionPolicy",
            BanditEnv(action_dim=3, observation_dim=2),
            seed=0,
            error=error,
            error_reduction=reduction,
            policy_kwargs=TINY,
            device="cpu",
        )
        for error in ("velocity", "noise")
    }
    generator = th.Generator().manual_seed(0)
    observations, actions = (th.randn(16, n, generator=generator) for n in (2, 3))
    eps, t = th.randn(16, 5, 3, generator=generator), th.rand(16, 5, 1, generator=generator)
    t[:, 0] = 0.0
    errors = {name: model.flow_matching_error(observations, actions, eps, t) for name, model in models.items()}
    close(errors["noise"], t.squeeze(-1).square() * errors["velocity"], rtol=1e-5, atol=1e-6)
    assert not errors["noise"][:, 0].any()
    # as the reference computes it: from the noise that the velocity implies
    actor = models["noise"].actor
    x_t = (1 - t) * eps + t * actions.unsqueeze(1)
    implied = x_t - t * actor.denoise(x_t, t, actor.encode(observations))
    close(errors["noise"], REDUCTIONS[reduction]((eps - implied).square()), rtol=1e-4, atol=1e-5)


def test_reductions() -> None:
    squares = th.arange(12.0).view(1, 3, 4)
    close(REDUCTIONS["mean"](squares), squares.mean(-1))
    close(REDUCTIONS["sqrt"](squares), squares.sum(-1) / 2.0)


def test_times_are_those_at_which_the_flow_is_asked() -> None:
    model = FPO("DiffusionPolicy", BanditEnv(), seed=0, policy_kwargs=TINY, device="cpu")
    times = model.draw_times((2000, 3, 1), th.zeros(()))
    assert times.unique().tolist() == model.actor.acting_chain.times.tolist() == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("positive_only", [False, True])
def test_the_first_minibatch_sees_the_policy_that_acted(positive_only: bool) -> None:
    model = FPO(
        "DiffusionPolicy",
        Pendulum(8),
        n_steps=6,
        seed=0,
        learning_rate=1e-2,
        positive_only=positive_only,
        output_std=0.1,
        policy_kwargs=TINY,
        device="cpu",
    )
    for batch in first_batches(model):
        old, new = model.errors(batch)
        close((old - new).exp(), th.ones(48, 8), atol=1e-6)
        again = model.remember(batch)  # other draws: their errors say nothing about the same actions
        assert ((batch.fields["error"] - again["error"]).exp() - 1.0).abs().max() > 0.1


def test_negative_advantages_make_the_error_explode_and_the_switch_prevents_it() -> None:
    free, limited = (learn_from_bad_actions(FPO, positive_only=positive_only) for positive_only in (False, True))
    assert limited[-1] < 2.0 * limited[0]
    assert free[-1] > 100.0 * free[0]
