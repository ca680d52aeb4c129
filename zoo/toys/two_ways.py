"""Two equally good ways round a disc: who shows them, who learns them, and which of them a policy takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_diffusion import OfflineDataset
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.envs.tensor import make_tensor_env
from sb3_diffusion.envs.tensor.tasks.point_mass import GOAL
from sb3_diffusion.taxonomy import Method

ENV = "torch/PointMass-v0"
GATE = 0.6
"""Height of the middle of either gap, above and below the disc."""
SPEED = 1.5
MISTAKES = 0.3
"""Standard deviation of what a demonstrator does wrong, so that its data show how to come back."""
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {},
    "DPPO": {"diffusion_steps": 10, "finetune_steps": 5},
    "FPO": {"diffusion_steps": 10},
    "GenPO": {"diffusion_steps": 5, "learning_rate": 1e-3},
}
"""Method -> what differs from the settings of all. A method that cannot imitate learns faster."""

Act = Callable[[th.Tensor], th.Tensor]


@dataclass(frozen=True)
class Episodes:
    """
    One episode of each of many environments.

    :param observations: Positions and velocities of every episode, ``(steps + 1, 4)``
    :param actions: ``(steps, 2)``
    :param rewards: ``(steps,)``
    :param terminated: Whether each ended at the goal or at a disc
    """

    observations: list[np.ndarray]
    actions: list[np.ndarray]
    rewards: list[np.ndarray]
    terminated: list[bool]

    def arrivals(self) -> list[str | None]:
        """
        :return: For every episode the way it took, ``"above"`` or ``"below"``, or ``None`` if it did not arrive
        """
        ways: list[str | None] = []
        for path, rewards in zip(self.observations, self.rewards, strict=True):
            middle = path[np.abs(path[:, 0]).argmin(), 1]
            ways.append(None if rewards[-1] < 5.0 else "above" if middle > 0.0 else "below")
        return ways


def play(act: Act, n_envs: int, seed: int) -> Episodes:
    """
    :param act: What is done, from observations ``(n_envs, 4)`` to forces
    :param n_envs: Number of episodes
    :param seed: Seed of their starts
    :return: The episodes
    """
    env = make_tensor_env(ENV, n_envs, device="cpu", seed=seed)
    seen: Any = env.reset_tensor()
    steps: list[tuple[Any, ...]] = []
    alive = th.ones(n_envs, dtype=th.bool)
    while alive.any():
        chosen = act(seen).clamp(-1.0, 1.0)
        step = env.step_tensor(chosen)
        steps.append((alive, seen, chosen, step.reward, step.final_observation, step.terminated))
        alive, seen = alive & ~step.done, step.observation
    columns: list[list[Any]] = [[], [], [], []]
    for index in range(n_envs):
        lived = [tuple(entry[index] for entry in step[1:]) for step in steps if step[0][index]]
        before, actions, rewards, after, terminated = zip(*lived, strict=True)
        columns[0].append(th.stack((*before, after[-1])).numpy())
        columns[1].append(th.stack(actions).numpy())
        columns[2].append(th.stack(rewards).numpy())
        columns[3].append(bool(terminated[-1]))
    return Episodes(*columns)


def demonstrations(n_envs: int, seed: int) -> tuple[Episodes, OfflineDataset]:
    """
    Every demonstrator goes to the gap that it has chosen by chance, and then to the goal. What it has chosen cannot be seen:
    where it starts, one state has two right answers, and their mean leads into the disc.

    :param n_envs: Number of demonstrations
    :param seed: Seed of everything
    :return: The episodes, and the same as data
    """
    generator = th.Generator().manual_seed(seed)
    side = th.where(th.rand(n_envs, generator=generator) < 0.5, -1.0, 1.0)
    gate = th.stack((th.zeros(n_envs), GATE * side), dim=-1)

    def act(seen: th.Tensor) -> th.Tensor:
        position, velocity = seen.chunk(2, dim=-1)
        way = th.where(position[:, :1] < 0.0, gate, th.tensor(GOAL)) - position
        wanted = SPEED * way / th.linalg.vector_norm(way, dim=-1, keepdim=True)
        mistake = MISTAKES * th.randn(wanted.shape, generator=generator)
        return 2.0 * (wanted - velocity) + 0.5 * velocity + mistake

    episodes = play(act, n_envs, seed)
    lengths = [len(actions) for actions in episodes.actions]
    last = np.cumsum(lengths) - 1
    ended, cut = np.zeros(sum(lengths), bool), np.zeros(sum(lengths), bool)
    ended[last], cut[last] = episodes.terminated, ~np.array(episodes.terminated)
    data = OfflineDataset.from_arrays(
        np.concatenate([path[:-1] for path in episodes.observations]),
        np.concatenate(episodes.actions),
        np.concatenate(episodes.rewards),
        ended,
        cut,
        np.concatenate([path[1:] for path in episodes.observations]),
        name="toy/two_ways",
    )
    return episodes, data


def make_model(method: Method, n_envs: int, seed: int) -> OnPolicyDiffusion:
    """
    :param method: A method that learns from rollouts
    :param n_envs: Number of environments
    :param seed: Seed of everything
    :return: The method on the task, untrained
    """
    own = dict(SETTINGS.get(method.name, {}))
    network = {"net_arch": [256, 256], **{key: own.pop(key) for key in ["diffusion_steps"] if key in own}}
    env = make_tensor_env(ENV, n_envs, device="cpu", seed=seed)
    settings = {"learning_rate": 1e-4, "policy_kwargs": network, "seed": seed, "device": "cpu", **own}
    model: OnPolicyDiffusion = method.load()("MlpPolicy", env, **settings)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def play_policy(model: OnPolicyDiffusion, n_envs: int, seed: int) -> Episodes:
    """
    :param model: A policy
    :param n_envs: Number of episodes
    :param seed: Seed of their starts
    :return: Episodes as training has them, with the policy's own randomness
    """

    def act(seen: th.Tensor) -> th.Tensor:
        return th.as_tensor(model.predict(seen.numpy(), deterministic=False)[0])

    return play(act, n_envs, seed)
