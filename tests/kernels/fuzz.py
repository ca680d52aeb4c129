"""
Random calls of networks and chains, by the kernels and by PyTorch's own layers: results and errors have to be the same.

``python -m tests.kernels.fuzz NUMBER [SEED]`` tries many.
"""

import contextlib
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

import torch as th
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_diffusion import kernels
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.flow import FlowMatching
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.distributional_critics import GaussianCritics
from sb3_diffusion.networks.layers import Linear

Call = Callable[..., Any]
Rng = random.Random
ACTIVATIONS = tuple(kernels.ACTIVATIONS)


class _Renamed(th.Tensor):
    """A tensor whose type says that its numbers may mean something else."""


class _Doubled(nn.Module):
    def forward(self, weight: th.Tensor) -> th.Tensor:
        return 2.0 * weight


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


# what is done to an input; the numbers stay what they were or become others of the same kind
INPUTS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "column expanded": lambda x: x[..., :1].expand_as(x),
    "flipped": lambda x: x.flip(0),
    "with an offset": lambda x: th.cat([x, x])[len(x) :],
    "every second": lambda x: th.stack([x, x], -1)[..., 0],
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(th.complex64),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "negative bit": lambda x: th._neg_view(x),
    "zero without memory": lambda x: th._efficientzerotensor(x.shape),
    "subclass": lambda x: x.as_subclass(_Renamed),
    "parameter": lambda x: nn.Parameter(x),
    "needs a gradient": lambda x: x.clone().requires_grad_(),
    "narrower": lambda x: x[..., :-1],
    "wider": lambda x: th.cat([x, x[..., :1]], -1),
    "an axis more": lambda x: x.unsqueeze(0),
    "an axis more inside": lambda x: x.unsqueeze(-2),
    "an axis less": lambda x: x[0] if len(x) else x,
    "no rows": lambda x: x[:0],
    "one row": lambda x: x[:1],
    "a row more": lambda x: th.cat([x, x[:1]]),
    "a number": lambda x: x.sum(),
}


def _layer(network: nn.Module, rng: Rng) -> Linear:
    return rng.choice([module for module in network.modules() if type(module) is Linear])


def _on_a_layer(change: Callable[[Linear], object]) -> Callable[[nn.Module, Rng], object]:
    return lambda network, rng: change(_layer(network, rng))


def _on_a_module(change: Callable[[nn.Module], object]) -> Callable[[nn.Module, Rng], object]:
    return lambda network, rng: change(rng.choice(list(network.modules())))


def _replace(layer: Linear, weight: th.Tensor) -> None:
    layer.weight = nn.Parameter(weight)


def _new_data(layer: Linear, weight: th.Tensor) -> None:
    layer.weight.data = weight


def _move_numbers(network: nn.Module, rng: Rng) -> None:
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def _replace_activation(network: nn.Module, rng: Rng) -> None:
    for module in network.modules():
        if isinstance(module, MLP):
            module.activation = rng.choice([nn.ReLU, nn.Tanh, nn.SiLU])()


def _another_alpha(network: nn.Module, rng: Rng) -> None:
    for module in network.modules():
        if isinstance(module, nn.ELU):
            module.alpha = 0.3


def _replace_layer(network: nn.Module, rng: Rng) -> None:
    for module in network.modules():
        if isinstance(module, MLP) and len(module.hidden):
            old: Any = module.hidden[-1]
            module.hidden[-1] = Linear(old.in_features, old.out_features + rng.choice((0, 0, 1)), module.n_members)
            return


def _freeze_some(network: nn.Module, rng: Rng) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(rng.random() < 0.5)


def _forward_of_its_own(network: nn.Module, rng: Rng) -> None:
    layer = _layer(network, rng)
    layer.forward = lambda x: Linear.forward(layer, 2.0 * x)  # type: ignore[method-assign]


# what is done to a network after it has been used once
MODULES: dict[str, Callable[[nn.Module, Rng], object]] = {
    "forward hook": _on_a_module(lambda m: m.register_forward_hook(lambda module, args, out: 2.0 * out)),
    "forward pre-hook": _on_a_layer(lambda m: m.register_forward_pre_hook(lambda module, args: (2.0 * args[0],))),
    "backward hook": _on_a_layer(
        lambda m: m.register_full_backward_hook(lambda module, into, out: (2.0 * cast(Any, into)[0],))
    ),
    "parametrised": _on_a_layer(lambda m: parametrize.register_parametrization(m, "weight", _Doubled())),
    "weight norm": _on_a_layer(lambda m: weight_norm(m)),
    "pruned": _on_a_layer(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
    "replaced weight": _on_a_layer(lambda m: _replace(m, th.randn_like(m.weight))),
    "smaller weight": _on_a_layer(lambda m: _replace(m, th.randn_like(m.weight)[..., :-1])),
    "flat weight": _on_a_layer(lambda m: _replace(m, m.weight.detach().flatten())),
    "double weight": _on_a_layer(lambda m: _replace(m, m.weight.detach().double())),
    "no weight": _on_a_layer(lambda m: setattr(m, "weight", None)),
    "elsewhere": lambda network, rng: network.to("meta"),
    "transposed numbers": _on_a_layer(lambda m: _new_data(m, m.weight.data.transpose(-1, -2))),
    "expanded numbers": _on_a_layer(lambda m: _new_data(m, m.weight.data[..., :1].expand_as(m.weight))),
    "fewer numbers": _on_a_layer(lambda m: _new_data(m, m.weight.data[..., :-1, :])),
    "moved numbers": _move_numbers,
    "double": lambda network, rng: network.double(),
    "half and back": lambda network, rng: network.half().float(),
    "replaced activation": _replace_activation,
    "another alpha": _another_alpha,
    "replaced layer": _replace_layer,
    "frozen": lambda network, rng: network.requires_grad_(False),
    "partly frozen": _freeze_some,
    "own forward": _forward_of_its_own,
}


@contextlib.contextmanager
def _global_hook() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: 2.0 * out if isinstance(module, Linear) else None
    )
    try:
        yield
    finally:
        handle.remove()


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": th.no_grad,
    "inference": th.inference_mode,
    "autocast": lambda: th.autocast("cpu", th.bfloat16),
    "function mode": _Functions,
    "dispatch mode": _Operations,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "forward mode": forward_ad.dual_level,
    "global hook": _global_hook,
    "default device": lambda: th.device("cpu"),
    "anomaly detection": th.autograd.detect_anomaly,
}


def _jvp(call: Call, *inputs: th.Tensor) -> Any:
    return th.func.jvp(call, inputs, tuple(th.ones_like(x) for x in inputs))


def _traced(call: Call, *inputs: th.Tensor) -> Any:
    return th.jit.trace(call, inputs, check_trace=False)(*inputs)


def _gradients(call: Call, *inputs: th.Tensor) -> Any:
    out = call(*inputs)
    leaves = [x for x in inputs if x.requires_grad and x.is_leaf]
    return [out, *th.autograd.grad(out.square().sum(), leaves, allow_unused=True)] if leaves else out


# what the call itself becomes
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "gradients": _gradients,
    "traced": _traced,
    "vmap": lambda call, *inputs: th.func.vmap(call)(*(th.stack([x, x]) for x in inputs)),
    "grad": lambda call, *inputs: th.func.grad(lambda *xs: call(*xs).sum())(*inputs),
    "jvp": _jvp,
}


def _widths(rng: Rng) -> tuple[int, ...]:
    return tuple(rng.choice((1, 5, 16, 33, 64)) for _ in range(rng.randint(1, 3)))


def _shape(rng: Rng) -> tuple[int, ...]:
    return rng.choice(((0,), (1,), (5,), (17,), (3, 4), (5, 0), (40,)))


def _mlp(rng: Rng) -> tuple[nn.Module, Call, list[th.Tensor]]:
    in_dims, widths, n_members = [rng.randint(1, 9) for _ in range(rng.randint(1, 3))], _widths(rng), rng.choice((None, 2))
    network = MLP(in_dims, widths, rng.choice((1, 3, 20)), rng.choice(ACTIVATIONS), n_members)
    i, shape = rng.randrange(len(in_dims)), _shape(rng)
    lead = () if n_members is None else (n_members,)
    contexts = rng.choice((shape, shape[:1], (1,)))
    return (
        network,
        lambda part, others: network.evaluate(i, part, others),
        [th.randn(*shape, in_dims[i]), th.randn(*lead, *contexts, widths[0])],
    )


def _critics(rng: Rng) -> tuple[nn.Module, Call, list[th.Tensor]]:
    network = rng.choice((ScalarCritics, GaussianCritics))(4, 3, net_arch=_widths(rng), activation=rng.choice(ACTIVATIONS))
    shape = _shape(rng)

    def call(features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        values, gradient = network.value_and_gradient(actions, network.encode_state(features))
        return values.sum() + gradient

    return network, call, [th.randn(shape[0], 4), th.randn(*shape, 3)]


def _denoiser(rng: Rng) -> Denoiser:
    return Denoiser(
        4,
        3,
        net_arch=_widths(rng),
        state_arch=rng.choice(((), (20,), (33, 8))),
        time_dim=6,
        time_arch=rng.choice((None, (), (8,))),
        time_embedding=rng.choice(("fourier", "sinusoidal", "raw")),
        activation=rng.choice(ACTIVATIONS),
    )


def _acting(rng: Rng) -> tuple[nn.Module, Call, list[th.Tensor]]:
    network, shape = _denoiser(rng), (*_shape(rng), 3)
    sampler = rng.choice((ContinuousDiffusion().sampler(3), FlowMatching().sampler(3, rng.choice(("euler", "midpoint")))))
    draws = RecordedDraws({"sample.x_T": th.randn(shape), "sample.step_noise": th.randn(3, *shape)})
    times = sampler.times.view(-1, 1).clone()

    def call(features: th.Tensor, t: th.Tensor) -> th.Tensor:
        return sampler.sample(network.bind_features(features, t), shape, draws)

    return network, call, [th.randn(shape[0], 4), times]


def _denoising(rng: Rng) -> tuple[nn.Module, Call, list[th.Tensor]]:
    network, batch = _denoiser(rng), rng.choice((1, 6))

    def call(x: th.Tensor, features: th.Tensor, t: th.Tensor) -> th.Tensor:
        return network(x, network.encode_state(features), network.encode_time(t))  # type: ignore[no-any-return]

    return network, call, [th.randn(batch, 3), th.randn(batch, 4), th.rand(batch, 1)]


def _own_times(rng: Rng) -> tuple[nn.Module, Call, list[th.Tensor]]:
    network, batch, n = _denoiser(rng), rng.choice((1, 6)), rng.choice((1, 3))

    def call(x: th.Tensor, features: th.Tensor, t: th.Tensor) -> th.Tensor:
        return network.at_times(x, network.encode_state(features), t)

    return network, call, [th.randn(batch, n, 3), th.randn(batch, 4), th.rand(batch, n, 1)]


KINDS = (_mlp, _critics, _acting, _denoising, _own_times)


def outcome_of(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return call()
    except Exception as error:  # whatever PyTorch says
        return error


def compare(got: Any, want: Any, what: str) -> None:
    """Whether an outcome is another one, up to rounding errors."""
    if isinstance(want, Exception) or isinstance(got, Exception):
        assert type(got) is type(want), f"{what}: {got!r} instead of {want!r}"
    elif isinstance(want, tuple | list):
        assert len(got) == len(want), what
        for mine, theirs in zip(got, want, strict=True):
            compare(mine, theirs, what)
    elif isinstance(want, th.Tensor):
        assert type(got) is type(want) and got.shape == want.shape and got.requires_grad == want.requires_grad, what
        assert got.dtype == want.dtype and got.device == want.device, what
        if type(want) is th.Tensor and not want.is_meta:
            finite = want.detach()[want.detach().isfinite()]
            size = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
            coarse = want.dtype in (th.bfloat16, th.float16)
            th.testing.assert_close(
                got,
                want,
                rtol=1e-4,
                atol=(1e-1 if coarse else 1e-4) * size,
                equal_nan=True,
                msg=lambda text: f"{what}: {text}",
            )
    else:
        assert got is None and want is None, what


def _pick(rng: Rng, share: float, table: dict[str, Any]) -> tuple[str, Any] | tuple[None, None]:
    return rng.choice(sorted(table.items())) if rng.random() < share else (None, None)


def try_one(seed: int) -> None:
    """One random call, twice by the kernels (which may keep something) and once by PyTorch's own layers."""
    rng = Rng(seed)
    th.manual_seed(seed)
    make = rng.choice(KINDS)
    network, call, inputs = make(rng)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    with th.no_grad():
        outcome_of(lambda: call(*inputs))  # the network has been used before anything changes
    module_name, change = _pick(rng, 0.4, MODULES)
    if change is not None:
        outcome_of(lambda: change(network, rng))
    input_name, disguise = _pick(rng, 0.5, INPUTS)
    if disguise is not None:
        i = rng.randrange(len(inputs))
        inputs[i] = disguise(inputs[i])
    context_name, context = _pick(rng, 0.4, CONTEXTS)
    transform_name, transform = _pick(rng, 0.4, TRANSFORMS)
    what = f"seed {seed}: {make.__name__}, {module_name}, {input_name}, {context_name}, {transform_name}"

    def run() -> Any:
        with contextlib.nullcontext() if context is None else context():
            return call(*inputs) if transform is None else transform(call, *inputs)

    got = [outcome_of(run), outcome_of(run)]
    with kernels.switched_off():
        want = outcome_of(run)
    for outcome in got:
        compare(outcome, want, what)


def main(number: int, seed: int = 0) -> None:
    """Try ``number`` calls."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch._subclasses").setLevel(logging.CRITICAL)
    assert kernels.load_kernels() is not None, "nothing to try: no compiled kernels"
    for i in range(seed, seed + number):
        try_one(i)
    print(f"{number} calls: the same results and errors")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
