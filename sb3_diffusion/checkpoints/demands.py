"""
What a file of a stranger may ask of this machine: told from the numbers of its description before anything is built, and
watched while networks are built, of which nothing is allocated that the weights in the file could not fill.
"""

import functools
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

MAX_COUNT = 10_000
"""Largest width, number of steps, of critics, of particles and the like."""
ACTIVATIONS = 16
"""Bytes that a tensor within a features extractor may have per entry of an observation."""
_CLOCKS = ("n_steps",)
SHARE = 4
"""Weights of the networks per weight in the file: a target may be left out, and a step of building may replace another."""
ROOM = 2**20
"""Bytes that every network may have besides: tables of schedules, times, support of a distribution."""
_SPARE_TENSORS = 64


# -- numbers of the description ------------------------------------------------------------------------------------------


def check_counts(values: dict[str, Any], where: str) -> dict[str, Any]:
    """
    Refuse numbers of which a loop, or a table, would be as long.

    :param values: Arguments of a policy or of an algorithm, from a file. Of an algorithm, only those are counts that begin
        with ``n_``: the others are intervals, and the size of the replay buffer
    :param where: ``policy_kwargs`` or ``arguments``
    :return: The same
    :raises ValueError: Naming the argument
    """
    for name, value in values.items():
        counts = where == "policy_kwargs" or (str(name).startswith("n_") and name not in _CLOCKS)
        if counts and (largest := _largest(value)) > MAX_COUNT:
            raise ValueError(f"{where}.{name} asks for {largest:,}, more than the {MAX_COUNT:,} that a file may.")
    return values


def _largest(value: Any) -> float:
    if isinstance(value, dict):
        return max(map(_largest, value.values()), default=0)
    if isinstance(value, list | tuple):
        return max(len(value), *map(_largest, value), 0)
    return int(value) if isinstance(value, int | np.integer) else 0


def n_entries(space: spaces.Space) -> int:
    """
    :param space: A space of observations or actions
    :return: How many numbers one of its samples has
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return sum(map(n_entries, parts))
    return math.prod(space.shape or ())


def memory_bytes(arguments: dict[str, Any], observations: spaces.Space, actions: spaces.Space, n_envs: int) -> int:
    """
    Size of the largest array of the replay or rollout buffer of an agent that trains on: of the observations. Their successors
    are another one, and both are only committed to memory as they fill.

    :param arguments: Arguments of the algorithm
    :param observations: Space of the observations
    :param actions: Space of the actions
    :param n_envs: Number of environments
    :return: About how many bytes it has
    """
    replay, rollout = arguments.get("buffer_size", 0), arguments.get("n_steps", 1)
    sizes = [size for size in (replay, rollout * n_envs if isinstance(rollout, int) else 0) if isinstance(size, int)]
    row = n_entries(observations) * _item_size(observations) + 4 * n_entries(actions) + 16
    return max(sizes, default=0) * row


def check_memory(n_bytes: int) -> None:
    """
    :param n_bytes: Result of :func:`memory_bytes`
    :raises ValueError: If that is more than the machine has
    """
    if n_bytes > (installed := _installed_memory()):
        raise ValueError(
            f"its memory of transitions would take {n_bytes:,} bytes, this machine has {installed:,}; pass a smaller "
            "buffer_size=... (n_steps=... for on-policy algorithms) to load_agent"
        )


def _item_size(space: spaces.Space) -> int:
    if isinstance(space, spaces.Dict):
        return max(map(_item_size, space.spaces.values()), default=1)
    return space.dtype.itemsize if space.dtype is not None else 4


def _installed_memory() -> float:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# -- networks that are being built ---------------------------------------------------------------------------------------


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
