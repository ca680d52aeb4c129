"""The state of a MuJoCo simulation, as Gymnasium and dm_control hold it."""

import hashlib
import inspect
from typing import Any

import numpy as np


def simulation_of(value: Any) -> tuple[Any, Any] | None:
    """
    :param value: Anything
    :return: Model and data if this is MuJoCo's data, or a ``Physics`` of dm_control
    """
    if type(value).__module__.startswith("mujoco."):
        return (value.model, value) if type(value).__name__ == "MjData" else None
    if any(base.__module__ == "dm_control.mujoco.engine" and base.__name__ == "Physics" for base in type(value).__mro__):
        return value.model.ptr, value.data.ptr
    return None


def describe_simulation(model: Any, data: Any) -> dict[str, Any]:
    """
    :param model: MuJoCo's model
    :param data: Its data
    :return: Plain values and arrays
    """
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
    return {"model": digest(model), "state": state, "arrays": arrays}


def restore_simulation(model: Any, data: Any, node: dict[str, Any]) -> None:
    """
    :param model: MuJoCo's model, unchanged
    :param data: Its data
    :param node: What :func:`describe_simulation` returned
    """
    import mujoco

    mujoco.mj_setState(model, data, node["state"], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(model, data)
    # Positions of bodies and the like lag behind the state by one step of the integrator, and rewards are computed from them
    for name, array in node["arrays"].items():
        getattr(data, name)[...] = array


def digest(model: Any) -> str:
    """
    :param model: MuJoCo's model
    :return: What identifies it: tasks that change it between episodes cannot be restored from the data alone
    """
    import mujoco

    content = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return hashlib.sha256(content.tobytes()).hexdigest()
