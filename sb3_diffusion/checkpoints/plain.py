"""
Constructor arguments as plain JSON, and back without executing anything.

The dialect is that of ``tagged_json.py``, with inline ``values`` of arrays. ``{":class": "torch.nn.ReLU"}`` is a class, and
``{":object": "LinearSchedule", ...}`` an object to be made of arguments, both from fixed lists, never imported by name.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her import GoalSelectionStrategy, HerReplayBuffer

from sb3_diffusion.checkpoints.tagged_json import read_float, tag_of, write_float, write_mapping
from sb3_diffusion.data.replay import TensorDictReplayBuffer, TensorNStepReplayBuffer, TensorReplayBuffer
from sb3_diffusion.networks.activations import ACTIVATIONS
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES
from sb3_diffusion.policies.guided import GUIDED_POLICIES
from sb3_diffusion.policies.names import POLICIES
from sb3_diffusion.printable import printable, quoted

MAX_AXES = 32
"""Largest number of axes of an array."""


class NotPlain(TypeError):
    """
    A value that cannot be written as plain JSON.

    :param where: The argument, such as ``policy_kwargs.optimizer_class``
    :param what: The value in words
    """

    def __init__(self, where: str, what: str):
        super().__init__(f"{where} is {what}")
        self.where = where
        self.what = what


def _allowed_classes() -> dict[str, type]:
    activations = (getattr(th.nn.modules.activation, name) for name in th.nn.modules.activation.__all__)
    optimizers = (value for value in vars(th.optim).values() if isinstance(value, type))
    groups: dict[str, list[type]] = {
        "torch.nn": [cls for cls in activations if cls is not th.nn.MultiheadAttention],
        "torch.optim": [cls for cls in optimizers if issubclass(cls, th.optim.Optimizer)],
        "stable_baselines3": [
            RMSpropTFLike,
            torch_layers.FlattenExtractor,
            torch_layers.NatureCNN,
            torch_layers.CombinedExtractor,
            buffers.ReplayBuffer,
            buffers.DictReplayBuffer,
            buffers.NStepReplayBuffer,
            buffers.RolloutBuffer,
            buffers.DictRolloutBuffer,
            HerReplayBuffer,
        ],
        "sb3_diffusion": [
            *POLICIES.values(),
            *GUIDED_POLICIES.values(),
            *GAUSSIAN_POLICIES.values(),
            TensorReplayBuffer,
            TensorNStepReplayBuffer,
            TensorDictReplayBuffer,
            *(cls for cls in ACTIVATIONS.values() if cls.__module__.startswith("sb3_diffusion.")),
        ],
    }
    return {f"{group}.{cls.__name__}": cls for group, classes in groups.items() for cls in classes}


CLASSES = _allowed_classes()
"""Name -> class, of all classes that an argument in a file may name."""
_CLASS_NAMES = {cls: name for name, cls in reversed(CLASSES.items())}

# Attributes of an object that are the arguments of its constructor, in their order.
_OBJECTS: dict[str, tuple[type, dict[str, str]]] = {
    "LinearSchedule": (LinearSchedule, {"start": "start", "end": "end", "end_fraction": "end_fraction"}),
    "ConstantSchedule": (ConstantSchedule, {"val": "val"}),
    "FloatSchedule": (FloatSchedule, {"value_schedule": "value_schedule"}),
    "NormalActionNoise": (NormalActionNoise, {"mean": "_mu", "sigma": "_sigma", "dtype": "_dtype"}),
    "OrnsteinUhlenbeckActionNoise": (
        OrnsteinUhlenbeckActionNoise,
        {
            "mean": "_mu",
            "sigma": "_sigma",
            "theta": "_theta",
            "dt": "_dt",
            "initial_noise": "initial_noise",
            "dtype": "_dtype",
        },
    ),
}
_OBJECT_NAMES = {cls: name for name, (cls, _) in _OBJECTS.items()}


def to_plain(value: Any, where: str) -> Any:
    """
    :param value: An argument
    :param where: Its name, for the message
    :return: What standard JSON can write
    :raises NotPlain: If there is no such form
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return write_float(value)
    if isinstance(value, VectorizedActionNoise):  # Stable-Baselines3 wraps the user's own for several environments
        return to_plain(value.base_noise, where)
    for accepts, convert in _WRITERS:
        if accepts(value):
            return convert(value, where)
    raise NotPlain(where, _in_words(value))


def _write_mapping(value: Mapping[Any, Any], where: str) -> Any:
    def write_item(key: Any, item: Any) -> Any:
        return to_plain(item, f"{where}.{key}" if type(key) is str else f"{where}[{key!r}]")

    return write_mapping(value.items(), lambda key: to_plain(key, where), write_item)


def _write_sequence(value: Any, where: str) -> Any:
    items = [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return items if type(value) is list else {":tuple": items}


def _write_scalar(value: np.generic, where: str) -> Any:
    # every number of these types is a Python number, so that nothing is lost
    return {":scalar": [value.dtype.name, to_plain(value.item(), where)]}


def _write_array(value: np.ndarray, where: str) -> Any:
    numbers = [to_plain(item, where) for item in value.ravel().tolist()]
    return {":array": {"dtype": value.dtype.name, "shape": list(value.shape), "values": numbers}}


def _write_object(value: Any, where: str) -> Any:
    name = _OBJECT_NAMES[type(value)]
    parts = _OBJECTS[name][1].items()
    return {":object": name, **{key: to_plain(getattr(value, attribute), f"{where}.{key}") for key, attribute in parts}}


def _numeric(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8


_WRITERS: list[tuple[Callable[[Any], bool], Callable[[Any, str], Any]]] = [
    (lambda value: type(value) in (dict, OrderedDict), _write_mapping),
    # a named tuple of Stable-Baselines3 is one for its constructors, too
    (lambda value: isinstance(value, list | tuple), _write_sequence),
    (lambda value: isinstance(value, np.generic) and _numeric(value.dtype), _write_scalar),
    (lambda value: type(value) is np.ndarray and _numeric(value.dtype), _write_array),
    (lambda value: isinstance(value, np.dtype) and _numeric(value), lambda value, where: {":dtype": value.name}),
    (
        lambda value: isinstance(value, type) and issubclass(value, np.generic) and _numeric(np.dtype(value)),
        lambda value, where: {":dtype": np.dtype(value).name},
    ),
    (lambda value: isinstance(value, type) and value in _CLASS_NAMES, lambda value, where: {":class": _CLASS_NAMES[value]}),
    # the constructors take its name
    (lambda value: isinstance(value, TrainFrequencyUnit), lambda value, where: value.value),
    (lambda value: isinstance(value, GoalSelectionStrategy), lambda value, where: {":goal": value.name}),
    (lambda value: type(value) in _OBJECT_NAMES, _write_object),
]


def _in_words(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    if isinstance(value, ActionNoise | Enum) or not hasattr(value, "__qualname__"):
        return f"an object of type {type(value).__module__}.{type(value).__qualname__}"
    return f"the function {value.__module__}.{value.__qualname__}"


def from_plain(value: Any, where: str) -> Any:
    """
    Inverse of :func:`to_plain`.

    :param value: What the JSON parser returned
    :param where: Name of the argument, for the message
    :raises ValueError: If it is none of the forms, or names a class that is not on the list
    """
    if isinstance(value, list):
        return [from_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if (tag := tag_of(value)) is None:
        return {key: from_plain(item, f"{where}.{key}") for key, item in value.items()}
    if tag not in _READERS or (len(value) > 1 and tag != ":object"):
        raise ValueError(f"{where} has the unknown form {quoted(tag)}; known are {', '.join(_READERS)}.")
    try:
        return _READERS[tag](value, where)
    except (TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{where} is no valid {quoted(tag)} ({printable(error)}).") from error


def _read_class(value: dict[str, Any], where: str) -> type:
    name = value[":class"]
    if name not in CLASSES:
        raise ValueError(
            f"{where} names the class {quoted(name)}, which is not on the list of sb3_diffusion.checkpoints.plain.CLASSES."
        )
    return CLASSES[name]


def read_dtype(name: Any, where: str) -> np.dtype:
    """
    :param name: Name of a NumPy type of numbers
    :param where: What it belongs to, for the message
    :return: The type
    :raises ValueError: If there is no such type
    """
    dtype = np.dtype(name) if isinstance(name, str) and name in np.sctypeDict else None
    if dtype is None or not _numeric(dtype):
        raise ValueError(f"{where} has the dtype {quoted(name)}, which must be the name of a NumPy type of numbers.")
    return dtype


def _read_scalar(value: dict[str, Any], where: str) -> np.generic:
    name, number = value[":scalar"]
    return read_dtype(name, where).type(from_plain(number, where))


def _read_array(value: dict[str, Any], where: str) -> np.ndarray:
    parts = value[":array"]
    numbers = [from_plain(item, where) for item in parts["values"]]
    shape = read_shape(parts["shape"], where)
    if math.prod(shape) != len(numbers):
        raise ValueError(f"{where} has {len(numbers)} values for the shape {shape}.")
    return np.array(numbers, read_dtype(parts["dtype"], where)).reshape(shape)


def _read_object(value: dict[str, Any], where: str) -> Any:
    if value[":object"] not in _OBJECTS:
        raise ValueError(f"{where} is the unknown object {quoted(value[':object'])}; known are {', '.join(_OBJECTS)}.")
    cls, parts = _OBJECTS[value[":object"]]
    if set(value) - {":object"} != set(parts):
        raise ValueError(f"{where} must have the entries {', '.join(parts)}.")
    arguments = {key: from_plain(value[key], f"{where}.{key}") for key in parts}
    try:
        return cls(**arguments)
    except AssertionError as error:
        raise ValueError(f"{where}: {error}") from error


_READERS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    ":float": lambda value, where: read_float(value[":float"], where),
    ":tuple": lambda value, where: tuple(from_plain(list(value[":tuple"]), where)),
    ":items": lambda value, where: {
        from_plain(key, where): from_plain(item, f"{where}[{key!r}]") for key, item in value[":items"]
    },
    ":scalar": _read_scalar,
    ":array": _read_array,
    ":dtype": lambda value, where: read_dtype(value[":dtype"], where).type,
    ":class": _read_class,
    ":goal": lambda value, where: GoalSelectionStrategy[value[":goal"]],
    ":object": _read_object,
}


def read_shape(shape: Any, where: str) -> tuple[int, ...]:
    """
    :param shape: Sizes of the axes of an array
    :param where: What it belongs to, for the message
    :return: The same
    :raises ValueError: If they are none, or too many
    """
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{where} has the shape {quoted(shape)}, which must be a list of at most {MAX_AXES} sizes.")
    return tuple(shape)
