"""Tensor environments by name: our own tasks, and those of simulators behind a prefix."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.names import suggest
from sb3_diffusion.tensor_names import ISAAC_PREFIXES, SIMULATORS, TASKS, is_tensor_env, tensor_env_ids

__all__ = ["arguments_of", "is_tensor_env", "make_tensor_env", "register_tensor_env", "tensor_env_ids"]

Factory = Callable[..., TensorVecEnv]
_ISAAC_LAB = "sb3_diffusion.envs.tensor.adapters.isaaclab_launch:make_isaaclab"


def register_tensor_env(env_id: str, factory: Factory) -> None:
    """
    Give a tensor environment a name.

    :param env_id: The name, such as ``"mine/Reach-v0"``
    :param factory: Called with ``num_envs``, ``device`` and further settings; a class will do
    :raises ValueError: If the name is taken
    """
    if is_tensor_env(env_id):
        raise ValueError(f"env_id={env_id!r} is taken; choose another name.")
    TASKS[env_id] = factory


def make_tensor_env(
    env_id: str, num_envs: int | None = None, device: str = "auto", seed: int | None = None, **settings: Any
) -> TensorVecEnv:
    """
    Make many copies of an environment that speaks tensors.

    :param env_id: ``torch/...`` and other registered names, a task of Isaac Lab (``Isaac-Ant-v0``), or a task behind the
        prefix ``mjlab/``, ``envpool/`` or ``playground/``
    :param num_envs: Number of environments; by default 1024, or what the simulator's task says
    :param device: Device of all tensors; by default a GPU if the environment can run there
    :param seed: Seed of the first reset
    :param settings: Further arguments of the environment
    :return: The environment
    """
    if env_id in TASKS:
        made = _loaded(TASKS[env_id])(num_envs=1024 if num_envs is None else num_envs, device=device, **settings)
        made.seed(seed)
        return made
    make, task = _simulator(env_id)
    return _loaded(make)(task, num_envs=num_envs, device=device, seed=seed, **settings)


def arguments_of(env_id: str) -> list[str]:
    """
    :param env_id: Name of a tensor environment
    :return: Arguments by which it is set up, besides number, device and seed; empty if it does not list them itself
    """
    parameters = inspect.signature(_loaded(TASKS[env_id] if env_id in TASKS else _simulator(env_id)[0])).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in parameters if name not in ("num_envs", "device", "seed")]


def _simulator(env_id: str) -> tuple[str, str]:
    """What makes the task of a simulator, and what the simulator calls it."""
    if env_id.startswith(ISAAC_PREFIXES):
        return _ISAAC_LAB, env_id
    prefix = next((prefix for prefix in SIMULATORS if env_id.startswith(prefix)), None)
    if prefix is None:
        raise ValueError(f"There is no tensor environment {env_id!r}; {suggest(env_id, [*TASKS, *SIMULATORS])}")
    return SIMULATORS[prefix], env_id.removeprefix(prefix)


def _loaded(factory: Factory | str) -> Factory:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)
