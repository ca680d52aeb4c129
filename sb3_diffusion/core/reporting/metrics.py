"""Training statistics that cost one host synchronisation per call of ``train()``."""

import math
from collections.abc import Callable, Iterator

import torch as th

Metrics = dict[str, th.Tensor]
"""Name -> detached scalar tensor on the device."""
SATURATED = 0.99
"""Absolute value beyond which a coordinate of a normalised action counts as saturated."""


def saturation(actions: th.Tensor) -> Metrics:
    """
    How much of what the policy does lies on the edge of the action box, where hardly any gradient leads back.

    :param actions: Normalised actions that an update has drawn anyway, of any shape
    :return: ``saturated_actions``, the share of their coordinates beyond 0.99 in absolute value
    """
    return {"saturated_actions": (actions.detach().abs() > SATURATED).mean(dtype=th.float32)}


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

    def values(self, when: str, likely_cause: Callable[[bool], str]) -> Iterator[dict[str, float]]:
        """
        The metrics of every update on the host.

        :param when: Where in the training this is, for the error message
        :param likely_cause: Explains a quantity that is not finite; told whether no step had been made before it
        :raises TrainingDiverged: Naming the quantity, the update and the likely cause
        """
        flat = [value.float().reshape(()) for metrics in self.updates for value in metrics.values()]
        values = iter(th.stack(flat).tolist() if flat else ())
        for update, metrics in enumerate(self.updates, start=self.first_update):
            numbers = dict(zip(metrics, values, strict=False))
            for position, (name, value) in enumerate(numbers.items()):
                if not math.isfinite(value):
                    untrained = update == 1 and position == 0  # the first loss, before the first step
                    raise TrainingDiverged(
                        f"{name} became {value} at update {update} ({when}). {likely_cause(untrained)} "
                        "Nothing was saved; the last checkpoint is intact."
                    )
            yield numbers

    def means(self, when: str, likely_cause: Callable[[bool], str]) -> dict[str, float]:
        """
        Mean of every metric over the updates in which it occurred.

        :param when: See :meth:`values`
        :param likely_cause: See :meth:`values`
        """
        history: dict[str, list[float]] = {}
        for numbers in self.values(when, likely_cause):
            for name, value in numbers.items():
                history.setdefault(name, []).append(value)
        return {name: sum(items) / len(items) for name, items in history.items()}
