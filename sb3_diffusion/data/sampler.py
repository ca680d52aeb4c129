"""Batches of a data set, on the device of the learner."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.normalization import normalize_observations, normalize_rewards
from sb3_diffusion.data.rewards import RewardTransform
from sb3_diffusion.data.stored.dataset import OfflineDataset


class DatasetSampler:
    """
    Draws batches from a data set, which lies on the device as a whole.

    :param dataset: The data
    :param action_space: Box whose bounds become [-1, 1] in the batches
    :param transform: What is done to the rewards
    :param n_steps: Number of steps of the bootstrapped return, cut at the end of an episode
    :param gamma: Discount factor
    :param device: Device of the batches
    """

    def __init__(
        self,
        dataset: OfflineDataset,
        action_space: spaces.Box,
        transform: RewardTransform,
        n_steps: int,
        gamma: float,
        device: th.device,
    ):
        self.dataset = dataset.to(device)
        self.asked = transform, n_steps, gamma
        rewards, self._last = n_step_returns(self.dataset, transform(self.dataset.rewards), n_steps, gamma)
        length = self._last - th.arange(len(self._last), device=device) + 1
        discounts = gamma**length * ~self.dataset.terminated[self._last]
        self._scalars = th.stack((rewards, discounts.float()), 1)
        bounds = (action_space.low, action_space.high)
        low, high = (th.as_tensor(bound, dtype=th.float32, device=device).flatten() for bound in bounds)
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(
        self,
        batch_size: int,
        env: VecNormalize | None = None,
        columns: Mapping[str, th.Tensor] | None = None,
        state_tables: Mapping[str, th.Tensor] | None = None,
    ) -> Batch:
        """
        Draw transitions with replacement.

        :param batch_size: Number of transitions
        :param env: Normalises observations and rewards as those of the environment
        :param columns: Further quantities of every transition, ``(n, ...)``; they become the batch's ``extras``
        :param state_tables: Further quantities of every state of the table, ``(n + m, ...)``, on the device or in a file; they
            become ``extras`` as ``<name>``, and of the states that follow as ``next_<name>``
        :return: The transitions
        """
        rows = th.randint(len(self), (batch_size,), device=self._scalars.device)
        both = th.cat((rows, self.dataset.next_index[self._last[rows]]))
        observations = self._gather(both, env)
        rewards, discounts = self._scalars[rows].unbind(1)
        extras = {name: column[rows] for name, column in (columns or {}).items()}
        for name, table in (state_tables or {}).items():
            extras[name], extras[f"next_{name}"] = table[both.to(table.device)].to(both.device).split(batch_size)
        return Batch(
            observations=_half(observations, slice(None, batch_size)),
            actions=((self.dataset.actions[rows] - self._middle) / self._half).clamp_(-1.0, 1.0),
            rewards=normalize_rewards(rewards, env),
            next_observations=_half(observations, slice(batch_size, None)),
            discounts=discounts,
            extras=extras,
        )

    def _gather(self, rows: th.Tensor, env: VecNormalize | None) -> Any:
        states: Any = self.dataset.states
        found = {key: table[rows] for key, table in states.items()} if isinstance(states, dict) else states[rows]
        return found if env is None else normalize_observations(found, env)


def n_step_returns(dataset: OfflineDataset, rewards: th.Tensor, n_steps: int, gamma: float) -> tuple[th.Tensor, th.Tensor]:
    """
    :param dataset: Transitions in the order of their episodes
    :param rewards: Their rewards ``(n,)``
    :param n_steps: Number of steps
    :param gamma: Discount factor
    :return: Discounted sums of at most ``n_steps`` rewards of the same episode ``(n,)``, and the row of the last of them
    """
    last = th.arange(len(rewards), device=rewards.device)
    if n_steps == 1:
        return rewards, last
    ends = dataset.terminated | dataset.truncated
    ends[:-1] |= dataset.episode_ids[1:] != dataset.episode_ids[:-1]
    ends[-1] = True
    total = rewards.clone()
    for step in range(1, n_steps):
        goes_on = ~ends[last]
        last = last + goes_on
        total += gamma**step * th.where(goes_on, rewards[last], 0.0)
    return total, last


def _half(observations: Any, part: slice) -> Any:
    return {key: value[part] for key, value in observations.items()} if isinstance(observations, dict) else observations[part]
