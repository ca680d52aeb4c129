"""One update of each algorithm against the numbers of the reference implementation."""

from functools import partial
from typing import Any

import pytest
import torch as th

from sb3_diffusion import DACER, QSM, SDAC
from sb3_diffusion.core.batch import Batch
from sb3_diffusion.core.mixture import mixture_entropy
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from tests.bandits import BanditEnv
from tests.golden_tools import Case, close, load, sub
from tests.golden_weights import critic_gradients, denoiser_gradients, load_critics, load_denoiser

GAMMA = 0.97


def golden_model(algorithm: type[OffPolicyDiffusion], case: Case, **kwargs: Any) -> Any:
    """The algorithm with the sizes and the weights of a case, and without the clipping at the end of the chain."""
    policy_kwargs = {"net_arch": {"pi": [16, 16, 16], "qf": [16, 16]}, "time_dim": 8, "diffusion_steps": 5}
    model: Any = algorithm(
        "DiffusionPolicy",
        BanditEnv(action_dim=2, observation_dim=5),
        learning_rate=1e-3,
        tau=0.1,
        gamma=GAMMA,
        policy_kwargs=policy_kwargs,
        device="cpu",
        **kwargs,
    )
    load_denoiser(model.actor.denoiser, sub(case, "params/actor"))
    if sub(case, "params/critic"):
        load_critics(model.critic.ensemble, sub(case, "params/critic"))
        load_critics(model.critic_target.ensemble, sub(case, "params/critic_target"))
    # ours clips the last state of the chain, which may exceed the box by 1e-3; the reference does not
    model.actor.sample = partial(model.actor.sample, clip_output=False)
    return model


def golden_batch(case: Case, prefix: str = "batch") -> Batch:
    data = sub(case, prefix)
    return Batch(
        observations=data["obs"],
        actions=data["action"],
        rewards=data["reward"].squeeze(-1),
        next_observations=data["next_obs"],
        discounts=GAMMA * (1.0 - data["terminal"].squeeze(-1)),
    )


def draws(case: Case, prefix: str = "noise") -> RecordedDraws:
    """Recorded draws; the reference stores particles before the batch axis and an axis of one behind it."""
    recorded = sub(case, prefix)
    for label, value in recorded.items():
        if label == "actor.eps_reverse":
            recorded[label] = value.transpose(0, 1)
        elif label.startswith("next_action") and value.dim() == (4 if label.endswith("step_noise") else 3):
            recorded[label] = value.squeeze(-2)
        elif label == "target.z":
            recorded[label] = value.squeeze(-1)
    return RecordedDraws(recorded)


def check_gradients(got: Case, want: Case) -> None:
    """Relative 1e-4 plus 1e-5 of the model's largest entry."""
    assert got.keys() == want.keys()
    largest = max(float(value.abs().max()) for value in want.values())
    for path, value in want.items():
        close(got[path], value, rtol=1e-4, atol=1e-5 * largest)


def check_step(model: OffPolicyDiffusion, case: Case, name: str, gradients: Case, largest_step: float = 1e-3) -> None:
    """Parameters after the first Adam step, which is close to the learning rate times the sign of the gradient."""
    new = sub(case, f"expected/new_params/{name}")
    old = sub(case, f"params/{name}")
    got = weights_of(model, name)
    largest = max(float(value.abs().max()) for value in gradients.values())
    for path, value in new.items():
        clear = gradients[path].abs() > 1e-5 * largest
        close(got[path][clear], value[clear], rtol=0.0, atol=1e-5)
        assert ((got[path] - old[path]).abs() <= largest_step * 1.001).all()


def weights_of(model: OffPolicyDiffusion, name: str) -> Case:
    """Parameters in the layout of the case: the gradient of half their squared sum."""
    module: Any = model.actor.denoiser if name == "actor" else getattr(model, name).ensemble
    saved = {parameter: parameter.grad for parameter in module.parameters()}
    for parameter in module.parameters():
        parameter.grad = parameter.detach().clone()
    values = denoiser_gradients(module) if name == "actor" else critic_gradients(module)
    for parameter, gradient in saved.items():
        parameter.grad = gradient
    return values


def critic_step(model: OffPolicyDiffusion, batch: Batch, case: Case) -> None:
    loss, _ = model.critic_loss(batch)
    close(loss, case["expected/loss/critic"])
    model._step(model.critic.optimizer, loss, model.policy.critic_parameters)
    gradients = critic_gradients(model.critic.ensemble)
    check_gradients(gradients, sub(case, "expected/grads/critic"))
    check_step(model, case, "critic", gradients)


def actor_step(model: OffPolicyDiffusion, loss: th.Tensor, case: Case) -> None:
    model._step(model.actor.optimizer, loss, model.policy.actor_parameters)
    gradients = denoiser_gradients(model.actor.denoiser)
    check_gradients(gradients, sub(case, "expected/grads/actor"))
    check_step(model, case, "actor", gradients)


def check_targets(model: OffPolicyDiffusion, case: Case) -> None:
    model.update_targets()
    for path, value in sub(case, "expected/new_params/critic_target").items():
        close(weights_of(model, "critic_target")[path], value, rtol=1e-4, atol=1e-5)


def test_sdac() -> None:
    case = load("04_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    model.randomness, batch = draws(case), golden_batch(case)
    close(model.target_actions(batch), case["expected/next_action"], atol=2e-5)
    # the reference's weights use the critics of before their step
    loss, _ = model.actor_loss(batch)
    # summed over particles as published; the reference's mean over particles is a fifth of it (apart from a constant)
    gradient_scale = 5.0
    critic_step(model, batch, case)
    model.actor.optimizer.zero_grad()
    (loss / gradient_scale).backward(inputs=model.policy.actor_parameters)
    check_gradients(denoiser_gradients(model.actor.denoiser), sub(case, "expected/grads/actor"))
    model.actor.optimizer.step()
    check_step(model, case, "actor", sub(case, "expected/grads/actor"))
    check_targets(model, case)


def test_sdac_loss_differs_from_the_published_one_by_the_spread_of_the_particles() -> None:
    """sum_k w_k (e + n_k)^2 = (e + sum_k w_k n_k)^2 + variance of n under w, whose gradient is zero."""
    case = load("04_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    model.randomness = draws(case)
    loss, _ = model.actor_loss(golden_batch(case))
    weights, noise = case["expected/weights"], case["noise/actor.eps_reverse"]
    mean = (weights * noise).sum(0)
    spread = (weights * (noise - mean).square()).sum(0).mean()
    close(loss + spread, case["expected_fixed/loss/actor"])
    close((loss + spread) / 5.0, case["expected/loss/actor"])


def test_sdac_best_of_ten() -> None:
    case = load("04_sdac")
    model = golden_model(SDAC, case)
    actions = model.policy.select_actions(case["batch/obs"], 10, draws(case), "act_best")
    close(actions, case["expected/act_best/action"], atol=2e-5)


def test_sdac_sequence() -> None:
    case = load("07_sequence_sdac")
    model = golden_model(SDAC, case, temperature=0.3, n_particles=5)
    for k in range(4):
        model.randomness, batch = draws(case, f"noise/{k}"), golden_batch(case, f"batch/{k}")
        actor_loss, _ = model.actor_loss(batch)
        critic_loss, _ = model.critic_loss(batch)
        close(critic_loss, case[f"expected/{k}/loss/critic"], rtol=1e-3, atol=1e-4)
        model._step(model.critic.optimizer, critic_loss, model.policy.critic_parameters)
        model._step(model.actor.optimizer, actor_loss / 5.0, model.policy.actor_parameters)
        model.update_targets()
        for name in ("actor", "critic", "critic_target"):
            norm = th.stack([value.square().sum() for value in weights_of(model, name).values()]).sum().sqrt()
            close(norm, case[f"expected/{k}/param_norm/{name}"], rtol=1e-4, atol=0.0)


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


def dacer_model(case: Case) -> Any:
    model = golden_model(DACER, case, half_squared_error=True)
    if "params/running_q_std" in case:
        model.critic.ensemble.running_std.copy_(case["params/running_q_std"])
    with th.no_grad():
        model.policy.exploration.log_alpha.copy_(case["params/log_alpha/value"])
    model.randomness = draws(case)
    return model


@pytest.mark.parametrize("name", ["04_dacer_with_actor", "04_dacer_critic_only"])
def test_dacer_critic(name: str) -> None:
    case = load(name)
    model, batch = dacer_model(case), golden_batch(case)
    actions = model.noisy_samples(model.actor.encode(batch.next_observations), "next_action")
    close(actions, case["expected/next_action"], atol=2e-5)
    target_mean, target_sample = model.value_targets(batch)
    close(target_mean, case["expected/q_target_mean"].squeeze(-1))
    close(target_sample, case["expected_fixed/q_target_sample"].squeeze(-1))
    loss, _ = model.critic_loss(batch)
    close(loss, case["expected_fixed/loss/critic"])
    close(model.critic.ensemble.running_std, case["expected/new_running_q_std"])
    model._step(model.critic.optimizer, loss, model.policy.critic_parameters)
    check_gradients(critic_gradients(model.critic.ensemble), sub(case, "expected_fixed/grads/critic"))


@pytest.mark.parametrize("name", ["04_dacer_with_actor", "04_dacer_critic_only"])
def test_dacer_critic_with_the_choice_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes one critic's sample for the whole batch, chosen by comparing two rows of the minimum."""
    case = load(name)
    model, batch = dacer_model(case), golden_batch(case)
    target_mean, target_sample = model.value_targets(batch)
    reference_sample = case["expected/q_target_sample"].squeeze(-1)
    assert not th.allclose(target_sample, reference_sample, rtol=1e-3)
    monkeypatch.setattr(model, "value_targets", lambda batch: (target_mean, reference_sample))
    critic_step(model, batch, case)
    check_targets(model, case)


def test_dacer_actor() -> None:
    case = load("04_dacer_with_actor")
    model, batch = dacer_model(case), golden_batch(case)
    actions = model.actor.sample(model.actor.encode(batch.observations), model.randomness, "actor")
    close(actions, case["expected/actor_action"], atol=2e-5)
    loss, _ = model.actor_loss(batch)
    close(loss, case["expected/loss/actor"])
    actor_step(model, loss, case)


def test_dacer_alpha() -> None:
    case = load("04_dacer_alpha")
    model = dacer_model(case)
    samples = model.noisy_samples(model.actor.encode(case["batch/obs"]), "entropy", 20)
    close(samples, case["expected/action_samples"], atol=2e-5)
    for group in model.policy.exploration.optimizer.param_groups:
        group["lr"] = 1e-2
    metrics = model.update_alpha(case["inputs/entropy"])
    close(metrics["alpha_loss"], case["expected/loss/alpha"], rtol=1e-5)
    close(model.policy.exploration.log_alpha, case["expected/new_params/log_alpha/value"], rtol=1e-5)


def test_dacer_mixture_entropy_is_close_to_the_one_of_the_reference() -> None:
    case = load("04_dacer_alpha")
    entropy = mixture_entropy(case["expected/action_samples"], Randomness()).mean()
    close(entropy, case["expected/gmm_entropy_of_samples"], rtol=0.0, atol=0.3)
