"""A one-state bandit whose value function is known, on which the distribution of a trained policy can be checked."""

from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.envs.bandits import ActionValue, BanditEnv
from tests.helpers import part

SMALL_NET = {"net_arch": [64, 64], "state_arch": (16, 16), "time_dim": 32}
"""Networks that fit a density on one dimension in seconds."""


class AnalyticCritic:
    """
    Stands in for a critic ensemble of two equal members.

    :param value: The value function
    """

    particle_precision = "float32"

    def __init__(self, value: ActionValue):
        self.value = value
        self.ensemble = nn.Identity()  # has a training and an evaluation mode

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return observations

    def q(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        values = self.value(actions)
        return values.unsqueeze(0).expand(2, *values.shape)

    def value_and_gradient(
        self, actions: th.Tensor, context: th.Tensor, reduction: str = "min"
    ) -> tuple[th.Tensor, th.Tensor]:
        with th.enable_grad():
            inputs = actions.detach().requires_grad_()
            values = self.value(inputs)
            (gradient,) = th.autograd.grad(values.sum(), inputs)
        return values.detach(), gradient


def bandit_model(algorithm: type[OffPolicyDiffusion], seed: int = 0, **kwargs: Any) -> Any:
    """
    :param algorithm: The class
    :param seed: Seed of the networks and the draws
    :param kwargs: Further arguments of the class
    :return: The algorithm on a bandit without reward (the critic is given) with small networks
    """
    policy_kwargs = {**SMALL_NET, **kwargs.pop("policy_kwargs", {})}
    kwargs.setdefault("learning_rate", 3e-3)
    return algorithm("DiffusionPolicy", BanditEnv(), seed=seed, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


def absolute_model(algorithm: type[OffPolicyDiffusion], **kwargs: Any) -> Any:
    """
    :param algorithm: A class whose temperature is relative to the gradients by default
    :param kwargs: Further arguments of the class
    :return: The algorithm on a bandit, with temperature 1 in units of the value
    """
    return bandit_model(algorithm, **{"temperature": 1.0, "normalize_gradient": False, **kwargs})


def give_critic(model: OffPolicyDiffusion, value: ActionValue) -> None:
    """
    Replace the critics of an algorithm.

    :param model: The algorithm
    :param value: The value function
    """
    model.critic = model.critic_target = AnalyticCritic(value)  # type: ignore[assignment]


def uniform_batch(model: OffPolicyDiffusion, batch_size: int = 256) -> Batch:
    """
    :param model: The algorithm
    :param batch_size: Number of transitions
    :return: Transitions with actions that cover the box
    """
    zeros = th.zeros(batch_size)
    observations = th.zeros(batch_size, 1)
    actions = th.rand(batch_size, model.actor.action_dim) * 2.0 - 1.0
    return Batch(observations, actions, zeros, observations, zeros)


def fit(model: OffPolicyDiffusion, updates: int, batch_size: int = 256) -> None:
    """
    Train the actor alone.

    :param model: The algorithm, with its critic given
    :param updates: Number of updates; the learning rate falls to zero so that the result is not one noisy iterate
    :param batch_size: Transitions per update
    """
    model.policy.set_training_mode(True)
    base = model.lr_schedule(1)
    for update in range(updates):
        for group in model.actor.optimizer.param_groups:
            group["lr"] = base * (1.0 - update / updates)
        loss, _ = model.actor_loss(uniform_batch(model, batch_size))
        model.step(part(model, "actor"), loss)


def draw(model: OffPolicyDiffusion, n: int = 8000) -> th.Tensor:
    """
    :param model: The algorithm
    :param n: Number of samples
    :return: Samples of the chain without exploration noise, ``(n, action_dim)``
    """
    with th.no_grad():
        return model.actor.sample(model.actor.encode(th.zeros(n, 1)), model.randomness, "test")


def total_variation(samples: th.Tensor, log_density: ActionValue, bins: int = 20) -> float:
    """
    Distance between samples on [-1, 1] and a density given up to a factor.

    :param samples: ``(n, 1)``
    :param log_density: Logarithm of the density
    :param bins: Number of bins of the histogram
    """
    fine = th.linspace(-1.0, 1.0, bins * 50 + 1, dtype=th.float64)
    centres = 0.5 * (fine[1:] + fine[:-1])
    mass = log_density(centres.unsqueeze(-1)).exp().reshape(bins, 50).sum(1)
    histogram = th.histc(samples.double(), bins, -1.0, 1.0)
    return float(0.5 * (mass / mass.sum() - histogram / histogram.sum()).abs().sum())


def check_bimodal(samples: th.Tensor, left_mass: float, distance: float, mass_error: float) -> None:
    """
    Samples have the density :func:`bimodal_log_density`, and its modes their weights.

    :param samples: ``(n, 1)``
    :param left_mass: Weight of the left mode
    :param distance: Largest total variation
    :param mass_error: Largest error of the weight
    """
    assert total_variation(samples, bimodal_log_density(left_mass)) <= distance
    assert (samples < 0).float().mean().item() == pytest.approx(left_mass, abs=mass_error)


def flat(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: ``(..., action_dim)``
    :return: The value 0, ``(...,)``
    """
    return 0.0 * actions[..., 0]


def linear(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: ``(..., action_dim)``
    :return: A value with slope 2, ``(...,)``
    """
    return 2.0 * actions[..., 0]


def gaussian_log_density(mean: float, std: float) -> ActionValue:
    """
    :param mean: Mean
    :param std: Standard deviation
    :return: Log density up to a constant
    """
    return lambda actions: -(((actions[..., 0] - mean) / std) ** 2) / 2.0


def bimodal_log_density(left_mass: float, mode: float = 0.5, std: float = 0.2) -> ActionValue:
    """
    :param left_mass: Weight of the mode at ``-mode``
    :param mode: Position of the other mode
    :param std: Standard deviation of both
    :return: Log density up to a constant
    """

    def log_density(actions: th.Tensor) -> th.Tensor:
        left = left_mass * th.exp(-(((actions[..., 0] + mode) / std) ** 2) / 2.0)
        right = (1.0 - left_mass) * th.exp(-(((actions[..., 0] - mode) / std) ** 2) / 2.0)
        return th.log(left + right + 1e-12)

    return log_density
