"""IQL: its losses by hand and beside the reference implementation, and what its value and its policy converge to."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion import IQL
from sb3_diffusion.core.update.decay import CosineDecay
from sb3_diffusion.data.batch import Batch
from tests.bandits import BanditEnv, give_critic
from tests.cases import MethodCase
from tests.golden_algorithms import GAMMA, check_gradients, golden_batch
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import (
    Slot,
    actor_slots,
    backbone_slots,
    critic_slots,
    is_flat,
    load_slots,
    read_slots,
)
from tests.helpers import make, make_filled, part, sample_batch, with_logger

CASE = MethodCase(
    tiny={"actor_decay": "none"},  # the rate of a short training that has ended is zero
    wrong_arguments=[
        ({"value_objective": "quantile"}, ["value_objective='quantile'", "expectile", "sparse", "exponential"]),
        ({"expectile": 1.0}, ["expectile=1.0", "in (0, 1)"]),
        ({"beta": -1.0}, ["beta=-1.0", "at least 0"]),
        ({"alpha": 0.0}, ["alpha=0.0", "positive"]),
        ({"max_weight": 0.0}, ["max_weight=0.0", "positive"]),
        ({"value_dropout": 1.0}, ["value_dropout=1.0", "in [0, 1)"]),
        ({"value_learning_rate": -1.0}, ["value_learning_rate=-1.0"]),
        ({"actor_decay": "linear"}, ["actor_decay='linear'", "cosine", "none"]),
        ({"policy_kwargs": {"dropout": 1.0}}, ["dropout=1.0", "in [0, 1)"]),
        ({"policy_kwargs": {"dropout": 0.1, "backbone": "simba"}}, ["dropout=0.1", "mlp", "SimBa"]),
        ({"policy_kwargs": {"critics": False}}, ["critics=False", "IQL"]),
    ],
    operation_counts={"operations": 573, "kflop": 80, "synchronisations": 0},
)


# -- beside the reference implementation ----------------------------------------------------------------------------------

GOLDEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "05_iql": ({}, {}),
    "05_iql_deterministic": ({}, {"deterministic_actor": True}),
    "05_ivr_sql": ({"value_objective": "sparse", "alpha": 2.0}, {}),
    "05_ivr_eql": ({"value_objective": "exponential", "alpha": 2.0}, {}),
}


def slots_of(model: IQL, case: Case, name: str) -> list[Slot]:
    """Where the arrays of a model of a case are found."""
    flat = is_flat(sub(case, f"params/{name}"))
    if name.startswith("critic"):
        return critic_slots(getattr(model, name).ensemble, flat)
    if name == "value":
        return list(backbone_slots(model.value.mlp, "" if flat else "trunk/", None, None if flat else "head/"))
    return actor_slots(model.actor.network)


def golden_iql(case: Case, arguments: dict[str, Any], policy: dict[str, Any]) -> Any:
    policy_kwargs = {"net_arch": [16, 16], **policy}
    env = BanditEnv(action_dim=2, observation_dim=5)
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "tau": 0.1,
        "gamma": GAMMA,
        "device": "cpu",
        "policy_kwargs": policy_kwargs,
    }
    model = IQL("GaussianPolicy", env, **settings, **arguments)
    with th.no_grad():
        for name in ("actor", "value", "critic", "critic_target"):
            load_slots(slots_of(model, case, name), sub(case, f"params/{name}"))
    return model


@pytest.mark.parametrize("name", GOLDEN)
def test_an_update_beside_the_reference(name: str) -> None:
    case = load(name)
    model, batch = golden_iql(case, *GOLDEN[name]), golden_batch(case)
    close(model.data_values(batch), case["expected/min_target_q"].squeeze(1))
    for step in ("value", "actor", "critic"):  # the order of the update
        trained = part(model, step)
        loss, _ = trained.loss(batch)
        close(loss, case[f"expected/loss/{step}"])
        model.step(trained, loss)
        gradients = read_slots(slots_of(model, case, step), gradients=True)
        check_gradients(gradients, sub(case, f"expected/grads/{step}"))
        largest = max(float(value.abs().max()) for value in gradients.values())
        new, old = read_slots(slots_of(model, case, step)), sub(case, f"params/{step}")
        for path, value in sub(case, f"expected/new_params/{step}").items():
            clear = gradients[path].abs() > 1e-5 * largest
            close(new[path][clear], value[clear], rtol=0.0, atol=1e-5)
            assert ((new[path] - old[path]).abs() <= 1.001e-3).all()
        if step == "value":
            close(model.value(batch.observations), case["expected/new_value"].squeeze(1), atol=2e-5)
    model.update_targets()
    targets = read_slots(slots_of(model, case, "critic_target"))
    for path, value in sub(case, "expected/new_params/critic_target").items():
        close(targets[path], value, atol=1e-5)
    assert [one.name for one in model.parts()] == ["value", "actor", "critic"]


# -- by hand --------------------------------------------------------------------------------------------------------------


def objective(name: str, advantages: list[float], alpha: float = 1.0) -> tuple[float, list[float]]:
    """The value's error where all values are zero, and the weights of the imitation."""
    model = make(IQL, value_objective=name, alpha=alpha)
    q = th.tensor(advantages)
    return model.value_error(q, th.zeros_like(q)).item(), model.imitation_weights(q).tolist()


def test_the_objectives_by_hand() -> None:
    error, weights = objective("expectile", [1.0, -1.0])
    assert error == pytest.approx(0.5) and weights == pytest.approx([20.0855, 0.049787], rel=1e-4)
    _, weights = objective("expectile", [0.5, 2.0])
    assert weights == pytest.approx([4.4817, 100.0], rel=1e-4)
    error, weights = objective("sparse", [2.0, -3.0])
    assert error == pytest.approx(2.0) and weights == [2.0, 0.0]
    error, weights = objective("exponential", [2.0, -3.0], alpha=2.0)  # exp(A / alpha), divided by its largest
    assert error == pytest.approx(0.5 * (1.0 + 0.082085), rel=1e-4) and weights == pytest.approx([100.0, 3.059e-7], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "expectile", "expected"),
    [("expectile", 0.7, 0.7), ("expectile", 0.9, 0.9), ("exponential", 0.5, 0.620115), ("sparse", 0.5, 0.5)],
)
def test_the_value_of_a_fair_coin(name: str, expectile: float, expected: float) -> None:
    """Q is 0 or 1 with equal chances: the expectile is itself, the others are alpha log E exp(Q / alpha), and the mean."""
    model = make(IQL, value_objective=name, expectile=expectile)
    q, value = th.tensor([0.0, 1.0] * 8), th.zeros((), requires_grad=True)
    optimizer = th.optim.Adam([value], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        model.value_error(q, value.expand(16)).backward()
        optimizer.step()
    assert value.item() == pytest.approx(expected, abs=0.01)


def test_a_chain_bootstraps_through_time_outs() -> None:
    """Three states in a row, a reward of 1 at the end, and a copy that a time limit cuts: the first state is worth gamma^2."""
    env = BanditEnv(observation_dim=4)
    settings: dict[str, Any] = {"gamma": 0.9, "tau": 0.05, "learning_rate": 0.01, "policy_kwargs": {"net_arch": []}}
    model = with_logger(make(IQL, env, buffer_size=4, actor_decay="none", **settings))
    states = np.eye(4, dtype=np.float32)
    for now, then, reward, done, cut in [(0, 1, 0, 0, 0), (1, 2, 0, 0, 0), (2, 3, 1, 1, 0), (0, 1, 0, 1, 1)]:
        infos = [{"TimeLimit.truncated": bool(cut)}]
        model.replay_buffer.add(states[[now]], states[[then]], np.zeros((1, 1)), np.array([reward]), np.array([done]), infos)
    model.train(600, 32)
    with th.no_grad():
        values = model.value(th.eye(4))
    th.testing.assert_close(values[:3], th.tensor([0.81, 0.9, 1.0]), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_policy_is_the_data_times_the_exponential_of_q(beta: float) -> None:
    """Of a Gaussian and a linear Q, that is a Gaussian of the same width, moved by beta times the slope times its variance."""
    model = make(IQL, BanditEnv(), beta=beta, learning_rate=0.03, policy_kwargs={"net_arch": []})
    give_critic(model, lambda actions: 1.5 * actions[..., 0])
    zeros, states = th.zeros(1024), th.zeros(1024, 1)
    imitation, rates = part(model, "actor"), CosineDecay(lambda _: 0.03)
    for update in range(300):
        imitation.optimizer.param_groups[0]["lr"] = rates(1.0 - update / 300)
        batch = Batch(states, 0.2 * th.randn(1024, 1), zeros, states, zeros)
        model.step(imitation, model.actor_loss(batch)[0])
    with th.no_grad():
        mean, std = model.actor.network(th.zeros(1, 1))
    assert mean.item() == pytest.approx(beta * 1.5 * 0.04, abs=0.02)
    assert std.item() == pytest.approx(0.2, abs=0.02)


# -- rates and dropout ----------------------------------------------------------------------------------------------------


def test_the_actors_rate_falls_like_a_cosine() -> None:
    assert [CosineDecay(lambda _: 4.0)(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([4.0, 2.0, 0.0])
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 5e-4),
        ({"actor_learning_rate": 4e-3}, 2e-3),
        ({"actor_learning_rate": lambda progress: 7e-3}, 7e-3),
        ({"actor_decay": "none"}, 1e-3),
    ]
    for arguments, expected in cases:
        model = make(IQL, learning_rate=1e-3, **{"actor_decay": "cosine", **arguments})
        assert model.actor_lr_schedule(0.5) == pytest.approx(expected)
        assert model.critic_lr_schedule(0.5) == model.value_lr_schedule(0.5) == 1e-3
    model.actor_lr_schedule = lambda progress: 5e-2  # as callbacks do
    assert model.actor_lr_schedule(0.5) == 5e-2


def test_dropout_is_in_the_losses_alone() -> None:
    model = make_filled(IQL, value_dropout=0.5, policy_kwargs={"dropout": 0.5})
    model.policy.set_training_mode(True)
    batch = sample_batch(model)
    for loss in (model.value_loss, model.actor_loss):
        assert loss(batch)[0] != loss(batch)[0]
    assert model.critic_loss(batch)[0] == model.critic_loss(batch)[0]
    model.policy.set_training_mode(False)
    for loss in (model.value_loss, model.actor_loss):
        assert loss(batch)[0] == loss(batch)[0]
