"""SAC and TD3 are SB3's classes: their updates beside the numbers of the reference implementation."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_diffusion.envs.bandits import BanditEnv
from tests.golden_algorithms import GAMMA
from tests.golden_tools import Case, close, load, sub


def tiny(algorithm: type[OffPolicyAlgorithm], **kwargs: Any) -> Any:
    """SB3's class with the sizes of the cases, which logs nowhere."""
    model: Any = algorithm(
        "MlpPolicy",
        BanditEnv(action_dim=2, observation_dim=5),
        tau=0.1,
        gamma=GAMMA,
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [16, 16]},
        device="cpu",
        **kwargs,
    )
    model._setup_learn(1)
    return model


def layers(model: Any, name: str) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a network of SB3 by their path in the file; the file has a Gaussian's two heads in one."""
    network = getattr(model, name)
    if name.startswith("critic"):
        parts = {str(i): list(member) for i, member in enumerate(network.q_networks)}
    else:
        parts = {"": list(network.mu if isinstance(model, TD3) else [*network.latent_pi, network.mu])}
    for prefix, modules in parts.items():
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        for path, module in zip(("trunk/dense0", "trunk/dense1", "head"), linear, strict=True):
            yield f"{prefix}/{path}".lstrip("/"), module


def heads(model: Any, name: str, path: str, module: nn.Linear) -> Sequence[nn.Linear]:
    """The layers that one layer of the file holds below each other."""
    if isinstance(model, SAC) and name == "actor" and path == "head":
        log_std: Any = model.actor.log_std
        return module, log_std
    return (module,)


def load_weights(model: Any, name: str, weights: Case) -> None:
    for path, module in layers(model, name):
        parts = heads(model, name, path, module)
        for kind in ("weight", "bias"):
            for part, value in zip(parts, weights[f"{path}/{kind}"].chunk(len(parts)), strict=True):
                getattr(part, kind).data.copy_(value)


def weights_of(model: Any, name: str, gradients: bool = False) -> Case:
    read = (lambda parameter: parameter.grad.clone()) if gradients else (lambda parameter: parameter.detach().clone())
    return {
        f"{path}/{kind}": th.cat([read(getattr(part, kind)) for part in heads(model, name, path, module)])
        for path, module in layers(model, name)
        for kind in ("weight", "bias")
    }


def give_batch(model: Any, batch: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = ReplayBufferSamples(batch["obs"], batch["action"], batch["next_obs"], batch["terminal"], batch["reward"])
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: samples)


def check_gradients(got: Case, want: Case) -> None:
    assert got.keys() == want.keys()
    largest = max(float(value.abs().max()) for value in want.values())
    for path, value in want.items():
        close(got[path], value, rtol=1e-4, atol=1e-5 * largest)


def watch_gradients(model: Any, name: str) -> Case:
    """The gradients of a network at its optimizer's next step; the actor's loss leaves more in the critics afterwards."""
    seen: Case = {}
    optimizer = getattr(model, name).optimizer
    optimizer.register_step_pre_hook(lambda *args: seen.update(weights_of(model, name, gradients=True)))
    return seen


def check_step(model: Any, case: Case, name: str, gradients: Case) -> None:
    """Gradients, and the parameters after the first step of Adam where the gradient is not next to zero."""
    check_gradients(gradients, sub(case, f"expected/grads/{name}"))
    largest = max(float(value.abs().max()) for value in gradients.values())
    got = weights_of(model, name)
    for path, value in sub(case, f"expected/new_params/{name}").items():
        clear = gradients[path].abs() > 1e-5 * largest
        close(got[path][clear], value[clear], rtol=0.0, atol=1e-5)


def check_targets(model: Any, case: Case, name: str) -> None:
    for path, value in sub(case, f"expected/new_params/{name}").items():
        close(weights_of(model, name)[path], value, rtol=1e-4, atol=1e-5)


def logged(model: Any, key: str) -> th.Tensor:
    return th.tensor(float(model.logger.name_to_value[f"train/{key}"]))


def test_sac_update_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load("04_sac")
    model = tiny(SAC, ent_coef="auto_0.5")
    for name in ("actor", "critic", "critic_target"):
        load_weights(model, name, sub(case, f"params/{name}"))
    log_alpha = case["params/log_alpha/value"]
    model.log_ent_coef.data.copy_(log_alpha)
    give_batch(model, sub(case, "batch"), monkeypatch)
    draws = iter([case["noise/actor.gauss"], case["noise/next_action.gauss"]])  # SB3 acts for the actor first
    monkeypatch.setattr(th.distributions.Normal, "rsample", lambda self: self.loc + self.scale * next(draws))

    gradients = {name: watch_gradients(model, name) for name in ("critic", "actor")}

    model.train(1, 4)

    close(logged(model, "critic_loss"), case["expected/loss/critic"])
    close(logged(model, "actor_loss"), case["expected/loss/actor"])
    for name in ("critic", "actor"):
        check_step(model, case, name, gradients[name])
    check_targets(model, case, "critic_target")
    # SB3 asks the actor before its step for the temperature's loss, the reference the actor after it
    close(logged(model, "ent_coef_loss"), -log_alpha * (case["expected/actor_log_prob"].mean() - 2.0))
    assert not th.allclose(case["expected/actor_log_prob"].mean(), case["expected/alpha_log_prob"].mean(), atol=1e-2)


def td3_model(case: Case, **kwargs: Any) -> Any:
    model = tiny(TD3, **kwargs)
    for name in ("actor", "actor_target", "critic", "critic_target"):
        load_weights(model, name, sub(case, f"params/{name}"))
    return model


def give_noise(noise: th.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.Tensor, "normal_", lambda self, mean, std: self.copy_(mean + std * noise))


def maximise_mean_of_critics(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch to the reference, whose actor maximises the mean of both critics instead of the first."""

    def mean(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return th.stack(model.critic(obs, actions)).mean(dim=0)

    monkeypatch.setattr(model.critic, "q1_forward", mean)


@pytest.mark.parametrize("variant", ["expected", "expected_fixed"])
def test_td3_update_equals_the_reference(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load("04_td3")
    model = td3_model(case, policy_delay=1)
    give_batch(model, sub(case, "batch"), monkeypatch)
    give_noise(case["noise/next_action.gauss"], monkeypatch)
    if variant == "expected":
        maximise_mean_of_critics(model, monkeypatch)
    gradients = {name: watch_gradients(model, name) for name in ("critic", "actor")}

    model.train(1, 4)

    close(logged(model, "critic_loss"), case["expected/loss/critic"])
    close(logged(model, "actor_loss"), case[f"{variant}/loss/actor"])
    check_step(model, case, "critic", gradients["critic"])
    check_targets(model, case, "critic_target")
    if variant == "expected":
        check_step(model, case, "actor", gradients["actor"])
        check_targets(model, case, "actor_target")
    else:
        check_gradients(gradients["actor"], sub(case, "expected_fixed/grads/actor"))


def test_td3_sequence_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load("07_sequence_td3")
    model = td3_model(case, policy_delay=2)
    maximise_mean_of_critics(model, monkeypatch)
    model._n_updates = 1  # the reference moves the actor in its first update, SB3 in its second
    for k in range(5):
        give_batch(model, sub(case, f"batch/{k}"), monkeypatch)
        give_noise(case[f"noise/{k}/next_action.gauss"], monkeypatch)
        model.train(1, 4)
        close(logged(model, "critic_loss"), case[f"expected/{k}/loss/critic"], rtol=1e-3, atol=1e-4)
        if k % 2 == 0:
            close(logged(model, "actor_loss"), case[f"expected/{k}/loss/actor"], rtol=1e-3, atol=1e-4)
        for name in ("actor", "actor_target", "critic", "critic_target"):
            parameters = chain.from_iterable(value.flatten() for value in weights_of(model, name).values())
            norm = th.stack(list(parameters)).norm()
            close(norm, case[f"expected/{k}/param_norm/{name}"], rtol=1e-4, atol=0.0)
