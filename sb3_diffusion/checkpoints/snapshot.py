"""
What changes while environments run, as plain data that can be stored and put back.

An object is described by its attributes: numbers, text, arrays, containers of them, random generators, MuJoCo simulations, and
other Python objects in the same way. That covers classic control, MuJoCo, most of DeepMind Control, their wrappers and the
vectorised environments of Stable-Baselines3 without any knowledge of a particular class. What it cannot describe (a simulator
with a state of its own) it names.
"""

import enum
import functools
import hashlib
import inspect
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
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

Node = Any
"""Numbers, text, ``None``, arrays, and dictionaries ``{"@": kind, ...}`` of nodes."""

_PLAIN = (bool, int, float, str, type(None))
_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", deque: "deque", set: "set"}
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

_BUILT = ("object", "space", "simulation", "file", "workers", "torch generator", "named tuple")
"""Kinds of descriptions that are put back into an existing object."""

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
        if isinstance(value, np.ndarray):
            simple = type(value) is np.ndarray and value.dtype.names is None and not value.dtype.hasobject
            return value.copy() if simple else self._give_up(value, path)
        if isinstance(value, np.generic):
            return {"@": "number", "value": np.asarray(value)}
        if isinstance(value, bytes):
            return {"@": "bytes", "value": np.frombuffer(value, np.uint8)}
        if isinstance(value, th.Tensor) and value.dtype is not th.bfloat16:
            return {"@": "tensor", "value": value.detach().cpu().numpy().copy()}
        if type(value) in _SEQUENCES or (isinstance(value, tuple) and hasattr(value, "_fields")):
            return self._describe_sequence(value, path)
        if type(value) in _MAPPINGS:
            return self._describe_mapping(value, path)
        if isinstance(value, np.random.Generator):
            return {"@": "generator", "state": self._describe(value.bit_generator.state, path)}
        if isinstance(value, np.random.RandomState):
            return {"@": "generator", "state": self._describe(value.get_state(legacy=False), path)}
        if isinstance(value, th.Generator):
            return {"@": "torch generator", "state": value.get_state().numpy()}
        return self._describe_object(value, path)

    def _describe_sequence(self, value: Any, path: str) -> Node:
        kind = _SEQUENCES.get(type(value), "named tuple")
        for number, dtype in ((float, np.float64), (int, np.int64)):
            if len(value) >= _MANY and all(type(item) is number for item in value):
                if number is int and max(map(abs, value)) >= 2**63:
                    continue
                return {"@": kind, "numbers": np.array(value, dtype)}
        items = [self._describe(item, f"{path}.{index}") for index, item in enumerate(value)]
        return _NOTHING if any(item is _NOTHING for item in items) else {"@": kind, "items": items}

    def _describe_mapping(self, value: Any, path: str) -> Node:
        items = [[self._describe(key, path), self._describe(item, f"{path}.{key}")] for key, item in value.items()]
        left_out = any(part is _NOTHING for item in items for part in item)
        return _NOTHING if left_out else {"@": "dict", "items": items}

    def _describe_object(self, value: Any, path: str) -> Node:
        kind = type(value)
        if _is_constant(value):
            return _NOTHING
        if id(value) in self._seen:  # the same object on another path
            return {"@": "seen"}
        self._seen.add(id(value))
        if isinstance(value, gym.Space):
            nodes = [self._describe(part, path) for part in _parts(value)]
            return {"@": "space", "generator": self._describe(value._np_random, path), "parts": nodes}
        if simulation := _simulation(value):
            return _describe_simulation(*simulation)
        if isinstance(value, SubprocVecEnv):
            return self._describe_workers(value, path)
        if isinstance(value, ResultsWriter):
            return {"@": "file", "content": _content(value.file_handler.name)}
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
        return {"@": "object", "type": _name(value), "attributes": attributes}

    def _describe_workers(self, value: SubprocVecEnv, path: str) -> Node:
        own = {name: self._describe(getattr(value, name), path) for name in ("_seeds", "_options")}
        if not value.has_attr("snapshot"):
            self.unknown.append(f"{path} (environments in processes of their own, see SnapshotServer)")
            return {"@": "workers", "attributes": own, "workers": None}
        workers = value.env_method("snapshot")
        self.unknown += [f"{path}.{index}.{name}" for index, (_, unknown) in enumerate(workers) for name in unknown]
        return {"@": "workers", "attributes": own, "workers": [node for node, _ in workers]}

    def _give_up(self, value: Any, path: str) -> Any:
        self.unknown.append(f"{path} ({type(value).__name__})")
        return _NOTHING


class Restoration:
    """
    Puts a description back into an object that was built in the same way.

    :param target: The object
    :param node: Its description
    """

    def __init__(self, target: Any, node: Node):
        self.mismatches: list[str] = []
        """Where the object is not built like the one that was described."""
        self.lost: list[str] = []
        """The same for what belongs to environments, where an episode may change how things are built."""
        self._environments = 0
        self.value = self._restore(target, node, "")

    def _restore(self, current: Any, node: Node, path: str) -> Any:
        if not isinstance(node, dict):
            return node.copy() if isinstance(node, np.ndarray) else node
        restore: Callable[[Any, dict[str, Any], str], Any] = getattr(self, f"_restore_{node['@'].replace(' ', '_')}")
        return restore(current, node, path)

    def _restore_seen(self, current: Any, node: dict[str, Any], path: str) -> Any:
        return current

    def _restore_number(self, current: Any, node: dict[str, Any], path: str) -> Any:
        return node["value"][()]

    def _restore_bytes(self, current: Any, node: dict[str, Any], path: str) -> Any:
        return node["value"].tobytes()

    def _restore_tensor(self, current: Any, node: dict[str, Any], path: str) -> Any:
        value = th.from_numpy(node["value"].copy())
        if not isinstance(current, th.Tensor) or current.shape != value.shape:
            return value
        with th.no_grad():
            return current.copy_(value)  # others may hold the same tensor

    def _sequence(self, current: Any, node: dict[str, Any], path: str) -> list[Any]:
        if "numbers" in node:
            return node["numbers"].tolist()
        items = node["items"]
        old = list(current) if isinstance(current, list | tuple | deque) else []
        if len(old) != len(items) and any(isinstance(item, dict) and item["@"] in _BUILT for item in items):
            self._complain(current, path, f"a sequence of {len(items)} objects")
            return old
        old += [None] * (len(items) - len(old))
        return [self._restore(old[index], item, f"{path}.{index}") for index, item in enumerate(items)]

    def _restore_list(self, current: Any, node: dict[str, Any], path: str) -> Any:
        items = self._sequence(current, node, path)
        if not isinstance(current, list):
            return items
        current[:] = items
        return current

    def _restore_deque(self, current: Any, node: dict[str, Any], path: str) -> Any:
        current = deque() if current is None else current
        items = self._sequence(current, node, path)
        current.clear()
        current.extend(items)
        return current

    def _restore_tuple(self, current: Any, node: dict[str, Any], path: str) -> Any:
        return tuple(self._sequence(current, node, path))

    def _restore_named_tuple(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if not hasattr(current, "_fields"):
            return self._complain(current, path, "a named tuple")
        return type(current)(*self._sequence(current, node, path))

    def _restore_set(self, current: Any, node: dict[str, Any], path: str) -> Any:
        return set(self._sequence(None, node, path))

    def _restore_dict(self, current: Any, node: dict[str, Any], path: str) -> Any:
        target = current if isinstance(current, dict) else {}
        items = {}
        for key_node, item in node["items"]:
            key = self._restore(None, key_node, path)
            items[key] = self._restore(target.get(key), item, f"{path}.{key}")
        target.clear()
        target.update(items)
        return target

    def _restore_generator(self, current: Any, node: dict[str, Any], path: str) -> Any:
        state = self._restore(None, node["state"], path)
        if isinstance(current, np.random.RandomState):
            current.set_state(state)
            return current
        kind = getattr(np.random, state["bit_generator"])
        if not isinstance(current, np.random.Generator) or type(current.bit_generator) is not kind:
            current = np.random.Generator(kind())
        current.bit_generator.state = state
        return current

    def _restore_torch_generator(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if not isinstance(current, th.Generator):
            return self._complain(current, path, "a generator of PyTorch")
        current.set_state(th.from_numpy(node["state"].copy()))
        return current

    def _restore_space(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if not isinstance(current, gym.Space) or len(_parts(current)) != len(node["parts"]):
            return self._complain(current, path, "a space")
        current._np_random = self._restore(current._np_random, node["generator"], path)
        for part, own in zip(_parts(current), node["parts"], strict=True):
            self._restore(part, own, path)
        return current

    def _restore_simulation(self, current: Any, node: dict[str, Any], path: str) -> Any:
        simulation = None if current is None else _simulation(current)
        if simulation is None or _digest(simulation[0]) != node["model"]:
            return self._complain(current, path, "a MuJoCo simulation with an unchanged model")
        _restore_simulation(*simulation, node)
        return current

    def _restore_file(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if not isinstance(current, ResultsWriter):
            return self._complain(current, path, "a log file")
        overwrite(current.file_handler, node["content"])
        return current

    def _restore_workers(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if not isinstance(current, SubprocVecEnv) or node["workers"] is None or len(node["workers"]) != current.num_envs:
            return self._complain(current, path, "environments in processes of their own")
        for name, item in node["attributes"].items():
            setattr(current, name, self._restore(getattr(current, name), item, path))
        for index, worker in enumerate(node["workers"]):
            (lost,) = current.env_method("restore_snapshot", worker, indices=[index])
            self.lost += [f"{path}.{index}.{item}" for item in lost]
        return current

    def _restore_object(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if current is None or _name(current) != node["type"]:
            return self._complain(current, path, node["type"])
        is_environment = isinstance(current, gym.Env | VecEnv)
        self._environments += is_environment
        attributes = vars(current)
        for name, item in node["attributes"].items():
            attributes[name] = self._restore(attributes.get(name), item, f"{path}.{name}" if path else name)
        self._environments -= is_environment
        if isinstance(current, Monitor):
            current.t_start += time.time()
        return current

    def _complain(self, current: Any, path: str, expected: str) -> Any:
        complaints = self.lost if self._environments else self.mismatches
        complaints.append(f"{path or 'it'} ({type(current).__name__}) is not {expected}")
        return current


class SnapshotServer(gym.Wrapper):
    """
    Gives an environment in a process of its own (``SubprocVecEnv``) the two methods that snapshots of it need.

    :param env: Environment with all its other wrappers
    """

    def snapshot(self) -> tuple[Node, list[str]]:
        """
        :return: Description of the wrapped environment, and what it could not describe
        """
        snapshot = Snapshot(self.env)
        return snapshot.node, snapshot.unknown

    def restore_snapshot(self, node: Node) -> list[str]:
        """
        :param node: What :meth:`snapshot` returned
        :return: Where the environment is built differently
        """
        restoration = Restoration(self.env, node)
        return [*restoration.mismatches, *restoration.lost]


def _is_constant(value: Any) -> bool:
    """Whether a value is part of how an object was built, not of what happened since."""
    module = type(value).__module__
    if module.startswith("mujoco."):  # the model, which the simulation identifies
        return _simulation(value) is None
    parameters = getattr(type(value), "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    return isinstance(value, _CONSTANTS) or frozen or _DRAWING.match(module) is not None


def _parts(space: gym.Space) -> list[gym.Space]:
    parts = getattr(space, "spaces", ())
    return list(parts.values()) if isinstance(parts, dict) else list(parts)


# -- MuJoCo ----------------------------------------------------------------------------------------------------------------


def _simulation(value: Any) -> tuple[Any, Any] | None:
    """Model and data if this is MuJoCo's data, or a ``Physics`` of dm_control."""
    if type(value).__module__.startswith("mujoco."):
        return (value.model, value) if type(value).__name__ == "MjData" else None
    if any(base.__module__ == "dm_control.mujoco.engine" and base.__name__ == "Physics" for base in type(value).__mro__):
        return value.model.ptr, value.data.ptr
    return None


def _describe_simulation(model: Any, data: Any) -> Node:
    import mujoco

    # Arrays that an empty simulation has already: the others (contacts, constraints) are computed anew in every step
    empty = mujoco.MjData(model)
    arrays = {}
    for name, array in inspect.getmembers(empty, lambda member: isinstance(member, np.ndarray)):
        if array.size and not name.startswith("_"):
            arrays[name] = getattr(data, name).copy()
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.zeros(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return {"@": "simulation", "model": _digest(model), "state": state, "arrays": arrays}


def _restore_simulation(model: Any, data: Any, node: dict[str, Any]) -> None:
    import mujoco

    mujoco.mj_setState(model, data, node["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    # Positions of bodies and the like lag behind the state by one step of the integrator, and rewards are computed from them
    for name, array in node["arrays"].items():
        getattr(data, name)[...] = array


def _digest(model: Any) -> str:
    """Identifies the model: tasks that change it between episodes cannot be restored from the data alone."""
    import mujoco

    content = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()


# -- files -----------------------------------------------------------------------------------------------------------------


def _content(path: str) -> np.ndarray:
    return np.frombuffer(pathlib.Path(path).read_bytes(), np.uint8)


def overwrite(handle: Any, content: np.ndarray) -> None:
    """
    Replace what is in a file that is open for writing; what is written later comes behind it.

    :param handle: The open file
    :param content: Its new content, as bytes
    """
    handle.flush()
    handle.seek(0)
    handle.truncate()
    handle.write(content.tobytes().decode("utf-8"))
    handle.flush()


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
