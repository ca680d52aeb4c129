"""
The settings of a training: where they are read from, and which ones count in the end.

A setting comes from the command line, from an entry of a file, or it is a default of the method or of its policy. Every run
keeps all of them with their origin in ``effective.yml``; ``--dry-run`` prints them.
"""

import importlib
import inspect
import runpy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sb3_diffusion.taxonomy import registered_methods

from .expressions import parse
from .search_space import SEARCH, parse_search

FILE = "effective.yml"
FAMILY = "dm_control"
"""Entry of a file for all tasks of the DeepMind Control Suite that have none of their own."""

TENSOR_FAMILY = "tensor"
"""Entry of a file for all environments that speak tensors and have none of their own."""
PRESET = "preset"
"""Key of an entry that stands for settings of the algorithm, by the name of one of its presets."""

DICTIONARIES = ("policy_kwargs", "replay_buffer_kwargs", "monitor_kwargs", "env_kwargs")
"""Settings whose members have names."""

NOT_SHOWN = ("self", "env", "policy_kwargs", "_init_setup_model", "observation_space", "action_space", "lr_schedule")
OPTIONS = {
    "seed": "--seed",
    "device": "--device",
    "tensorboard_log": "-tb",
    "verbose": "--verbose",
    "eval_freq": "--eval-freq",
    "eval_episodes": "--eval-episodes",
    "n_eval_envs": "--n-eval-envs",
    "save_freq": "--save-freq",
    "vec_env": "--vec-env",
    "num_threads": "--num-threads",
    "trained_agent": "-i",
    "dataset": "--dataset",
    "pretrain_updates": "--pretrain-updates",
    "online_steps": "--online-steps",
}
"""Options that decide what a run is, by the name of the argument."""

ZOO_DEFAULTS: dict[str, Any] = {"n_envs": 1, "normalize": False, "frame_stack": None, "env_wrapper": None, "env_kwargs": {}}
"""Settings that are no arguments of an algorithm, as they are without an entry."""


@dataclass(frozen=True)
class Setting:
    """
    :param value: The value
    :param origin: Where it comes from
    """

    value: Any
    origin: str


Settings = dict[str, Setting]


def hyperparameter_file(algo: str) -> Path:
    """
    The file with the settings of an algorithm: ours, or what the user registered with a class. There is none for those of
    rl-zoo3 that are no baseline of ours.

    :param algo: Name on the command line
    """
    own = registered_methods().get(algo)
    if own is not None and own.settings is not None:
        return own.settings
    here = Path(__file__).resolve().parents[2]
    installed = here / "hyperparams"
    return (installed if installed.is_dir() else here.parent / "hyperparams") / f"{algo}.yml"


def read_entries(config: str) -> dict[str, Any]:
    """
    :param config: File (``.yml``, ``.yaml``, ``.py``) or Python module with settings, one entry per environment
    :return: The entries; what is to be searched is checked, and left out
    :raises ValueError: If it cannot be read
    """
    entries = read_file(config)
    parse_search(config, entries.get(SEARCH, {}))
    return {name: entry for name, entry in entries.items() if name != SEARCH}


def read_file(config: str) -> dict[str, Any]:
    """
    :param config: See :func:`read_entries`
    :return: All of it, also what is to be searched
    :raises ValueError: If it cannot be read
    """
    try:
        if config.endswith((".yml", ".yaml")):
            entries = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        elif config.endswith(".py"):
            entries = runpy.run_path(config).get("hyperparams")
        else:
            entries = vars(importlib.import_module(config)).get("hyperparams")
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"settings file {config}{line}: {error.problem or 'this is no YAML'}; correct the file.") from error
    except Exception as error:  # a Python file may raise anything
        remedy = "give a .yml file, a .py file or the name of a module"
        raise ValueError(f"settings file {config}: {type(error).__name__}: {error}; {remedy}.") from error
    if not isinstance(entries, dict):
        found = "no dictionary hyperparams" if entries is None else type(entries).__name__
        raise ValueError(f"settings file {config} holds {found}; it must have one entry per environment.")
    return entries


def choose_entry(config: str, entries: Mapping[str, Any], candidates: Iterable[str]) -> Settings:
    """
    :param config: Where the entries are from
    :param entries: Entries of the file
    :param candidates: Names that may be meant, the best first
    :return: The settings of the entry
    :raises ValueError: If there is none
    """
    names = list(candidates)
    name = next((name for name in names if name in entries), None)
    if name is None:
        raise ValueError(f"settings file {config} has no entry {' or '.join(map(repr, names))}; add one.")
    entry = entries[name]
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise ValueError(f"settings file {config}: the entry {name!r} must have names and values, not {entry!r}.")
    return with_origin(entry, f"{'/'.join(Path(config).parts[-2:])}, entry {name}")


def expand_preset(algorithm: type, given: Settings) -> Settings:
    """
    Put settings in the place of the name of a preset. What is given beside it counts more, in ``policy_kwargs`` one by one.

    :param algorithm: The algorithm
    :param given: Settings from one source
    :raises ValueError: If the algorithm has no such preset
    """
    if PRESET not in given:
        return given
    name, origin = given[PRESET].value, given[PRESET].origin
    if not hasattr(algorithm, "preset"):
        raise ValueError(f"preset={name!r} ({origin}): {algorithm.__name__} has no presets; leave it out.")
    try:
        found = with_origin(plain(algorithm.preset(name)), f"preset {name} of {algorithm.__name__}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"preset={name!r} ({origin}): {error}") from error
    own = {key: setting for key, setting in given.items() if key != PRESET}
    if "policy_kwargs" in found and "policy_kwargs" in own:
        both = {**found["policy_kwargs"].value, **_dictionary(own["policy_kwargs"].value)}
        own["policy_kwargs"] = Setting(both, f"{found['policy_kwargs'].origin}; {own['policy_kwargs'].origin}")
    return found | own


def overwrite(settings: Settings, own: Settings) -> Settings:
    """
    :param settings: Settings by name
    :param own: What replaces some of them; ``policy_kwargs.n_critics`` replaces one member of a dictionary
    :raises ValueError: If something that is no dictionary is said to have members
    """
    result = settings | {name: setting for name, setting in own.items() if "." not in name}
    for name, setting in own.items():
        owner, dot, member = name.partition(".")
        if not dot:
            continue
        if owner not in DICTIONARIES:
            raise ValueError(
                f"{name}={setting.value!r} ({setting.origin}): {owner} has no members; only {', '.join(DICTIONARIES)} have."
            )
        whole = result.get(owner, setting)
        members = {} if whole is setting else _dictionary(whole.value)
        origin = whole.origin if whole.origin.endswith(setting.origin) else f"{whole.origin}; {setting.origin}"
        result[owner] = Setting({**members, member: setting.value}, origin)
    return result


def with_origin(values: Mapping[str, Any], origin: str) -> Settings:
    """
    :param values: Values by name
    :param origin: Where all of them are from
    """
    return {name: Setting(value, origin) for name, value in values.items()}


def values(settings: Settings) -> dict[str, Any]:
    """
    :param settings: Settings
    :return: Their values
    """
    return {name: setting.value for name, setting in settings.items()}


def from_options(args: Mapping[str, Any], defaults: Mapping[str, Any]) -> Settings:
    """
    :param args: Arguments of the command line
    :param defaults: What they are without a command line
    """
    given = {name: args[name] != defaults[name] for name in OPTIONS}
    settings = {name: Setting(args[name], OPTIONS[name] if given[name] else "default of train.py") for name in OPTIONS}
    if not args["dataset"]:
        del settings["pretrain_updates"]  # which would imitate it
    # these are None to the algorithm; rl-zoo3's command line has no such value
    return {name: item for name, item in settings.items() if item.value != ""}


def complete(model: Any, given: Settings, options: Settings, archive: str = "") -> dict[str, Settings]:
    """
    Every argument of an agent that was built.

    :param model: The agent
    :param given: What the zoo was told: arguments of the algorithm, and settings of the zoo
    :param options: What the command line says
    :param archive: File that the agent was loaded from, which decides whatever was not told; empty for a new agent
    :return: Section -> its settings
    """
    algorithm, policy = type(model), model.policy_class
    defaults, policy_defaults = _defaults(algorithm), _defaults(policy)
    policy_kwargs = given.get("policy_kwargs", Setting({}, ""))
    if archive:
        defaults = {name: Setting(getattr(model, name, item.value), archive) for name, item in defaults.items()}
        policy_kwargs = Setting(model.policy_kwargs, archive)
        given = {name: item for name, item in given.items() if name != "policy"}
    ours = hasattr(model, "policy_requirements")
    prescribed = {**model.policy_settings(), **model.policy_requirements()} if ours else {}
    if "noise_type" in given:
        defaults["action_noise"] = Setting(model.action_noise, "noise_type and noise_std")
    own = {name: item for name, item in (options | given).items() if name in defaults}
    others = with_origin(ZOO_DEFAULTS, "default of the zoo") | options | given
    zoo = {name: item for name, item in others.items() if name not in defaults and name != "policy_kwargs"}
    return {
        "zoo": zoo,
        algorithm.__name__: defaults | own,
        policy.__name__: policy_defaults
        | with_origin(prescribed, f"set by {algorithm.__name__}")
        | with_origin(_dictionary(policy_kwargs.value), policy_kwargs.origin),
    }


def _dictionary(value: Any) -> dict[str, Any]:
    """The dictionary, which may be written as text."""
    return (parse(value) if isinstance(value, str) else value) or {}


def _defaults(cls: type) -> Settings:
    """Arguments of a constructor with the class that gives each its default value."""
    found: Settings = {}
    for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
        own = inspect.signature(vars(base)["__init__"]).parameters
        for name, parameter in own.items():
            if name in NOT_SHOWN or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            missing = parameter.default is parameter.empty
            library = " (Stable-Baselines3)" if base.__module__.startswith("stable_baselines3.") else ""
            origin = f"default of {base.__name__}{library}"
            found.setdefault(name, Setting(None if missing else parameter.default, origin))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in own.values()):
            break  # this constructor hands nothing on
    accepted = inspect.signature(cls).parameters
    return {name: found[name] for name in accepted if name in found}


def plain(value: Any) -> Any:
    """
    :param value: Any value of a setting
    :return: The same, or a text, as YAML can store it without tags
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def describe(sections: Mapping[str, Settings]) -> dict[str, Any]:
    """
    :param sections: Section -> its settings
    :return: Content of ``effective.yml``
    """
    return {
        section: {name: {"value": plain(item.value), "from": item.origin} for name, item in sorted(settings.items())}
        for section, settings in sections.items()
        if settings
    }


def described(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The reverse of :func:`describe`, without origins.

    :param content: Content of ``effective.yml``
    :return: Section -> name -> value
    :raises ValueError: If it is something else
    """
    try:
        return {section: {name: item["value"] for name, item in items.items()} for section, items in content.items()}
    except (AttributeError, KeyError, TypeError):
        raise ValueError("the settings are not of the form section: name: value and from") from None


def table(sections: Mapping[str, Settings]) -> str:
    """
    :param sections: Section -> its settings
    :return: One line per setting for the terminal
    """
    lines = []
    for section, settings in sections.items():
        if not settings:
            continue
        rows = [(name, _short(plain(item.value)), item.origin) for name, item in sorted(settings.items())]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines.append(f"\n{section}")
        lines += [f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
