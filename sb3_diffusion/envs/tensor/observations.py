"""Observations as tensors: one tensor, or one for each entry of a ``Dict`` space."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces

Observation: TypeAlias = th.Tensor | dict[str, th.Tensor]
Array: TypeAlias = np.ndarray | dict[str, np.ndarray]


def each(function: Callable[..., th.Tensor], *observations: Observation) -> Observation:
    """
    :param function: What to do with one tensor of each observation
    :param observations: Observations of the same space
    :return: The results, arranged as the observations are
    """
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(entries[key] for entries in observations)) for key in first}  # type: ignore[index]
    return function(*observations)


def where(rows: th.Tensor, observation: Observation, otherwise: Observation) -> Observation:
    """
    :param rows: Which environments, ``(n_envs,)``
    :param observation: What to take there
    :param otherwise: What to take elsewhere
    """

    def choose(one: th.Tensor, other: th.Tensor) -> th.Tensor:
        return th.where(rows.reshape(-1, *(1,) * (one.dim() - 1)), one, other)

    return each(choose, observation, otherwise)


def to_numpy(observation: Observation) -> Array:
    """
    :param observation: Tensors of any device
    :return: Copies, which nobody else holds
    """
    if isinstance(observation, dict):
        return {key: tensor.cpu().numpy().copy() for key, tensor in observation.items()}
    return observation.cpu().numpy().copy()


def to_tensor(array: Array, device: th.device) -> Observation:
    """
    :param array: Arrays of NumPy
    :param device: Where the copies go; numbers of double precision become single
    """
    if isinstance(array, dict):
        return {key: upload(entry, device) for key, entry in array.items()}
    return upload(array, device)


def upload(array: np.ndarray, device: th.device) -> th.Tensor:
    """
    :param array: Array of NumPy
    :param device: Where the copy goes; numbers of double precision become single
    """
    copied = np.array(array, dtype=np.float32 if array.dtype == np.float64 else array.dtype)
    return th.from_numpy(copied).to(device)


def box(shape: tuple[int, ...], low: object = -np.inf, high: object = np.inf) -> spaces.Box:
    """
    :param shape: Shape of the observation or action of one environment
    :param low: Lower bounds, a number or an array
    :param high: Upper bounds, a number or an array
    :return: Such a space of float32
    """
    lowest, highest = (np.broadcast_to(np.asarray(bound, np.float32), shape).copy() for bound in (low, high))
    return spaces.Box(lowest, highest, shape, np.float32)
