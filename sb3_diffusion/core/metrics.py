"""Training statistics that cost one host synchronisation per call of ``train()``."""

import math
from collections.abc import Mapping

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.core.divergence import likely_cause

Metrics = dict[str, th.Tensor]
"""Name -> detached scalar tensor on the device."""


class TrainingDiverged(FloatingPointError):
    """A quantity of the update became NaN or infinite."""


class MetricLog:
    """
    Collects the metrics of consecutive updates on the device.

    :param first_update: Number of the first update, for error messages
    :param learning_rates: Learning rate of each network, for the same
    """

    def __init__(self, first_update: int, learning_rates: Mapping[str, float] | None = None):
        self.first_update = first_update
        self.learning_rates = learning_rates or {}
        self.updates: list[Metrics] = []

    def append(self, metrics: Metrics) -> None:
        """
        :param metrics: Metrics of one update
        """
        self.updates.append(metrics)

    def means(self, replay_buffer: ReplayBuffer, num_timesteps: int, env: VecNormalize | None = None) -> dict[str, float]:
        """
        Mean of every metric over the updates in which it occurred.

        :param replay_buffer: Searched for the cause if a metric is not finite
        :param num_timesteps: Environment steps so far, for the error message
        :param env: What normalises the transitions
        :raises TrainingDiverged: Naming the quantity, the update and the likely cause
        """
        flat = [value.float().reshape(()) for metrics in self.updates for value in metrics.values()]
        if not flat:
            return {}
        values = iter(th.stack(flat).tolist())
        history: dict[str, list[float]] = {}
        for update, metrics in enumerate(self.updates, start=self.first_update):
            for position, name in enumerate(metrics):
                value = next(values)
                if not math.isfinite(value):
                    untrained = update == 1 and position == 0  # the critics' loss, before their first step
                    cause = likely_cause(replay_buffer, env, self.learning_rates, untrained)
                    raise TrainingDiverged(
                        f"{name} became {value} at update {update} (timestep {num_timesteps}). {cause} "
                        "Nothing was saved; the last checkpoint is intact."
                    )
                history.setdefault(name, []).append(value)
        return {name: sum(items) / len(items) for name, items in history.items()}
