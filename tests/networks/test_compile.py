"""torch.compile takes the networks as one graph and returns the same numbers and gradients."""

from collections.abc import Iterator

import pytest
import torch as th

from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.networks.denoiser import Denoiser


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    th.compiler.reset()
    yield
    th.compiler.reset()


# the tracing is what can fail here; "aot_eager" traces forward and backward without a C++ compiler
@pytest.mark.parametrize("batch", [4, 64])
def test_denoiser_compiles_as_one_graph(batch: int) -> None:
    denoiser = Denoiser(5, 2, (64, 64), time_dim=8)
    features, x, t = th.randn(batch, 5), th.randn(batch, 2), th.rand(batch, 1)

    def loss(x: th.Tensor) -> th.Tensor:
        return denoiser(x, denoiser.encode_state(features), denoiser.encode_time(t)).square().mean()

    compiled = th.compile(loss, fullgraph=True, backend="aot_eager")
    parameters = list(denoiser.parameters())
    th.testing.assert_close(compiled(x), loss(x), rtol=1e-5, atol=1e-6)
    want = th.autograd.grad(loss(x), parameters)
    for got, gradient in zip(th.autograd.grad(compiled(x), parameters), want, strict=True):
        th.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-6)
    with th.no_grad():
        th.testing.assert_close(compiled(x), loss(x), rtol=1e-5, atol=1e-6)


def test_critics_compile_as_one_graph() -> None:
    critics = ScalarCritics(5, 2, net_arch=(64, 64), activation="mish", layer_norm=True)
    features, actions = th.randn(16, 5), th.randn(16, 8, 2, requires_grad=True)

    def guidance(actions: th.Tensor) -> th.Tensor:
        return critics(actions, critics.encode_state(features)).amin(0).sum()

    compiled = th.compile(guidance, fullgraph=True, backend="aot_eager")
    (want,) = th.autograd.grad(guidance(actions), actions)
    (got,) = th.autograd.grad(compiled(actions), actions)
    th.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
