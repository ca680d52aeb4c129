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
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_diffusion.checkpoints.tagged_json import read_float, tag_of, write_float, write_mapping

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

_BUILT = (":state", ":space", ":simulation", ":file", ":workers", ":torch_generator", ":named_tuple")
"""Tags of descriptions that are put back into an existing object."""

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
            nodes = [self._describe(part, path) for part in _parts(value)]
            return {":space": {"generator": self._describe(value._np_random, path), "parts": nodes}}
        if simulation := _simulation(value):
            return _describe_simulation(*simulation)
        if isinstance(value, SubprocVecEnv):
            return self._describe_workers(value, path)
        if isinstance(value, ResultsWriter):
            return {":file": _content(value.file_handler.name)}
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
        return {":state": {"of": _name(value), "attributes": attributes}}

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
        if isinstance(node, list):
            return self._restore_list(current, node, path)
        if not isinstance(node, dict):
            return node.copy() if isinstance(node, np.ndarray) else node
        if (tag := tag_of(node)) is None:
            return self._restore_items(current, list(node.items()), path)
        restore: Callable[[Any, Any, str], Any] = getattr(self, f"_restore_{tag[1:]}")
        return restore(current, node[tag], path)

    def _restore_seen(self, current: Any, node: Node, path: str) -> Any:
        return current

    def _restore_float(self, current: Any, node: Node, path: str) -> Any:
        return read_float(node, path)

    def _restore_element(self, current: Any, node: np.ndarray, path: str) -> Any:
        return node[()]

    def _restore_numbers(self, current: Any, node: np.ndarray, path: str) -> Any:
        return self._restore_list(current, {":numbers": node}, path)

    def _restore_bytes(self, current: Any, node: np.ndarray, path: str) -> Any:
        return node.tobytes()

    def _restore_tensor(self, current: Any, node: np.ndarray, path: str) -> Any:
        value = th.from_numpy(node.copy())
        if not isinstance(current, th.Tensor) or current.shape != value.shape:
            return value
        with th.no_grad():
            return current.copy_(value)  # others may hold the same tensor

    def _sequence(self, current: Any, items: Node, path: str) -> list[Any]:
        if isinstance(items, dict):
            return items[":numbers"].tolist()
        old = list(current) if isinstance(current, list | tuple | deque) else []
        if len(old) != len(items) and any(tag_of(item) in _BUILT for item in items):
            self._complain(current, path, f"a sequence of {len(items)} objects")
            return old
        old += [None] * (len(items) - len(old))
        return [self._restore(old[index], item, f"{path}.{index}") for index, item in enumerate(items)]

    def _restore_list(self, current: Any, node: Node, path: str) -> Any:
        items = self._sequence(current, node, path)
        if not isinstance(current, list):
            return items
        current[:] = items
        return current

    def _restore_deque(self, current: Any, node: Node, path: str) -> Any:
        current = deque() if current is None else current
        items = self._sequence(current, node, path)
        current.clear()
        current.extend(items)
        return current

    def _restore_tuple(self, current: Any, node: Node, path: str) -> Any:
        return tuple(self._sequence(current, node, path))

    def _restore_named_tuple(self, current: Any, node: Node, path: str) -> Any:
        if not hasattr(current, "_fields"):
            return self._complain(current, path, "a named tuple")
        return type(current)(*self._sequence(current, node, path))

    def _restore_set(self, current: Any, node: Node, path: str) -> Any:
        return set(self._sequence(None, node, path))

    def _restore_items(self, current: Any, node: Sequence[tuple[Node, Node]], path: str) -> Any:
        target = current if isinstance(current, dict) else {}
        items = {}
        for key_node, item in node:
            key = self._restore(None, key_node, path)
            items[key] = self._restore(target.get(key), item, f"{path}.{key}")
        target.clear()
        target.update(items)
        return target

    def _restore_generator(self, current: Any, node: Node, path: str) -> Any:
        state = self._restore(None, node, path)
        if isinstance(current, np.random.RandomState):
            current.set_state(state)
            return current
        kind = getattr(np.random, state["bit_generator"])
        if not isinstance(current, np.random.Generator) or type(current.bit_generator) is not kind:
            current = np.random.Generator(kind())
        current.bit_generator.state = state
        return current

    def _restore_torch_generator(self, current: Any, node: np.ndarray, path: str) -> Any:
        if not isinstance(current, th.Generator):
            return self._complain(current, path, "a generator of PyTorch")
        current.set_state(th.from_numpy(node.copy()))
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

    def _restore_file(self, current: Any, node: np.ndarray, path: str) -> Any:
        if not isinstance(current, ResultsWriter):
            return self._complain(current, path, "a log file")
        overwrite(current.file_handler, node)
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

    def _restore_state(self, current: Any, node: dict[str, Any], path: str) -> Any:
        if current is None or not _is_called(current, node["of"]):
            return self._complain(current, path, node["of"])
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
    return {":simulation": {"model": _digest(model), "state": state, "arrays": arrays}}


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


# -- names -----------------------------------------------------------------------------------------------------------------


def _name(value: Any) -> str:
    """Package and class: a file may move within a package."""
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"


def _is_called(value: Any, name: str) -> bool:
    # formerly with the path of the module between the two
    package, own = _name(value).split(".", 1)
    return name.startswith(f"{package}.") and name.endswith(f".{own}")


# -- the dialect of before -------------------------------------------------------------------------------------------------


def from_format_1(node: Any) -> Any:
    """
    :param node: JSON of a state as the first format had it, with kinds under the key ``"@"``
    :return: The same in today's dialect
    """
    if isinstance(node, list):
        return [from_format_1(item) for item in node]
    if not isinstance(node, dict):
        return write_float(node) if type(node) is float else node
    parts = {key: from_format_1(item) for key, item in node.items() if key != "@"}
    kind = node.get("@")
    if kind is None:
        return parts
    if kind == "object":
        return {":state": {"of": parts["type"], "attributes": parts["attributes"]}}
    if kind == "seen":
        return {":seen": True}
    if kind in ("array", "space", "simulation", "workers"):
        return {f":{kind}": parts}
    ((name, content),) = parts.items()
    if name == "numbers":
        content = {":numbers": content}
    tags = {"number": "element", "dict": "items", "named tuple": "named_tuple", "torch generator": "torch_generator"}
    return content if kind == "list" else {f":{tags.get(kind, kind)}": content}
