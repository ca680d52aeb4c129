"""How to build a saved agent: its description read, checked against the bounds and joined with the caller's settings."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.checkpoints.archives import Archive
from sb3_diffusion.checkpoints.demands import (
    ACTIVATIONS,
    at_most,
    check_counts,
    check_memory,
    held,
    memory_bytes,
    n_entries,
)
from sb3_diffusion.checkpoints.description import COUNTERS, DESCRIPTION, FORMAT_VERSION, LOCAL_ARGUMENTS
from sb3_diffusion.checkpoints.plain import from_plain
from sb3_diffusion.checkpoints.plain_spaces import space_from_plain
from sb3_diffusion.checkpoints.tagged_json import parse_json
from sb3_diffusion.envs.spaces import interchangeable, same_actions
from sb3_diffusion.names import check_no_unknown
from sb3_diffusion.printable import printable, quoted
from sb3_diffusion.taxonomy import load_algorithm

MAX_DESCRIPTION_BYTES = 4 * 2**20
# Arguments of the replay buffer, with the values for an agent that only acts
_NO_REPLAY: dict[str, Any] = {
    "buffer_size": 1,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "optimize_memory_usage": False,
    "n_steps": 1,
}
UNSAFE = "use Algo.load, which runs the code in the file"
# Entries of the description and their types.
_ENTRIES: dict[str, Any] = {
    "algorithm": (str, type(None)),
    "policy": (str, dict, type(None)),
    "arguments": dict,
    "policy_kwargs": dict,
    "observation_space": (dict, type(None)),
    "action_space": (dict, type(None)),
    "counters": dict,
    "not_portable": dict,
    "versions": dict,
}


@dataclass
class Recipe:
    """
    What ``sb3_diffusion.json`` says, checked and with the caller's settings.

    :param algorithm: Class of the agent
    :param policy: Class of its policy, or a name that the algorithm has for one
    :param arguments: Other arguments of the algorithm
    :param policy_kwargs: Arguments of the policy
    :param observation_space: Space of the observations
    :param action_space: Space of the actions
    :param counters: Attributes that say how far the training was
    """

    algorithm: type[BaseAlgorithm]
    policy: str | type
    arguments: dict[str, Any]
    policy_kwargs: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    counters: dict[str, int]


def read_description(archive: Archive) -> dict[str, Any]:
    """
    :param archive: A saved agent
    :return: Its description, of which nothing is known but that it is JSON of a known format
    """
    if DESCRIPTION not in archive.sizes:
        raise ValueError(
            f"{archive.name} has no {DESCRIPTION}, so it cannot be loaded safely; save the agent with "
            f"sb3_diffusion.save_agent, or, if you trust whoever made it, {UNSAFE}."
        )
    where = f"{archive.name}: {DESCRIPTION}"
    description = parse_json(archive.read(DESCRIPTION, MAX_DESCRIPTION_BYTES), where)
    version = description.get("format") if isinstance(description, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{where}: format={quoted(version)} must be a positive integer; the file is damaged.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where}: format={quoted(version)} is newer than {FORMAT_VERSION}, which this version reads; "
            "update sb3_diffusion."
        )
    return description


def _check_dataset(arguments: dict[str, Any]) -> dict[str, Any]:
    """A file may say which data an agent learned from; a path or a name would be opened."""
    identity = arguments.get("dataset")
    if identity is not None and not (isinstance(identity, dict) and isinstance(identity.get("name"), str)):
        raise ValueError(
            f"arguments.dataset={quoted(str(identity))} must be a description of data, and no file is read for it."
        )
    return arguments


def read_recipe(archive: Archive, given: type[BaseAlgorithm] | None, settings: dict[str, Any]) -> Recipe:
    """
    :param archive: A saved agent
    :param given: Class to build, see :func:`~sb3_diffusion.checkpoints.agents.load_agent`
    :param settings: Arguments that replace those in the file
    :return: What to build
    """
    description = read_description(archive)
    where = f"{archive.name}: {DESCRIPTION}"
    for key, kinds in _ENTRIES.items():
        if not isinstance(description.get(key), kinds):
            raise ValueError(f"{where}: {key!r} is missing or of the wrong type; the file is damaged.")
    settings = dict(settings)
    policy_kwargs = dict(settings.pop("policy_kwargs", None) or {})
    replaced = {*settings, *(["algorithm"] if given is not None else [])}
    _check_portable(where, description["not_portable"], replaced, policy_kwargs)
    policy = settings.pop("policy", None)
    algorithm = _choose_algorithm(where, description["algorithm"], given)
    check_no_unknown(algorithm, set(settings) - set(inspect.signature(algorithm).parameters))
    known = set(inspect.signature(algorithm).parameters) - set(LOCAL_ARGUMENTS)
    unknown = sorted(set(description["arguments"]) - known)
    if unknown:
        raise ValueError(
            f"{where}: {algorithm.__name__} takes no argument {quoted(unknown[0])} from a file; "
            f"install the version that wrote it ({_version_of(description)})."
        )
    counters = {name: description["counters"].get(name, 0) for name in COUNTERS}
    if not all(type(value) is int and value >= 0 for value in counters.values()):
        raise ValueError(f"{where}: 'counters' must be numbers of steps; the file is damaged.")
    try:
        return Recipe(
            algorithm,
            policy or from_plain(description["policy"], "policy"),
            {**_check_dataset(check_counts(from_plain(description["arguments"], "arguments"), "arguments")), **settings},
            {**check_counts(from_plain(description["policy_kwargs"], "policy_kwargs"), "policy_kwargs"), **policy_kwargs},
            space_from_plain(description["observation_space"], "observation_space"),
            space_from_plain(description["action_space"], "action_space"),
            counters,
        )
    except ValueError as error:
        reason = printable(error)
        raise ValueError(f"{where}: {reason} Do not use the file, or, if you trust whoever made it, {UNSAFE}.") from error


def _choose_algorithm(where: str, name: str | None, given: type[BaseAlgorithm] | None) -> type[BaseAlgorithm]:
    """The class that the file names. One that is given may derive from it, and is needed where the file names none we know."""
    if given is not None and not (isinstance(given, type) and issubclass(given, BaseAlgorithm)):
        raise TypeError(f"algorithm={given!r} must be the class of an algorithm; without it, the file says which.")
    try:
        named: type[BaseAlgorithm] = load_algorithm(str(name))
    except (ValueError, ImportError) as error:
        if given is not None and name in (None, given.__name__.lower()):
            return given
        raise ValueError(
            f"{where}: algorithm={quoted(str(name))} is not in the registry of this version. {printable(error)} "
            "A class of your own is there once you have imported the module that registers it (sb3_diffusion.register_method)."
        ) from error
    if given is not None and not issubclass(given, named):
        raise ValueError(
            f"{where}: algorithm={given.__name__} is not {named.__name__}, whose agent this is, nor derives from it."
        )
    return given or named


def _check_portable(where: str, missing: dict[str, Any], settings: Iterable[str], policy_settings: Iterable[str]) -> None:
    for argument, what in missing.items():
        root, *rest = re.split(r"[.\[]", argument)
        if root in settings or (root == "policy_kwargs" and rest and rest[0] in policy_settings):
            continue
        given = root not in ("algorithm", "observation_space", "action_space")
        remedy = f"pass {printable(root, 200)}=... to load_agent, or, " if given else ""
        own = " Or pass algorithm=..., the class, to load_agent; one that is registered when it is saved needs neither."
        raise ValueError(
            f"{where}: {printable(argument, 200)} was {printable(what, 200)}, which has no plain form; "
            f"{remedy}if you trust whoever made it, {UNSAFE}.{own if root == 'algorithm' else ''}"
        )


def check_env(file: str, recipe: Recipe, env: GymEnv | str) -> VecEnv:
    """
    :param file: Name of the file, for the message
    :param recipe: Result of :func:`read_recipe`
    :param env: Environment for the agent
    :return: The same as vectorised environments
    :raises ValueError: If its spaces are not those of the agent
    """
    made = maybe_make_env(env, 0)
    assert made is not None
    venv = recipe.algorithm._wrap_env(made)
    of_data = recipe.arguments.get("dataset") is not None
    for name, fits in (("observation_space", interchangeable), ("action_space", same_actions)):
        expected, actual = getattr(recipe, name), getattr(venv, name)
        if actual != expected and not (of_data and fits(expected, actual)):
            raise ValueError(
                f"{file}: the agent has the {name} {printable(expected, 500)}, the environment {printable(actual, 500)}; "
                "make the environment with the arguments and wrappers of the training."
            )
    return venv


def build(
    file: str, recipe: Recipe, venv: VecEnv | None, device: th.device | str, weights: dict[str, th.Tensor]
) -> BaseAlgorithm:
    """
    :param file: Name of the file, for the message
    :param recipe: Result of :func:`read_recipe`
    :param venv: Environments to train on in, ``None`` for an agent that only acts
    :param device: Device of the networks
    :param weights: Weights in the file: an agent that is much larger is not built
    :return: The agent, untrained
    """
    cls: Any = recipe.algorithm
    n_envs = 1 if venv is None else venv.num_envs
    without = _NO_REPLAY if venv is None and issubclass(cls, OffPolicyAlgorithm) else {}
    memory = memory_bytes(recipe.arguments | without, recipe.observation_space, recipe.action_space, n_envs)
    try:
        check_memory(memory)
        # observations and successors may be one tensor; rollouts are arrays of NumPy
        replay = 2 * memory if issubclass(cls, OffPolicyAlgorithm) else 0
        with at_most(*held(weights), spare_bytes=replay + ACTIVATIONS * n_entries(recipe.observation_space)):
            model = cls(
                recipe.policy,
                venv,
                policy_kwargs=recipe.policy_kwargs,
                device=device,
                _init_setup_model=False,
                **recipe.arguments,
            )
            if venv is not None:
                model._setup_model()
                return model
            model.observation_space, model.action_space, model.n_envs = recipe.observation_space, recipe.action_space, 1
            kept = {name: getattr(model, name) for name in without}
            vars(model).update(without)
            model._setup_model()
            vars(model).update(kept)  # so that saving it again tells of the training
            return model
    except Exception as error:  # whatever the constructors say to arguments that they did not expect
        raise ValueError(
            f"{file}: {DESCRIPTION}: {cls.__name__} cannot be built from these arguments "
            f"({type(error).__name__}: {printable(error)})"
        ) from error


def _version_of(description: dict[str, Any]) -> str:
    versions = description["versions"]
    return ", ".join(
        f"{name} {printable(versions[name], 40)}" for name in ("sb3_diffusion", "stable_baselines3") if name in versions
    )
