"""PPO in tensors: its numbers beside those of the reference, and what its first minibatch has to be."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import PPO
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from tests.cases import MethodCase
from tests.golden_rollouts import CODE, PAPER, check_epoch, golden_model, golden_rollout
from tests.golden_tools import close, load, recorded, sub
from tests.helpers import watched

CASE = MethodCase(
    wrong_arguments=[
        ({"ent_coef": -1.0}, ["ent_coef=-1.0", "at least 0"]),
        ({"policy_kwargs": {"squash": "action"}}, ["squash='action'", "PPO"]),
        ({"policy_kwargs": {"init_std": 0.0}}, ["init_std=0.0", "positive"]),
    ],
    operation_counts={"operations": 735, "kflop": 36, "synchronisations": 1},
)
SMALL = {"net_arch": [16], "activation_fn": "elu"}


def golden_ppo(name: str) -> Any:
    rules: dict[str, Any] = {**PAPER, "squash": True} if name.endswith("paper") else {**CODE}
    if name.endswith("adaptive"):
        rules["desired_kl"] = 0.01
    bounds = (-5.0, 2.0) if name.endswith("paper") else (-20.0, 2.0)
    case = load(name)
    model = golden_model(PPO, case, ent_coef=0.01, policy_kwargs={"log_std_bounds": bounds}, **rules)
    fields = {"log_prob": "old_log_prob", "mean": "old_mean", "std": "old_std"}
    golden_rollout(model, case, {field: file for field, file in fields.items() if f"batch/{file}" in case})
    buffer = model.rollout_buffer
    buffer.fields["log_prob"] = buffer.fields["log_prob"].squeeze(-1)
    if "mean" not in buffer.fields:  # nothing of it is compared
        buffer.fields |= {"mean": th.zeros_like(buffer["actions"]), "std": th.ones_like(buffer["actions"])}
    return model


@pytest.mark.parametrize("name", ["06_ppo", "06_ppo_adaptive", "06_ppo_paper"])
def test_an_epoch_beside_the_reference(name: str) -> None:
    case, model = load(name), golden_ppo(name)
    rates = []

    def look(number: int, batch: RolloutBatch, metrics: Metrics) -> None:
        want = sub(case, f"expected/minibatch{number}")
        mean, std = model.distribution(batch.observations)
        log_prob = model.density.log_density(batch.actions, mean, std)
        close(log_prob, want["log_prob"].squeeze(-1))
        close((log_prob - batch.fields["log_prob"]).exp(), want["ratio"].squeeze(-1))
        close(metrics["entropy"], want["entropy"])
        if name.endswith("adaptive"):  # not computed elsewhere
            close(metrics["approx_kl"], want["kl"])
        rates.append(number)

    check_epoch(model, case, look)
    assert rates == [0, 1]
    if name.endswith("adaptive"):
        close(th.tensor(model.actor.optimizer.param_groups[0]["lr"]), case["expected/minibatch1/lr"], rtol=1e-6)
        close(th.tensor(model.value.optimizer.param_groups[0]["lr"]), case["expected/minibatch1/lr"], rtol=1e-6)


def test_actions_beside_the_reference() -> None:
    case, model = load("06_ppo_paper"), golden_ppo("06_ppo_paper")
    observations = case["batch/obs"][0]
    model.randomness = recorded(case, extra={"act.x_T": case["noise/act.gauss"]})
    with th.no_grad():
        actions, fields = model.act(observations)
    close(actions, case["expected/act/action"])
    close(fields["log_prob"], case["expected/act/log_prob"].squeeze(-1))
    mode, _ = model.policy.predict(observations.numpy(), deterministic=True)
    close(th.from_numpy(mode), case["expected/act_deterministic/action"])


@pytest.mark.parametrize("squash", [False, True])
def test_the_first_minibatch_sees_the_policy_that_acted(squash: bool) -> None:
    model: Any = PPO(
        "GaussianPolicy", Pendulum(8), n_steps=6, seed=0, squash=squash, policy_kwargs=SMALL, learning_rate=1e-2, device="cpu"
    )
    for _ in range(3):  # the statistics of observations have moved in between
        model.learn(48, reset_num_timesteps=False)
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer)
        batch = model.rollout_buffer.rows(slice(None))
        _, metrics = model.actor_loss(batch)
        assert abs(float(metrics["approx_kl"])) < 1e-6
        assert float(metrics["clip_fraction"]) == 0.0
        log_prob = model.density.log_density(batch.actions, *model.distribution(batch.observations))
        # a squashed action tells what it was before by an inverse tanh, which loses digits near the edge
        close((log_prob - batch.fields["log_prob"]).exp(), th.ones(48), atol=1e-4 if squash else 1e-5)


def test_actions_are_learned_from_as_they_were_drawn() -> None:
    model: Any = PPO("GaussianPolicy", Pendulum(16), n_steps=4, seed=0, policy_kwargs={**SMALL, "init_std": 3.0}, device="cpu")
    executed: list[th.Tensor] = []
    env: Any = model.env
    env.step_tensor = watched(env.step_tensor, executed.append)
    model.learn(64)
    stored = model.rollout_buffer["actions"]
    assert (stored.abs() > 1.0).any()
    close(th.stack(executed), 2.0 * stored.clamp(-1.0, 1.0))


def test_the_settings_of_others() -> None:
    paper, code = PPO.preset("flowrl_paper"), PPO.preset("flowrl_code")
    assert paper["n_epochs"] == 4 and paper["timeout_bootstrap"] == "next_obs" and paper["squash"]
    assert code["clip_range_vf"] == 0.2 and code["timeout_bootstrap"] == "current"
    PPO("GaussianPolicy", Pendulum(2), device="cpu", **paper)
    with pytest.raises(ValueError, match=r"flowrl_papers.*flowrl_paper, flowrl_code"):
        PPO.preset("flowrl_papers")
