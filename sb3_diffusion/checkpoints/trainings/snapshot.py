"""
What changes while environments run, as plain data that can be stored and put back.

An object is described by its attributes: numbers, text, arrays, containers of them, random generators, MuJoCo simulations, and
other Python objects in the same way. That covers classic control, MuJoCo, most of DeepMind Control, their wrappers and the
vectorised environments of Stable-Baselines3 without any knowledge of a particular class. What it cannot describe (a simulator
with a state of its own) it names.
"""

import enum
import functools
import pathlib
import re
import time
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_diffusion.checkpoints.tagged_json import write_float, write_mapping
from sb3_diffusion.checkpoints.trainings.simulations import describe_simulation, simulation_of

Node = Any
"""Numbers, text, ``None``, arrays, lists and mappings of nodes, and tagged values, see ``tagged_json.py``."""

_PLAIN = (bool, int, str, type(None))
_SEQUENCES: dict[type, str] = {tuple: ":tuple", deque: ":deque", set: ":set"}
_MAPPINGS = (dict, OrderedDict, defaultdict)
_CONSTANTS = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    enum.Enum,
    pathlib.PurePath,
    np.dtype,
    np.ufunc,
    th.dtype,
    th.device,
    EnvSpec,
)
_CONSTANT_NAMES = ("class_attributes", "_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs", "_cached_spec", "buf_infos")
_DRAWING = re.compile(r"gymnasium\.envs\.mujoco\.mujoco_rendering|pygame\b")
_OBJECT_SIZE = type("Plain", (), {}).__basicsize__
"""An instance that is larger keeps something outside its ``__dict__``."""
_MANY = 64
"""Lists of that many numbers are stored as arrays."""

Skip = Callable[[Any, str, Any], bool]
"""Object, name of an attribute, its value -> whether to leave the attribute out."""


class _Nothing:
    """Marks what is left out."""


_NOTHING = _Nothing()


class Snapshot:
    """
    Describes an object.

    :param target: What to describe
    :param skip: Attributes to leave out
    """

    def __init__(self, target: Any, skip: Skip = lambda owner, name, value: False):
        self.unknown: list[str] = []
        """What could not be described, as paths like ``venv.envs.0.world (b2World)``."""
        self._skip = skip
        self._seen: set[int] = set()
        node = self._describe(target, "")
        self.node: Node = None if node is _NOTHING else node

    def _describe(self, value: Any, path: str) -> Node:
        if type(value) in _PLAIN:
            return value
        if type(value) is float:
            return write_float(value)
        if isinstance(value, np.ndarray):
            simple = type(value) is np.ndarray and value.dtype.names is None and not value.dtype.hasobject
            return value.copy() if simple else self._give_up(value, path)
        if isinstance(value, np.generic):
            return {":element": np.asarray(value)}
        if isinstance(value, bytes):
            return {":bytes": np.frombuffer(value, np.uint8)}
        if isinstance(value, th.Tensor) and value.dtype is not th.bfloat16:
            return {":tensor": value.detach().cpu().numpy().copy()}
        if type(value) is list or type(value) in _SEQUENCES or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return self._describe_sequence(value, path)
        if type(value) in _MAPPINGS:
            return self._describe_mapping(value, path)
        if isinstance(value, np.random.Generator):
            return {":generator": self._describe(value.bit_generator.state, path)}
        if isinstance(value, np.random.RandomState):
            return {":generator": self._describe(value.get_state(legacy=False), path)}
        if isinstance(value, th.Generator):
            return {":torch_generator": value.get_state().numpy()}
        return self._describe_object(value, path)

    def _describe_sequence(self, value: Any, path: str) -> Node:
        items: Node = _numbers(value)
        if items is None:
            items = [self._describe(item, f"{path}.{index}") for index, item in enumerate(value)]
            if any(item is _NOTHING for item in items):
                return _NOTHING
        return items if type(value) is list else {_SEQUENCES.get(type(value), ":named_tuple"): items}

    def _describe_mapping(self, value: Any, path: str) -> Node:
        nodes: list[Node] = []

        def describe(item: Any, path: str) -> Node:
            nodes.append(self._describe(item, path))
            return nodes[-1]

        node = write_mapping(value.items(), lambda key: describe(key, path), lambda key, item: describe(item, f"{path}.{key}"))
        return _NOTHING if any(node is _NOTHING for node in nodes) else node

    def _describe_object(self, value: Any, path: str) -> Node:
        kind = type(value)
        if _is_constant(value):
            return _NOTHING
        if id(value) in self._seen:  # the same object on another path
            return {":seen": True}
        self._seen.add(id(value))
        if isinstance(value, gym.Space):
            nodes = [self._describe(part, path) for part in subspaces(value)]
            return {":space": {"generator": self._describe(value._np_random, path), "parts": nodes}}
        if simulation := simulation_of(value):
            return {":simulation": describe_simulation(*simulation)}
        if isinstance(value, SubprocVecEnv):
            return self._describe_workers(value, path)
        if isinstance(value, ResultsWriter):
            return {":file": np.frombuffer(pathlib.Path(value.file_handler.name).read_bytes(), np.uint8)}
        if kind.__basicsize__ > _OBJECT_SIZE or not hasattr(value, "__dict__"):
            return self._give_up(value, path)
        attributes = {}
        for name, item in vars(value).items():
            if name in _CONSTANT_NAMES or self._skip(value, name, item):
                continue
            node = self._describe(item, f"{path}.{name}" if path else name)
            if node is not _NOTHING:
                attributes[name] = node
        if isinstance(value, Monitor):  # whose clock stands still between two processes
            attributes["t_start"] -= time.time()
        return {":state": {"of": class_name(value), "attributes": attributes}}

    def _describe_workers(self, value: SubprocVecEnv, path: str) -> Node:
        own = {name: self._describe(getattr(value, name), path) for name in ("_seeds", "_options")}
        if not value.has_attr("snapshot"):
            self.unknown.append(f"{path} (environments in processes of their own, see SnapshotServer)")
            return {":workers": {"attributes": own, "workers": None}}
        workers = value.env_method("snapshot")
        self.unknown += [f"{path}.{index}.{name}" for index, (_, unknown) in enumerate(workers) for name in unknown]
        return {":workers": {"attributes": own, "workers": [node for node, _ in workers]}}

    def _give_up(self, value: Any, path: str) -> Any:
        self.unknown.append(f"{path} ({type(value).__name__})")
        return _NOTHING


def _numbers(value: Any) -> Node:
    """A long sequence of numbers as an array, ``None`` if it is none."""
    for number, dtype in ((float, np.float64), (int, np.int64)):
        if len(value) >= _MANY and all(type(item) is number for item in value):
            if number is int and max(map(abs, value)) >= 2**63:
                continue
            return {":numbers": np.array(list(value), dtype)}
    return None


def _is_constant(value: Any) -> bool:
    """Whether a value is part of how an object was built, not of what happened since."""
    module = type(value).__module__
    if module.startswith("mujoco."):  # the model, which the simulation identifies
        return simulation_of(value) is None
    parameters = getattr(type(value), "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    return isinstance(value, _CONSTANTS) or frozen or _DRAWING.match(module) is not None


def subspaces(space: gym.Space) -> list[gym.Space]:
    """
    :param space: Any space
    :return: The spaces of which it consists, none for a simple one
    """
    parts = getattr(space, "spaces", ())
    return list(parts.values()) if isinstance(parts, dict) else list(parts)


def class_name(value: Any) -> str:
    """
    :param value: Any object
    :return: Package and class of it: a file may move within a package
    """
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"
