"""Activation functions by name, and a Mish that needs one exponential."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from sb3_diffusion.kernels import hooked, observed
from sb3_diffusion.kernels import mish as compiled_mish

# exp(20)^2 is far from the float32 limit, and tanh(softplus(20)) equals 1 even in float64
_MAX_EXPONENT = 20.0
# measured on one core: below this many elements the single kernel of F.mish is faster than several cheap ones
_SMALL = 3072
# measured on one core: temporaries of this many elements stay in the cache (28 ms -> 19 ms for 8 million elements)
_CHUNK = 65536


def _mish_ratio(x: th.Tensor) -> th.Tensor:
    """Plain formula for compilers, which fuse it and derive its gradient themselves."""
    w = x.clamp(max=_MAX_EXPONENT).exp()
    half_n = th.addcmul(w, w, w, value=0.5)
    return x * (half_n / (half_n + 1.0))


def _write_mish(x: th.Tensor, out: th.Tensor) -> None:
    # x - x / (n/2 + 1): four passes, right even where the exponential overflows; the error is a rounding error of x
    w = th.exp(x)
    th.addcdiv(x, x, w.addcmul_(w, w, value=0.5).add_(1.0), value=-1.0, out=out)


def _write_mish_and_slope(x: th.Tensor, out: th.Tensor, slope: th.Tensor) -> None:
    """With h = n/2 = e^x (1 + e^x / 2): mish = x - x / (h+1), slope = (h + x h' / (h+1)) / (h+1)."""
    clamped = th.clamp_max(x, _MAX_EXPONENT)
    w = clamped.exp()
    half_n = th.addcmul(w, w, w, value=0.5)
    th.addcmul(w, w, w, out=slope)
    denominator = th.add(half_n, 1.0, out=w)
    slope.mul_(clamped).div_(denominator).add_(half_n).div_(denominator)
    th.addcdiv(x, x, denominator, value=-1.0, out=out)


def _by_chunks(write: Callable[..., None], *tensors: th.Tensor) -> None:
    """Apply an elementwise writer piece by piece, so that its temporaries never leave the cache."""
    size = _CHUNK * th.get_num_threads()
    if tensors[0].numel() <= size:
        write(*tensors)
        return
    for pieces in zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True):
        write(*pieces)


class _MishFunction(th.autograd.Function):
    """Mish that stores its slope instead of its input: the backward pass is one product."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        x = x.contiguous()
        out, slope = th.empty_like(x), th.empty_like(x)
        if not compiled_mish(x, out, slope):
            _by_chunks(_write_mish_and_slope, x, out, slope)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: th.Tensor) -> th.Tensor:
        # the stored slope is a constant to autograd: a second derivative would silently miss a term
        if th.is_grad_enabled():
            raise RuntimeError(
                "Mish has no second derivative here; for create_graph=True pass activation=torch.nn.Mish instead."
            )
        (slope,) = ctx.saved_tensors
        return grad_output * slope


def mish(x: th.Tensor, inplace: bool = False) -> th.Tensor:
    """
    ``x * tanh(softplus(x))``, written as ``x * n / (n + 2)`` with ``n = e^x (e^x + 2)``.

    Large CPU tensors can be differentiated once only; ``create_graph=True`` raises ``RuntimeError``
    (use ``torch.nn.Mish`` where a second derivative is needed). Forward-mode derivatives work.

    :param x: Any shape
    :param inplace: The caller gives up ``x``, whose memory may then hold the result
    :return: Tensor of the shape of ``x``
    """
    # an exported program takes any number of rows, so nothing may depend on it
    if th.compiler.is_exporting():
        return F.mish(x)
    # e^20 squared overflows a float16; on an accelerator one kernel beats several
    if x.numel() < _SMALL or not x.is_cpu or x.dtype == th.float16:
        return F.mish(x)
    if th.compiler.is_compiling():
        return _mish_ratio(x)
    if observed() or type(x) not in (th.Tensor, nn.Parameter):
        return F.mish(x)  # what writes into a given tensor can neither be traced nor transformed
    if th.is_grad_enabled() and x.requires_grad:
        return _MishFunction.apply(x)  # type: ignore[no-any-return]
    if not (inplace and x.is_contiguous()):
        inplace, x = False, x.contiguous()
    out = x if inplace else th.empty_like(x)
    if not compiled_mish(x, out):
        _by_chunks(_write_mish, x, out)
    return out


class Mish(nn.Module):
    """Mish activation; a drop-in for ``torch.nn.Mish`` that is two to five times faster on a CPU, see :func:`mish`."""

    @override
    def forward(self, x: th.Tensor) -> th.Tensor:
        return mish(x)


class GELU(nn.Module):
    """GELU in its tanh approximation, the convention of the reference implementation."""

    @override
    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": GELU,
    "mish": Mish,
}


def resolve_activation(spec: str | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """
    Find what makes an activation.

    :param spec: A name (relu, elu, silu, tanh, gelu, mish), a module class, or a function without arguments that makes a
        module, such as ``functools.partial(torch.nn.LeakyReLU, 0.2)``
    :return: The class or function; call it without arguments to get the module
    """
    if isinstance(spec, str):
        if spec.lower() not in ACTIVATIONS:
            raise ValueError(f"activation={spec!r} is unknown; choose one of {', '.join(ACTIVATIONS)} or pass a module class.")
        return ACTIVATIONS[spec.lower()]
    if isinstance(spec, type) and issubclass(spec, nn.Module):
        return spec
    if callable(spec) and not isinstance(spec, nn.Module | type):
        return partial(_call, spec)
    raise TypeError(
        f"activation={spec!r} must be a name, a subclass of torch.nn.Module or a function without arguments that makes one, "
        f"not {type(spec).__name__}."
    )


def _call(make: Callable[[], nn.Module]) -> nn.Module:
    activation = make()
    if not isinstance(activation, nn.Module):
        raise TypeError(f"activation={make!r} returns {activation!r}, which is no torch.nn.Module.")
    if hasattr(activation, "inplace"):
        activation.inplace = False  # type: ignore[assignment]  # the networks know themselves what may be overwritten
    return activation


def _mish_(x: th.Tensor) -> th.Tensor:
    return mish(x, inplace=True)


def _relu_(x: th.Tensor) -> th.Tensor:
    return th.relu_(x)


def _tanh_(x: th.Tensor) -> th.Tensor:
    return th.tanh_(x)


def _elu_(x: th.Tensor) -> th.Tensor:
    return F.elu(x, inplace=True)


def _silu_(x: th.Tensor) -> th.Tensor:
    return F.silu(x, inplace=True)


_OVERWRITING: dict[type[nn.Module], Callable[[th.Tensor], th.Tensor]] = {
    nn.ReLU: _relu_,
    nn.ELU: _elu_,
    nn.SiLU: _silu_,
    nn.Tanh: _tanh_,
    Mish: _mish_,
}


def is_default(activation: nn.Module) -> bool:
    """
    Whether an activation is the function that its class stands for, as an ELU is with an ``alpha`` of one only.

    :param activation: Activation module
    """
    return type(activation) is not nn.ELU or activation.alpha == 1.0


def overwriting(activation: nn.Module) -> Callable[[th.Tensor], th.Tensor]:
    """
    The variant of an activation that may overwrite its argument, for intermediates nobody else sees.

    :param activation: Activation module
    :return: A function; where no such variant exists, the module's own ``forward``, which leaves its argument alone
    """
    if is_default(activation):
        return _OVERWRITING.get(type(activation), activation.forward)
    return activation.forward


def activate(activation: nn.Module, x: th.Tensor, owned: bool) -> th.Tensor:
    """
    Apply an activation, in place where that is possible and nobody can see it.

    :param activation: Activation module
    :param x: Its argument
    :param owned: Whether nobody else has seen ``x``: neither the caller's caller, nor a hook of the layer it comes from
    :return: Tensor of the shape of ``x``
    """
    return overwriting(activation)(x) if owned and not hooked(activation) else activation(x)  # type: ignore[no-any-return]
