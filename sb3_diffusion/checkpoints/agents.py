"""
Saved agents that can be loaded without running anything that is in the file.

A saved agent is Stable-Baselines3's zip file, which ``Algo.load`` reads, with two more members: ``sb3_diffusion.json`` says in
plain JSON what to build, and ``vec_normalize.npz`` has the statistics of ``VecNormalize``. :func:`load_agent` and
:func:`load_normalization` read these and the weights (with ``weights_only=True``), never the pickled member ``data``.
"""

import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.checkpoints.archives import Archive, open_archive
from sb3_diffusion.checkpoints.description import DESCRIPTION, describe
from sb3_diffusion.checkpoints.normalization import pack_normalization, unpack_normalization
from sb3_diffusion.checkpoints.old_names import up_to_date
from sb3_diffusion.checkpoints.recipe import build, check_env, read_description, read_recipe
from sb3_diffusion.checkpoints.weights import (
    check_names,
    check_optimizer,
    check_state,
    check_tensor,
    check_weights,
    load_tensors,
)
from sb3_diffusion.files import write_atomically
from sb3_diffusion.printable import printable

NORMALIZATION = "vec_normalize.npz"
VARIABLES = "pytorch_variables.pth"
MAX_NORMALIZATION_BYTES = 64 * 2**20


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
        recipe = read_recipe(archive, algorithm, settings)
        saved = _read_weights(archive)
        normalized = NORMALIZATION in archive.sizes
    venv = None if env is None else check_env(archive.name, recipe, env)
    model = build(archive.name, recipe, venv, device, saved["policy"])
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
        read_description(archive)  # a file without one may have been trained with statistics that it does not carry
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
        name = read_description(archive).get("algorithm") if DESCRIPTION in archive.sizes else None
    return name if isinstance(name, str) else None


def why_unsafe(path: str | Path | io.BufferedIOBase) -> str | None:
    """
    :param path: A saved agent
    :return: Why only ``Algo.load`` can load it, which runs the code in the file; ``None`` if :func:`load_agent` can
    """
    with _open(path) as archive:
        if DESCRIPTION not in archive.sizes:
            return f"has no {DESCRIPTION}"
        missing = read_description(archive).get("not_portable")
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
