"""
The guard in front of the compiled kernels: whether a call may take the fast way, here and now.

Compiled code reads memory by address. It may run where PyTorch would run the same layers, one after the other, on plain
arrays: nobody compiles, traces, transforms or watches the operations, every tensor is what it seems, and the modules are those
that were compiled. Everywhere else PyTorch's own layers run, and give PyTorch's own result or error.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch as th
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _modules
from torch.utils._device import DeviceContext
from torch.utils.hooks import RemovableHandle

PLAIN_TYPES = frozenset((th.Tensor, nn.Parameter))  # subclasses may mean something else by their numbers
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _modules._global_forward_hooks,
    _modules._global_forward_pre_hooks,
    _modules._global_backward_hooks,
    _modules._global_backward_pre_hooks,
)
#: private to PyTorch; without it every call is looked at anew
_TensorGuards: Any = getattr(getattr(getattr(th._C, "_dynamo", None), "guards", None), "TensorGuards", None)
_switched_off = False


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Use PyTorch's operations only, for example to count them."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def observed() -> bool:
    """
    Whether somebody compiles, traces, transforms, watches or replaces PyTorch's operations, so that all of them have to be
    PyTorch's own: compilers, exporters, ``torch.jit.trace``, ``torch.func``, forward mode, modes of dispatch and of functions.
    """
    if th.compiler.is_compiling():  # first: compilers cannot look into what follows
        return True
    return (
        th.jit.is_tracing()
        or forward_ad._current_level >= 0
        or th._C._functorch.peek_interpreter_stack() is not None
        or th._C._len_torch_dispatch_stack() > 0
        or (th._C._len_torch_function_stack() > 0 and _functions_are_replaced())
    )


def _functions_are_replaced() -> bool:
    # a default device only says where new tensors are made, and ours are made where the old ones are
    return any(type(mode) is not DeviceContext for mode in th.overrides._get_current_function_mode_stack())


def is_plain(tensor: th.Tensor) -> bool:
    """
    Whether a tensor is an array of float32 numbers in the memory of the CPU, whatever its strides.

    :param tensor: Any tensor
    """
    if type(tensor) not in PLAIN_TYPES or tensor.dtype is not th.float32:
        return False
    if not tensor.is_cpu or tensor.layout is not th.strided or tensor.is_nested or tensor.is_neg():
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # the wrapper of a transform
        return False


def allows(*tensors: th.Tensor, differentiable: bool = False) -> bool:
    """
    Whether compiled code may work on these tensors here and now, if there is any.

    :param tensors: All inputs
    :param differentiable: Whether the caller's kernel has a backward pass
    """
    if _switched_off or (th.is_grad_enabled() and not differentiable) or observed():
        return False
    for tensor in tensors:
        if not is_plain(tensor):
            return False
    return not th.is_autocast_enabled("cpu")


class Seen:
    """
    Tensors that :func:`allows` has let pass without a gradient. Whether others are of the same kind, and the surroundings
    too, is one question to the guard behind ``torch.compile``: type, number format, sizes, strides, and who would be asked to
    compute. Asking for all of that one by one took 7 % of the time of an action (docs: speed).

    :param tensors: The tensors
    """

    def __init__(self, *tensors: th.Tensor):
        self._guard: Any = None
        if _TensorGuards is not None:
            self._guard = _TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self._number = len(tensors)

    def again(self, *tensors: Any) -> bool:
        """
        Whether tensors are like those, so that the answer would be the same. What is stored where may differ.

        :param tensors: As many as then
        """
        return (
            self._guard is not None
            and len(tensors) == self._number
            and not _switched_off
            and not th.is_grad_enabled()
            and forward_ad._current_level < 0
            and th._C._len_torch_function_stack() == 0
            and self._guard.check(*tensors)
        )


def hooked(module: nn.Module) -> bool:
    """
    Whether calling a module calls hooks.

    :param module: Any module
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(_GLOBAL_HOOKS)
    )


class Watch:
    """
    The modules that something was compiled from: whether they are still in their places, and whether somebody hooks into them.

    Parameters are not watched; who reads them looks at them at every call.

    :param modules: The modules
    """

    def __init__(self, modules: Iterable[nn.Module]):
        watched = [module for module in modules if not isinstance(module, nn.ModuleList) or len(module)]
        called = [module for module in watched if not isinstance(module, nn.ModuleList)]
        self._hooks = [
            *_GLOBAL_HOOKS,
            *(
                hooks
                for module in called
                for hooks in (
                    module._forward_hooks,
                    module._forward_pre_hooks,
                    module._backward_hooks,
                    module._backward_pre_hooks,
                )
            ),
        ]
        # comparing lists is the fastest way to compare many things at once
        self._modules, self._types = called, list(map(type, called))
        self._children = [module._modules for module in watched if module._modules]
        self._children_then = list(map(dict, self._children))
        self._attributes = [module.__dict__ for module in called]
        self._attributes_then = list(map(len, self._attributes))  # a forward() of the object's own adds one
        self._numbered = [attributes for attributes in self._attributes if "alpha" in attributes]  # an ELU's is a number
        self._numbers = [attributes["alpha"] for attributes in self._numbered]
        self._replaced = any("forward" in attributes for attributes in self._attributes)
        self._last_silent = -1  # number of the next hook of the process when nothing was hooked last

    def same(self) -> bool:
        """Whether all modules are what they were when the watch began."""
        return (
            self._children == self._children_then
            and list(map(type, self._modules)) == self._types
            and list(map(len, self._attributes)) == self._attributes_then
            and [attributes["alpha"] for attributes in self._numbered] == self._numbers
        )

    def silent(self) -> bool:
        """Whether calling the modules would do nothing but compute."""
        # every registration of a hook takes a number, so that most calls need not look at five dozen dictionaries
        number = RemovableHandle.next_id
        if number == self._last_silent:
            return True
        if any(self._hooks) or self._replaced:
            return False
        self._last_silent = number
        return True
