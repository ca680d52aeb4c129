"""DTQL: its losses beside the reference implementation, its trust in the data on lobes of actions, its stages."""

from typing import Any

import pytest
import torch as th

from sb3_diffusion import DTQL
from sb3_diffusion.envs.bandits import BanditEnv
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import give_critic
from tests.cases import MethodCase
from tests.golden_algorithms import GAMMA, check_gradients, golden_batch
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import (
    Slot,
    actor_slots,
    backbone_slots,
    critic_slots,
    denoiser_slots,
    load_critics,
    load_slots,
    read_slots,
)
from tests.helpers import flat_parameters, make_filled, part, sample_batch
from tests.lobes import lobe_actions, lobe_batch, near_a_lobe, right_mass, train

CASE = MethodCase(
    tiny={"n_action_candidates": 1, "behavior_net_arch": [8]},
    wrong_arguments=[
        ({"alpha": -1.0}, ["alpha=-1.0", "closer to the data"]),
        ({"likelihood_weight": -1.0}, ["likelihood_weight=-1.0", "at least 0"]),
        ({"selection_temperature": 0.0}, ["selection_temperature=0.0", "greedier"]),
        ({"training_updates": 0}, ["training_updates=0", "at least 1"]),
        ({"behavior_learning_rate": -1.0}, ["behavior_learning_rate=-1.0", "negative"]),
        ({"policy": "DiffusionPolicy"}, ["'DiffusionPolicy'", "DTQL", "GaussianPolicy"]),
        ({"policy_kwargs": {"critics": False}}, ["critics=False", "DTQL"]),
    ],
    operation_counts={"operations": 1381, "kflop": 250, "synchronisations": 0},
)


# -- beside the reference implementation -----------------------------------------------------------------------------------


def slots_of(model: Any) -> dict[str, list[Slot]]:
    """Name in the case -> where its arrays are found."""
    return {
        "q": critic_slots(model.critic.ensemble),
        "value": list(backbone_slots(model.value.mlp, "trunk/", None, "head/")),
        "bc_actor": denoiser_slots(model.behavior.denoiser),
        "distill": actor_slots(model.actor.network),
    }


def fill(model: Any, case: Case) -> Any:
    for name, slots in slots_of(model).items():
        load_slots(slots, sub(case, f"params/{name}"))
    load_critics(model.critic_target.ensemble, sub(case, "params/q_target"))
    recorded = {
        "behavior.u": case["noise/bc.u"].unsqueeze(1),
        "behavior.eps": case["noise/bc.eps"],
        "actor.x_T": case["noise/distill.gauss"],
        "actor.u": case["noise/distill.u"].unsqueeze(1),
        "actor.eps": case["noise/distill.eps"],
        "act.x_T": case["noise/act.gauss"].transpose(0, 1),
        "act.gumbel": case["noise/act.gumbel"].t(),
    }
    model.randomness = model.policy.randomness = RecordedDraws(recorded)
    return model


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Case]:
    """The model and the case, whose embedding of the noise level has eight features."""
    case = load("05_dtql")
    monkeypatch.setattr(DTQL, "policy_requirements", narrow(DTQL.policy_requirements))
    networks = {"net_arch": [16, 16]}
    options = {"alpha": 2.0, "likelihood_weight": 0.3, "learning_rate": 1e-3, "tau": 0.1, "gamma": GAMMA, "device": "cpu"}
    env = BanditEnv(action_dim=2, observation_dim=5)
    model = DTQL("GaussianPolicy", env, policy_kwargs=networks, behavior_net_arch=[16, 16], **options)  # type: ignore[arg-type]
    return fill(model, case), case


def narrow(requirements: Any) -> Any:
    def with_eight_features(self: DTQL) -> dict[str, Any]:
        required = requirements(self)
        required["networks"]["behavior"]["time_dim"] = 8
        return required

    return with_eight_features


def test_dtql_update(golden: tuple[Any, Case]) -> None:
    model, case = golden
    batch = golden_batch(case)
    close(model.data_values(batch), case["expected/value_target_q"].squeeze(-1))
    targets = batch.rewards + batch.discounts * model.next_values(batch)[0]
    close(targets, case["expected/q_target_value"].squeeze(-1))

    losses = {name: part(model, name).loss(batch)[0] for name in ("behavior", "value", "critic")}
    for name, theirs in {"behavior": "bc", "value": "value", "critic": "q"}.items():
        close(losses[name], case[f"expected/loss/{theirs}"])
        model.step(part(model, name), losses[name])
    loss, metrics = model.actor_loss(batch)  # with the denoiser and the critics after their steps
    close(metrics["distrust"], case["expected/loss/distill_edm"])
    close(-metrics["log_likelihood"], case["expected/loss/distill_nll"])
    close(-metrics["q_policy"], case["expected/loss/distill_q"])
    close(loss, case["expected/loss/distill_total"])
    model.step(part(model, "actor"), loss)
    for name, slots in slots_of(model).items():
        check_gradients(read_slots(slots, gradients=True), sub(case, f"expected/grads/{name}"))
    model.update_targets()
    new = read_slots(critic_slots(model.critic_target.ensemble))
    for path, value in sub(case, "expected/new_params/q_target").items():
        close(new[path], value)


def test_dtql_intermediates(golden: tuple[Any, Case]) -> None:
    model, case = golden
    batch, behavior = golden_batch(case), model.behavior
    sigma = behavior.process.sample_sigma((4, 1), model.randomness, "behavior.u", like=batch.actions)
    close(behavior.process.scalings(sigma).noise, case["expected/bc_network_time"])
    noisy = behavior.process.add_noise(batch.actions, sigma, case["noise/bc.eps"])
    close(behavior.denoise(noisy, sigma, behavior.encode(batch.observations)), case["expected/bc_denoised"])
    features = model.actor.encode(batch.observations)
    close(model.actor.sample(features, model.randomness, "actor"), case["expected/distill_action"])
    log_prob = model.actor.network.log_prob(features, batch.actions)
    close(log_prob, case["expected/distill_log_prob_of_batch_action"])


def test_dtql_chooses_by_values_and_not_by_their_probabilities(golden: tuple[Any, Case]) -> None:
    """The reference draws with the probabilities of the softmax as logits."""
    model, case = golden
    model.policy.n_behavior_candidates = 6
    rows = th.arange(4)
    with th.no_grad():
        candidates = model.actor.act(case["batch/obs"], model.randomness, "act", 6)
        q = model.critic_target.q(candidates, model.critic_target.encode(case["batch/obs"])).amin(0)
        close(q, case["expected/act/q"].t())
        gumbel = case["noise/act.gumbel"].t()
        reference = (q.softmax(1) + gumbel).argmax(1)
        assert th.equal(reference, case["expected/act/index"].long())
        close(candidates[rows, reference], case["expected/act/action"])
        close(model.policy.explore(case["batch/obs"]), candidates[rows, (q + gumbel).argmax(1)])


# -- by hand ---------------------------------------------------------------------------------------------------------------


def test_the_numbers_differ_between_updates() -> None:
    model = make_filled(DTQL)
    batch = sample_batch(model)
    losses = [model.actor_loss(batch)[0].item() for _ in range(3)]
    assert len(set(losses)) == 3
    obs = model.observation_space.sample()
    assert (model.predict(obs)[0] != model.predict(obs)[0]).any()


def test_only_the_actor_learns_from_its_loss() -> None:
    model = make_filled(DTQL)
    names = ("behavior", "value", "critic")
    before = [flat_parameters(model.policy.trained[name]) for name in names]
    actor = part(model, "actor")
    model.step(actor, actor.loss(sample_batch(model))[0])
    assert all(th.equal(flat_parameters(model.policy.trained[name]), old) for name, old in zip(names, before, strict=True))
    assert all(p.grad is None for name in names for p in model.policy.trained[name].parameters())


def test_stages() -> None:
    model = make_filled(DTQL, pretraining_updates=1, training_updates=3)
    pretraining, training = model.stages()
    assert pretraining[:3] == ("pretraining", ("behavior", "value", "critic"), 1)
    assert training[:3] == ("training", ("behavior", "value", "critic", "actor"), 3)
    assert [stage.name for stage in make_filled(DTQL, pretraining_updates=0).stages()] == ["training"]


def lobe_dtql(**kwargs: Any) -> Any:
    # at the bandit's one state, which is zero, a network with ReLU is a constant
    networks = {"net_arch": [32, 32], "activation_fn": "mish"}
    env = BanditEnv(action_dim=2)
    options = {"behavior_net_arch": [64, 64], "learning_rate": 3e-3, "seed": 0, "device": "cpu", **kwargs}
    model: Any = DTQL("GaussianPolicy", env, policy_kwargs=networks, **options)
    give_critic(model, lambda actions: actions[..., 0])
    return model


def test_the_denoiser_trusts_the_data_and_the_policy_goes_to_the_better_of_it() -> None:
    model = lobe_dtql(alpha=1.0)
    train(model, ("behavior",), 400)
    with th.no_grad():
        context = model.behavior.encode(th.zeros(2000, 1))
        here = model.behavior.error(lobe_actions(2000), context, model.randomness, "test")
        for elsewhere in ([0.0, 0.9], [0.9, -0.9]):
            there = model.behavior.error(th.tensor(elsewhere).expand(2000, 2), context, model.randomness, "test")
            assert there > 1.3 * here
    train(model, ("actor",), 150)
    with th.no_grad():
        actions = model.actor.sample(model.actor.encode(th.zeros(2000, 1)), model.randomness, "test")
    assert right_mass(actions) > 0.95 and near_a_lobe(actions) > 0.9
    assert model.actor_loss(lobe_batch(500))[1]["q_policy"].item() > 0.4
