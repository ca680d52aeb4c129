"""The toys as data: what methods that learn from data are told of them, and the density that their theory is about."""

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_diffusion import OfflineDataset
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.envs import get_toy, grid_axis, toy_dataset
from sb3_diffusion.envs.toys import EXTENT
from sb3_diffusion.taxonomy import Method, available_methods

TEMPERATURE = 0.2
"""In units of the rewards, which are between 0 and 1."""

POINTS = 50_000

UPDATES = 6_000

OWN_ARGUMENTS: dict[str, Callable[[float, float], dict[str, Any]]] = {
    "DAC": lambda temperature, size: {"eta": temperature / (2.0 * size), "eta_learning_rate": 0.0, "rho": 0.0},
    "QIPO": lambda temperature, size: {"inverse_temperature": 1.0 / temperature, "n_renewals": 0, "policy_updates": 3},
    "BDPO": lambda temperature, size: {"eta": temperature, "rho": 0.0, "tau": 0.05, "policy_delay": 1, "actor_decay": "none"},
}
"""Method -> what it is told of the temperature and of the mean magnitude of the rewards, by names of its own."""


def methods() -> list[Method]:
    """Methods that learn from data."""
    return [method for method in available_methods() if method.setting == "offline"]


def as_dataset(name: str, n: int, seed: int) -> OfflineDataset:
    """
    :param name: A toy whose points have a known density, and a reward everywhere
    :param n: Number of points
    :param seed: Seed of the draws
    :return: Points of the shape with their rewards, one step each
    """
    toy = toy_dataset(name, n, seed)
    return OfflineDataset.from_arrays(toy.observations, toy.actions, toy.rewards, np.ones(n, bool), name=f"toy/{name}")


def target_density(name: str, temperature: float, resolution: int) -> np.ndarray:
    """
    :param name: The toy
    :param temperature: Temperature in units of the reward
    :param resolution: Points per axis
    :return: Density of the data times ``exp(reward / temperature)``, normalised, on a grid
    :raises ValueError: If the reward is known at the points of the data only
    """
    toy = get_toy(name)
    if toy.energy is None or toy.sample is None:
        raise ValueError(f"--toy {name}: its reward or its data are not known everywhere; take 8gaussians, rings or circles.")
    axis = grid_axis(resolution)
    points = np.stack(np.meshgrid(axis, axis), axis=-1)
    behavior = toy.density(th.as_tensor(points)).numpy()
    # only the shares count, so the largest reward may be taken off
    reward = toy.energy((EXTENT * points).reshape(-1, 2)).reshape(resolution, resolution)
    tilted = behavior * np.exp((reward - 1.0) / temperature)
    return tilted / tilted.mean() / 4.0  # type: ignore[no-any-return]  # the box has an area of 4


def method_arguments(method: Method, args: argparse.Namespace, dataset: OfflineDataset) -> dict[str, Any]:
    """
    What a method is given beside its defaults, chosen by the names of its arguments.

    :param method: The method
    :param args: Command line
    :param dataset: The toy as data
    """
    knobs: dict[str, Any] = {
        # the weights of imitation are those of the density
        "beta": 1.0 / args.temperature,
        # the policy itself, where the choice among its actions is not the method
        "n_action_candidates": 1,
        "behavior_net_arch": [args.width] * 3,
        "energy_net_arch": [args.width] * 3,
        "guidance_scale": 1.0,
        "behavior_batch_size": args.batch_size,
        "actor_learning_rate": None,  # one rate for all
        "behavior_updates": 2,
        "critic_updates": 1,
        "energy_updates": 1,
        "actor_updates": 1,
        "pretraining_updates": 1,
        "training_updates": 3,
        "n_iterations": 1,  # one step leaves nothing to plan
        "actor_tau": 0.05,
        "actor_target_start": 0,
        **OWN_ARGUMENTS.get(method.name, lambda *_: {})(args.temperature, float(dataset.rewards.abs().mean())),
    }
    if method.guidance == "best_of_n":
        knobs.pop("n_action_candidates")
        knobs |= {"n_behavior_candidates": args.n_particles, "behavior_updates": 2, "actor_updates": 2}
    return {name: knob for name, knob in knobs.items() if name in inspect.signature(method.load()).parameters}


def make_model(method: Method, args: argparse.Namespace) -> OffPolicyDiffusion:
    """
    :param method: The method
    :param args: Command line
    :return: The method with the data of the toy, untrained
    """
    algorithm = method.load()
    policy: dict[str, Any] = {"net_arch": [args.width] * 3}
    if method.guidance == "best_of_n":
        # candidates of the behaviour, one of them by exp(Q / temperature): the density itself, for many candidates
        policy["selection"] = {"rule": "softmax", "temperature": args.temperature}
    if method.name in ("SfBC", "QGPO", "Diffusion-DICE"):  # a network that narrows
        policy["net_arch"] = {"pi": [4 * args.width, 2 * args.width, args.width], "qf": [args.width] * 2}
    dataset = as_dataset(args.toy, POINTS, args.seed)
    model: OffPolicyDiffusion = algorithm(
        next(iter(algorithm.policy_aliases)),
        None,
        learning_rate=lambda progress: 2e-3 * progress,
        buffer_size=1,
        batch_size=args.batch_size,
        dataset=dataset,
        policy_kwargs=policy,
        seed=args.seed,
        device=args.device,
        **method_arguments(method, args, dataset),
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def train(method: Method, args: argparse.Namespace) -> np.ndarray:
    """
    :param method: The method
    :param args: Command line
    :return: Actions of the trained policy ``(n, 2)``
    """
    model = make_model(method, args).learn_offline(args.updates)
    actions, _ = model.predict(np.zeros((args.samples, 1), np.float32), deterministic=False)
    return np.asarray(actions)
