"""Why a quantity of the update became NaN or infinite: told from what the replay buffer holds, oldest transition first."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

LARGE = 1e15
"""Losses are squares: those of larger numbers, and sums of them, come close to what float32 can hold."""
_CHECK = "check what the environment returns."


def likely_cause(
    replay_buffer: ReplayBuffer, env: VecNormalize | None, learning_rates: Mapping[str, float], untrained: bool
) -> str:
    """
    :param replay_buffer: What was trained on
    :param env: What normalises it
    :param learning_rates: Learning rate of each network
    :param untrained: Whether the quantity was computed before the first step of an optimizer
    :return: One or two sentences
    """
    remedy = _remedy(learning_rates)
    arrays = dict(_stored_arrays(replay_buffer))
    culprit = _first_non_finite(arrays, replay_buffer)
    if culprit == "actions":
        return (
            "The replay buffer holds non-finite actions that were chosen at finite observations, so the weights of the "
            f"networks had diverged before: {remedy} If they were loaded or set by hand, check them."
        )
    if culprit is not None:
        return f"The replay buffer holds non-finite {culprit}: {_CHECK}"
    if env is not None and not _finite_statistics(env):
        return f"The statistics of VecNormalize are not finite, although the replay buffer is: {_CHECK}"
    for name, array in arrays.items():
        largest = float(np.abs(array).max(initial=0.0))
        if largest > LARGE and not _is_normalized(name, env):
            return (
                f"The replay buffer holds {name} as large as {largest:.3g}, whose squares leave the range of float32: "
                f"{_CHECK[:-1]}, and rescale it (VecNormalize does)."
            )
    if untrained:
        return (
            "The replay buffer is finite and no update had been made, so the learning rate is not the cause: check the "
            "weights that were loaded or set, and the method's own factors of the rewards."
        )
    return f"The replay buffer is finite, so the update itself diverged: {remedy}"


def cause_of_data(learning_rates: Mapping[str, float], untrained: bool) -> str:
    """
    The same for a data set, which was checked when it was read.

    :param learning_rates: Learning rate of each network
    :param untrained: Whether the quantity was computed before the first step of an optimizer
    :return: One or two sentences
    """
    if untrained:
        return "The data is finite and no update had been made: check the weights that were loaded or set."
    return f"The data is finite, so the update itself diverged: {_remedy(learning_rates)}"


def cause_of_rollout(stored: Mapping[str, th.Tensor], learning_rates: Mapping[str, float], untrained: bool) -> str:
    """
    The same for a rollout.

    :param stored: What the environments returned, by name
    :param learning_rates: Learning rate of each network
    :param untrained: Whether the quantity was computed before the first step of an optimizer
    :return: One or two sentences
    """
    for name, values in stored.items():
        if not bool(values.isfinite().all()):
            return f"The rollout holds non-finite {name}: {_CHECK}"
        if float(values.abs().max()) > LARGE:
            return f"The rollout holds {name} beyond {LARGE:g}, whose squares leave the range of float32: {_CHECK}"
    if untrained:
        return "The rollout is finite and no update had been made: check the weights that were loaded or set."
    return f"The rollout is finite, so the update itself diverged: {_remedy(learning_rates)}"


def _remedy(learning_rates: Mapping[str, float]) -> str:
    rates = ", ".join(f"{network} {rate:g}" for network, rate in learning_rates.items())
    return f"lower the learning rate{f' ({rates})' if rates else ''}, set max_grad_norm, or rescale the rewards."


def _stored_arrays(replay_buffer: ReplayBuffer) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays of real numbers by name, the filled part of them."""
    size = replay_buffer.size()
    for name in ("observations", "actions", "rewards", "next_observations"):
        stored: Any = getattr(replay_buffer, name, None)
        parts = {f"{name}[{key!r}]": array for key, array in stored.items()} if isinstance(stored, dict) else {name: stored}
        for part, array in parts.items():
            if array is not None and np.issubdtype(array.dtype, np.floating):
                yield part, array[:size]


def _first_non_finite(arrays: dict[str, np.ndarray], replay_buffer: ReplayBuffer) -> str | None:
    """Name of the array in which the oldest transition that is not finite went wrong first."""
    # (transitions, environments)
    bad = {name: ~np.isfinite(array).reshape(*array.shape[:2], -1).all(-1) for name, array in arrays.items() if array.size}
    rows = np.flatnonzero(np.logical_or.reduce([mask.any(1) for mask in bad.values()])) if bad else np.array([], int)
    if len(rows) == 0:
        return None
    size = len(next(iter(bad.values())))
    start = replay_buffer.pos if replay_buffer.full else 0
    oldest = rows[((rows - start) % size).argmin()]
    actions = bad["actions"][oldest]
    for name, mask in bad.items():
        # what follows an action that is not finite is not the environment's fault; what it was chosen at is
        guilty = mask[oldest] if name.startswith("observations") else mask[oldest] & ~actions
        if name != "actions" and guilty.any():
            return name
    return "actions"


def _finite_statistics(env: VecNormalize) -> bool:
    observed = getattr(env, "obs_rms", None)
    moments = [*(observed.values() if isinstance(observed, dict) else [observed] if observed is not None else []), env.ret_rms]
    return all(np.isfinite(part).all() for moment in moments for part in (moment.mean, moment.var))


def _is_normalized(name: str, env: VecNormalize | None) -> bool:
    if env is None or name == "actions":
        return False
    return env.norm_reward if name == "rewards" else env.norm_obs
