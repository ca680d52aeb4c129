"""Environments that speak tensors: one object steps all copies, so that they are made and wrapped differently."""

import warnings
from collections.abc import Mapping
from typing import Any

from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.registry import arguments_of, make_tensor_env
from sb3_diffusion.names import suggest
from sb3_diffusion.tensor_names import ISAAC_PREFIXES

from . import fit

MOST_EVALUATED = 16
"""Copies of an evaluation where their number is not given."""


def has_one_simulation(env_id: str) -> bool:
    """
    :param env_id: Name of a tensor environment
    :return: Whether a process can hold no more than one such object
    """
    return env_id.startswith(ISAAC_PREFIXES)


def make(
    env_id: str,
    n_envs: int,
    env_kwargs: Mapping[str, Any],
    *,
    seed: int | None = None,
    device: str = "auto",
    option: str = "--env-kwargs",
) -> TensorVecEnv:
    """
    :param env_id: Name of a tensor environment
    :param n_envs: Number of copies
    :param env_kwargs: Its arguments
    :param seed: Seed of the first reset
    :param device: Device of all tensors
    :param option: Where the arguments come from, for the message
    :raises ValueError: If it cannot be made; the message says why
    :raises ImportError: If its simulator is not installed; the message says how to get it
    """
    given = f" with {option} {' '.join(f'{key}:{value}' for key, value in env_kwargs.items())}" if env_kwargs else ""
    known = arguments_of(env_id)
    if env_kwargs.get("render_mode") and "render_mode" not in known:
        raise ValueError(f"{env_id} draws no pictures: it takes no render_mode.")
    for name in env_kwargs:
        if known and name not in known:
            raise ValueError(
                f"environment {env_id} cannot be made{given}: it has no argument {name!r}; {suggest(name, known)}"
            )
    try:
        return make_tensor_env(env_id, n_envs, device, seed, **env_kwargs)
    except (ValueError, ImportError):  # which say enough
        raise
    except Exception as error:  # whatever a simulator raises
        raise ValueError(f"environment {env_id} cannot be made{given}: {type(error).__name__}: {error}") from error


def make_for_agent(
    env_id: str,
    n_envs: int,
    hyperparams: Mapping[str, Any],
    env_kwargs: Mapping[str, Any],
    *,
    seed: int = 0,
    log_dir: str | None = None,
) -> VecEnv:
    """
    An environment in which a trained agent acts.

    :param env_id: Name of a tensor environment
    :param n_envs: Number of copies
    :param hyperparams: Settings of the training, of which a ``vec_env_wrapper`` is obeyed
    :param env_kwargs: Arguments of the environment
    :param seed: Seed
    :param log_dir: Folder for a monitor file
    """
    env: VecEnv = make(env_id, n_envs, env_kwargs, seed=seed)
    if log_dir is not None:
        with warnings.catch_warnings():  # statistics that would be overwritten; both are the same
            warnings.simplefilter("ignore", UserWarning)
            env = VecMonitor(env, log_dir)
    wrap = get_wrapper_class(dict(hyperparams), "vec_env_wrapper")
    return env if wrap is None else wrap(env)  # type: ignore[arg-type, return-value]


def copies_of_evaluation(n_envs: int, n_episodes: int) -> int:
    """
    :param n_envs: Value of ``--n-eval-envs``; 1, the default, is for one copy for each episode, up to :data:`MOST_EVALUATED`
    :param n_episodes: Episodes of an evaluation
    """
    return n_envs if n_envs > 1 else max(1, min(n_episodes, MOST_EVALUATED))


def check(algorithm: type, env: TensorVecEnv, env_id: str, settings: Mapping[str, Any]) -> None:
    """
    :param algorithm: The algorithm
    :param env: The environment
    :param env_id: Its name
    :param settings: Settings of the training, and the option ``vec_env``
    :raises ValueError: If they do not fit
    """
    fit.check_actions(algorithm, env.action_space, f"environment {env_id}")
    if settings.get("vec_env", "dummy") != "dummy":
        raise ValueError(f"--vec-env {settings['vec_env']}: {env_id} steps all of its copies itself; leave the option out.")
    for name in ("env_wrapper", "monitor_kwargs"):
        if settings.get(name):
            raise ValueError(f"{name}: {env_id} is one object of many copies, around which none can be put; leave it out.")
    if not issubclass(algorithm, OnPolicyDiffusion):
        return
    for name in ("normalize", "frame_stack", "vec_env_wrapper"):
        if settings.get(name):
            remedy = "normalize_observations does that on the device" if name == "normalize" else "write it as a TensorVecEnv"
            raise ValueError(f"{name}: the tensors of {env_id} would go through NumPy; leave it out, {remedy}.")
