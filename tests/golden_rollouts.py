"""One epoch of an on-policy algorithm beside the numbers of the reference: what the tests of all such methods share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch as th

from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.advantages import following_values, generalized_advantages, standardized
from sb3_diffusion.data.rollout import RolloutBatch
from tests.bandits import BanditEnv
from tests.golden_algorithms import check_gradients
from tests.golden_tools import Case, close, sub
from tests.golden_weights import Slot, actor_slots, backbone_slots, denoiser_slots, load_slots, read_slots

GAMMA, LAMBDA = 0.97, 0.9
N_STEPS, N_ENVS = 5, 4
PAPER = {"timeout_bootstrap": "next_obs", "mask_timeouts": True}
CODE = {"timeout_bootstrap": "current", "clip_range_vf": 0.2}
"""The rules of the two states of the reference, see ``OnPolicyDiffusion.presets``."""


def golden_model(algorithm: type[OnPolicyDiffusion], case: Case, **kwargs: Any) -> Any:
    """The algorithm with the sizes and the weights of a case."""
    policy_kwargs = kwargs.pop("policy_kwargs", {})
    model: Any = algorithm(
        next(iter(algorithm.policy_aliases)),
        BanditEnv(action_dim=2, observation_dim=5),
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        n_steps=N_STEPS,
        normalize_observations=False,
        device="cpu",
        policy_kwargs={"net_arch": [16, 16], **policy_kwargs},
        **kwargs,
    )
    with th.no_grad():
        for name in ("actor", "value"):
            load_slots(slots_of(model, name), sub(case, f"params/{_FILE[name]}"))
    model.clip.fill_(model.clip_range)
    return model


_FILE = {"actor": "actor", "value": "critic"}
"""Part -> its name in the files."""


def slots_of(model: Any, name: str) -> list[Slot]:
    if name == "value":
        return list(backbone_slots(model.value.mlp, "trunk/", None, "head/"))
    return actor_slots(model.actor.network) if hasattr(model.actor, "network") else denoiser_slots(model.actor.denoiser)


def golden_rollout(model: Any, case: Case, fields: Mapping[str, str]) -> None:
    """
    Put the rollout of a case in the place of the model's.

    :param model: A model
    :param case: The case
    :param fields: Name of a field -> its name below ``batch``
    """
    data = sub(case, "batch")
    buffer = model.rollout_buffer
    buffer.n_envs = N_ENVS
    terminated, truncated = (data[flag].squeeze(-1).bool() for flag in ("terminated", "truncated"))
    values, next_values = (_values(model, data[name]) for name in ("obs", "next_obs"))
    close(values, case["expected/values"].squeeze(-1))
    close(next_values, case["expected/next_values"].squeeze(-1))
    if model.timeout_bootstrap == "current":  # both flags are a time-out there
        terminated = terminated & ~truncated
    following = following_values(model.timeout_bootstrap, values, next_values, terminated, truncated)
    done = terminated | truncated
    advantages = generalized_advantages(data["rewards"].squeeze(-1), values, following, done, GAMMA, LAMBDA)
    close(advantages + values, case["expected/returns"].squeeze(-1))
    if "expected/advantages" in case:
        close(advantages, case["expected/advantages"].squeeze(-1))
    whole = standardized(advantages)
    if "expected/advantages_normalized" in case:
        close(whole, case["expected/advantages_normalized"].squeeze(-1))
    stored = {
        "observations": data["obs"],
        "actions": data["actions"] if "actions" in data else th.zeros(N_STEPS, N_ENVS, 2),
        "values": values,
        "returns": advantages + values,
        "advantages": whole if model.normalize_advantage is True else advantages,
        "truncated": truncated,
        "rewards": data["rewards"].squeeze(-1),
    }
    for name, value in stored.items():
        buffer[name] = value
    buffer.fields = {name: data[file] for name, file in fields.items()}


@th.no_grad()
def _values(model: Any, observations: th.Tensor) -> th.Tensor:
    return model.value(observations.flatten(0, 1)).view(N_STEPS, N_ENVS)  # type: ignore[no-any-return]


def check_epoch(
    model: Any, case: Case, look: Callable[[int, RolloutBatch, Metrics], None], adapted_late: bool = False
) -> None:
    """
    Two minibatches, with losses, gradients and the weights behind them.

    :param model: A model with the rollout of the case
    :param case: The case
    :param look: Called with the number of the minibatch, its rows and what the actor's loss logs, before the steps
    :param adapted_late: Whether the file adapts rates after the step that they belong to
    """
    for number, rows in enumerate(case["noise/minibatch_index"].long()):
        batch = model.rollout_buffer.rows(rows)
        want = sub(case, f"expected/minibatch{number}")
        for part in model.parts():
            loss, metrics = part.loss(batch)
            if part.name == "actor":
                look(number, batch, metrics)
                close(metrics["policy_gradient_loss"], want["loss/policy"])
            else:
                close(loss, want["loss/value"])
            part.optimizer.zero_grad(set_to_none=True)
            loss.backward(retain_graph=True)
            gradients = read_slots(slots_of(model, part.name), gradients=True)
            exact = number == 0
            _check(gradients, sub(want, f"grads/{_FILE[part.name]}"), exact)
            if part.before is not None and not adapted_late:
                part.before(metrics)
            model.step(part, loss)
    for part in model.parts():
        new, old = read_slots(slots_of(model, part.name)), sub(case, f"params/{_FILE[part.name]}")
        both = [sub(case, f"expected/minibatch{number}/grads/{_FILE[part.name]}") for number in (0, 1)]
        for path, value in sub(case, f"expected/new_params/{_FILE[part.name]}").items():
            clear = th.stack([_clear(of, path) for of in both]).all(0)
            close(new[path][clear], value[clear], rtol=0.0, atol=2e-5)
            assert ((new[path] - old[path]).abs() <= 2.2 * 1.5e-3 * 1.5).all()


def _clear(gradients: Case, path: str) -> th.Tensor:
    """Where a step does not hang on the rounding of a gradient of nothing."""
    largest = max(float(value.abs().max()) for value in gradients.values())
    return gradients[path].abs() > 1e-3 * largest


def _check(got: Case, want: Case, exact: bool) -> None:
    if exact:
        check_gradients(got, want)
        return
    # the second minibatch sees weights behind a step of Adam, which divides rounding by rounding
    assert got.keys() == want.keys()
    largest = max(float(value.abs().max()) for value in want.values())
    for path, value in want.items():
        close(got[path], value, rtol=1e-3, atol=1e-4 * largest)
