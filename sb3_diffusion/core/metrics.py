"""Training statistics that cost one host synchronisation per call of ``train()``."""

import math
from collections.abc import Iterator

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

Metrics = dict[str, th.Tensor]
"""Name -> detached scalar tensor on the device."""


class TrainingDiverged(FloatingPointError):
    """A quantity of the update became NaN or infinite."""


class MetricLog:
    """
    Collects the metrics of consecutive updates on the device.

    :param first_update: Number of the first update, for error messages
    """

    def __init__(self, first_update: int):
        self.first_update = first_update
        self.updates: list[Metrics] = []

    def append(self, metrics: Metrics) -> None:
        """
        :param metrics: Metrics of one update
        """
        self.updates.append(metrics)

    def means(self, replay_buffer: ReplayBuffer, num_timesteps: int) -> dict[str, float]:
        """
        Mean of every metric over the updates in which it occurred.

        :param replay_buffer: Searched for the cause if a metric is not finite
        :param num_timesteps: Environment steps so far, for the error message
        :raises TrainingDiverged: naming the quantity, the update and the likely cause
        """
        flat = [value.float().reshape(()) for metrics in self.updates for value in metrics.values()]
        if not flat:
            return {}
        values = iter(th.stack(flat).tolist())
        history: dict[str, list[float]] = {}
        for update, metrics in enumerate(self.updates, start=self.first_update):
            for name in metrics:
                value = next(values)
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"{name} became {value} at update {update} (timestep {num_timesteps}). {_likely_cause(replay_buffer)} "
                        "Nothing was saved; the last checkpoint is intact."
                    )
                history.setdefault(name, []).append(value)
        return {name: sum(items) / len(items) for name, items in history.items()}


def _likely_cause(replay_buffer: ReplayBuffer) -> str:
    for name, array in _stored_arrays(replay_buffer):
        if not np.isfinite(array).all():
            return f"The replay buffer holds non-finite {name}: check what the environment returns."
    return (
        "The replay buffer is finite, so the update itself diverged: "
        "lower the learning rate, set max_grad_norm, or rescale the rewards."
    )


def _stored_arrays(replay_buffer: ReplayBuffer) -> Iterator[tuple[str, np.ndarray]]:
    size = replay_buffer.size()
    for name in ("rewards", "actions", "observations", "next_observations"):
        stored = getattr(replay_buffer, name, None)
        if isinstance(stored, dict):
            yield from ((f"{name}[{key!r}]", array[:size]) for key, array in stored.items())
        elif stored is not None:
            yield name, stored[:size]
