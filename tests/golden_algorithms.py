"""One update of an algorithm beside the numbers of the reference implementation: what the tests of all methods share."""

from functools import partial
from typing import Any

import torch as th

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.randomness import RecordedDraws
from tests.bandits import (
    BanditEnv,
)
from tests.golden_tools import Case, close, sub
from tests.golden_weights import critic_gradients, denoiser_gradients, load_critics, load_denoiser
from tests.helpers import part

GAMMA = 0.97


def golden_model(algorithm: type[OffPolicyDiffusion], case: Case, **kwargs: Any) -> Any:
    """The algorithm with the sizes and the weights of a case, and without the clipping at the end of the chain."""
    model = loaded_model(algorithm, case, **kwargs)
    # ours clips the last state of the chain, which may exceed the box by 1e-3; the reference does not
    model.actor.sample = partial(model.actor.sample, clip_output=False)
    model.actor.act = partial(model.actor.act, clip_output=False)
    return model


def loaded_model(algorithm: type[OffPolicyDiffusion], case: Case, **kwargs: Any) -> Any:
    """The algorithm with the sizes and the weights of a case."""
    sizes = {"net_arch": {"pi": [16, 16, 16], "qf": [16, 16]}, "time_dim": 8, "diffusion_steps": 5}
    model: Any = algorithm(
        "DiffusionPolicy",
        BanditEnv(action_dim=2, observation_dim=5),
        learning_rate=1e-3,
        tau=0.1,
        gamma=GAMMA,
        policy_kwargs={**sizes, **kwargs.pop("policy_kwargs", {})},
        device="cpu",
        **kwargs,
    )
    if sub(case, "params/actor"):
        load_denoiser(model.actor.denoiser, sub(case, "params/actor"))
    if sub(case, "params/critic"):
        load_critics(model.critic.ensemble, sub(case, "params/critic"))
        load_critics(model.critic_target.ensemble, sub(case, "params/critic_target"))
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
    is_actor = name in ("actor", "actor_target")
    module: Any = getattr(getattr(model, name), "denoiser" if is_actor else "ensemble")
    saved = {parameter: parameter.grad for parameter in module.parameters()}
    for parameter in module.parameters():
        parameter.grad = parameter.detach().clone()
    values = denoiser_gradients(module) if is_actor else critic_gradients(module)
    for parameter, gradient in saved.items():
        parameter.grad = gradient
    return values


def critic_step(model: OffPolicyDiffusion, batch: Batch, case: Case) -> None:
    loss, _ = model.critic_loss(batch)
    close(loss, case["expected/loss/critic"])
    model.step(part(model, "critic"), loss)
    gradients = critic_gradients(model.critic.ensemble)
    check_gradients(gradients, sub(case, "expected/grads/critic"))
    check_step(model, case, "critic", gradients)


def actor_step(model: OffPolicyDiffusion, loss: th.Tensor, case: Case) -> None:
    model.step(part(model, "actor"), loss)
    gradients = denoiser_gradients(model.actor.denoiser)
    check_gradients(gradients, sub(case, "expected/grads/actor"))
    check_step(model, case, "actor", gradients)


def check_targets(model: OffPolicyDiffusion, case: Case) -> None:
    model.update_targets()
    for path, value in sub(case, "expected/new_params/critic_target").items():
        close(weights_of(model, "critic_target")[path], value, rtol=1e-4, atol=1e-5)
