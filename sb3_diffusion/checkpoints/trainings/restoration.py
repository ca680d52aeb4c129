"""What a snapshot describes, put back into an object that was built in the same way."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_diffusion.checkpoints.tagged_json import read_float, tag_of
from sb3_diffusion.checkpoints.trainings.simulations import digest, restore_simulation, simulation_of
from sb3_diffusion.checkpoints.trainings.snapshot import Node, Snapshot, class_name, subspaces

_BUILT = (":state", ":space", ":simulation", ":file", ":workers", ":torch_generator", ":named_tuple")
"""Tags of descriptions that are put back into an existing object."""


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
        if not isinstance(current, gym.Space) or len(subspaces(current)) != len(node["parts"]):
            return self._complain(current, path, "a space")
        current._np_random = self._restore(current._np_random, node["generator"], path)
        for part, own in zip(subspaces(current), node["parts"], strict=True):
            self._restore(part, own, path)
        return current

    def _restore_simulation(self, current: Any, node: dict[str, Any], path: str) -> Any:
        simulation = None if current is None else simulation_of(current)
        if simulation is None or digest(simulation[0]) != node["model"]:
            return self._complain(current, path, "a MuJoCo simulation with an unchanged model")
        restore_simulation(*simulation, node)
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


def _is_called(value: Any, name: str) -> bool:
    # formerly with the path of the module between the two
    package, own = class_name(value).split(".", 1)
    return name.startswith(f"{package}.") and name.endswith(f".{own}")


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
