"""``sb3_diffusion.json``: what a saved agent is, so that one with untrained weights can be built, as plain data."""

import inspect
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.checkpoints.plain import NotPlain, to_plain
from sb3_diffusion.checkpoints.plain_spaces import space_to_plain
from sb3_diffusion.taxonomy import algorithm_name

DESCRIPTION = "sb3_diffusion.json"
FORMAT_VERSION = 1
# What belongs to a machine or a session and not to an agent.
LOCAL_ARGUMENTS = ("policy", "policy_kwargs", "env", "device", "execution", "tensorboard_log", "_init_setup_model")
# Arguments of which no trace is left in the model under their own names.
_ATTRIBUTES = {"stats_window_size": "_stats_window_size", "dataset": "dataset_identity"}
COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_n_updates",
    "_episode_num",
    "_n_offline_updates",
    "_n_pretraining_updates",
    "_n_warmup_rollouts",
    "_n_rollouts",
)


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """
    Everything that is needed to build an agent with untrained weights.

    :param model: The agent
    :return: Plain data. ``not_portable`` names what has no plain form, such as a class of the user's own
    """
    cls = type(model)
    missing: dict[str, str] = {}

    def plain(value: Any, where: str, convert: Any = to_plain) -> Any:
        try:
            return convert(value, where)
        except NotPlain as error:
            missing[error.where] = error.what
            return None

    def plain_entries(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        converted = {name: plain(value, prefix + name) for name, value in values.items()}
        return {name: value for name, value in converted.items() if value is not None or values[name] is None}

    name = algorithm_name(cls)
    if name is None:
        missing["algorithm"] = f"the class {cls.__module__}.{cls.__qualname__}"
    aliases = [alias for alias, policy_class in cls.policy_aliases.items() if policy_class is model.policy_class]
    return {
        "format": FORMAT_VERSION,
        "algorithm": name,
        "policy": aliases[0] if aliases else plain(model.policy_class, "policy"),
        "arguments": plain_entries(_constructor_arguments(model)),
        "policy_kwargs": plain_entries(model.policy_kwargs, "policy_kwargs."),
        "observation_space": plain(model.observation_space, "observation_space", space_to_plain),
        "action_space": plain(model.action_space, "action_space", space_to_plain),
        "counters": {name: int(vars(model)[name]) for name in COUNTERS if name in vars(model)},
        "not_portable": missing,
        "versions": _versions(),
    }


def _constructor_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    names = [name for name in inspect.signature(type(model)).parameters if name not in LOCAL_ARGUMENTS]
    attributes = {name: _ATTRIBUTES.get(name, name) for name in names}
    return {name: getattr(model, attribute) for name, attribute in attributes.items() if hasattr(model, attribute)}


def _versions() -> dict[str, str]:
    own = Path(__file__).resolve().parents[1] / "version.txt"
    modules = {"stable_baselines3": stable_baselines3, "torch": th, "numpy": np, "gymnasium": gymnasium}
    return {
        "sb3_diffusion": own.read_text(encoding="utf-8").strip(),
        **{name: str(module.__version__) for name, module in modules.items()},
        "python": platform.python_version(),
    }
