"""Names of tensor environments: our own tasks, and simulators behind a prefix."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.names import suggest

Factory = Callable[..., TensorVecEnv]

_PACKAGE = "sb3_diffusion.envs.tensor"
_TASKS: dict[str, Factory | str] = {
    "torch/Pendulum-v0": f"{_PACKAGE}.tasks.pendulum:Pendulum",
    "torch/CartPoleBalance-v0": f"{_PACKAGE}.tasks.cart_pole:CartPoleBalance",
    "torch/CartPoleSwingUp-v0": f"{_PACKAGE}.tasks.cart_pole:CartPoleSwingUp",
    "torch/PointMass-v0": f"{_PACKAGE}.tasks.point_mass:PointMass",
}
_SIMULATORS: Mapping[str, str] = MappingProxyType(
    {
        "mjlab/": f"{_PACKAGE}.adapters.mjlab:make_mjlab",
        "envpool/": f"{_PACKAGE}.adapters.envpool:make_envpool",
        "playground/": f"{_PACKAGE}.adapters.playground:make_playground",
    }
)
_ISAAC = ("Isaac-", "IsaacContrib-")


def register_tensor_env(env_id: str, factory: Factory) -> None:
    """
    Give a tensor environment a name.

    :param env_id: The name, such as ``"mine/Reach-v0"``
    :param factory: Called with ``num_envs``, ``device`` and further settings; a class will do
    :raises ValueError: If the name is taken
    """
    if is_tensor_env(env_id):
        raise ValueError(f"env_id={env_id!r} is taken; choose another name.")
    _TASKS[env_id] = factory


def tensor_env_ids() -> list[str]:
    """
    :return: Names of the registered environments; simulators have further ones
    """
    return sorted(_TASKS)


def is_tensor_env(env_id: str) -> bool:
    """
    :param env_id: Name of an environment
    :return: Whether :func:`make_tensor_env` is who makes it, if it exists
    """
    return env_id in _TASKS or env_id.startswith((*_SIMULATORS, *_ISAAC))


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
    if env_id in _TASKS:
        made = _loaded(_TASKS[env_id])(num_envs=1024 if num_envs is None else num_envs, device=device, **settings)
        made.seed(seed)
        return made
    if env_id.startswith(_ISAAC):
        make, task = f"{_PACKAGE}.adapters.isaaclab_launch:make_isaaclab", env_id
    else:
        prefix = next((prefix for prefix in _SIMULATORS if env_id.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"There is no tensor environment {env_id!r}; {suggest(env_id, [*_TASKS, *_SIMULATORS])}")
        make, task = _SIMULATORS[prefix], env_id.removeprefix(prefix)
    return _loaded(make)(task, num_envs=num_envs, device=device, seed=seed, **settings)


def _loaded(factory: Factory | str) -> Factory:
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    return getattr(import_module(module), name)
