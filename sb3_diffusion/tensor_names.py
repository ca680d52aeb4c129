"""Names of environments that speak tensors: our own tasks, and simulators behind a prefix. Read without PyTorch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_PACKAGE = "sb3_diffusion.envs.tensor"
TASKS: dict[str, Callable[..., Any] | str] = {
    "torch/Pendulum-v0": f"{_PACKAGE}.tasks.pendulum:Pendulum",
    "torch/CartPoleBalance-v0": f"{_PACKAGE}.tasks.cart_pole:CartPoleBalance",
    "torch/CartPoleSwingUp-v0": f"{_PACKAGE}.tasks.cart_pole:CartPoleSwingUp",
    "torch/PointMass-v0": f"{_PACKAGE}.tasks.point_mass:PointMass",
}
"""Name -> what makes it, or where that is (``module:name``)."""
SIMULATORS: Mapping[str, str] = MappingProxyType(
    {
        "mjlab/": f"{_PACKAGE}.adapters.mjlab:make_mjlab",
        "envpool/": f"{_PACKAGE}.adapters.envpool:make_envpool",
        "playground/": f"{_PACKAGE}.adapters.playground:make_playground",
    }
)
"""Prefix of a simulator's tasks -> what makes them."""
ISAAC_PREFIXES = ("Isaac-", "IsaacContrib-")
"""How the names of Isaac Lab's tasks begin."""


def tensor_env_ids() -> list[str]:
    """
    :return: Names of the registered environments; simulators have further ones
    """
    return sorted(TASKS)


def is_tensor_env(env_id: str) -> bool:
    """
    :param env_id: Name of an environment
    :return: Whether :func:`~sb3_diffusion.envs.tensor.registry.make_tensor_env` is who makes it, if it exists
    """
    return env_id in TASKS or env_id.startswith((*SIMULATORS, *ISAAC_PREFIXES))
