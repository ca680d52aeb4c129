"""Networks that are to get the weights of a file: nothing of them is allocated that the file could not fill."""

import functools
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

SHARE = 4
"""Weights of the networks per weight in the file: a target may be left out, and a step of building may replace another."""
ROOM = 2**20
"""Bytes that every network may have besides: tables of schedules, times, support of a distribution."""
_SPARE_TENSORS = 64


def held(state: Mapping[Any, th.Tensor]) -> tuple[int, int]:
    """
    :param state: Tensors, some of which may share their numbers
    :return: How many there are, and how many bytes they have together
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    return len(state), sum(storages.values())


@contextmanager
def at_most(n_tensors: int, n_bytes: int, spare_bytes: int) -> Iterator[None]:
    """
    Within it, building networks stops before a tensor is allocated that is much larger than all that the file has, and as
    soon as there are many more tensors, or bytes in them, than in the file. Other threads are left alone.

    :param n_tensors: Number of the tensors in the file
    :param n_bytes: Their size
    :param spare_bytes: What a single tensor that does not come from the file may have, such as a replay buffer
    """
    thread = threading.get_ident()
    most_tensors, most_bytes = SHARE * n_tensors + _SPARE_TENSORS, SHARE * n_bytes + ROOM
    made_tensors = made_bytes = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made_tensors, made_bytes
        if parameter is None or nn.parameter.is_lazy(parameter) or threading.get_ident() != thread:
            return
        made_tensors += 1
        made_bytes += parameter.numel() * parameter.element_size()
        if made_tensors > most_tensors:
            raise ValueError(f"the networks have more than {most_tensors:,} weights and biases, the file {n_tensors:,}")
        if made_bytes > most_bytes:
            raise ValueError(f"the networks have more than {made_bytes:,} bytes of weights, the file {n_bytes:,}")

    handle = register_module_parameter_registration_hook(count)
    try:
        with _Allocations(max(most_bytes, ROOM + spare_bytes), f"the file has {n_bytes:,} bytes of weights"):
            yield
    finally:
        handle.remove()


class _Allocations(TorchDispatchMode):
    """Looks at every tensor that is made from nothing, before it is made."""

    def __init__(self, most_bytes: int, reason: str):
        super().__init__()
        self.most_bytes = most_bytes
        self.reason = reason

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = dict(zip(_argument_names(func), args, strict=False)) | kwargs
        n_bytes = _entries(given) * (kwargs.get("dtype") or th.get_default_dtype()).itemsize
        if n_bytes > self.most_bytes:
            raise ValueError(f"the networks have more than {n_bytes:,} bytes of weights in one tensor, {self.reason}")
        return func(*args, **kwargs)


@functools.cache
def _argument_names(func: Any) -> tuple[str, ...]:
    """Of an operation that makes a new tensor; none for those that return a view of one that is there."""
    if any(result.alias_info is not None for result in func._schema.returns):
        return ()
    return tuple(argument.name for argument in func._schema.arguments)


def _entries(given: dict[str, Any]) -> float:
    """Size of the result of an operation, as far as its arguments tell: shapes and lengths, not those of other tensors."""
    size = given.get("size")
    if isinstance(size, list | tuple):
        return math.prod(size)
    if "steps" in given:  # linspace
        return abs(given["steps"])
    if "n" in given and "self" not in given:  # eye
        return given["n"] * given.get("m", given["n"])
    if "end" in given and "self" not in given:  # arange
        return abs(given["end"] - given.get("start", 0)) / abs(given.get("step", 1) or 1)
    return 0
