"""
Saved agents that can be loaded without running anything that is in the file.

A saved agent is Stable-Baselines3's zip file, which ``Algo.load`` reads, with two more members: ``sb3_diffusion.json`` says in
plain JSON what to build, and ``vec_normalize.npz`` has the statistics of ``VecNormalize``. :func:`load_agent` and
:func:`load_normalization` read these and the weights (with ``weights_only=True``), never the pickled member ``data``.
"""

import inspect
import io
import json
import math
import os
import platform
import warnings
import zipfile
from collections.abc import Iterator, Mapping
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
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import open_path, recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sb3_diffusion.core.archives import Archive, open_archive
from sb3_diffusion.core.arguments import check_no_unknown
from sb3_diffusion.core.plain import NotPlain, from_plain, space_from_plain, space_to_plain, to_plain
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
_ATTRIBUTES = {"stats_window_size": "_stats_window_size"}
_COUNTERS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num")
# Arguments of the replay buffer, with the values for an agent that only acts
_NO_REPLAY: dict[str, Any] = {
    "buffer_size": 1,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "optimize_memory_usage": False,
    "n_steps": 1,
}
_NORMALIZATION_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_MOMENTS = ("mean", "var", "count")
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
    :param optimizer_state: Whether to keep what the optimizers remember, two thirds of the file. Without, the loaded agent
        acts the same, and its optimizers start afresh when it is trained on
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
        members[NORMALIZATION] = _pack_normalization(normalization)
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
        "counters": {name: int(getattr(model, name)) for name in _COUNTERS if hasattr(model, name)},
        "not_portable": missing,
        "versions": _versions(),
    }


def write_file(path: str | Path | io.BufferedIOBase, content: bytes) -> Path:
    """
    Write a file at once: a full disk or an interruption leaves the previous one as it was.

    :param path: The file, ``.zip`` is added if it has no ending; or an open binary file
    :param content: Its contents
    :return: The file
    """
    if not isinstance(path, str | Path):
        open_path(path, "w").write(content)
        return Path(str(getattr(path, "name", "")))
    target = Path(path).resolve()
    if not target.suffix:
        target = target.with_name(f"{target.name}.zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


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


def _pack_normalization(normalization: VecNormalize) -> bytes:
    settings = {name: getattr(normalization, name) for name in _NORMALIZATION_SETTINGS}
    moments: dict[str, RunningMeanStd] = {"returns": normalization.ret_rms}
    if normalization.norm_obs:
        statistics: Any = normalization.obs_rms
        parts = statistics.values() if isinstance(statistics, dict) else [statistics]
        # by number: the keys of an observation may be anything, names of members may not
        moments |= {f"observations_{index}": part for index, part in enumerate(parts)}
        settings["norm_obs_keys"] = list(statistics) if isinstance(statistics, dict) else None
    arrays = {f"{name}_{moment}": np.asarray(getattr(part, moment)) for name, part in moments.items() for moment in _MOMENTS}
    content = io.BytesIO()
    np.savez(content, settings=np.array(json.dumps(to_plain(settings, NORMALIZATION), allow_nan=False)), **arrays)
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
    path: str | Path | io.BufferedIOBase, env: GymEnv | str | None = None, device: th.device | str = "auto", **settings: Any
) -> BaseAlgorithm:
    """
    Load an agent without running anything that is in the file.

    :param path: The file that :func:`save_agent` or ``model.save`` wrote
    :param env: Environment to train on in. Without, the agent can only act, and has a replay buffer of one transition
    :param device: Device of the networks
    :param settings: Arguments of the algorithm that replace those in the file; entries of ``policy_kwargs`` are merged
    :return: The agent
    :raises ValueError: if anything about the file is not as it has to be, naming the file, the member and the remedy
    """
    with _open(path) as archive:
        recipe = _read_recipe(archive, settings)
        saved = _read_weights(archive)
        normalized = NORMALIZATION in archive.sizes
    venv = None if env is None else _check_env(archive.name, recipe, env)
    model = _build(archive.name, recipe, venv, device, n_saved=sum(tensor.numel() for tensor in _tensors(saved.get("policy"))))
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
    :raises ValueError: if the statistics are damaged or do not fit the environments
    """
    with _open(path) as archive:
        _read_description(archive)  # a file without one may have been trained with statistics that it does not carry
        if NORMALIZATION not in archive.sizes:
            return venv
        where = f"{archive.name}: {NORMALIZATION}"
        arrays = _read_arrays(archive.read(NORMALIZATION, MAX_NORMALIZATION_BYTES), where)
    settings = from_plain(_parse_json(str(arrays.pop("settings", "")), where), where)
    if not isinstance(settings, dict) or set(settings) != set(_NORMALIZATION_SETTINGS):
        raise ValueError(
            f"{where}: settings must have the entries {', '.join(_NORMALIZATION_SETTINGS)}; save the agent again."
        )
    keys = settings["norm_obs_keys"]
    shapes = _normalized_shapes(venv.observation_space, settings["norm_obs"], keys, where)
    moments = {name: _read_moments(arrays, name, shape, where) for name, shape in {"returns": (), **shapes}.items()}
    try:
        normalization = VecNormalize(venv, training=False, **{**settings, "norm_reward": False})
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{where} does not fit the environment ({error}).") from error
    normalization.ret_rms = moments.pop("returns")
    statistics: Any = (
        dict(zip(keys, moments.values(), strict=True)) if keys is not None else next(iter(moments.values()), None)
    )
    if statistics:
        normalization.obs_rms = statistics
    return normalization


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
    description = _parse_json(archive.read(DESCRIPTION, MAX_DESCRIPTION_BYTES), where)
    version = description.get("format") if isinstance(description, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{where}: format={version!r} must be a positive integer; the file is damaged.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where}: format={version} is newer than {FORMAT_VERSION}, which this version reads; update sb3_diffusion."
        )
    return description


def _read_recipe(archive: Archive, settings: dict[str, Any]) -> _Recipe:
    description = _read_description(archive)
    where = f"{archive.name}: {DESCRIPTION}"
    for key, kinds in _ENTRIES.items():
        if not isinstance(description.get(key), kinds):
            raise ValueError(f"{where}: {key!r} is missing or of the wrong type; the file is damaged.")
    settings = dict(settings)
    given = {"policy_kwargs": dict(settings.pop("policy_kwargs", {})), "policy": settings.pop("policy", None)}
    _check_portable(where, description["not_portable"], settings, given["policy_kwargs"])
    algorithm = _read_algorithm(where, description["algorithm"])
    check_no_unknown(algorithm, set(settings) - set(inspect.signature(algorithm).parameters))
    known = set(inspect.signature(algorithm).parameters) - set(_LOCAL_ARGUMENTS)
    unknown = sorted(set(description["arguments"]) - known)
    if unknown:
        raise ValueError(
            f"{where}: {algorithm.__name__} takes no argument {unknown[0]!r} from a file; "
            f"install the version that wrote it ({_version_of(description)})."
        )
    counters = {name: description["counters"].get(name, 0) for name in _COUNTERS}
    if not all(type(value) is int and value >= 0 for value in counters.values()):
        raise ValueError(f"{where}: 'counters' must be numbers of steps; the file is damaged.")
    try:
        return _Recipe(
            algorithm,
            given["policy"] or from_plain(description["policy"], "policy"),
            {**from_plain(description["arguments"], "arguments"), **settings},
            {**from_plain(description["policy_kwargs"], "policy_kwargs"), **given["policy_kwargs"]},
            space_from_plain(description["observation_space"], "observation_space"),
            space_from_plain(description["action_space"], "action_space"),
            counters,
        )
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply; the file is damaged or hostile, do not use it.") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error} The file is damaged, hostile or of another version, or {_UNSAFE}.") from error


def _read_algorithm(where: str, name: str) -> type[BaseAlgorithm]:
    try:
        return load_algorithm(name)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{where}: algorithm={name!r} is not in the registry. {error}") from error


def _check_portable(where: str, missing: dict[str, Any], settings: dict[str, Any], policy_kwargs: dict[str, Any]) -> None:
    for argument, what in missing.items():
        root, _, entry = argument.partition(".")
        root = root.partition("[")[0]
        if root in settings or (root == "policy_kwargs" and entry.partition(".")[0].partition("[")[0] in policy_kwargs):
            continue
        remedy = (
            f"pass {root}=... to load_agent, or, " if root not in ("algorithm", "observation_space", "action_space") else ""
        )
        raise ValueError(
            f"{where}: {argument} was {what}, which has no plain form; {remedy}if you trust whoever made the file, {_UNSAFE}."
        )


def _check_env(file: str, recipe: _Recipe, env: GymEnv | str) -> VecEnv:
    made = maybe_make_env(env, 0)
    assert made is not None
    venv = recipe.algorithm._wrap_env(made)
    for name, expected in (("observation_space", recipe.observation_space), ("action_space", recipe.action_space)):
        actual = getattr(venv, name)
        if actual != expected:
            raise ValueError(
                f"{file}: the agent has the {name} {expected}, the environment {actual}; "
                "make the environment with the arguments and wrappers of the training."
            )
    return venv


def _build(file: str, recipe: _Recipe, venv: VecEnv | None, device: th.device | str, n_saved: int) -> BaseAlgorithm:
    cls: Any = recipe.algorithm
    try:
        with _at_most(n_saved):
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
            without = _NO_REPLAY if isinstance(model, OffPolicyAlgorithm) else {}
            kept = {name: getattr(model, name) for name in without}
            vars(model).update(without)
            model._setup_model()
            vars(model).update(kept)  # so that saving it again tells of the training
            return model
    except Exception as error:  # whatever the constructors say to arguments that they did not expect
        raise ValueError(
            f"{file}: {DESCRIPTION}: {cls.__name__} cannot be built from these arguments ({type(error).__name__}: {error})"
        ) from error


@contextmanager
def _at_most(n_saved: int) -> Iterator[None]:
    """Stop building as soon as the networks are larger than the weights that they are to get."""
    n_made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal n_made
        if parameter is not None and not nn.parameter.is_lazy(parameter):
            n_made += parameter.numel()
        if n_made > 2 * n_saved:
            raise ValueError(f"the networks have more than {n_made:,} weights, the file {n_saved:,}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


# -- weights ----------------------------------------------------------------------------------------------------------


def _read_weights(archive: Archive) -> dict[str, Any]:
    names = [member for member in archive.sizes if member.endswith(".pth")]
    return {name.removesuffix(".pth"): _load_tensors(archive.read(name), f"{archive.name}: {name}") for name in names}


def _load_tensors(content: bytes, where: str) -> Any:
    with open_archive(content, where) as archive:
        # torch stores without compression: members that grow are no work of its
        if sum(archive.sizes.values()) > len(content):
            raise ValueError(f"{where} has compressed members; the file is damaged or hostile, do not use it.")
        if any(size > MAX_DESCRIPTION_BYTES for name, size in archive.sizes.items() if name.endswith(".pkl")):
            raise ValueError(f"{where} has too long a list of tensors; the file is damaged or hostile, do not use it.")
    try:
        return th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message recommends weights_only=False
        raise ValueError(
            f"{where} holds something other than tensors and numbers, or is damaged ({type(error).__name__}); "
            "nothing of it was run, do not use the file."
        ) from None


def _tensors(value: Any) -> Iterator[th.Tensor]:
    if isinstance(value, th.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _restore(file: str, model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    names, variable_names = model._get_torch_save_params()
    variables = saved.pop(VARIABLES.removesuffix(".pth"), None) or {}
    _check_names(file, "member", {f"{name}.pth" for name in names}, {f"{name}.pth" for name in saved})
    _check_names(f"{file}: {VARIABLES}", "variable", set(variable_names), set(variables))
    for name in names:
        part = recursive_getattr(model, name)
        check = _check_optimizer if isinstance(part, th.optim.Optimizer) else _check_state
        check(f"{file}: {name}.pth", part, saved[name])
    built = {name: recursive_getattr(model, name) for name in variable_names}
    for name, tensor in built.items():
        if (tensor is None) != (variables[name] is None):
            raise ValueError(f"{file}: {VARIABLES}: {name} does not fit the arguments of the agent; the file is damaged.")
        if tensor is not None:
            _check_tensor(f"{file}: {VARIABLES}: {name}", tensor, variables[name])
    model.set_parameters(saved, exact_match=True, device=model.device)
    with th.no_grad():
        for name, tensor in built.items():
            if tensor is not None:
                tensor.copy_(variables[name])


def _check_state(where: str, module: nn.Module, state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"{where} must be a mapping from names to tensors; the file is damaged.")
    expected = module.state_dict()
    _check_names(where, "weights", set(expected), set(state))
    for name, tensor in expected.items():
        _check_tensor(f"{where}: {name}", tensor, state[name])


def _check_tensor(where: str, expected: th.Tensor, tensor: Any) -> None:
    if not isinstance(tensor, th.Tensor) or tensor.layout != th.strided:
        raise ValueError(f"{where} must be a dense tensor; the file is damaged.")
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise ValueError(
            f"{where} has shape {tuple(tensor.shape)} ({tensor.dtype}), the network that {DESCRIPTION} describes "
            f"{tuple(expected.shape)} ({expected.dtype}); the two do not belong together, get the file again."
        )


def _check_optimizer(where: str, optimizer: th.optim.Optimizer, state: Any) -> None:
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise ValueError(f"{where} must be the state of an optimizer; the file is damaged.")
    groups = state.get("param_groups")
    expected = optimizer.state_dict()["param_groups"]
    if (
        set(state) != {"state", "param_groups"}
        or not isinstance(groups, list)
        or [(set(group), group.get("params")) for group in groups if isinstance(group, dict)]
        != [(set(group), group["params"]) for group in expected]
    ):
        raise ValueError(f"{where}: param_groups differ from those of the optimizer that {DESCRIPTION} describes.")
    for group in groups:
        for name, value in group.items():
            if not _is_setting(value):
                raise ValueError(f"{where}: param_groups: {name} must be a number, not a {type(value).__name__}.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in state["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(entries, dict):
            raise ValueError(f"{where}: state {index!r} belongs to no parameter; the file is damaged.")
        for name, value in entries.items():
            if not (_is_setting(value) or (isinstance(value, th.Tensor) and _fits(value, parameters[index]))):
                raise ValueError(f"{where}: state {index}: {name} has not the shape of its parameter; the file is damaged.")


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _fits(value: th.Tensor, parameter: th.Tensor) -> bool:
    """A moment of a parameter, its sums over rows or columns, or a number."""
    same = value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
    return value.layout == th.strided and (value.numel() == 1 or same)


def _check_names(where: str, what: str, expected: set[str], found: set[str]) -> None:
    for verb, names in (("lacks", expected - found), ("has the unexpected", found - expected)):
        if names:
            raise ValueError(f"{where} {verb} {what} {sorted(names)[0]!r} ({len(names)} in all); get the file again.")


# -- members of plain data --------------------------------------------------------------------------------------------


def _parse_json(text: str | bytes, where: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply; the file is damaged or hostile, do not use it.") from error
    except ValueError as error:
        raise ValueError(f"{where} is not standard JSON ({error}); the file is damaged.") from error


def _read_arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    with open_archive(content, where, max_total_bytes=MAX_NORMALIZATION_BYTES) as archive:
        return {name.removesuffix(".npy"): _read_array(archive.read(name), f"{where}: {name}") for name in archive.sizes}


def _read_array(content: bytes, where: str) -> np.ndarray:
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("an unknown version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        # before NumPy allocates what the header asks for; this also refuses objects, whose size is not that of the file
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
            raise ValueError("objects, or a size other than that of the file")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{where} is no array of numbers ({error}); nothing of it was run, do not use the file.") from error


def _normalized_shapes(space: spaces.Space, norm_obs: bool, keys: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Name of the statistics of the observations -> their shape."""
    if not norm_obs:
        return {}
    if keys is None:
        parts: list[Any] = [space]
    elif isinstance(space, spaces.Dict) and isinstance(keys, list) and all(key in space.spaces for key in keys):
        parts = [space.spaces[key] for key in keys]
    else:
        raise ValueError(f"{where} normalises the entries {keys!r} of a Dict observation, the environment observes {space}.")
    if not all(isinstance(part, spaces.Box) for part in parts):
        raise ValueError(f"{where} normalises Box observations, the environment observes {space}.")
    return {f"observations_{index}": part.shape for index, part in enumerate(parts)}


def _read_moments(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], where: str) -> RunningMeanStd:
    moments = RunningMeanStd(shape=shape)
    for moment in _MOMENTS:
        array = arrays.get(f"{name}_{moment}")
        expected = () if moment == "count" else shape
        if array is None or array.shape != expected or array.dtype.kind != "f" or not np.isfinite(array).all():
            found = "is missing" if array is None else f"has shape {array.shape} ({array.dtype})"
            raise ValueError(
                f"{where}: {name}_{moment} {found}, but must be finite numbers of shape {expected} for this environment."
            )
        setattr(moments, moment, float(array) if moment == "count" else array.astype(np.float64))
    if (moments.var < 0.0).any():
        raise ValueError(f"{where}: {name}_var must not be negative; the file is damaged.")
    return moments


def _version_of(description: dict[str, Any]) -> str:
    versions = description["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in ("sb3_diffusion", "stable_baselines3") if name in versions)
