"""The compiled CPU kernels against the same networks and chains in PyTorch's own operations."""

import copy
import functools
import pickle
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch.nn import functional as F

from sb3_diffusion import kernels
from sb3_diffusion.generative.continuous import ContinuousDiffusion
from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.flow import FlowMatching, MeanFlow
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.generative.solvers.rules import SOLVERS
from sb3_diffusion.networks.activations import GELU, Mish
from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.networks.distributional_critics import CategoricalCritics, GaussianCritics
from sb3_diffusion.networks.embeddings import RawTime

FUNCTIONS: dict[type[th.nn.Module], Any] = {
    th.nn.ReLU: F.relu,
    Mish: F.mish,
    th.nn.ELU: F.elu,
    th.nn.SiLU: F.silu,
    GELU: functools.partial(F.gelu, approximate="tanh"),
    th.nn.Tanh: th.tanh,
}
OTHERS = ["elu", "silu", "gelu", "tanh"]
"""Activations that are a pass of their own."""

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="the compiled kernels need a C++ compiler")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = th.get_num_threads()
    yield
    th.set_num_threads(before)


def randomize(network: th.nn.Module) -> None:
    """Biases start at zero, which would hide their loss."""
    for parameter in network.parameters():
        th.nn.init.normal_(parameter, std=0.2)


def by_hand(network: MLP, i: int, part: th.Tensor, others: th.Tensor) -> th.Tensor:
    """The network in float64 with nothing but products and sums."""
    activate = FUNCTIONS[type(network.activation)]
    members = network.n_members is not None
    weight = getattr(network.first, f"weight_{i}").double()
    if part.dim() == 3:
        others = others.unsqueeze(-2) if others.dim() == 2 + members else others
        weight = weight.unsqueeze(1) if members else weight
    x = others.double() + part.double() @ weight
    assert network.output is not None
    for layer in (*network.hidden, network.output):
        weights, bias = layer.weight.double(), layer.bias.double()
        if members and part.dim() == 3:
            weights, bias = weights.unsqueeze(1), bias.unsqueeze(1)
        x = activate(x) @ weights + bias
    return x


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("n_members", [None, 3])
@pytest.mark.parametrize(
    ("widths", "action_dim", "output_dim"), [((256, 256), 3, 1), ((64,), 1, 2), ((40, 72, 33), 21, 21), ((16, 16), 2, 9)]
)
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (130,), (7, 4), (30, 10)])
def test_networks(
    activation: str, n_members: int | None, widths: tuple[int, ...], action_dim: int, output_dim: int, shape: tuple[int, ...]
) -> None:
    """All tile shapes: rows alone and in tiles, widths that fill the last panel or not, narrow and wide outputs."""
    th.manual_seed(0)
    network = MLP([action_dim], widths, output_dim, activation, n_members)
    randomize(network)
    lead = () if n_members is None else (n_members,)
    part, others = th.randn(*shape, action_dim), th.randn(*lead, shape[0], widths[0])
    with th.no_grad():
        assert network.kernel(0) is not None
        got = network.evaluate(0, part, others)
        want = by_hand(network, 0, part, others)
    assert got.shape == (*lead, *shape, output_dim)
    th.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("widths", [(256, 256), (64,), (40, 72, 33)])
@pytest.mark.parametrize("critics", [ScalarCritics, GaussianCritics, CategoricalCritics])
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("shape", [(5,), (30, 7)])
def test_value_gradients(
    activation: str, widths: tuple[int, ...], critics: Any, reduction: str, shape: tuple[int, ...]
) -> None:
    th.manual_seed(0)
    ensemble = critics(11, 3, net_arch=widths, activation=activation)
    randomize(ensemble)
    actions = th.randn(*shape, 3)
    context = ensemble.encode_state(th.randn(shape[0], 11)).detach()
    values, gradient = ensemble.value_and_gradient(actions, context, reduction)
    inputs = actions.clone().requires_grad_()
    q = ensemble.q(inputs, context)
    want = q.amin(0) if reduction == "min" else q.mean(0)
    th.testing.assert_close(values, want, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(gradient, th.autograd.grad(want.sum(), inputs)[0], rtol=1e-4, atol=1e-5)
    assert not values.requires_grad and not gradient.requires_grad


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "mish"])
@pytest.mark.parametrize("n_members", [None, 3])
@pytest.mark.parametrize(
    ("widths", "action_dim", "output_dim"), [((256, 256), 3, 1), ((64,), 1, 2), ((40, 72, 33), 21, 21), ((16, 16), 2, 9)]
)
@pytest.mark.parametrize("shape", [(0,), (1,), (130,), (7, 4)])
def test_gradients_of_networks(
    activation: str, n_members: int | None, widths: tuple[int, ...], action_dim: int, output_dim: int, shape: tuple[int, ...]
) -> None:
    """One node of autograd against float64, for the input, the contexts and every parameter."""
    th.manual_seed(0)
    network = MLP([action_dim], widths, output_dim, activation, n_members)
    randomize(network)
    lead = () if n_members is None else (n_members,)
    part = th.randn(*shape, action_dim, requires_grad=True)
    others = th.randn(*lead, shape[0], widths[0], requires_grad=True)
    parameters = [parameter for name, parameter in network.named_parameters() if name != "first.bias"]  # part of the contexts
    got, want = network.evaluate(0, part, others), by_hand(network, 0, part, others)
    assert got.grad_fn is not None and "View" in type(got.grad_fn).__name__
    direction = th.randn_like(got)
    got_gradients = th.autograd.grad((got * direction).sum(), [part, others, *parameters])
    want_gradients = th.autograd.grad((want * direction.double()).sum(), [part, others, *parameters])
    for mine, exact in zip(got_gradients, want_gradients, strict=True):
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        th.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5 * max(1.0, largest))


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "elu"])
@pytest.mark.parametrize(
    ("widths", "in_dims", "output_dim"), [((256, 256), (8, 16, 5), 8), ((40, 72, 33), (3, 7, 1), 21), ((16,), (1, 1, 4), 9)]
)
@pytest.mark.parametrize("shape", [(0,), (1,), (130,), (7, 4)])
def test_inputs_side_by_side(
    activation: str, widths: tuple[int, ...], in_dims: tuple[int, ...], output_dim: int, shape: tuple[int, ...]
) -> None:
    """Two inputs in the rows of one are the two of them, in their values and in all gradients."""
    th.manual_seed(0)
    network: Any = MLP(in_dims, widths, output_dim, activation)
    randomize(network)
    parts = [th.randn(*shape, size, requires_grad=True) for size in in_dims[:2]]
    context = th.randn(shape[0], widths[0], requires_grad=True)
    joined = network.kernel(0, 1)
    assert joined is not None
    got = joined.evaluate(th.cat(parts, dim=-1), context)
    assert got is not None
    others = context if len(shape) == 1 else context.unsqueeze(1)
    second = parts[1].double() @ network.first.weight_1.double()
    want = by_hand(network, 0, parts[0], others.double() + second)
    th.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    absent = ("first.bias", "first.weight_2")  # in the context
    inputs = [*parts, context, *(parameter for name, parameter in network.named_parameters() if name not in absent)]
    direction = th.randn_like(got)
    got_gradients = th.autograd.grad((got * direction).sum(), inputs)
    want_gradients = th.autograd.grad((want * direction.double()).sum(), inputs)
    for mine, exact in zip(got_gradients, want_gradients, strict=True):
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        th.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5 * max(1.0, largest))


@needs_compiler
def test_inputs_side_by_side_follow_their_weights() -> None:
    network: Any = MLP([3, 5, 4], (16, 16), 2, "elu")
    x, context = th.randn(6, 8), th.randn(6, 16)
    joined = network.kernel(0, 1)
    assert joined is not None
    with th.no_grad():
        before = joined.evaluate(x, context)
        network.first.weight_1.mul_(2.0)
        after, want = joined.evaluate(x, context), by_hand(network, 0, x[:, :3], context + x[:, 3:] @ network.first.weight_1)
        assert before is not None and after is not None and not th.equal(before, after)
        th.testing.assert_close(after.double(), want, rtol=1e-5, atol=1e-5)
        for other in (th.randn(4, 16), th.randn(5, 16, dtype=th.float64), None):
            network.first.weight_1 = None if other is None else th.nn.Parameter(other)
            assert joined.evaluate(x, context) is None


Case = tuple[Any, str, dict[str, Any]]
DIFFUSION_CHAINS: list[Case] = [
    *((ContinuousDiffusion(), solver, options) for solver in SOLVERS for options in ({}, {"clip": False})),
    (ContinuousDiffusion(), "ddpm", {"variance": "posterior"}),
    (ContinuousDiffusion(), "ddim", {"clip_target": "state"}),
    (ContinuousDiffusion(), "ddim", {"ddim_recompute_noise": False}),
    (ContinuousDiffusion(), "dpm++2m", {"lower_order_final": False}),
]
FLOWS: list[Case] = [
    (FlowMatching(), solver, options) for solver in ("euler", "midpoint") for options in ({}, {"clip_target": "state"})
]
CHAINS = pytest.mark.parametrize(("process", "solver", "options"), [*DIFFUSION_CHAINS, *FLOWS])


def run(
    denoiser: Denoiser, sampler: Any, observations: th.Tensor, shape: tuple[int, ...], noise: RecordedDraws, method: str
) -> th.Tensor:
    """A chain, or all its states, in the number format of the networks."""
    bound = denoiser.bind(denoiser.encode_state(observations), denoiser.encode_time(sampler.times.unsqueeze(-1)))
    return getattr(sampler, method)(bound, shape, noise, clip_output=False)  # type: ignore[no-any-return]


def chain_draws(shape: tuple[int, ...]) -> RecordedDraws:
    return RecordedDraws({"sample.x_T": th.randn(shape), "sample.step_noise": th.randn(5, *shape)})


@needs_compiler
@pytest.mark.parametrize(
    ("process", "solver", "options"),
    [*DIFFUSION_CHAINS, *FLOWS, *((DiscreteDiffusion(), *case[1:]) for case in DIFFUSION_CHAINS)],
)
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (40, 3), (6, 5, 3)])
def test_chains(process: Any, solver: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The whole chain, and every state of it, equals its steps one by one."""
    th.manual_seed(0)
    denoiser, sampler, draws = Denoiser(4, 3, net_arch=(64, 64)), process.sampler(5, solver, **options), chain_draws(shape)
    observations = th.randn(shape[0], 4)
    with th.no_grad():
        sample = run(denoiser, sampler, observations, shape, draws, "sample")
        compiled = run(denoiser, sampler, observations, shape, draws, "chain")
        with kernels.switched_off():
            states = run(denoiser, sampler, observations, shape, draws, "chain")
    assert th.equal(compiled[-1], sample)
    # rounding errors are those of the largest state that the chain passed, which is in the hundreds where it is not clipped,
    # and the first estimates of the clean sample multiply those of the network
    size = float(max([1.0, *states.abs().flatten().tolist()]))
    th.testing.assert_close(compiled, states, rtol=0.0, atol=2e-5 * size)


@needs_compiler
@CHAINS
@pytest.mark.parametrize("shape", [(1, 3), (40, 3), (6, 5, 3)])
def test_gradients_of_chains(process: Any, solver: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Backpropagation through the steps, from all states, against PyTorch's operations in float64."""
    th.manual_seed(0)
    denoiser = Denoiser(4, 3, net_arch=(64, 40))
    exact = copy.deepcopy(denoiser).double()
    sampler, draws = process.sampler(5, solver, **options), chain_draws(shape)
    observations, direction = th.randn(shape[0], 4), th.randn(sampler.steps + 1, *shape)
    gradients = []
    for network, chain in ((denoiser, sampler), (exact, copy.deepcopy(sampler).double())):
        number = next(network.parameters()).dtype
        inputs = observations.to(number).requires_grad_()
        states = run(network, chain, inputs, shape, draws, "chain")
        gradients.append(th.autograd.grad((states * direction).sum(), [inputs, *network.parameters()]))
    for mine, want in zip(*gradients, strict=True):
        th.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-5 * float(max(1.0, want.abs().max())))


@needs_compiler
@pytest.mark.parametrize("widths", [(64, 64), (40, 24), (33,)])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 3), (3, 10, 3)])
def test_a_chain_with_its_encoders(widths: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Encoders and chain in one call equal the encoders, and the chain after them."""
    denoiser, sampler = Denoiser(4, 3, net_arch=widths, state_arch=(20,), time_dim=6), ContinuousDiffusion().sampler(6)
    observations, times, draws = th.randn(shape[0], 4), sampler.times.unsqueeze(-1), chain_draws(shape)

    def act(network: Denoiser) -> th.Tensor:
        return sampler.sample(network.bind_features(observations, times), shape, draws)

    with th.no_grad():
        expected = run(denoiser, sampler, observations, shape, draws, "sample").clamp(-1.0, 1.0)
        assert th.equal(act(denoiser), expected) and denoiser._encoded_chain is not None
        assert th.equal(act(copy.deepcopy(denoiser)), expected)
        with kernels.switched_off():
            th.testing.assert_close(act(denoiser), expected, rtol=0.0, atol=2e-5)
        for parameter in denoiser.parameters():  # it follows them
            parameter.data = parameter.data.clone() * 0.5
        th.testing.assert_close(
            act(denoiser), run(denoiser, sampler, observations, shape, draws, "sample").clamp(-1.0, 1.0), rtol=0.0, atol=0.0
        )
    assert act(denoiser).requires_grad
    denoiser.double()  # which the kernels would read as float32; PyTorch says that the types do not fit
    with th.no_grad(), pytest.raises(RuntimeError, match="type"):
        act(denoiser)


@needs_compiler
@pytest.mark.parametrize("embedding, state_arch", [("fourier", (20,)), ("sinusoidal", (20,)), ("raw", ()), ("positional", ())])
def test_encoded_times_are_used_again_until_something_changes(
    embedding: str, state_arch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = Denoiser(4, 3, net_arch=(64, 64), time_dim=6, time_embedding=embedding, time_arch=(6,), state_arch=state_arch)
    sampler, observations, draws = ContinuousDiffusion().sampler(6, clip=False), th.randn(1, 4), chain_draws((1, 3))
    calls: list[int] = []
    encode_time, trunk = denoiser.encode_time, denoiser.trunk
    assert isinstance(trunk, MLP)
    weight: th.Tensor = trunk.first.get_parameter("weight_1")

    def counted(t: th.Tensor) -> th.Tensor:
        calls.append(len(t))
        return encode_time(t)

    monkeypatch.setattr(denoiser, "encode_time", counted)

    def encodings(times: th.Tensor | None = None, chain: Any = sampler) -> int:
        """How often acting encodes the times; the action has to be that of fresh ones."""
        calls.clear()
        times = chain.times.unsqueeze(-1) if times is None else times
        with th.inference_mode():
            action = chain.sample(denoiser.bind_features(observations, times), (1, 3), draws, clip_output=False)
            fresh = denoiser.bind(denoiser.encode_state(observations), encode_time(times))
            assert th.equal(action, chain.sample(fresh, (1, 3), draws, clip_output=False))
        return len(calls)

    assert [encodings(), encodings()] == [1, 0]
    with th.no_grad():
        for parameter in (*denoiser.time_net.parameters(), weight):
            parameter.view(-1)[-1] += 1e-3  # the last number
            assert [encodings(), encodings()] == [1, 0]
            parameter.data.view(-1)[0] += 1e-3  # which autograd does not count
            assert [encodings(), encodings()] == [1, 0]
            parameter.data = parameter.data + 1e-3  # somewhere else in memory
            assert [encodings(), encodings()] == [1, 0]
    with th.inference_mode():
        weight.mul_(0.9)  # which it does not count either
    assert [encodings(), encodings()] == [1, 0]
    for _ in range(2):  # the same memory, but fewer times
        assert encodings(sampler.times[:1].unsqueeze(-1), ContinuousDiffusion().sampler(1, clip=False)) == 1
        assert encodings() == 1
    with th.no_grad():
        trunk.first.get_parameter("weight_0").mul_(0.9)  # not their business
    assert encodings() == 0


@needs_compiler
@pytest.mark.parametrize("state_arch", [(20,), ()])
def test_times_of_a_foreign_embedding_are_encoded_every_time(state_arch: tuple[int, ...]) -> None:
    class Drifting(RawTime):
        factor = 1.0

        def forward(self, t: th.Tensor) -> th.Tensor:
            return self.factor * t

    denoiser = Denoiser(4, 3, net_arch=(64, 64), time_embedding=Drifting, time_arch=(6,), state_arch=state_arch)
    sampler, observations, draws = ContinuousDiffusion().sampler(6, clip=False), th.randn(1, 4), chain_draws((1, 3))
    actions = []
    with th.no_grad():
        for Drifting.factor in (1.0, 2.0):
            bound = denoiser.bind_features(observations, sampler.times.unsqueeze(-1))
            actions.append(sampler.sample(bound, (1, 3), draws, clip_output=False))
    assert not th.equal(*actions)


@needs_compiler
def test_flows_with_their_encoders() -> None:
    """Acting with a flow is one call, too, also with intervals for times; not for rules that need several velocities."""
    observations, draws = th.randn(2, 4), chain_draws((2, 3))
    for process, solver in ((FlowMatching(), "euler"), (FlowMatching(), "rk4"), (MeanFlow(), "euler")):
        denoiser, sampler = Denoiser(4, 3, net_arch=(64, 64), n_times=process.n_times), process.sampler(4, solver)
        times = sampler.times.view(len(sampler.times), -1)
        with th.no_grad():
            action = sampler.sample(denoiser.bind_features(observations, times), (2, 3), draws)
            with kernels.switched_off():
                expected = sampler.sample(denoiser.bind_features(observations, times), (2, 3), draws)
        th.testing.assert_close(action, expected, rtol=0.0, atol=1e-5)
        assert (denoiser._encoded_chain is None) == (solver == "rk4")


def test_the_formula_that_the_chains_are_compared_with() -> None:
    """The gradient of PyTorch's chain, by finite differences."""
    sampler, draws = ContinuousDiffusion().sampler(3).double(), chain_draws((2, 3))
    denoiser = Denoiser(4, 3, net_arch=(8, 8)).double()
    observations = th.randn(2, 4, dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(lambda x: run(denoiser, sampler, x, (2, 3), draws, "sample"), observations)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets belong to x86-64")
@pytest.mark.parametrize("architecture", ["x86-64", "x86-64-v3"])
def test_other_instruction_sets(architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiles of other sizes, for processors with narrower registers than this one may have."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels.library, "FLAGS", (*kernels.library.FLAGS, f"-march={architecture}"))
    kernels.load_kernels.cache_clear()
    assert kernels.load_kernels() is not None
    try:
        for shape in ((1,), (5,), (130,), (7, 4)):
            test_networks("mish", None, (40, 72, 33), 21, 21, shape)
            test_networks("relu", 3, (256, 256), 3, 1, shape)
            test_gradients_of_networks("mish", None, (40, 72, 33), 21, 21, shape)
            test_gradients_of_networks("relu", 3, (256, 256), 3, 1, shape)
        test_gradients_of_chains(ContinuousDiffusion(), "ddpm", {}, (40, 3))
        test_value_gradients("mish", (40, 72, 33), ScalarCritics, "min", (30, 7))
        test_rows_do_not_depend_on_their_neighbours_or_on_threads()
    finally:
        kernels.load_kernels.cache_clear()


@needs_compiler
def test_rows_do_not_depend_on_their_neighbours_or_on_threads() -> None:
    network = MLP([3], [256, 256], 3, "mish")
    part, others = th.randn(500, 3), th.randn(500, 256)
    with th.no_grad():
        th.set_num_threads(1)
        whole = network.evaluate(0, part, others)
        th.set_num_threads(4)
        assert th.equal(network.evaluate(0, part, others), whole)
        for rows in (1, 3, 5, 17, 100):
            assert th.equal(network.evaluate(0, part[:rows], others[:rows]), whole[:rows])


@needs_compiler
def test_gradients_are_the_same_every_time() -> None:
    network = MLP([3], [64, 64], 3, "mish")
    part, others = th.randn(500, 3), th.randn(500, 64)
    th.set_num_threads(4)
    runs = [th.autograd.grad(network.evaluate(0, part, others).sum(), list(network.hidden.parameters())) for _ in range(5)]
    assert all(th.equal(first, other) for again in runs for first, other in zip(runs[0], again, strict=True))


@needs_compiler
@pytest.mark.parametrize("chain", [False, True])
def test_the_limits_of_a_backward_pass(chain: bool) -> None:
    """A second pass gives the same; second derivatives and changed weights are refused, not computed wrongly."""
    denoiser = Denoiser(4, 3, net_arch=(32, 32))
    sampler, draws = ContinuousDiffusion().sampler(3), chain_draws((5, 3))
    inputs = [th.randn(5, 4), th.randn(5, 3), th.randn(5, 32), th.randn(32)]

    def loss() -> th.Tensor:
        if chain:
            return run(denoiser, sampler, inputs[0], (5, 3), draws, "sample").sum()
        return denoiser(*inputs[1:]).sum()

    weights = [denoiser.trunk.get_parameter("hidden.0.weight")]
    with pytest.raises(RuntimeError, match="no second derivative"):
        th.autograd.grad(loss(), weights, create_graph=True)
    value = loss()
    (first,) = th.autograd.grad(value, weights, retain_graph=True)
    assert first.abs().sum() > 0.0 and th.equal(th.autograd.grad(value, weights)[0], first)
    value = loss()
    with th.no_grad():
        weights[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        th.autograd.grad(value, weights)


@needs_compiler
@pytest.mark.parametrize("activation", OTHERS)
@pytest.mark.parametrize("n_members", [None, 3])
@pytest.mark.parametrize("shape", [(1,), (130,), (7, 4)])
def test_other_activations(activation: str, n_members: int | None, shape: tuple[int, ...]) -> None:
    test_networks(activation, n_members, (40, 72, 33), 21, 21, shape)
    test_gradients_of_networks(activation, n_members, (40, 72, 33), 21, 21, shape)
    if n_members:
        test_value_gradients(activation, (40, 72, 33), ScalarCritics, "min", shape)


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "mish", *OTHERS])
def test_activations_are_right_everywhere(activation: str) -> None:
    """Close to zero, far out and at infinity, with their derivatives: a network that does nothing else."""
    network = MLP([1], [32], 1, activation)
    assert network.output is not None
    for parameter in network.parameters():
        th.nn.init.zeros_(parameter)
    th.nn.init.ones_(network.first.get_parameter("weight_0"))
    with th.no_grad():
        network.output.weight[0] = 1.0
    size = th.logspace(-7, 38, 1000)
    x = th.cat((-size.flip(0), th.zeros(1), size)).unsqueeze(-1).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, want = network.evaluate(0, x, th.zeros(1, 32)), FUNCTIONS[type(network.activation)](exact)
    th.testing.assert_close(out.double(), want, rtol=1e-6, atol=1e-6)
    (slope,) = th.autograd.grad(out.sum(), x)
    (exact_slope,) = th.autograd.grad(want.sum(), exact)
    if activation == "gelu":  # whose square overflows, as PyTorch's does in float32
        inside = x.abs() < 1e18
        slope, exact_slope = slope[inside], exact_slope[inside]
    th.testing.assert_close(slope.double(), exact_slope, rtol=2e-6, atol=2e-6)


@needs_compiler
def test_an_elu_of_another_kind_is_left_to_pytorch() -> None:
    """So is the GELU with the error function."""
    for activation in (functools.partial(th.nn.ELU, alpha=0.5), th.nn.GELU):
        network = MLP([3], [32, 32], 1, activation)
        assert network.kernel(0) is None


@needs_compiler
@pytest.mark.parametrize("activation", ["relu", "mish", *OTHERS])
def test_a_nan_stays_visible(activation: str) -> None:
    network = MLP([2], [32, 32], 1, activation)
    part = th.tensor([[0.0, float("nan")], [1.0, 1.0]])
    with th.no_grad():
        out = network.evaluate(0, part, th.zeros(2, 32))
    assert out[0].isnan().all() and out[1].isfinite().all()


@needs_compiler
def test_networks_follow_their_parameters() -> None:
    network = MLP([3], [32, 32], 1)
    part, others = th.randn(4, 3), th.randn(4, 32)
    with th.no_grad():
        first = network.evaluate(0, part, others)
        network.output.bias.add_(1.0)  # type: ignore[union-attr]
        th.testing.assert_close(network.evaluate(0, part, others), first + 1.0)
        for parameter in network.parameters():
            parameter.data = parameter.data.clone() * 0.5
        th.testing.assert_close(
            network.evaluate(0, part, others).double(), by_hand(network, 0, part, others), rtol=1e-5, atol=1e-5
        )


@needs_compiler
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_their_own_weights(duplicate: Any) -> None:
    network = MLP([3], [32, 32], 1)
    part, others = th.randn(4, 3), th.randn(4, 32)
    with th.no_grad():
        before = network.evaluate(0, part, others)
        twin = duplicate(network)
        assert twin.kernel(0) is not None
        for parameter in twin.parameters():
            parameter.zero_()
        assert th.equal(twin.evaluate(0, part, others), th.zeros(4, 1))
        assert th.equal(network.evaluate(0, part, others), before)


@needs_compiler
def test_other_inputs_go_the_ordinary_way() -> None:
    """Where gradients, other number formats or other layers are involved, the kernels keep out."""
    network = MLP([3], [32, 32], 1)
    part = th.randn(4, 3, requires_grad=True)
    assert network.evaluate(0, part, th.zeros(4, 32)).requires_grad
    with th.no_grad():
        assert network.double().evaluate(0, part.double(), th.zeros(4, 32, dtype=th.float64)).dtype == th.float64
        assert MLP([3], [32, 32], 1, layer_norm=True).kernel(0) is None


@needs_compiler
def test_switched_off_the_results_are_the_same() -> None:
    network = MLP([3], [32, 32], 1, "mish")
    part, others = th.randn(4, 3), th.randn(4, 32)
    with th.no_grad(), kernels.switched_off():
        assert not kernels.usable(part)
        off = network.evaluate(0, part, others)
    with th.no_grad():
        assert kernels.usable(part)
        th.testing.assert_close(network.evaluate(0, part, others), off, rtol=1e-5, atol=1e-5)


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_DIFFUSION_KERNELS", "0")
    kernels.load_kernels.cache_clear()
    assert kernels.load_kernels() is None
    kernels.load_kernels.cache_clear()
