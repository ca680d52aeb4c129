"""
Saved agents that can be loaded without running anything that is in the file.

A saved agent is Stable-Baselines3's zip file, which ``Algo.load`` reads, with two more members: ``sb3_diffusion.json`` says in
plain JSON what to build, and ``vec_normalize.npz`` has the statistics of ``VecNormalize``. :func:`load_agent` and
:func:`load_normalization` read these and the weights (with ``weights_only=True``), never the pickled member ``data``.
"""

import inspect
import io
import json
import platform
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.checkpoints.archives import Archive, open_archive
from sb3_diffusion.checkpoints.demands import (
    ACTIVATIONS,
    at_most,
    check_counts,
    check_memory,
    held,
    memory_bytes,
    n_entries,
)
from sb3_diffusion.checkpoints.normalization import pack_normalization, unpack_normalization
from sb3_diffusion.checkpoints.old_names import up_to_date
from sb3_diffusion.checkpoints.plain import NotPlain, from_plain, space_from_plain, space_to_plain, to_plain
from sb3_diffusion.checkpoints.tagged_json import parse_json
from sb3_diffusion.checkpoints.weights import (
    check_names,
    check_optimizer,
    check_state,
    check_tensor,
    check_weights,
    load_tensors,
)
from sb3_diffusion.files import write_atomically
from sb3_diffusion.names import check_no_unknown
from sb3_diffusion.printable import printable, quoted
from sb3_diffusion.taxonomy import algorithm_name, load_algorithm

FORMAT_VERSION = 1
DESCRIPTION = "sb3_diffusion.json"
NORMALIZATION = "vec_normalize.npz"
VARIABLES = "pytorch_variables.pth"
MAX_DESCRIPTION_BYTES = 4 * 2**20
MAX_NORMALIZATION_BYTES = 64 * 2**20

# What belongs to a machine or a session and not to an agent.
_LOCAL_ARGUMENTS = ("policy", "policy_kwargs", "env", "device", "execution", "tensorboard_log", "_init_setup_model")
# Arguments of which no trace is left in the model under their own names.
_ATTRIBUTES = {"stats_window_size": "_stats_window_size", "dataset": "dataset_identity"}
_COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_n_updates",
    "_episode_num",
    "_n_offline_updates",
)
# Arguments of the replay buffer, with the values for an agent that only acts
_NO_REPLAY: dict[str, Any] = {
    "buffer_size": 1,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "optimize_memory_usage": False,
    "n_steps": 1,
}
_UNSAFE = "use Algo.load, which runs the code in the file"
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


# -- saving -----------------------------------------------------------------------------------------------------------


def save_agent(model: BaseAlgorithm, path: str | Path, *, optimizer_state: bool = True) -> Path:
    """
    Save an agent so that :func:`load_agent` and ``Algo.load`` can read it.

    :param model: The agent, of one of our algorithms or of Stable-Baselines3's
    :param path: The file; ``.zip`` is added if it has no ending. It is replaced only when the new one is complete
    :param optimizer_state: Whether to keep what the optimizers remember, two thirds of the file, and the weights of both the
        actor and its target (an average or the previous policy). Without, the loaded agent acts the same; when it is trained
        on, its optimizers start afresh, and both actors start as the one that acts
    :return: The file
    """
    content = io.BytesIO()
    model.save(content)
    with zipfile.ZipFile(content) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if DESCRIPTION not in members:
        members |= description_members(model)
    if not optimizer_state:
        for name in model._get_torch_save_params()[0]:
            if isinstance(recursive_getattr(model, name), th.optim.Optimizer):
                members[f"{name}.pth"] = _without_state(members[f"{name}.pth"])
        members["policy.pth"] = _with_one_actor(members["policy.pth"], getattr(model.policy, "acting", "actor"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return write_file(path, content.getvalue())


def description_members(model: BaseAlgorithm) -> dict[str, bytes]:
    """
    What a saved agent has in addition to Stable-Baselines3's members.

    :param model: The agent
    :return: Member -> contents
    """
    text = json.dumps(describe(model), indent=2, allow_nan=False)
    members = {DESCRIPTION: text.encode()}
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        members[NORMALIZATION] = pack_normalization(normalization)
    return members


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
        "counters": {name: int(vars(model)[name]) for name in _COUNTERS if name in vars(model)},
        "not_portable": missing,
        "versions": _versions(),
    }


def write_file(path: str | Path, content: bytes) -> Path:
    """
    Write the file of an agent at once.

    :param path: The file, ``.zip`` is added if it has no ending
    :param content: Its contents
    :return: The file
    """
    path = Path(path) if Path(path).suffix else Path(f"{path}.zip")
    write_atomically(path, content)
    return path


def _constructor_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    names = [name for name in inspect.signature(type(model)).parameters if name not in _LOCAL_ARGUMENTS]
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


def _without_state(member: bytes) -> bytes:
    saved = th.load(io.BytesIO(member), weights_only=True)
    content = io.BytesIO()
    th.save({**saved, "state": {}}, content)
    return content.getvalue()


def _with_one_actor(member: bytes, acting: str) -> bytes:
    """
    Of the actor and its target, the weights of the one that acts; weights that are the same tensor twice are stored once.

    :param member: Weights of a policy
    :param acting: Name of the actor that acts
    """
    saved = th.load(io.BytesIO(member), weights_only=True)
    kept, other = ("actor_target.", "actor.") if acting == "actor_target" else ("actor.", "actor_target.")
    shared = {name: saved[kept + name.removeprefix(other)] if name.startswith(other) else saved[name] for name in saved}
    content = io.BytesIO()
    th.save(shared, content)
    return content.getvalue()


# -- loading ----------------------------------------------------------------------------------------------------------


@dataclass
class _Recipe:
    """What ``sb3_diffusion.json`` says, checked and with the caller's settings."""

    algorithm: type[BaseAlgorithm]
    policy: str | type
    arguments: dict[str, Any]
    policy_kwargs: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    counters: dict[str, int]


def load_agent(
    path: str | Path | io.BufferedIOBase,
    env: GymEnv | str | None = None,
    device: th.device | str = "auto",
    *,
    algorithm: type[BaseAlgorithm] | None = None,
    **settings: Any,
) -> BaseAlgorithm:
    """
    Load an agent without running anything that is in the file.

    The file names the algorithm: a method, an algorithm of Stable-Baselines3, or a class that was registered
    (:func:`~sb3_diffusion.register_method`), which has to be registered again before. A file of any other class of the user's
    own names none; then ``algorithm`` has to.

    :param path: The file that :func:`save_agent` or ``model.save`` wrote
    :param env: Environment to train on in. Without, the agent can only act, and has a replay buffer of one transition
    :param device: Device of the networks
    :param algorithm: Class to build. Where the file names an algorithm, it has to be the class of that name or one that
        derives from it
    :param settings: Arguments of the algorithm that replace those in the file; entries of ``policy_kwargs`` are merged
    :return: The agent
    :raises ValueError: If anything about the file is not as it has to be, naming the file, the member and the remedy
    """
    with _open(path) as archive:
        recipe = _read_recipe(archive, algorithm, settings)
        saved = _read_weights(archive)
        normalized = NORMALIZATION in archive.sizes
    venv = None if env is None else _check_env(archive.name, recipe, env)
    model = _build(archive.name, recipe, venv, device, saved["policy"])
    if venv is not None and normalized and model.get_vec_normalize_env() is None:
        warnings.warn(
            f"{archive.name} was trained with normalised observations; wrap env by load_normalization(path, env) first.",
            stacklevel=2,
        )
    _restore(archive.name, model, saved)
    for name, value in recipe.counters.items():
        setattr(model, name, value)
    if model.use_sde:
        model.policy.reset_noise()  # type: ignore[operator]
    return model


def load_normalization(path: str | Path | io.BufferedIOBase, venv: VecEnv) -> VecEnv:
    """
    Normalise observations as the environment of a saved agent did.

    :param path: The file that :func:`save_agent` or ``model.save`` wrote
    :param venv: Environments
    :return: ``VecNormalize`` around them, which neither updates its statistics nor normalises rewards; ``venv`` itself if the
        agent was trained without
    :raises ValueError: If the statistics are damaged or do not fit the environments
    """
    with _open(path) as archive:
        _read_description(archive)  # a file without one may have been trained with statistics that it does not carry
        if NORMALIZATION not in archive.sizes:
            return venv
        content = archive.read(NORMALIZATION, MAX_NORMALIZATION_BYTES)
        return unpack_normalization(content, venv, f"{archive.name}: {NORMALIZATION}")


def described_algorithm(path: str | Path | io.BufferedIOBase) -> str | None:
    """
    :param path: A saved agent
    :return: Name of its algorithm in the registry; ``None`` if the file does not tell
    """
    with _open(path) as archive:
        name = _read_description(archive).get("algorithm") if DESCRIPTION in archive.sizes else None
    return name if isinstance(name, str) else None


def why_unsafe(path: str | Path | io.BufferedIOBase) -> str | None:
    """
    :param path: A saved agent
    :return: Why only ``Algo.load`` can load it, which runs the code in the file; ``None`` if :func:`load_agent` can
    """
    with _open(path) as archive:
        if DESCRIPTION not in archive.sizes:
            return f"has no {DESCRIPTION}"
        missing = _read_description(archive).get("not_portable")
    return f"holds {printable(', '.join(missing), 200)} as pickles only" if missing else None


@contextmanager
def _open(path: str | Path | io.BufferedIOBase) -> Iterator[Archive]:
    source: Any = path
    if isinstance(path, str | Path):
        candidates = [Path(path), Path(f"{path}.zip")]  # the ending may be left out, as in Stable-Baselines3
        source = next((candidate for candidate in candidates if candidate.is_file()), None)
        if source is None:
            raise FileNotFoundError(f"There is no file {path} (nor {path}.zip).")
    with open_archive(source) as archive:
        yield archive


def _read_description(archive: Archive) -> dict[str, Any]:
    if DESCRIPTION not in archive.sizes:
        raise ValueError(
            f"{archive.name} has no {DESCRIPTION}, so it cannot be loaded safely; save the agent with "
            f"sb3_diffusion.save_agent, or, if you trust whoever made it, {_UNSAFE}."
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


def _read_recipe(archive: Archive, given: type[BaseAlgorithm] | None, settings: dict[str, Any]) -> _Recipe:
    description = _read_description(archive)
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
    known = set(inspect.signature(algorithm).parameters) - set(_LOCAL_ARGUMENTS)
    unknown = sorted(set(description["arguments"]) - known)
    if unknown:
        raise ValueError(
            f"{where}: {algorithm.__name__} takes no argument {quoted(unknown[0])} from a file; "
            f"install the version that wrote it ({_version_of(description)})."
        )
    counters = {name: description["counters"].get(name, 0) for name in _COUNTERS}
    if not all(type(value) is int and value >= 0 for value in counters.values()):
        raise ValueError(f"{where}: 'counters' must be numbers of steps; the file is damaged.")
    try:
        return _Recipe(
            algorithm,
            policy or from_plain(description["policy"], "policy"),
            {**check_counts(from_plain(description["arguments"], "arguments"), "arguments"), **settings},
            {**check_counts(from_plain(description["policy_kwargs"], "policy_kwargs"), "policy_kwargs"), **policy_kwargs},
            space_from_plain(description["observation_space"], "observation_space"),
            space_from_plain(description["action_space"], "action_space"),
            counters,
        )
    except ValueError as error:
        reason = printable(error)
        raise ValueError(f"{where}: {reason} Do not use the file, or, if you trust whoever made it, {_UNSAFE}.") from error


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
            f"{remedy}if you trust whoever made it, {_UNSAFE}.{own if root == 'algorithm' else ''}"
        )


def _check_env(file: str, recipe: _Recipe, env: GymEnv | str) -> VecEnv:
    made = maybe_make_env(env, 0)
    assert made is not None
    venv = recipe.algorithm._wrap_env(made)
    for name, expected in (("observation_space", recipe.observation_space), ("action_space", recipe.action_space)):
        actual = getattr(venv, name)
        if actual != expected:
            raise ValueError(
                f"{file}: the agent has the {name} {printable(expected, 500)}, the environment {printable(actual, 500)}; "
                "make the environment with the arguments and wrappers of the training."
            )
    return venv


def _build(
    file: str, recipe: _Recipe, venv: VecEnv | None, device: th.device | str, weights: dict[str, th.Tensor]
) -> BaseAlgorithm:
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


def _read_weights(archive: Archive) -> dict[str, Any]:
    names = [member for member in archive.sizes if member.endswith(".pth")]
    if "policy.pth" not in names:
        raise ValueError(f"{archive.name} lacks the member 'policy.pth', the weights; get the file again.")
    saved = {name.removesuffix(".pth"): load_tensors(archive.read(name), f"{archive.name}: {name}") for name in names}
    saved["policy"] = check_weights(f"{archive.name}: policy.pth", saved["policy"])
    return saved


def _restore(file: str, model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    names, variable_names = model._get_torch_save_params()
    saved = up_to_date(saved, names)
    variables = saved.pop(VARIABLES.removesuffix(".pth"), {})
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise ValueError(f"{file}: {VARIABLES} must be a mapping from names to tensors; the file is damaged.")
    check_names(file, "member", {f"{name}.pth" for name in names}, {f"{name}.pth" for name in saved})
    check_names(f"{file}: {VARIABLES}", "variable", set(variable_names), set(variables))
    for name in names:
        part = recursive_getattr(model, name)
        check = check_optimizer if isinstance(part, th.optim.Optimizer) else check_state
        check(f"{file}: {name}.pth", part, saved[name])
    built = {name: recursive_getattr(model, name) for name in variable_names}
    for name, tensor in built.items():
        if (tensor is None) != (variables[name] is None):
            raise ValueError(f"{file}: {VARIABLES}: {name} does not fit the arguments of the agent; the file is damaged.")
        if tensor is not None:
            check_tensor(f"{file}: {VARIABLES}: {name}", tensor, variables[name])
    model.set_parameters(saved, exact_match=True, device=model.device)
    with th.no_grad():
        for name, tensor in built.items():
            if tensor is not None:
                tensor.copy_(variables[name])


def _version_of(description: dict[str, Any]) -> str:
    versions = description["versions"]
    return ", ".join(
        f"{name} {printable(versions[name], 40)}" for name in ("sb3_diffusion", "stable_baselines3") if name in versions
    )
