"""Methods on a bandit whose value function is known: what they are told, and how they are trained."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.envs import boltzmann_entropy, get_toy, make_toy
from sb3_diffusion.envs.bandits import ActionValue, BanditEnv
from sb3_diffusion.taxonomy import Method

from .promises import N_ROUNDS

LEARNING_RATE = 5e-3

LEARNING_RATES = {"reparameterization": 1e-3}
"""Guidance mechanism -> learning rate where it differs: gradients that pass through the whole chain need smaller steps."""

OWN_ARGUMENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    # otherwise learned
    "DIME": lambda args: {"initial_alpha": args.temperature, "alpha_learning_rate": 0.0},
    # values are a few units here, which the published alternative of 1 would outweigh
    "DACERv2": lambda args: {"field_weight": 0.01},
    # their particles are policy samples, a chain each; all rows of a batch are the same state, so that few are enough
    **dict.fromkeys(["QVPO", "DPMD", "FPMD"], lambda args: {"n_particles": max(8, args.n_particles // 8)}),
}
"""Method -> what its argument names alone do not tell."""

N_DECAYS = 20
"""The learning rate falls to zero in so many steps, so that the picture does not show one noisy iterate."""


class Problem(NamedTuple):
    """
    A bandit whose answer is known.

    :param env: The environment
    :param value: Its value function
    :param entropy: That of ``exp(value / temperature)``, in nats
    """

    env: BanditEnv
    value: ActionValue
    entropy: float


def toy_problem(args: argparse.Namespace) -> Problem:
    """
    :param args: Command line
    :return: One of the two-dimensional densities
    """
    value = get_toy(args.toy).value
    return Problem(make_toy(args.toy), value, boltzmann_entropy(value, args.temperature))


def method_arguments(method: Method, args: argparse.Namespace, entropy: float) -> dict[str, Any]:
    """
    What a method is given beside its defaults, chosen by the names of its arguments, so that a new method needs no entry.

    :param method: The method
    :param args: Command line
    :param entropy: Entropy of the density that is asked for
    """
    knobs: dict[str, Any] = {
        # the temperature, in units of Q
        "temperature": args.temperature,
        "normalize_gradient": False,
        "reward_scale": 1.0,
        # methods that regulate the entropy instead are asked for that of the true density
        "target_entropy": entropy,
        "alpha_update_interval": 10,
        # mirror descent multiplies the policy by exp(Q / own temperature) at every refresh
        "initial_temperature": N_ROUNDS * args.temperature,
        "temperature_learning_rate": 0.0,
        "refresh_interval": max(1, args.updates // N_ROUNDS),
        "particle_noise": 0.0,
        # samples of the policy itself: neither noise for exploration nor a choice among several
        "exploration_noise": 0.0,
        "n_behavior_candidates": 1,
        # there is one state, whose value is bounded
        "n_entropy_states": 1,
        "v_min": -10.0,
        "v_max": 5.0,
        "n_particles": args.n_particles,
        "actor_learning_rate": None,
        **({"policy_delay": 1} if args.critic == "exact" else {}),
        **OWN_ARGUMENTS.get(method.name, lambda args: {})(args),
    }
    return {name: knob for name, knob in knobs.items() if name in inspect.signature(method.load()).parameters}


def make_model(
    method: Method,
    args: argparse.Namespace,
    problem: Problem,
    policy_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> OffPolicyDiffusion:
    """
    :param method: The method
    :param args: Command line
    :param problem: What it learns
    :param policy_kwargs: What its policy has beside the widths, or instead of them
    :return: The method, untrained
    """
    algorithm = method.load()
    initial_rate = LEARNING_RATES.get(method.guidance, LEARNING_RATE)
    model: OffPolicyDiffusion = algorithm(
        "DiffusionPolicy",
        problem.env,
        learning_rate=lambda progress: initial_rate * progress,
        learning_starts=args.random_steps,
        buffer_size=args.random_steps + args.updates,
        batch_size=args.batch_size,
        policy_kwargs={"net_arch": [args.width] * 3, "state_arch": (16,), **policy_kwargs},
        seed=args.seed,
        device=args.device,
        **method_arguments(method, args, problem.entropy),
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def give_critic(model: OffPolicyDiffusion, value: ActionValue) -> None:
    """
    Let the critics of a model return a known value function, and leave their weights alone.

    :param model: The model
    :param value: The value function
    """
    untouched = next(model.critic.parameters())

    def q(actions: th.Tensor, context: th.Tensor, t: th.Tensor | None = None) -> th.Tensor:
        values = value(actions)
        return values.expand(2, *values.shape)

    def value_and_gradient(actions: th.Tensor, context: th.Tensor, reduction: str = "min") -> tuple[th.Tensor, th.Tensor]:
        with th.enable_grad():
            inputs = actions.detach().requires_grad_()
            values = value(inputs)
            (gradient,) = th.autograd.grad(values.sum(), inputs)
        return values.detach(), gradient

    def critic_loss(batch: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return 0.0 * untouched.sum(), {}

    model.critic_loss = critic_loss  # type: ignore[method-assign]
    for critic in (model.critic, model.critic_target):
        critic.q, critic.value_and_gradient = q, value_and_gradient  # type: ignore[method-assign]


def begin(model: OffPolicyDiffusion, args: argparse.Namespace, value: ActionValue) -> None:
    """
    Fill the replay buffer, and with ``--critic exact`` give the values and make the first update: the policy behind it is the
    one from which mirror descent starts.

    :param model: A method, untrained
    :param args: Command line
    :param value: The true values
    """
    if args.critic == "exact":
        model.learn(args.random_steps)
        give_critic(model, value)
        model._current_progress_remaining = 1.0
        model.train(1, args.batch_size)


def train(model: OffPolicyDiffusion, args: argparse.Namespace) -> np.ndarray:
    """
    :param model: A method that has begun
    :param args: Command line
    :return: Actions of the trained policy ``(n, action_dim)``
    """
    if args.critic == "exact":
        rounds = N_ROUNDS if hasattr(model, "refresh_interval") else 1  # each is a regression of its own
        ends = np.linspace(1, args.updates, rounds * N_DECAYS + 1).astype(int)
        for stage, n_updates in enumerate(np.diff(ends)):
            model._current_progress_remaining = 1.0 - stage % N_DECAYS / N_DECAYS
            model.train(int(n_updates), args.batch_size)
    else:
        model.learn(args.random_steps + args.updates)
    observations = np.zeros((args.samples, 1), np.float32)
    actions, _ = model.predict(observations, deterministic=False)
    return actions
