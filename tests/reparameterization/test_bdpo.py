"""BDPO: penalties of steps and paths, its stages, lobes of actions, and its numbers beside those of the reference."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import BDPO
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.networks.reducers import state_values
from tests.bandits import draw
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
from tests.lobes import lobe_model, near_a_lobe, right_mass, train

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
    operation_counts={"operations": 2179, "kflop": 557, "synchronisations": 0},
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
    one: Any = part(model, name)
    model.step(one, loss)
    one.then()
    average = {"critic": model.critic_target, "actor": model.averaged_actor}.get(name) or getattr(
        model.policy, f"{name}_target"
    )
    is_critic = path in ("q0", "vt")
    module: Any
    module, moved = (net.ensemble if is_critic else net.denoiser for net in (one.network, average))
    read_gradients: Any = critic_gradients if is_critic else denoiser_gradients
    gradients = read_gradients(module)
    check_gradients(gradients, sub(case, f"expected/grads/{path}"))
    read: Any = critic_weights if is_critic else denoiser_weights
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


# -- penalties and values ---------------------------------------------------------------------------------------------------


def test_the_behaviour_itself_pays_nothing() -> None:
    """Then the critics' target is that of any actor-critic."""
    model = make_filled(BDPO, eta=1e3)
    batch = sample_batch(model)
    th.manual_seed(0)
    values, metrics = model.next_values(batch)
    assert metrics["path_penalty"].item() == 0.0
    th.manual_seed(0)
    with th.no_grad():
        actions = model.averaged_actor.sample(model.averaged_actor.encode(batch.next_observations), model.randomness, "a", 2)
        q = model.critic_target.q(actions, model.critic_target.encode(batch.next_observations))
    th.testing.assert_close(values, state_values(q, "lcb", 1.0, False, model.randomness, ""))


def test_the_penalty_of_a_chain_is_that_of_all_its_steps() -> None:
    """A behaviour that always predicts one more: c_t summed over two dimensions and the three steps of a tiny chain."""
    model = make_filled(BDPO)
    with th.no_grad():
        model.averaged_behavior.denoiser.trunk.output.bias.add_(1.0)
    process = model.actor.process
    beta, sigma = process.betas[1:], process.sigma[1:]
    expected = 2.0 * (beta / (2.0 * (1.0 - beta) * sigma**2)).sum()
    with th.no_grad():
        _, metrics = model.next_values(sample_batch(model))
    th.testing.assert_close(metrics["path_penalty"], expected, rtol=1e-4, atol=1e-4)


def test_the_penalty_is_not_counted_behind_the_end() -> None:
    model = make_filled(BDPO, eta=5.0)
    with th.no_grad():
        model.averaged_behavior.denoiser.trunk.output.bias.add_(1.0)
    batch = sample_batch(model)
    ended = batch._replace(discounts=th.zeros(8))
    th.manual_seed(0)
    loss, _ = model.critic_loss(ended)
    values = model.critic.q(ended.actions, model.critic.encode(ended.observations))
    th.testing.assert_close(loss, (values - ended.rewards).square().mean())


def at_time(t: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """A model, a batch, and its actions at one time."""
    model = make_filled(BDPO, seed=seed)
    with th.no_grad():
        model.averaged_behavior.denoiser.trunk.output.bias.add_(0.5)
    batch = sample_batch(model)
    draws_ = {"x.t": th.tensor(t), "x.eps": th.randn(8, 2), "x.step_noise": th.randn(8, 2, 2)}
    model.randomness = RecordedDraws(draws_)
    return model, batch, model.actor.add_noise(batch.actions, model.randomness, "x")


def test_the_last_step_leads_to_the_critics() -> None:
    model, batch, noisy = at_time(1)
    with th.no_grad():
        value, penalty = model.value_of_step(model.averaged_actor, noisy, batch, "x")
        actor = model.averaged_actor
        predicted = actor.denoise(noisy.x_t, noisy.t, actor.encode(batch.observations))
        action = actor.process.predicted_clean(noisy.x_t, noisy.t, predicted).clamp(-1.0, 1.0)
        q = model.critic_target.q(action.unsqueeze(1), model.critic_target.encode(batch.observations))
    th.testing.assert_close(value, state_values(q, "lcb", 1.0, False, model.randomness, ""))
    assert bool((penalty > 0.0).all())
    for parameter in model.step_value_target.parameters():
        parameter.data.fill_(float("nan"))  # nobody is asked for a value of no noise
    assert bool(th.isfinite(model.value_of_step(model.averaged_actor, noisy, batch, "x")[0]).all())


def test_earlier_steps_lead_to_the_value_of_the_next_time() -> None:
    model, batch, noisy = at_time(3)
    with th.no_grad():
        actor, step_value = model.averaged_actor, model.step_value_target
        predicted = actor.denoise(noisy.x_t, noisy.t, actor.encode(batch.observations))
        cleaner = actor.process.reverse_step(noisy.x_t, noisy.t, predicted, model.randomness, "x.step_noise", n_samples=2)
        values = step_value.q(cleaner, step_value.encode(batch.observations), th.full((8, 1), 2.0))
        value, _ = model.value_of_step(actor, noisy, batch, "x")
    th.testing.assert_close(value, state_values(values, "lcb", 1.0, False, model.randomness, ""))
    other = step_value.q(cleaner, step_value.encode(batch.observations), th.full((8, 1), 1.0))
    assert not th.allclose(values, other)


def test_the_actors_gradient_passes_through_step_and_penalty() -> None:
    """Beside finite differences, at a time whose step is clipped nowhere."""
    model, batch, _ = at_time(2)
    for network in (model.actor, model.averaged_behavior, model.critic_target, model.step_value_target):
        network.double().extract_features = lambda observations, extractor: observations  # which would be float32
    batch = batch._replace(observations=batch.observations.double(), actions=0.1 * batch.actions.double())
    recorded = model.randomness.draws | {"actor.t": th.tensor(2), "actor.eps": 0.05 * th.randn(8, 2)}
    model.randomness = RecordedDraws({**recorded, "actor.step_noise": th.randn(8, 2, 2)})
    with th.no_grad():
        for parameter in model.actor.denoiser.trunk.parameters():
            parameter.mul_(0.1)
    weight = model.actor.denoiser.trunk.output.weight
    (gradient,) = th.autograd.grad(model.actor_loss(batch)[0], weight)
    with th.no_grad():
        ends = []
        for step in (1e-6, -2e-6):
            weight[3, 1] += step
            ends.append(model.actor_loss(batch)[0].item())
    assert abs(gradient[3, 1].item()) > 1e-4
    assert gradient[3, 1].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


# -- stages -----------------------------------------------------------------------------------------------------------------


def watched(model: Any) -> list[tuple[tuple[str, ...], dict[str, th.Tensor]]]:
    """What every update trains from now on, and the actor before it."""
    seen: list[tuple[tuple[str, ...], dict[str, th.Tensor]]] = []
    run = model._run_update

    def watch(batch: Any, due: tuple[str, ...]) -> Any:
        seen.append((due, parameters(model.actor)))
        return run(batch, due)

    model._run_update = watch
    return seen


def test_stages_train_their_parts_and_the_actor_begins_as_the_behaviour() -> None:
    shares = {"behavior_updates": 4, "critic_updates": 2, "training_updates": 4}
    model = make(BDPO, dataset=point_data(), with_env=False, **shares)
    seen = watched(model)
    model.learn_offline(10)
    values, everything = ("step_value", "critic"), ("step_value", "critic", "actor", "behavior")
    # the behaviour waits for nobody in its own stage
    assert [due for due, _ in seen] == [("behavior",)] * 4 + [values] * 3 + [everything, values, everything]
    actors = [actor for _, actor in seen]
    assert_identical(actors[4], actors[7])
    assert any(not th.equal(value, actors[0][name]) for name, value in actors[4].items())
    assert any(not th.equal(value, actors[8][name]) for name, value in actors[4].items())

    # a training that was interrupted goes on with what the actor has learned, a new one begins anew
    model._prepared_stage, before = -1, parameters(model.actor)
    seen.clear()
    model.learn_offline(1, reset_num_updates=False)
    assert_identical(seen[0][1], before)
    seen.clear()
    model.learn_offline(10)
    assert any(not th.equal(value, before[name]) for name, value in seen[4][1].items())


def test_the_first_actor_of_a_stage_has_the_behaviours_weights_and_a_fresh_optimizer() -> None:
    model = make_filled(BDPO)
    model.train(4, 8)
    model.begin_with_behavior()
    assert_identical(parameters(model.actor), parameters(model.averaged_behavior))
    assert_identical(parameters(model.averaged_actor), parameters(model.averaged_behavior))
    moments = [value for state in model.actor.optimizer.state.values() for value in state.values()]
    assert moments and all(float(value.abs().max()) == 0.0 for value in moments)


def test_stages_follow_the_arguments() -> None:
    short = make(BDPO, behavior_updates=0, behavior_keeps_training=False)
    assert [(stage.name, stage.updates) for stage in short.stages()] == [("critic", 1), ("training", 3)]
    assert short.stages()[1].parts == ("step_value", "critic", "actor")


def test_in_an_environment_all_parts_learn_and_begin_without_a_penalty() -> None:
    model = make_filled(BDPO)
    seen = watched(model)
    model.train(2, 8)
    assert [due for due, _ in seen] == [("step_value", "critic"), ("step_value", "critic", "actor", "behavior")]
    assert model.logger.name_to_value["train/path_penalty"] == 0.0


def test_averages_move_behind_the_step_of_their_network() -> None:
    model = make_filled(BDPO, tau=0.25, policy_delay=1)
    pairs = [
        (model.step_value, model.step_value_target),
        (model.critic, model.critic_target),
        (model.actor, model.averaged_actor),
        (model.behavior, model.averaged_behavior),
    ]
    before = [flat_parameters(average) for _, average in pairs]
    model.train(1, 8)
    for old, (network, average) in zip(before, pairs, strict=True):
        th.testing.assert_close(flat_parameters(average), old + 0.25 * (flat_parameters(network) - old))


def test_the_actors_rate_falls_as_the_references() -> None:
    model = make_filled(BDPO, actor_decay="partial_cosine", actor_learning_rate=1e-5, policy_delay=5)
    rate = model.lr_schedule_of("actor")
    assert [rate(progress) for progress in (1.0, 0.0)] == pytest.approx([1e-5, 0.9045e-5], rel=1e-3)
    whole = make_filled(BDPO, actor_decay="cosine")
    assert whole.lr_schedule_of("actor")(0.0) == 0.0 and whole.lr_schedule_of("critic")(0.0) == 1e-3


def test_a_chain_that_skips_levels_is_refused() -> None:
    model = make_filled(BDPO, policy_kwargs={"process_kwargs": {"diffusion_steps": 6}})
    with pytest.raises(ValueError, match=r"diffusion_steps=3 that skips levels of its process, which has 6"):
        model.train(1, 8)


# -- theory -----------------------------------------------------------------------------------------------------------------


def optimised(diffusion_steps: int, n_behavior: int, n_updates: int, tau: float) -> tuple[th.Tensor, float]:
    """
    Actions of the method on the lobes, at a temperature of half their distance, with critics that know the value; and the
    share of the better lobe in the density that the theory names, by weighted actions of the behaviour that was learned.
    """
    networks = {"diffusion_steps": diffusion_steps, "n_critics": 2}
    model = lobe_model(BDPO, eta=0.5, rho=0.0, tau=tau, n_target_candidates=4, policy_kwargs=networks)
    train(model, ("behavior",), n_behavior)
    model.begin_with_behavior()
    imitated = draw(model, 8000)[:, 0]
    weights = (imitated / 0.5).softmax(0)
    train(model, ("step_value", "actor"), n_updates)
    return draw(model, 4000), float(weights[imitated > 0.0].sum())


def test_the_value_of_steps_draws_the_policy_to_the_better_lobe() -> None:
    """
    The density has 0.88 there. Five steps end at more: the last one may move every action by beta_1 / eta = 0.39, for a
    penalty that counts it as if it added noise.
    """
    actions, _ = optimised(5, 300, 150, 0.05)
    assert right_mass(actions) == pytest.approx(0.93, abs=0.05) and near_a_lobe(actions, spreads=4.0 + 3.9) > 0.95


@pytest.mark.expensive
def test_many_steps_put_into_the_lobes_what_the_density_does() -> None:
    actions, expected = optimised(50, 800, 1500, 0.1)
    assert right_mass(actions) == pytest.approx(expected, abs=0.04)
    assert expected == pytest.approx(0.85, abs=0.05)  # 0.88 for a perfect behaviour
