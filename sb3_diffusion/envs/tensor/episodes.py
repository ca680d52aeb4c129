"""What episodes returned and how long they were, counted where the environments are: on the device, without waiting for it."""

from typing import NamedTuple

import torch as th


class EpisodeSummary(NamedTuple):
    """
    Episodes that ended since the last question.

    :param n_episodes: Their number
    :param mean_return: Mean of their returns, NaN if there was none
    :param mean_length: Mean of their lengths, NaN if there was none
    """

    n_episodes: int
    mean_return: float
    mean_length: float


class EpisodeStatistics:
    """
    Returns and lengths of the episodes of many environments.

    :attr:`returns` and :attr:`lengths` belong to the running episodes, :attr:`finished_returns` and :attr:`finished_lengths`
    to the last one of each environment; all have the shape ``(n_envs,)``. An episode that :meth:`restart` cuts off is not
    counted.

    :param n_envs: Number of environments
    :param device: Where they are
    """

    def __init__(self, n_envs: int, device: th.device):
        # Apple's GPUs have no double precision
        precision = th.float32 if device.type == "mps" else th.float64
        self.returns = th.zeros(n_envs, device=device)
        self.lengths = th.zeros(n_envs, dtype=th.int64, device=device)
        self.finished_returns = th.zeros_like(self.returns)
        self.finished_lengths = th.zeros_like(self.lengths)
        self._totals = th.zeros(3, dtype=precision, device=device)

    def restart(self) -> None:
        """Begin new episodes in all environments."""
        self.returns.zero_()
        self.lengths.zero_()

    def update(self, reward: th.Tensor, done: th.Tensor) -> None:
        """
        :param reward: Rewards of one step, ``(n_envs,)``
        :param done: Where it was the last step of an episode, ``(n_envs,)``
        """
        self.returns += reward
        self.lengths += 1
        th.where(done, self.returns, self.finished_returns, out=self.finished_returns)
        th.where(done, self.lengths, self.finished_lengths, out=self.finished_lengths)
        # not a product with the mask, which would spread a NaN of a running episode
        ended = th.stack((done, self.returns.masked_fill(~done, 0.0), self.lengths.masked_fill(~done, 0)))
        self._totals += ended.sum(dim=1, dtype=self._totals.dtype)
        self.returns.masked_fill_(done, 0.0)
        self.lengths.masked_fill_(done, 0)

    def pop(self) -> EpisodeSummary:
        """
        The episodes since the last call. Waits for the device once.

        :return: Their number and means
        """
        count, total_return, total_length = self._totals.tolist()
        self._totals.zero_()
        if count == 0:
            return EpisodeSummary(0, float("nan"), float("nan"))
        return EpisodeSummary(int(count), total_return / count, total_length / count)
