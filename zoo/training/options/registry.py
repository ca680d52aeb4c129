"""Tell rl-zoo3 about the algorithms of ``sb3_diffusion``, and check names before anything slow is imported."""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_diffusion.data.stored.catalogue import KNOWN, ogbench
from sb3_diffusion.data.stored.tasks import dataset_of, environment_name, register_data_task
from sb3_diffusion.names import closest, suggest
from sb3_diffusion.taxonomy import BASELINES, CONTRIB, available_methods, get_method, load_algorithm, registered_methods
from sb3_diffusion.tensor_names import is_tensor_env, tensor_env_ids

from .command_line import CommandParser
from .errors import fail
from .search_space import SEARCH, Dimension, convert_params, make_sampler, search_space
from .settings import hyperparameter_file, read_file

DMC_PREFIX = "dm_control/"
DMC_ACTION_REPEAT = 2
"""Frames of the simulator for a decision of the agent in the DeepMind Control Suite, in all settings files."""
ENVIRONMENT_PACKAGES = (
    *("pybullet_envs_gymnasium", "ale_py", "highway_env", "custom_envs", "gym_donkeycar", "panda_gym"),
    *("rocket_lander_gym", "minigrid"),
)
"""Packages that rl-zoo3 imports if they are there; they register environments."""


def frames_of_a_step(env_id: str) -> int:
    """
    :param env_id: Id of an environment
    :return: Frames of the simulator for a step of the agent with our settings
    """
    return DMC_ACTION_REPEAT if env_id.startswith(DMC_PREFIX) else 1


def register_algorithms() -> None:
    """Add every available method, every class of the user's own, and their search spaces to the tables of rl-zoo3."""
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    for name in our_names():
        ALGOS[name] = load_algorithm(name)
        samplers[name] = make_sampler(partial(default_space, name))
        converters[name] = convert_params


def default_space(algo: str) -> list[Dimension]:
    """
    What is searched for an algorithm unless the settings of a training say something else.

    :param algo: Its name
    :raises ValueError: If its file is wrong
    """
    return _space_in(load_algorithm(algo), str(hyperparameter_file(algo)))


@cache
def _space_in(algorithm: type, file: str) -> list[Dimension]:
    entries = read_file(file) if Path(file).is_file() else {}
    return search_space(algorithm, file, entries.get(SEARCH, {}))


def use_search_space(algo: str, config: str) -> None:
    """
    Let rl-zoo3 draw what the settings of a training say, if they do. What is wrong with them is known before the first trial.

    :param algo: Name of an algorithm
    :param config: The settings
    :raises ValueError: If they are wrong
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    entries = read_file(config)
    if SEARCH in entries:
        space = search_space(ALGOS[algo], config, entries[SEARCH])
        samplers[algo], converters[algo] = make_sampler(lambda: space), convert_params
    elif algo in our_names():
        default_space(algo)


def our_names() -> list[str]:
    """Names of the algorithms that rl-zoo3 does not know: our methods, and classes of the user's own."""
    return [*(method.zoo_name for method in available_methods()), *registered_methods()]


def algorithm_names() -> list[str]:
    """What ``--algo`` may be: the available methods, registered classes, the algorithms of SB3 and those of sb3-contrib."""
    return [*our_names(), *BASELINES, *CONTRIB]


def check_algorithm(name: str) -> None:
    """
    :param name: Value of ``--algo``
    :raises ValueError: If there is no such algorithm; the message is one line with a suggestion
    """
    names = algorithm_names()
    if name in names:
        return
    try:
        method = get_method(name)
    except ValueError:
        own = "" if closest(name, names) else " --gym-packages imports the module that registers one of your own."
        raise ValueError(f"unknown algorithm {name!r}; {suggest(name, names)}{own}") from None
    if method.available:
        raise ValueError(f"unknown algorithm {name!r}; did you mean {method.zoo_name}?")
    available = ", ".join(other.zoo_name for other in available_methods())
    raise ValueError(f"{method.name} is part of the taxonomy but not available yet; available are: {available}.")


def check_environment(env_id: str) -> None:
    """
    Register the DeepMind Control tasks if the id asks for one, and check that the environment exists.

    :param env_id: Value of ``--env``
    :raises ValueError: If it does not; the message is one line with a suggestion
    """
    if is_tensor_env(env_id):  # of a simulator's tasks only the simulator knows the names
        return
    register_environments(env_id)
    newest = _newest_version(env_id)
    if env_id not in gym.registry:
        if ":" in env_id:
            package, _, name = env_id.partition(":")
            raise ValueError(f"unknown environment {env_id!r}; write --env {name} --gym-packages {package}.")
        listed = "gymnasium.pprint_registry() lists what is registered."
        hint = f"did you mean {newest}?" if newest else suggest(env_id, [*gym.registry, *KNOWN, *tensor_env_ids()], listed)
        raise ValueError(f"unknown environment {env_id!r}; {hint}")
    entry = gym.registry[env_id].entry_point
    # Gymnasium keeps the ids of versions that it has given away, with a function that raises
    if callable(entry) and getattr(entry, "__module__", "") == gym.envs.__name__:
        raise ValueError(f"environment {env_id!r} is no longer part of Gymnasium; take {newest}.")


def register_environments(env_id: str) -> None:
    """
    Import what registers an environment that Gymnasium does not know by itself.

    :param env_id: Value of ``--env``
    """
    if env_id in gym.registry or register_data_task(env_id) == env_id:
        return
    if env_id.startswith(("dm", "toy")):  # with a typo in the prefix too, to have something to suggest
        from sb3_diffusion.envs import register_dmc  # registers the toys

        if env_id.startswith(DMC_PREFIX) or not env_id.startswith("toy"):
            register_dmc()
    if env_id not in gym.registry and ("NoVel" in env_id or any(map(importlib.util.find_spec, ENVIRONMENT_PACKAGES))):
        importlib.import_module("rl_zoo3.import_envs")


def _newest_version(env_id: str) -> str | None:
    """The highest version that is registered under the same name."""
    name, _, _ = env_id.rpartition("-v")
    versions = [spec for spec in gym.registry.values() if spec.name == name.rpartition("/")[2] and spec.version is not None]
    same = [spec for spec in versions if spec.id.rpartition("-v")[0] == name]
    return max(same, key=lambda spec: spec.version or 0).id if same else None


def check_names(algo: str | None, env_id: str | None, gym_packages: Sequence[str]) -> None:
    """
    Import the packages that register environments or algorithms, and check what names something.

    :param algo: Value of ``--algo``
    :param env_id: Value of ``--env``
    :param gym_packages: Values of ``--gym-packages``
    :raises ValueError: If one of them does not exist
    """
    import_packages(gym_packages)
    if algo is not None:
        check_algorithm(algo)
    if env_id is not None:
        check_environment(env_id)


def import_packages(names: Iterable[str]) -> None:
    """
    :param names: Values of ``--gym-packages``
    :raises ValueError: If one cannot be imported
    """
    name = ""
    try:
        for name in names:
            if (here := os.getcwd()) not in sys.path:
                sys.path.append(here)  # a script of the zoo has its own folder there instead
            importlib.import_module(name)
    except Exception as error:  # whatever a package does while it is imported
        raise ValueError(f"--gym-packages {name}: {type(error).__name__}: {error}") from error


def check_command_line(prog: str, argv: Sequence[str]) -> None:
    """
    Stop with one line and exit status 2 if ``--algo`` or ``--env`` name nothing that exists.

    :param prog: Name of the program, for the message
    :param argv: Command line without the program; options other than the names are left to the program's own parser
    """
    parser = CommandParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--env")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    args, _ = parser.parse_known_args(argv)
    try:
        check_names(args.algo, args.env, args.gym_packages)
    except (ValueError, ImportError) as error:
        fail(prog, str(error))


def complete_names(args: argparse.Namespace) -> None:
    """
    Fill in the data set where ``--env`` names one, and the environment where only ``--dataset`` is given.

    :param args: The options of a training, changed in place
    """
    known = dataset_of(args.env or "")
    if known is not None:
        args.env = environment_name(known.name)
        args.dataset = args.dataset or known.name
    elif not args.env and dataset_of(args.dataset) is not None:
        args.env = environment_name(args.dataset)


def entries_for(dataset: str, env_id: str) -> list[str]:
    """
    :param dataset: Value of ``--dataset``
    :param env_id: Environment
    :return: Entries of a settings file that may be meant, the best first
    """
    known = KNOWN.get(dataset) or ogbench(dataset), dataset_of(env_id)
    return list(dict.fromkeys([*(name for found in known if found is not None for name in found.names), env_id]))


def task_of(env_id: str) -> str:
    """
    :param env_id: Environment of a run, which may be called as its data
    :return: The environment itself
    """
    known = dataset_of(env_id)
    return env_id if known is None else str(known.env_id)
