"""
Random numbers that need no file: every draw of a lock-step run, and every batch, follows from its name.

NumPy promises that the streams of ``RandomState`` never change. A draw is the beginning of the stream whose seed is the check
sum of ``<run>/<update>/<label>``, so that two programs that name a draw alike get the same numbers in whatever order they ask.
Nothing but NumPy and the standard library is used here: the program that ran the reference imports this file.
"""

import math
import zlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NORMAL = NormalDist()
UPDATES = 200
BATCH_SIZE, OBSERVATION_DIM, ACTION_DIM = 16, 5, 2


class FrozenDraws:
    """
    The draws of one update.

    :param run: Name of the run
    :param update: Number of the update, from 1
    """

    def __init__(self, run: str, update: int):
        self.run, self.update = run, update

    def seed(self, label: str) -> int:
        """Of the stream of a draw."""
        return zlib.crc32(f"{self.run}/{self.update}/{label}".encode())

    def _stream(self, label: str) -> np.random.RandomState:
        return np.random.RandomState(self.seed(label))

    def normal(self, shape: Sequence[int], label: str) -> Array:
        """Standard normal numbers, rounded to float32: data of both programs, in whatever format they compute."""
        return _rounded(self._stream(label).standard_normal(tuple(shape)))

    def uniform(self, shape: Sequence[int], label: str, low: float = 0.0, high: float = 1.0) -> Array:
        """Uniform numbers between ``low`` and ``high``, rounded to float32."""
        return _rounded(low + (high - low) * self._stream(label).random_sample(tuple(shape)))

    def truncated_normal(self, shape: Sequence[int], low: Array, high: Array, label: str) -> Array:
        """
        Standard normal numbers between bounds, which broadcast to ``shape``.

        The bounds are results of the program that asks, so these numbers are not rounded.
        """
        shares = self._stream(label).random_sample(tuple(shape))
        return np.asarray(np.vectorize(_truncated, otypes=[float])(shares, low, high))

    def batch(self) -> dict[str, Array]:
        """
        Transitions of a task that can be learned: the reward is largest where the action is half of the first observations,
        and one in ten transitions is terminal.
        """
        observations = self.normal((BATCH_SIZE, OBSERVATION_DIM), "batch.obs")
        actions = self.uniform((BATCH_SIZE, ACTION_DIM), "batch.action", -1.0, 1.0)
        miss = actions - 0.5 * observations[:, :ACTION_DIM]
        following = 0.9 * observations + 0.3 * self.normal(observations.shape, "batch.next_obs")
        return {
            "obs": observations,
            "action": actions,
            "reward": _rounded(1.0 - (miss * miss).sum(1, keepdims=True)),
            "terminal": (self.uniform((BATCH_SIZE, 1), "batch.terminal") < 0.1).astype(float),
            "next_obs": _rounded(following),
        }


def _rounded(values: Array) -> Array:
    return values.astype(np.float32).astype(float)


def _truncated(share: float, low: float, high: float) -> float:
    """The number below which lies a share of the probability of a window; in the tail where probabilities are precise."""
    if low + high > 0.0:
        return -_truncated(1.0 - share, -high, -low)
    below = _mass_below(low)
    quantile = below + share * (_mass_below(high) - below)
    return min(max(NORMAL.inv_cdf(quantile), low), high) if 0.0 < quantile < 1.0 else low


def _mass_below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
