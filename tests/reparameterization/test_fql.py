"""FQL: its three losses by hand and on lobes of actions, and its numbers beside those of the reference implementation."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import FQL
from sb3_diffusion.envs.bandits import BanditEnv
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import bandit_model, give_critic, uniform_batch
from tests.cases import MethodCase
from tests.golden_algorithms import GAMMA, check_gradients, golden_batch
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import (
    backbone_slots,
    critic_gradients,
    denoiser_gradients,
    load_critics,
    load_denoiser,
    load_slots,
    read_slots,
)
from tests.helpers import act, flat_parameters, make, make_filled, observations, part, sample_batch
from tests.lobes import lobe_batch, lobe_model, near_a_lobe, right_mass, train

CASE = MethodCase(
    wrong_arguments=[
        ({"alpha": -1.0}, ["alpha=-1.0", "closer to the data"]),
        ({"target_reduction": "max"}, ["target_reduction='max'", "min, mean"]),
        ({"student_learning_rate": -1.0}, ["student_learning_rate=-1.0", "negative"]),
        ({"policy_kwargs": {"process": "continuous"}}, ["'continuous'", "noise", "FQL", "velocity"]),
        ({"policy_kwargs": {"acting": "actor"}}, ["acting='actor'", "FQL"]),
    ],
    critic_width=512,
    operation_counts={"operations": 729, "kflop": 143, "synchronisations": 0},
)


def give_student(model: Any, actions: th.Tensor) -> None:
    """A student that knows these actions only."""
    model.student.sample = lambda *args, **kwargs: actions


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_constant_velocity_moves_noise_by_itself(steps: int) -> None:
    """However many steps the flow takes; the student stays where it is, and the distance is that of the velocity."""
    model = bandit_model(FQL, alpha=10.0, policy_kwargs={"diffusion_steps": steps})
    with th.no_grad():
        output = model.actor.denoiser.trunk.output
        output.weight.zero_()
        output.bias.fill_(0.2)
    noise = th.tensor([[0.3], [-0.5], [0.9]])
    model.randomness = RecordedDraws({"student.x_T": noise})
    give_student(model, noise)
    give_critic(model, lambda actions: th.full(actions.shape[:-1], 2.0))
    batch = uniform_batch(model, 3)
    _, metrics = model.student_loss(batch)
    # the last one ends at the edge of the box
    assert metrics["distillation_loss"].item() == pytest.approx((0.04 + 0.04 + 0.01) / 3.0, abs=1e-6)


@pytest.mark.parametrize("normalize, expected", [(False, -1.6), (True, -0.6)])
def test_the_loss_of_the_student(normalize: bool, expected: float) -> None:
    """Weight 10, squared distance 0.04, values of mean 2."""
    model = bandit_model(FQL, alpha=10.0, normalize_q_loss=normalize)
    actions = th.tensor([[0.5], [-0.1]])
    give_student(model, actions)
    model.actor.sample = lambda *args, **kwargs: actions - 0.2
    give_critic(model, lambda actions: th.tensor([1.0, 3.0]))
    assert model.student_loss(uniform_batch(model, 2))[0].item() == pytest.approx(expected, abs=1e-5)


def test_a_student_outside_the_box_is_led_back() -> None:
    """Its value has no slope there, its distance to the flow has."""
    model = bandit_model(FQL)
    actions = th.tensor([[1.5]], requires_grad=True)
    give_student(model, actions)
    model.actor.sample = lambda *args, **kwargs: th.tensor([[1.0]])
    give_critic(model, lambda actions: 100.0 * actions[..., 0])
    (gradient,) = th.autograd.grad(model.student_loss(uniform_batch(model, 1))[0], actions)
    assert gradient.item() == pytest.approx(10.0 * 2.0 * 0.5)


def test_the_flow_learns_nothing_from_the_student() -> None:
    model = make_filled(FQL)
    loss, _ = model.student_loss(sample_batch(model))
    before = flat_parameters(model.actor), flat_parameters(model.critic)
    model.step(part(model, "student"), loss)
    assert th.equal(flat_parameters(model.actor), before[0]) and th.equal(flat_parameters(model.critic), before[1])
    assert all(parameter.grad is None for parameter in model.actor.parameters())


def test_the_student_acts() -> None:
    model = make(FQL)
    obs = observations(model.observation_space)
    expected = act(model, obs)
    with th.no_grad():
        for parameter in model.actor.parameters():
            parameter.zero_()
    assert (act(model, obs) == expected).all()
    model.actor.act = None  # is not asked
    model.predict(obs, deterministic=False)


def test_rates_of_the_student() -> None:
    model = make_filled(FQL, student_learning_rate=1e-2)
    model.train(2, 8)
    logged = model.logger.name_to_value
    assert logged["train/student_learning_rate"] == model.student.optimizer.param_groups[0]["lr"] == 1e-2
    assert {"train/student_loss", "train/distillation_loss", "train/q_term"} <= set(logged)


def student_actions(model: Any, n: int = 4000) -> th.Tensor:
    with th.no_grad():
        return model.student.sample(model.student.encode(th.zeros(n, 1)), model.randomness, "test")


def test_a_student_without_a_value_becomes_the_flow_and_with_one_moves_to_the_better_lobe() -> None:
    model = lobe_model(FQL, alpha=10.0, slope=0.0)
    train(model, ("actor", "student"), 500)
    actions = student_actions(model)
    assert right_mass(actions) == pytest.approx(0.5, abs=0.06) and near_a_lobe(actions) > 0.7
    assert model.student_loss(lobe_batch(2000))[1]["distillation_loss"].item() < 0.01
    model.alpha = 0.1
    give_critic(model, lambda actions: actions[..., 0])
    train(model, ("student",), 150)
    assert right_mass(student_actions(model)) > 0.97


# -- beside the reference implementation -----------------------------------------------------------------------------------


def fql_model(case: Case, **kwargs: Any) -> Any:
    networks = {"net_arch": [16, 16], "diffusion_steps": 5}
    env = BanditEnv(action_dim=2, observation_dim=5)
    options = {"learning_rate": 1e-3, "tau": 0.1, "gamma": GAMMA, "alpha": 3.0, "device": "cpu", **kwargs}
    model: Any = FQL("DiffusionPolicy", env, policy_kwargs=networks, **options)
    load_denoiser(model.actor.denoiser, sub(case, "params/actor_bc"))
    load_slots(list(backbone_slots(model.student.trunk)), sub(case, "params/actor_onestep"))
    load_critics(model.critic.ensemble, sub(case, "params/critic"))
    load_critics(model.critic_target.ensemble, sub(case, "params/critic_target"))
    names = {"next_action.gauss": "next_action.x_T", "onestep.gauss": "student.x_T"}
    names |= {"flow.x_0": "actor.eps", "flow.t": "actor.t"}
    model.randomness = RecordedDraws({names[label]: value for label, value in sub(case, "noise").items()})
    return model


@pytest.mark.parametrize("name", ["05_fql", "05_fql_normq_min"])
def test_fql_update(name: str) -> None:
    case, is_variant = load(name), name == "05_fql_normq_min"
    model = fql_model(case, normalize_q_loss=is_variant, target_reduction="min" if is_variant else "mean")
    batch = golden_batch(case)
    with th.no_grad():
        close(model.target_actions(batch), case["expected/next_action"])
        values, _ = model.next_values(batch)
        close(batch.rewards + batch.discounts * values, case["expected/q_target"].squeeze(-1))
        taught = model.actor.sample(model.actor.encode(batch.observations), model.randomness, "student")
        close(taught, case["expected/bc_action"])
    losses = {one.name: one.loss(batch) for one in model.parts()}  # all before any step, as the reference computes them
    expected = {"critic": "critic", "actor": "flow", "student": "onestep"}
    for mine, theirs in expected.items():
        close(losses[mine][0], case[f"expected/loss/{theirs}"])
    close(losses["student"][1]["distillation_loss"], case["expected/loss/distill"])
    close(-losses["student"][1]["q_term"], case["expected/loss/q"])
    for one in model.parts():
        model.step(one, losses[one.name][0])
    check_gradients(critic_gradients(model.critic.ensemble, flat=True), sub(case, "expected/grads/critic"))
    check_gradients(denoiser_gradients(model.actor.denoiser), sub(case, "expected/grads/actor_bc"))
    slots = list(backbone_slots(model.student.trunk))
    check_gradients(read_slots(slots, gradients=True), sub(case, "expected/grads/actor_onestep"))
    new = read_slots(slots)
    for path, value in sub(case, "expected/new_params/actor_onestep").items():
        close(new[path], value, rtol=0.0, atol=1e-5)
