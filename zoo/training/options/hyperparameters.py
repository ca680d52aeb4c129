"""Settings of an algorithm are checked by name, kind and range before anything is built; messages say where each is from."""

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.names import suggest

from .expressions import parse
from .settings import DICTIONARIES, Settings

SCHEDULES = (
    *("learning_rate", "actor_learning_rate", "critic_learning_rate", "value_learning_rate"),
    *("clip_range", "clip_range_vf", "delta_std"),
)
"""Every setting that may be written as ``lin_3e-4``: from that value to zero over the run."""

ZOO_SETTINGS = (
    *("policy", "n_timesteps", "n_envs", "normalize", "frame_stack", "env_wrapper", "vec_env_wrapper", "callback"),
    *("env_kwargs", "monitor_kwargs", "noise_type", "noise_std"),
)
OPTIONS = {"env": "--env", "device": "--device", "seed": "--seed", "verbose": "--verbose", "tensorboard_log": "-tb"}
"""Arguments of an algorithm that the zoo gives it, with the options to set them."""

EXPRESSIONS = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
"""Settings that a file may hold as text, in the notation of :mod:`.expressions`."""

NOISES = ("normal", "ornstein-uhlenbeck")


class Rule(NamedTuple):
    """
    What a setting may be.

    :param text: In words
    :param allows: Whether it may be this value
    """

    text: str
    allows: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> Rule:
    return Rule(f"a whole number of at least {least}", lambda value: _is_whole(value) and value >= least)


def _real(low: float, high: float = math.inf) -> Rule:
    text = f"a number of at least {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
    return Rule(text, lambda value: _is_real(value) and low <= value <= high)


def _or(rule: Rule, text: str, allows: Callable[[Any], bool]) -> Rule:
    return Rule(f"{rule.text}, or {text}", lambda value: rule.allows(value) or allows(value))


def _is_frequency(value: Any) -> bool:
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else (0, "")
    return _is_whole(pair[0]) and pair[0] >= 1 and pair[1] in ("step", "episode")


def _is_schedule(value: Any) -> bool:
    """Whether it is ``lin_<initial value>``, or a function of the remaining progress."""
    if not isinstance(value, str):
        return callable(value)
    prefix, _, number = value.partition("_")
    return prefix == "lin" and _number(number) is not None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


RATE = _or(_real(0.0), "lin_<initial value> such as lin_3e-4", _is_schedule)
RULES = {
    **dict.fromkeys(["n_envs", "frame_stack", "buffer_size", "batch_size", "n_steps", "n_epochs", "policy_delay"], _whole(1)),
    **dict.fromkeys(["target_update_interval", "stats_window_size"], _whole(1)),
    **dict.fromkeys(["learning_rate", "actor_learning_rate", "critic_learning_rate", "clip_range", "delta_std"], RATE),
    **dict.fromkeys(["tau", "gamma", "gae_lambda", "exploration_fraction"], _real(0.0, 1.0)),
    **dict.fromkeys(["exploration_initial_eps", "exploration_final_eps"], _real(0.0, 1.0)),
    **dict.fromkeys(["noise_std", "vf_coef", "target_policy_noise", "target_noise_clip"], _real(0.0)),
    "value_learning_rate": _or(RATE, "null", lambda value: value is None),
    "n_timesteps": _real(1.0),
    "learning_starts": _whole(0),
    "gradient_steps": _or(_whole(0), "-1 for as many as steps", lambda value: _is_whole(value) and value == -1),
    "train_freq": _or(_whole(1), "such as [1, episode]", _is_frequency),
    "max_grad_norm": _or(_real(0.0), "null", lambda value: value is None),
    "ent_coef": _or(_real(0.0), "auto", lambda value: isinstance(value, str) and value.startswith("auto")),
    "normalize": Rule(
        "true, false, or a dictionary such as {norm_obs: true, norm_reward: false}",
        lambda value: isinstance(value, bool | dict),
    ),
    "optimize_memory_usage": Rule("true or false", lambda value: isinstance(value, bool)),
    "noise_type": Rule(
        f"{' or '.join(NOISES)}",
        lambda value: value is None or (isinstance(value, str) and any(noise in value for noise in NOISES)),
    ),
    **dict.fromkeys(DICTIONARIES, Rule("a dictionary", lambda value: value is None or isinstance(value, dict))),
}
"""What is checked for every algorithm alike; the methods of this library check all their own arguments themselves."""


def check(algorithm: type[BaseAlgorithm], settings: Settings) -> None:
    """
    :param algorithm: The algorithm
    :param settings: Its settings
    :raises ValueError: For the first that cannot be right
    """
    arguments = _arguments(algorithm)
    for name, setting in settings.items():
        where = f"{name}={setting.value!r} ({setting.origin})"
        if name in OPTIONS:
            raise ValueError(f"{where}: this is the option {OPTIONS[name]} of the command line.")
        if name not in arguments and name not in ZOO_SETTINGS:
            known = [argument for argument in (*arguments, *ZOO_SETTINGS) if argument not in OPTIONS]
            raise ValueError(f"{where}: {algorithm.__name__} has no argument {name!r}; {suggest(name, dict.fromkeys(known))}")
        _check_value(where, name, setting.value)
    for name in ("policy", "n_timesteps"):
        if name not in settings:
            raise ValueError(f"the setting {name} is missing; add it to the settings file, or give -params {name}:...")
    _check_noise(algorithm, settings, arguments)
    _check_policy(algorithm, settings)


def _check_value(where: str, name: str, value: Any) -> None:
    if name in EXPRESSIONS and isinstance(value, str):
        value = _parse(where, value)
    if name in RULES and not RULES[name].allows(value):
        raise ValueError(f"{where} must be {RULES[name].text}.{_hint(value)}")
    if name == "normalize" and isinstance(value, dict):
        _check_names(where, "VecNormalize", value, inspect.signature(VecNormalize).parameters)
    if name == "replay_buffer_class" and not _is_replay_buffer(value):
        raise ValueError(f"{where} must be a replay buffer, such as HerReplayBuffer.")
    if name in ("env_wrapper", "vec_env_wrapper", "callback"):
        for part in _listed(value):
            _check_class(where, part, BaseCallback if name == "callback" else None)


def _is_replay_buffer(value: Any) -> bool:
    return value is None or (isinstance(value, type) and issubclass(value, ReplayBuffer))


def _arguments(algorithm: type) -> list[str]:
    """Names of all arguments of a constructor; ours show those of their base class as well."""
    return [name for name in inspect.signature(algorithm).parameters if name not in ("self", "_init_setup_model")]


def _hint(value: Any) -> str:
    number = _number(value) if isinstance(value, str) else None
    if number is None or not math.isfinite(number):
        return ""
    return f" YAML takes {value} for text; write {int(number) if number.is_integer() else number!r}."


def parse_texts(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: Settings that were checked
    :return: The same, with the value of each text that stands for one: rl-zoo3 would let Python evaluate it
    """
    return {
        key: parse(value) if key in EXPRESSIONS and isinstance(value, str) else value for key, value in hyperparams.items()
    }


def _parse(where: str, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{where} is no value: {error}.") from None


def _check_names(where: str, owner: str, given: Iterable[Any], known: Iterable[str]) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise ValueError(f"{where}: {owner} has no argument {name!r}; {suggest(str(name), names)}")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_class(where: str, value: Any, base: type | None) -> None:
    """A class given by its name ``module.Class``, or ``{module.Class: {argument: value}}``."""
    name, arguments = (*value.items(), (value, None))[0] if isinstance(value, dict) and len(value) == 1 else (value, None)
    if isinstance(name, type) or (base is not None and isinstance(name, base)):
        return
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise ValueError(f"{where}: {value!r} must be a name module.Class, or one name with a dictionary of arguments.")
    found = find_class(where, name)
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{where}: {name} is no subclass of {base.__name__}.")


def find_class(where: str, name: str) -> Any:
    """
    :param where: Which setting it is, for the message
    :param name: ``module.Class``
    :raises ValueError: If there is none
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"{where}: {name!r} must be the full name, module.Class.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module does while it is imported
        raise ValueError(f"{where}: {name} cannot be imported: {type(error).__name__}: {error}.") from error


def _check_noise(algorithm: type, settings: Settings, arguments: list[str]) -> None:
    given = [name for name in ("noise_type", "noise_std") if name in settings]
    if not given:
        return
    where = f"{given[0]}={settings[given[0]].value!r} ({settings[given[0]].origin})"
    if "action_noise" not in arguments:
        raise ValueError(f"{where}: {algorithm.__name__} takes no action noise; leave it out.")
    if len(given) == 1:
        raise ValueError(f"{where} is half a noise; give noise_type and noise_std.")


def _check_policy(algorithm: type[BaseAlgorithm], settings: Settings) -> None:
    name, origin = settings["policy"].value, settings["policy"].origin
    where = f"policy={name!r} ({origin})"
    if isinstance(name, str) and "." in name:
        policy = find_class(where, name)
    elif isinstance(name, type):
        policy = name
    elif name in algorithm.policy_aliases:
        policy = algorithm.policy_aliases[name]
    else:
        raise ValueError(f"{where}: {algorithm.__name__} has no such policy; {suggest(str(name), algorithm.policy_aliases)}")
    if "policy_kwargs" not in settings:
        return
    kwargs, origin = settings["policy_kwargs"].value, settings["policy_kwargs"].origin
    kwargs = _parse(f"policy_kwargs ({origin})", kwargs) if isinstance(kwargs, str) else kwargs
    known = inspect.signature(policy).parameters
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
        own = [key for key in known if key not in ("observation_space", "action_space", "lr_schedule")]
        _check_names(f"policy_kwargs={kwargs!r} ({origin})", policy.__name__, kwargs or {}, own)
