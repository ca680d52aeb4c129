"""Statistics of ``VecNormalize`` applied to tensors, on their device."""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize


def normalize_rewards(rewards: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """
    :param rewards: Rewards of a batch
    :param env: What normalises them, if anything does
    :return: Normalised rewards
    """
    if env is None or not env.norm_reward:
        return rewards
    if type(env).normalize_reward is not VecNormalize.normalize_reward:  # somebody's own rule
        return th.from_numpy(env.normalize_reward(rewards.cpu().numpy())).to(rewards.device)
    std = math.sqrt(env.ret_rms.var + env.epsilon)
    return rewards.to(_precise(rewards)).div_(std).clamp_(-env.clip_reward, env.clip_reward).float()


def normalize_observations(observations: PyTorchObs, env: VecNormalize | None) -> PyTorchObs:
    """
    :param observations: Observations of a batch, possibly overwritten
    :param env: What normalises them, if anything does
    :return: Normalised observations
    """
    if env is None or not env.norm_obs:
        return observations
    if not all(getattr(type(env), name) is getattr(VecNormalize, name) for name in ("normalize_obs", "_normalize_obs")):
        return _normalize_elsewhere(observations, env)
    if isinstance(observations, dict):
        for key in env.norm_obs_keys or ():
            observations[key] = _normalize(observations[key], env.obs_rms[key], env)  # type: ignore[index]
        return observations
    return _normalize(observations, env.obs_rms, env)  # type: ignore[arg-type]


def _normalize(observations: th.Tensor, statistics: RunningMeanStd, env: VecNormalize) -> th.Tensor:
    mean, std = (
        th.as_tensor(value, dtype=_precise(observations)).to(observations.device, non_blocking=True)
        for value in (statistics.mean, np.sqrt(statistics.var + env.epsilon))
    )
    return (observations - mean).div_(std).clamp_(-env.clip_obs, env.clip_obs).float()


def _precise(values: th.Tensor) -> th.dtype:
    """Type in which VecNormalize computes, where the device has it."""
    return th.float32 if values.device.type == "mps" else th.float64


def _normalize_elsewhere(observations: PyTorchObs, env: VecNormalize) -> PyTorchObs:
    """Through the environment's own method, in NumPy."""
    if isinstance(observations, dict):
        arrays: Any = env.normalize_obs({key: value.cpu().numpy() for key, value in observations.items()})
        return {key: th.as_tensor(arrays[key], device=value.device) for key, value in observations.items()}
    return th.as_tensor(env.normalize_obs(observations.cpu().numpy()), device=observations.device)  # type: ignore[arg-type]
