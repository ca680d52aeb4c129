"""Mish with one exponential against torch's own, and the lookup of activations."""

from functools import partial

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffusion.networks.activations import (
    ACTIVATIONS,
    Mish,
    _by_chunks,
    _write_mish,
    activate,
    mish,
    overwriting,
    resolve_activation,
)

# below and above the size from which the library uses its own kernels
SIZES = [64, 4096, 200_000]


def grid(size: int, dtype: th.dtype = th.float64) -> th.Tensor:
    return th.linspace(-30.0, 30.0, size, dtype=dtype)


@pytest.mark.parametrize("size", SIZES)
def test_mish_value_and_gradient(size: int) -> None:
    x = grid(size).requires_grad_()
    weight = th.linspace(-1.0, 1.0, size, dtype=th.float64)
    (got,) = th.autograd.grad((mish(x) * weight).sum(), x)
    (want,) = th.autograd.grad((F.mish(x) * weight).sum(), x)
    th.testing.assert_close(mish(x), F.mish(x), rtol=1e-9, atol=1e-9)
    # beyond its threshold of 20, softplus of torch is the identity: an error of 2e-9 that is not ours
    th.testing.assert_close(got, want, rtol=1e-9, atol=1e-8)
    inner = x.abs() < 19
    th.testing.assert_close(got[inner], want[inner], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_mish_without_gradient_keeps_its_input(size: int) -> None:
    x = grid(size)
    before = x.clone()
    th.testing.assert_close(mish(x), F.mish(x), rtol=1e-9, atol=1e-9)
    th.testing.assert_close(x, before, rtol=0, atol=0)
    with th.no_grad():
        leaf = before.clone().requires_grad_()
        th.testing.assert_close(mish(leaf), F.mish(before), rtol=1e-9, atol=1e-9)
    th.testing.assert_close(leaf.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_mish_inplace(size: int) -> None:
    x = grid(size)
    want = F.mish(x)
    th.testing.assert_close(mish(x, inplace=True), want, rtol=1e-9, atol=1e-9)


def test_mish_of_non_contiguous_tensors() -> None:
    x = th.randn(128, 64, dtype=th.float64).t()
    leaf = x.clone().t().contiguous().t().requires_grad_()
    th.testing.assert_close(mish(x), F.mish(x), rtol=1e-9, atol=1e-9)
    th.testing.assert_close(mish(x, inplace=True), F.mish(x), rtol=1e-9, atol=1e-9)
    (got,) = th.autograd.grad(mish(leaf).square().sum(), leaf)
    (want,) = th.autograd.grad(F.mish(leaf).square().sum(), leaf)
    th.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_mish_of_extreme_inputs(size: int, dtype: th.dtype) -> None:
    x = th.tensor([-1e4, -100.0, -88.0, 20.0, 88.0, 100.0, 1e4, 1e30], dtype=dtype).repeat(size // 8 + 1)
    x.requires_grad_()
    y = mish(x)
    (slope,) = th.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and slope.isfinite().all()
    large = x >= 20
    th.testing.assert_close(y[large], x[large])
    th.testing.assert_close(mish(x.detach()), y, rtol=1e-6, atol=1e-6)
    th.testing.assert_close(slope[large], th.ones_like(slope[large]))
    # next to zero, up to the rounding of the input
    assert (y[~large] / x[~large]).abs().max() < th.finfo(dtype).eps and slope[~large].abs().max() < 1e-36


def test_mish_passes_gradcheck() -> None:
    x = th.linspace(-6, 6, 4000, dtype=th.float64).requires_grad_()
    # all entries at once: a directional derivative
    direction = th.ones_like(x)
    assert th.autograd.gradcheck(
        lambda s: mish(x.detach() + s * direction).sum(), th.zeros(1, dtype=th.float64, requires_grad=True)
    )


def test_second_derivative_of_large_mish_is_refused() -> None:
    x = th.randn(8192, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.nn\.Mish"):
        th.autograd.grad(mish(x).sum(), x, create_graph=True)


def test_chunks_cover_ragged_sizes() -> None:
    x = th.randn(2 * 65536 * th.get_num_threads() + 17)
    out = th.full_like(x, th.nan)
    _by_chunks(_write_mish, x, out)
    th.testing.assert_close(out, F.mish(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [64, 8192])
def test_overwriting_variants_agree(name: str, size: int) -> None:
    activation = resolve_activation(name)()
    x = th.linspace(-5, 5, size)
    th.testing.assert_close(overwriting(activation)(x.clone()), activation(x))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    overwriting(activation)(leaves[0] * 2.0).square().sum().backward()
    activation(leaves[1] * 2.0).square().sum().backward()
    th.testing.assert_close(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("activation", [nn.ELU(alpha=0.3), nn.LeakyReLU(0.4), nn.GELU("tanh"), nn.Softplus(beta=2.0)])
def test_numbers_of_an_activation_count(activation: nn.Module) -> None:
    x = th.linspace(-3, 3, 9)
    th.testing.assert_close(overwriting(activation)(x.clone()), activation(x), rtol=0.0, atol=0.0)
    th.testing.assert_close(activate(activation, x.clone(), owned=True), activation(x), rtol=0.0, atol=0.0)


def test_activation_lookup() -> None:
    assert resolve_activation("Mish") is Mish
    assert resolve_activation(nn.Softplus) is nn.Softplus
    with pytest.raises(ValueError, match="relu, elu, silu, tanh, gelu, mish"):
        resolve_activation("swish2")
    for wrong in (3, nn.ReLU(), int):
        with pytest.raises(TypeError, match="activation"):
            resolve_activation(wrong)  # type: ignore[arg-type]


def test_an_activation_may_be_made_by_a_function() -> None:
    made = resolve_activation(partial(nn.LeakyReLU, 0.2))()
    assert isinstance(made, nn.LeakyReLU) and made.negative_slope == 0.2
    assert isinstance(resolve_activation(lambda: nn.Hardtanh(-2.0, 2.0))(), nn.Hardtanh)
    # what may be overwritten is the networks' decision
    x = th.randn(4)
    kept, activation = x.clone(), resolve_activation(partial(nn.ReLU, inplace=True))()
    th.testing.assert_close(activation(x), kept.relu())
    th.testing.assert_close(x, kept, rtol=0.0, atol=0.0)
    with pytest.raises(TypeError, match=r"no torch\.nn\.Module"):
        resolve_activation(lambda: th.relu)()  # type: ignore[arg-type, return-value]
