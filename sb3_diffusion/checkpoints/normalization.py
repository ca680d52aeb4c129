"""The statistics of ``VecNormalize`` as arrays, where Stable-Baselines3 pickles the object."""

import io
import json
import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_diffusion.checkpoints.archives import open_archive
from sb3_diffusion.checkpoints.plain import from_plain, to_plain
from sb3_diffusion.checkpoints.tagged_json import parse_json
from sb3_diffusion.printable import printable, quoted

_SETTINGS = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
_NUMBERS = ("clip_obs", "clip_reward", "gamma", "epsilon")
_MOMENTS = ("mean", "var", "count")


def pack_normalization(normalization: VecNormalize) -> bytes:
    """
    :param normalization: Normalised environments
    :return: Contents of an ``npz`` file with their statistics
    """
    settings = {name: getattr(normalization, name) for name in _SETTINGS}
    moments: dict[str, RunningMeanStd] = {"returns": normalization.ret_rms}
    if normalization.norm_obs:
        statistics: Any = normalization.obs_rms
        parts = statistics.values() if isinstance(statistics, dict) else [statistics]
        # by number: the keys of an observation may be anything, names of members may not
        moments |= {f"observations_{index}": part for index, part in enumerate(parts)}
        settings["norm_obs_keys"] = list(statistics) if isinstance(statistics, dict) else None
    arrays: dict[str, Any] = {
        f"{name}_{moment}": np.asarray(getattr(part, moment)) for name, part in moments.items() for moment in _MOMENTS
    }
    content = io.BytesIO()
    np.savez(content, settings=np.array(json.dumps(to_plain(settings, "VecNormalize"), allow_nan=False)), **arrays)
    return content.getvalue()


def unpack_normalization(content: bytes, venv: VecEnv, where: str) -> VecNormalize:
    """
    Inverse of :func:`pack_normalization`.

    :param content: Contents of the ``npz`` file
    :param venv: Environments
    :param where: File and member, for the messages
    :return: Normalised environments, which neither update the statistics nor normalise rewards
    :raises ValueError: If the statistics are damaged or do not fit the environments
    """
    arrays = _read_arrays(content, where)
    settings = from_plain(parse_json(str(arrays.pop("settings", "")), where), where)
    if (
        not isinstance(settings, dict)
        or set(settings) != set(_SETTINGS)
        or type(settings["norm_obs"]) is not bool
        or not all(isinstance(settings[name], int | float) for name in _NUMBERS)
    ):
        raise ValueError(f"{where}: settings must be switches and numbers, {', '.join(_SETTINGS)}; save the agent again.")
    keys = settings["norm_obs_keys"]
    shapes = _normalized_shapes(venv.observation_space, settings["norm_obs"], keys, where)
    moments = {name: _read_moments(arrays, name, shape, where) for name, shape in {"returns": (), **shapes}.items()}
    try:
        normalization = VecNormalize(venv, training=False, **{**settings, "norm_reward": False})
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{where} does not fit the environment ({printable(error)}).") from error
    normalization.ret_rms = moments.pop("returns")
    statistics: Any = (
        dict(zip(keys, moments.values(), strict=True)) if keys is not None else next(iter(moments.values()), None)
    )
    if statistics:
        normalization.obs_rms = statistics
    return normalization


def _read_arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    with open_archive(content, where, compressed=False) as archive:
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
        raise ValueError(
            f"{where} is no array of numbers ({printable(error, 200)}); nothing of it was run, do not use the file."
        ) from error


def _normalized_shapes(space: spaces.Space, norm_obs: bool, keys: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Name of the statistics of the observations -> their shape."""
    if not norm_obs:
        return {}
    if keys is None:
        parts: list[Any] = [space]
    elif isinstance(space, spaces.Dict) and isinstance(keys, list) and all(key in space.spaces for key in keys):
        parts = [space.spaces[key] for key in keys]
    else:
        raise ValueError(
            f"{where} normalises the entries {quoted(keys)} of a Dict observation, the environment observes {space}."
        )
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
