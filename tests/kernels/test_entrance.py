"""The guard in front of the compiled kernels: whatever is asked, the answer is PyTorch's, or PyTorch's error."""

import copy
import functools
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune

from sb3_diffusion import DACER, QVPO, SDAC, kernels
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.kernels import guard
from sb3_diffusion.kernels.guard import is_plain
from sb3_diffusion.kernels.pieces import Pieces
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.layers import Linear
from sb3_diffusion.policies.guided import GuidedPolicy
from sb3_diffusion.taxonomy import available_methods
from tests import every_method
from tests.every_method import OTHERS
from tests.kernels import fuzz

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="the compiled kernels need a C++ compiler")
METHODS = [method for method in available_methods() if method.setting == "off-policy"]
TINY = {"net_arch": [16, 16], "diffusion_steps": 3, "time_dim": 8, "state_arch": [16]}


def tiny(method: type, **policy_kwargs: Any) -> Any:
    return method("MlpPolicy", "Pendulum-v1", device="cpu", policy_kwargs={**TINY, **policy_kwargs})


@pytest.mark.parametrize("block", range(6))
def test_random_calls(block: int, caplog: pytest.LogCaptureFixture) -> None:
    """Widths, strides, number formats, ranks, hooks, parametrisations, transforms, by chance; see ``fuzz.py``."""
    caplog.set_level(logging.CRITICAL, "torch._subclasses")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracers, anomaly detection, modes
        for seed in range(25 * block, 25 * (block + 1)):
            fuzz.try_one(seed)


def test_every_kind_of_the_fuzz_test_alone(caplog: pytest.LogCaptureFixture) -> None:
    """No disguise of the input, and no change of the network, is left to chance."""
    caplog.set_level(logging.CRITICAL, "torch._subclasses")
    network, part, context = MLP([3, 2], (33, 16), 3, "mish"), th.randn(4, 3), th.randn(4, 33)

    def check(changed: MLP, inputs: tuple[th.Tensor, th.Tensor], name: str) -> None:
        got = fuzz.outcome_of(lambda: changed.evaluate(0, *inputs))
        with kernels.switched_off():
            fuzz.compare(got, fuzz.outcome_of(lambda: changed.evaluate(0, *inputs)), name)

    for name, disguise in fuzz.INPUTS.items():
        check(network, (disguise(part), context), name)
        check(network, (part, disguise(context)), name)
    for name, change in fuzz.MODULES.items():
        changed = copy.deepcopy(network)
        changed.evaluate(0, part, context)
        change(changed, fuzz.Rng(0))
        check(changed, (part, context), name)


def within(context: Any, call: Any, *inputs: th.Tensor) -> Any:
    with context():
        return call(*inputs)


@pytest.mark.parametrize("recognises", [True, False])
@pytest.mark.filterwarnings("ignore")  # of tracers, anomaly detection, modes
def test_an_action_like_the_last_one(
    recognises: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Acting recognises calls like the last one in one question. Whatever has changed since then is noticed."""
    caplog.set_level(logging.CRITICAL, "torch._subclasses")
    if not recognises:
        monkeypatch.setattr(guard, "_TensorGuards", None)
    prototype = Denoiser(4, 3, net_arch=(33, 16), state_arch=(20,), time_dim=8)
    sampler = ContinuousDiffusion().sampler(3)
    draws = RecordedDraws({"sample.x_T": th.randn(2, 3), "sample.step_noise": th.randn(3, 2, 3)})
    inputs = (th.randn(2, 4), sampler.times.view(-1, 1).clone())
    ran: list[bool] = []
    run = kernels.EncodedChain.run

    def watched(self: kernels.EncodedChain, *args: Any) -> th.Tensor | None:
        points = run(self, *args)
        ran.append(points is not None)
        return points

    monkeypatch.setattr(kernels.EncodedChain, "run", watched)

    def fresh() -> tuple[Denoiser, Any]:
        network = copy.deepcopy(prototype)

        def call(features: th.Tensor, t: th.Tensor) -> th.Tensor:
            return sampler.sample(network.bind_features(features, t), (2, 3), draws)

        for _ in range(2):
            call(*inputs)
        assert ran[-1] and ran[-2], "the kernels have to do it"
        return network, call

    def check(run: Callable[[], Any], name: str) -> None:
        got = fuzz.outcome_of(run)
        with kernels.switched_off():
            fuzz.compare(got, fuzz.outcome_of(run), name)

    with th.no_grad():
        for name, disguise in fuzz.INPUTS.items():
            for changed in ((disguise(inputs[0]), inputs[1]), (inputs[0], disguise(inputs[1]))):
                _, call = fresh()
                check(functools.partial(call, *changed), name)
        for name, change in fuzz.MODULES.items():
            network, call = fresh()
            change(network, fuzz.Rng(0))
            check(functools.partial(call, *inputs), name)
        for name, transform in fuzz.TRANSFORMS.items():
            _, call = fresh()
            check(functools.partial(transform, call, *inputs), name)
        for name, context in fuzz.CONTEXTS.items():
            _, call = fresh()
            check(functools.partial(within, context, call, *inputs), name)
        _, call = fresh()
        with kernels.switched_off():
            call(*inputs)
        assert not ran[-1]
        with fuzz.CONTEXTS["function mode"]():
            call(*inputs)
        assert not ran[-1], "its functions have to be called"
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(inputs[0], th.ones(2, 4)), inputs[1])).tangent
        assert tangent is not None and tangent.abs().sum() > 0.0
    check(functools.partial(call, *inputs), "gradients")


@pytest.mark.expensive
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("error:CXX")
def test_random_calls_under_the_address_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same with compiled code that reports every access beside an array."""
    names = ("libasan.so", "libstdc++.so")  # the second for exceptions
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names
    ]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip("g++ has no address sanitizer here")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O1 -g -fsanitize=address\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    built = kernels.build(tmp_path / "sb3_diffusion")  # here, where the compiler is not sanitized itself
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "tests.kernels.fuzz", "3000", "1000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:8000]
    assert "3000 calls" in done.stdout
    assert list(built.parent.iterdir()) == [built]


class Miscounting(BaseFeaturesExtractor):
    """Says that it returns six features, and returns another number."""

    def __init__(self, observation_space: Any, returns: int):
        super().__init__(observation_space, 6)
        self.returns = returns

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.ones(len(observations), self.returns)


@pytest.mark.parametrize("returns", [5, 7])
@pytest.mark.parametrize("method", [DACER, QVPO])
def test_an_extractor_that_miscounts(method: type, returns: int) -> None:
    """As with SAC: PyTorch says that the shapes do not fit. It used to be an action made of foreign memory."""
    options = {"features_extractor_class": Miscounting, "features_extractor_kwargs": {"returns": returns}}
    for deterministic in (False, True):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            tiny(method, **options).predict(np.zeros(3, np.float32), deterministic=deterministic)


@pytest.mark.parametrize("method", available_methods(), ids=lambda method: method.name)
def test_networks_that_a_miscounted_extractor_feeds(method: Any) -> None:
    """Actors, critics, values and what else a method has, with gradients and without."""
    options = {"features_extractor_class": Miscounting, "features_extractor_kwargs": {"returns": 5}}
    model = every_method.make(method.load(), policy_kwargs=options)
    obs, action_dim = th.zeros(200, 3), model.policy.actor.action_dim
    asked = {"policy": lambda: model.policy(obs), "evaluation": lambda: model.policy(obs, deterministic=True)}
    if model.policy.critic is not None:
        asked["critic"] = lambda: model.policy.critic(obs, th.zeros(200, action_dim))
    for name in set(model.policy.trained) - {"actor", "critic"}:
        network = model.policy.trained[name]
        asked[name] = functools.partial(getattr(network, "encode", network), obs)
    for mode in (th.no_grad, th.enable_grad):
        for name, ask in asked.items():
            with mode(), pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|[sS]ize"):
                pytest.fail(f"{name} answered {ask()}")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_policies_can_be_traced(method: Any) -> None:
    """The export that SB3 documents; the batch size is not frozen."""
    model = tiny(method.load())

    class Deterministic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = model.policy

        def forward(self, observation: th.Tensor) -> th.Tensor:
            return self.policy(observation, deterministic=True)  # type: ignore[no-any-return]

    one, many = th.randn(1, 3), th.randn(5, 3)
    traced = th.jit.trace(Deterministic().eval(), one)
    with th.no_grad():
        th.testing.assert_close(traced(one), model.policy(one, deterministic=True), rtol=1e-4, atol=1e-5)
        th.testing.assert_close(traced(many), model.policy(many, deterministic=True), rtol=1e-4, atol=1e-5)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not any("PythonOp" in kind for kind in kinds), "such a trace can neither be saved nor exported"
    assert "aten::expm1" not in kinds, "ONNX does not know it"
    actor = th.jit.trace(model.actor, one, check_trace=False)
    critic = th.jit.trace(model.critic, (one, th.randn(1, 1)), check_trace=False)
    with th.no_grad():
        th.testing.assert_close(actor(many), model.actor(many), rtol=1e-4, atol=1e-5)
        actions = th.randn(5, 1)
        th.testing.assert_close(critic(many, actions), model.critic(many, actions), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: method.name)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_offline_and_on_policy_methods_can_be_traced(method: Any) -> None:
    """Those whose chains differentiate a guide say that they cannot; what they imitate can."""
    model = every_method.make(method.load())
    guided = isinstance(model.policy, GuidedPolicy)

    class Deterministic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor = model.policy.actor if guided else model.policy

        def forward(self, observation: th.Tensor) -> th.Tensor:
            return self.actor(observation, deterministic=True)  # type: ignore[no-any-return]

    one, many = th.randn(1, 3), th.randn(5, 3)
    traced = th.jit.trace(Deterministic().eval(), one)
    with th.no_grad():
        th.testing.assert_close(traced(many), Deterministic()(many), rtol=1e-4, atol=1e-5)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not any("PythonOp" in kind for kind in kinds) and "aten::expm1" not in kinds
    if guided:
        with pytest.raises(RuntimeError, match="guided chain"):
            th.jit.trace(model.policy, one, check_trace=False)


def test_batches_of_a_transform() -> None:
    """``torch.func.vmap`` over policies and critics, with many rows too (which take other functions of Mish)."""
    model = tiny(SDAC, net_arch={"pi": [16], "qf": [64, 64]}, activation_fn="mish")
    observations, actions = th.randn(70, 2, 3), th.randn(70, 2, 1)
    with th.no_grad():
        got = th.func.vmap(lambda o, a: model.critic.q(a, model.critic.encode(o)))(observations, actions)
        want = model.critic.q(actions.flatten(0, 1), model.critic.encode(observations.flatten(0, 1)))
    th.testing.assert_close(got.transpose(0, 1).flatten(1), want, rtol=1e-4, atol=1e-5)


def counted(module: nn.Module, calls: list[int]) -> Any:
    return module.register_forward_hook(lambda module, args, out: calls.append(1))


def test_all_modules_call_their_hooks() -> None:
    """Acting with hooks calls every network and layer, the first layers once per part; without them it is fast again."""
    model, observation = tiny(SDAC), np.zeros(3, np.float32)
    before = model.predict(observation, deterministic=True)[0]
    denoiser = model.actor.denoiser
    calls: dict[str, list[int]] = {name: [] for name, _ in denoiser.named_modules()}
    handles = [counted(module, calls[name]) for name, module in denoiser.named_modules()]
    after = model.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    count = {name: len(called) for name, called in calls.items() if "norms" not in name and not name.endswith("hidden")}
    assert all(count.values()), count
    assert count[""] == count["trunk"] == count["trunk.output"] == count["trunk.hidden.0"] == 3
    assert count["trunk.activation"] == 6
    assert count["trunk.first"] == 3 + 2  # the action in every step, time and state once
    assert count["state_net"] == count["state_net.first"] == count["time_net"] == count["time_net.embedding"] == 1
    for handle in handles:
        handle.remove()
    calls["trunk"].clear()
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], before)
    assert not calls["trunk"]


@pytest.mark.parametrize("place", ["", "trunk", "trunk.first", "trunk.hidden.0", "time_net", "time_net.embedding"])
def test_hooks_where_actions_have_times_of_their_own(place: str) -> None:
    denoiser, calls = Denoiser(4, 3, net_arch=(16, 16), state_arch=(), time_dim=8), list[int]()
    x, features, t = th.randn(5, 2, 3), th.randn(5, 4), th.rand(5, 2, 1)
    assert denoiser.compiled_with_times(x, denoiser.encode_state(features), t) is not None
    before = denoiser.at_times(x, denoiser.encode_state(features), t)
    handle = counted(denoiser.get_submodule(place), calls)
    c = denoiser.encode_state(features)
    calls.clear()
    after = denoiser.at_times(x, c, t)
    assert calls
    th.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    handle.remove()
    calls.clear()
    assert th.equal(denoiser.at_times(x, c, t), before) and not calls


@pytest.mark.parametrize(
    "place", ["trunk", "trunk.first", "trunk.hidden.0", "trunk.activation", "trunk.output", "state_net.first"]
)
def test_what_a_hook_keeps_is_left_alone(place: str) -> None:
    """An activation may overwrite what nobody has seen, and nothing else."""
    denoiser = Denoiser(4, 3, net_arch=(16, 16), state_arch=(16,), time_dim=8)
    kept: list[tuple[th.Tensor, th.Tensor]] = []

    def keep(module: nn.Module, args: Any, out: th.Tensor) -> None:
        kept.extend((x, x.clone()) for x in (*args, out) if x is not None)

    denoiser.get_submodule(place).register_forward_hook(keep)
    with th.no_grad():
        denoiser(th.randn(5, 3), denoiser.encode_state(th.randn(5, 4)), denoiser.encode_time(th.rand(5, 1)))
    assert kept and all(th.equal(now, then) for now, then in kept)


@pytest.mark.parametrize("kind", ["pre-hook", "global hook", "backward hook"])
def test_other_kinds_of_hooks(kind: str) -> None:
    network, calls = MLP([3], (16, 16), 2), []
    layer = network.hidden[0]

    def evaluate() -> None:
        out = network.evaluate(0, th.randn(4, 3, requires_grad=True), th.randn(4, 16))
        out.sum().backward()  # type: ignore[no-untyped-call]

    evaluate()
    handle = {
        "pre-hook": lambda: layer.register_forward_pre_hook(lambda module, args: calls.append(module)),
        "global hook": lambda: nn.modules.module.register_module_forward_hook(lambda module, args, out: calls.append(module)),
        "backward hook": lambda: layer.register_full_backward_hook(lambda module, into, out: calls.append(module)),
    }[kind]()
    try:
        evaluate()
    finally:
        handle.remove()
    assert layer in calls
    calls.clear()
    evaluate()
    assert not calls


@pytest.mark.parametrize("when", ["from the beginning", "later"])
@pytest.mark.parametrize("grad", [False, True])
def test_the_alpha_of_an_elu_counts(when: str, grad: bool) -> None:
    """The kernels' ELU has an alpha of one; so has the one that overwrites its argument."""
    made_by = functools.partial(nn.ELU, alpha=0.3) if when == "from the beginning" else nn.ELU
    network: Any = MLP([3], (16, 16), 2, made_by)
    part, others = th.randn(70, 3), th.randn(70, 16)
    with th.set_grad_enabled(grad):
        if when == "later":
            network.evaluate(0, part, others)
            assert network.kernel(0) is not None
            network.activation.alpha = 0.3
        elu = nn.ELU(alpha=0.3)
        want = network.output(elu(network.hidden[0](elu(network.first.add_share(0, part, others)))))
        th.testing.assert_close(network.evaluate(0, part, others), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_gradients_of_numbers_that_are_none(activation: str, number: float) -> None:
    network, part = MLP([3], (16, 16), 2, activation), th.randn(20, 3)
    part[0, 0] = number

    def gradients() -> Any:
        inputs = part.clone().requires_grad_(), th.zeros(20, 16, requires_grad=True)
        return th.autograd.grad(network.evaluate(0, *inputs).sum(), inputs)

    assert network.kernel(0) is not None
    got = gradients()
    with kernels.switched_off():
        th.testing.assert_close(got, gradients(), rtol=1e-4, atol=1e-5, equal_nan=True)


class Doubled(nn.Module):
    def forward(self, weight: th.Tensor) -> th.Tensor:
        return 2.0 * weight


@pytest.mark.parametrize("name", ["weight", "weight_0"])
def test_parametrised_layers_count(name: str) -> None:
    """Parametrisations and pruning of any layer, the first one too; and the way back."""
    network, part, others = MLP([3], (16, 16), 2), th.randn(4, 3), th.randn(4, 16)
    layer = network.hidden[0] if name == "weight" else network.first
    plain = copy.deepcopy(network)
    with th.no_grad():
        before = network.evaluate(0, part, others)
        parametrize.register_parametrization(layer, name, Doubled())
        getattr(plain.hidden[0] if name == "weight" else plain.first, name).mul_(2.0)
        th.testing.assert_close(network.evaluate(0, part, others), plain.evaluate(0, part, others), rtol=1e-5, atol=1e-5)
        parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
        th.testing.assert_close(network.evaluate(0, part, others), before, rtol=1e-5, atol=1e-5)
        prune.identity(layer, name)
        layer.get_buffer(f"{name}_mask").zero_()  # read by a hook, at the next call
        getattr(plain.hidden[0] if name == "weight" else plain.first, name).zero_()
        th.testing.assert_close(network.evaluate(0, part, others), plain.evaluate(0, part, others), rtol=1e-5, atol=1e-5)
        prune.remove(layer, name)
        assert network.kernel(0) is not None


def test_a_weight_that_trains_through_a_parametrisation() -> None:
    network: Any = MLP([3], (16, 16), 2)
    parametrize.register_parametrization(network.hidden[0], "weight", Doubled())
    network.evaluate(0, th.randn(4, 3), th.randn(4, 16)).sum().backward()
    original = network.hidden[0].parametrizations.weight.original
    assert original.grad is not None and original.grad.abs().sum() > 0.0


def test_replaced_modules_count() -> None:
    """Activations, layers and whole networks that take the place of others, also between two actions."""
    denoiser: Any = Denoiser(4, 3, net_arch=(16, 16), state_arch=(16,), time_dim=8)
    sampler = ContinuousDiffusion().sampler(3)
    times, features = sampler.times.unsqueeze(-1), th.randn(2, 4)
    draws = RecordedDraws({"sample.x_T": th.randn(2, 3), "sample.step_noise": th.randn(3, 2, 3)})

    def act() -> th.Tensor:
        with th.no_grad():
            return sampler.sample(denoiser.bind_features(features, times), (2, 3), draws)

    def replace_state() -> None:
        denoiser.state_net = MLP([4], (16, 16), None, "mish")

    def replace_layer() -> None:
        denoiser.trunk.hidden[0] = Linear(16, 16)

    def replace_embedding() -> None:
        denoiser.time_net = Denoiser(4, 3, net_arch=(16, 16), time_dim=8).time_net

    def replace_activation() -> None:
        denoiser.trunk.activation = nn.Tanh()

    def replace_output() -> None:
        denoiser.trunk.output = nn.Linear(16, 3)

    for change in (replace_state, replace_layer, replace_embedding, replace_activation, replace_output):
        before = act()
        change()
        after = act()
        with kernels.switched_off():
            th.testing.assert_close(after, act(), rtol=1e-4, atol=1e-5)
        assert not th.equal(after, before), change


def test_a_backward_pass_of_weights_that_are_gone() -> None:
    """The weights of the forward pass count, as in PyTorch, not others that have taken their place."""
    network, part, others = MLP([3], (16, 16), 2), th.randn(4, 3, requires_grad=True), th.randn(4, 16)
    out = network.evaluate(0, part, others)
    with kernels.switched_off():
        (want,) = th.autograd.grad(network.evaluate(0, part, others).sum(), part)
    network.hidden[0].weight = nn.Parameter(th.randn(1, 1))
    (got,) = th.autograd.grad(out.sum(), part)
    th.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_batched_gradients_are_refused() -> None:
    part = th.randn(4, 3, requires_grad=True)
    out = MLP([3], (16, 16), 2).evaluate(0, part, th.randn(4, 16))
    with pytest.raises(RuntimeError, match=r"plain float32 arrays only.*switched_off"):
        th.autograd.grad(out, part, th.ones(2, *out.shape), is_grads_batched=True)


FROZEN: dict[str, Callable[[str], bool]] = {
    "everything": lambda name: True,
    "the first layer": lambda name: "trunk.first" in name,
    "all but the last": lambda name: "trunk.output" not in name,
    "biases": lambda name: "bias" in name,
}


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("input_trains", [False, True])
@pytest.mark.parametrize("what", ["chain", "network", "critics"])
def test_frozen_parameters_get_no_gradient(frozen: str, input_trains: bool, what: str) -> None:
    """Any mix of frozen and trained parameters and inputs: the gradients are PyTorch's, and None where its are."""
    if what == "critics":
        network: Any = ScalarCritics(4, 3, net_arch=(16, 16), activation="mish")
    else:
        network = Denoiser(4, 3, net_arch=(16, 16), state_arch=(16,), time_dim=8)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))
    sampler, features, x = ContinuousDiffusion().sampler(3), th.randn(5, 4), th.randn(5, 3)
    draws = RecordedDraws({"sample.x_T": x, "sample.step_noise": th.randn(3, 5, 3)})

    def gradients() -> list[th.Tensor | None]:
        inputs = features.clone().requires_grad_(input_trains)
        if what == "critics":
            out = network.q(x, network.encode_state(inputs))
        elif what == "chain":
            bound = network.bind(network.encode_state(inputs), network.encode_time(sampler.times.unsqueeze(-1)))
            out = sampler.sample(bound, (5, 3), draws)
        else:
            out = network(x, network.encode_state(inputs), network.encode_time(th.full((5, 1), 0.3)))
        wanted = [p for p in (inputs, *network.parameters()) if p.requires_grad]
        assert out.requires_grad == bool(wanted)
        found = iter(th.autograd.grad(out.square().sum(), wanted, allow_unused=True) if wanted else ())
        return [next(found) if p.requires_grad else None for p in (inputs, *network.parameters())]

    got = gradients()
    with kernels.switched_off():
        want = gradients()
    for mine, theirs in zip(got, want, strict=True):
        if mine is None or theirs is None:
            assert mine is theirs
        else:
            th.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_frozen_inference_tensors_need_no_graph() -> None:
    """Nothing is kept for a backward pass that cannot come."""
    network = MLP([3], (16, 16), 2).requires_grad_(False)
    with th.inference_mode():
        part, others = th.randn(4, 3), th.randn(4, 16)
    assert not network.evaluate(0, part, others).requires_grad


@pytest.mark.parametrize("name", sorted(set(fuzz.INPUTS) - {"needs a gradient", "parameter", "one row"}))
def test_those_who_do_not_ask_are_refused_too(name: str) -> None:
    """Called directly, the kernels return None, or what is right, for whatever they get."""
    denoiser = Denoiser(4, 3, net_arch=(16, 16), state_arch=(16,), time_dim=8)
    network, sampler = denoiser.trunk_kernel(), ContinuousDiffusion().sampler(3)
    assert network is not None
    x, context, times = th.randn(4, 3), th.randn(4, 16), th.randn(3, 16)
    steps, draws, clip = sampler.coefficients, th.randn(2, 4, 3), (-1.0, 1.0)
    disguise = fuzz.INPUTS[name]
    right = {"transposed", "expanded", "column expanded", "flipped", "with an offset", "every second"}
    with th.no_grad():
        assert (network.evaluate(disguise(x), context) is None) == (name not in right | {"an axis more inside"})
        assert network.evaluate(x, disguise(context)) is None or name in right | {"an axis more inside"}
        for i, value in enumerate((x, context, times, steps, draws)):
            arguments: list[Any] = [x, context, times, steps, draws, clip]
            arguments[i] = disguise(value)
            if name not in right | {"no rows"}:
                assert network.run_chain(*arguments) is None or (name, i) in (("a row more", 4),)
        out = th.empty_like(x)
        assert kernels.mish(x, disguise(out)) is False or name in right
        assert kernels.mish(disguise(x), out) is False or name in right
    assert is_plain(x) and (is_plain(disguise(x)) or name not in right)


def test_pieces_refuse_what_is_in_pieces() -> None:
    tensor = th.randn(4, 6)
    for wrong in (tensor.t(), tensor[:, ::2], tensor[:1].expand(4, 6), tensor.to("meta"), tensor.to_sparse()):
        with pytest.raises(ValueError, match="contiguous and on the CPU"):
            Pieces([wrong])
    pieces = Pieces([tensor])
    assert pieces.equal([tensor]) and not pieces.equal([tensor.t()]) and not pieces.equal([tensor[:2]])
    tensor[3, 5] += 1.0
    assert not pieces.equal([tensor])
