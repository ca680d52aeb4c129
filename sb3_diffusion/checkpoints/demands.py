"""What the description of an agent would cost this machine, told from its numbers before anything is built."""

import math
import os
from typing import Any

import numpy as np
from gymnasium import spaces

MAX_COUNT = 10_000
"""Largest width, number of steps, of critics, of particles and the like."""
ACTIVATIONS = 16
"""Bytes that a tensor within a features extractor may have per entry of an observation."""
_CLOCKS = ("n_steps",)


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
