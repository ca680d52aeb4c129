"""FPO++: its numbers beside those of the reference, its trust region, and its averaged actor."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import FPO, FPOpp
from sb3_diffusion.core.ratios.surrogate import asymmetric_surrogate, clipped_surrogate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from tests.bandits import BanditEnv
from tests.cases import MethodCase
from tests.golden_rollouts import CODE, check_epoch, golden_model, golden_rollout
from tests.golden_tools import Case, close, load, recorded, sub
from tests.golden_weights import denoiser_weights, load_denoiser
from tests.helpers import flat_parameters
from tests.policy_gradient.error_ratios import SHARED_WRONG_ARGUMENTS, first_batches, learn_from_bad_actions

CASE = MethodCase(
    tiny={"n_draws": 2, "average_start": 1},
    wrong_arguments=[
        *SHARED_WRONG_ARGUMENTS,
        ({"times": "uniform"}, ["times='uniform'", "continuous, grid"]),
        ({"times": "grid", "policy_kwargs": {"diffusion_steps": 1}}, ["times='grid'", "continuous"]),
        ({"time_power": 0.0}, ["time_power=0.0", "positive"]),
        ({"max_error": 0.0}, ["max_error=0.0", "positive"]),
        ({"max_error_negative": -1.0}, ["max_error_negative=-1.0", "positive"]),
        ({"max_log_ratio": 0.0}, ["max_log_ratio=0.0", "positive"]),
        ({"min_log_ratio": 1.0}, ["min_log_ratio=1.0", "smaller than 0"]),
        ({"max_advantage": 0.0}, ["max_advantage=0.0", "positive"]),
        ({"action_limit": 0.5}, ["action_limit=0.5", "at least 1"]),
        ({"average_decay": 1.0}, ["average_decay=1.0", "[0, 1)"]),
        ({"average_start": -1}, ["average_start=-1", "at least 0"]),
        ({"policy_kwargs": {"evaluating": "actor"}}, ["evaluating='actor'", "requires"]),
    ],
)
TINY = {"net_arch": [16], "diffusion_steps": 4, "time_dim": 8}


def golden_fpopp() -> tuple[Any, Case]:
    case = load("06_fpopp")
    limits = {"max_advantage": 1.2, "max_error": 8.0, "max_error_negative": 5.0, "max_log_ratio": 0.5, "action_limit": 2.0}
    sizes = {"diffusion_steps": 5, "time_dim": 8}
    model = golden_model(
        FPOpp,
        case,
        n_draws=3,
        time_power=1.5,
        output_std=0.1,
        average_decay=0.9,
        average_start=0,
        policy_kwargs=sizes,
        **limits,
        **{**CODE, "clip_range_vf": None},
    )
    golden_rollout(model, case, {"eps": "cfm_eps", "t": "cfm_t", "error": "cfm_loss"})
    fields = model.rollout_buffer.fields
    fields["error"] = fields["error"].squeeze(-1)
    with th.no_grad():
        load_denoiser(model.policy.actor_target.denoiser, sub(case, "params/ema_actor"))
    return model, case


def test_an_epoch_beside_the_reference() -> None:
    model, case = golden_fpopp()

    def look(number: int, batch: RolloutBatch, metrics: Metrics) -> None:
        want = sub(case, f"expected/minibatch{number}")
        old, new = model.limited_errors(batch)
        close(new, want["cfm_loss_limited"].squeeze(-1))
        close(model.limited_log_ratio(old - new), want["log_ratio_limited"].squeeze(-1))

    check_epoch(model, case, look)
    model.move_average()
    new = sub(case, "expected/new_params/ema_actor")
    for path, value in denoiser_weights(model.policy.actor_target.denoiser).items():
        close(value, new[path], rtol=0.0, atol=2e-5)


def test_actions_beside_the_reference() -> None:
    model, case = golden_fpopp()
    observations, names = case["batch/obs"][0], {"act.x_T": "act.x_0", "act.step_noise": "act.additive"}
    model.randomness = recorded(case, extra={name: case[f"noise/{file}"] for name, file in names.items()})
    with th.no_grad():
        actions, _ = model.act(observations)
        close(actions, case["expected/act/action"])
        fields = model.remember(model.rollout_buffer.rows(slice(0, 4))._replace(actions=actions))
    close(fields["t"], case["expected/act/t"])
    close(fields["error"], case["expected/act/cfm_loss"].squeeze(-1))
    evaluated, _ = model.policy.predict(observations.numpy(), deterministic=True)
    close(th.from_numpy(evaluated), case["expected/act_deterministic/action"].clamp(-1.0, 1.0))


def objective(log_ratio: th.Tensor, advantage: float) -> th.Tensor:
    """What is maximised, for every ratio."""
    return th.stack([-asymmetric_surrogate(one, th.tensor(advantage), 0.05)[0] for one in log_ratio])


def test_the_trust_region_is_asymmetric() -> None:
    ratios = th.linspace(0.5, 1.5, 1001)
    values = objective(ratios.log(), -1.0)
    assert float(ratios[values.argmax()]) == pytest.approx(0.95, abs=1e-3)
    far = th.tensor([3.0], requires_grad=True)
    objective(far.log(), -1.0).sum().backward()
    assert far.grad is not None and -100.0 < float(far.grad) < 0.0
    beyond, within = (th.tensor([ratio], requires_grad=True) for ratio in (1.06, 1.04))
    objective(th.cat((beyond, within)).log(), 1.0).sum().backward()
    assert beyond.grad is not None and float(beyond.grad) == 0.0
    assert within.grad is not None and float(within.grad) == pytest.approx(1.0, abs=1e-5)


def test_where_advantages_are_positive_it_is_the_surrogate_of_ppo() -> None:
    generator = th.Generator().manual_seed(0)
    log_ratio, advantages = 0.2 * th.randn(64, 4, generator=generator), th.rand(64, 1, generator=generator)
    losses = [surrogate(log_ratio, advantages, 0.05) for surrogate in (asymmetric_surrogate, clipped_surrogate)]
    close(losses[0][0], losses[1][0])
    assert losses[0][1].keys() == losses[1][1].keys()
    close(losses[0][1]["clip_fraction"], losses[1][1]["clip_fraction"])


def test_gradients_pass_the_limit_of_ratios_but_not_that_of_errors() -> None:
    model = FPOpp("DiffusionPolicy", BanditEnv(), max_log_ratio=1.0, min_log_ratio=-2.0, policy_kwargs=TINY, device="cpu")
    difference = th.tensor([-5.0, 0.5, 3.0], requires_grad=True)
    limited = model.limited_log_ratio(difference)
    assert limited.tolist() == [-2.0, 0.5, 1.0]
    limited.sum().backward()
    assert difference.grad is not None and difference.grad.tolist() == [1.0, 1.0, 1.0]
    error = th.tensor([[25.0, 15.0]], requires_grad=True)
    model.errors = lambda batch: (error.detach(), error)  # type: ignore[method-assign]
    none = th.zeros(1)
    _, new = model.limited_errors(RolloutBatch(none, none, none, th.ones(1), none, none.bool()))
    new.sum().backward()
    assert new.tolist() == [[20.0, 15.0]]
    assert error.grad is not None and error.grad.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_continuous_times(power: float) -> None:
    model = FPOpp("DiffusionPolicy", BanditEnv(), seed=0, time_power=power, policy_kwargs=TINY, device="cpu")
    share = (model.draw_times((20_000,), th.zeros(())) - 0.005) / 0.99
    assert float(share.min()) >= 0.0 and float(share.max()) <= 1.0
    assert float((share < 0.5).float().mean()) == pytest.approx(0.5**power, abs=0.015)


def test_times_on_the_grid_leave_out_the_noise() -> None:
    model = FPOpp("DiffusionPolicy", BanditEnv(), seed=0, times="grid", policy_kwargs=TINY, device="cpu")
    assert model.draw_times((2000,), th.zeros(())).unique().tolist() == [0.25, 0.5, 0.75]


def test_the_first_minibatch_sees_the_policy_that_acted() -> None:
    model = FPOpp(
        "DiffusionPolicy", Pendulum(8), n_steps=6, seed=0, learning_rate=1e-2, policy_kwargs=TINY, n_draws=4, device="cpu"
    )
    for batch in first_batches(model):
        old, new = model.errors(batch)
        close((old - new).exp(), th.ones(48, 4), atol=1e-6)
        again = model.remember(batch)  # other draws: their errors say nothing about the same actions
        assert ((batch.fields["error"] - again["error"]).exp() - 1.0).abs().max() > 0.1


def test_negative_advantages_are_bounded() -> None:
    errors = learn_from_bad_actions(FPOpp)
    assert max(errors) < 10.0 * errors[0]


def test_the_average_waits_and_then_lags_behind() -> None:
    model = FPOpp(
        "DiffusionPolicy",
        Pendulum(8),
        n_steps=6,
        seed=0,
        average_start=2,
        average_decay=0.75,
        policy_kwargs=TINY,
        device="cpu",
    )
    target: Any = model.policy.actor_target
    model.learn(2 * 48)
    assert th.equal(flat_parameters(target), flat_parameters(model.actor))
    before = flat_parameters(target).clone()
    model.learn(48, reset_num_timesteps=False)
    close(flat_parameters(target), 0.75 * before + 0.25 * flat_parameters(model.actor), atol=1e-6)


def test_the_average_evaluates_and_the_actor_explores() -> None:
    model: Any = FPOpp("DiffusionPolicy", BanditEnv(), seed=0, output_std=0.0, policy_kwargs=TINY, device="cpu")
    observation = np.zeros((5, *model.observation_space.shape), np.float32)

    def both() -> list[np.ndarray]:
        th.manual_seed(0)
        return [model.predict(observation, deterministic=deterministic)[0] for deterministic in (True, False)]

    before = copy.deepcopy(both())
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.mul_(0.5)
    after = both()
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3
    alone = FPOpp("DiffusionPolicy", BanditEnv(), average_decay=0.0, policy_kwargs=TINY, device="cpu")
    assert alone.policy.actor_target is None and alone.policy.evaluating == "actor"


def test_settings_of_others() -> None:
    for name in ("flowrl_paper", "flowrl_code"):
        for algorithm in (FPO, FPOpp):
            model: Any = algorithm("DiffusionPolicy", Pendulum(2), device="cpu", **algorithm.preset(name))
            assert model.actor.acting_chain.steps == (10 if algorithm is FPO else 64)
            assert model.clip_range_vf == (0.2 if (algorithm, name) == (FPO, "flowrl_code") else None)
    assert FPOpp.preset("flowrl_paper")["n_epochs"] == 4
