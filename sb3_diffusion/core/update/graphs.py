"""CUDA graphs: of a whole update, and of acting."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch


def trained_parameters(optimizers: list[th.optim.Optimizer]) -> tuple[bool, ...]:
    """
    :param optimizers: Optimizers of an update
    :return: Of each of their parameters, whether it is trained or frozen
    """
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return tuple(parameter.requires_grad for group in groups for parameter in group["params"])


class CudaGraphUpdate:
    """
    The whole update (losses, backward passes, optimizers, targets) as one CUDA graph per set of parts that are due, per set of
    trained parameters (``requires_grad_(False)`` freezes some), and per form of the batch: its size and its extras.

    The first updates run eagerly on a side stream: they are real updates and at the same time the warm-up that capturing
    requires. The graph then reads from static copies of the batch and of the learning rates.

    :param update: The update, a function of a batch and of the names of the parts that are due
    :param optimizers: Function that returns all optimizers that step
    :param device: A CUDA device
    :param n_warmup: Eager updates before capturing
    """

    def __init__(
        self,
        update: Callable[[Batch, tuple[str, ...]], Metrics],
        optimizers: Callable[[], list[th.optim.Optimizer]],
        device: th.device,
        n_warmup: int = 3,
    ):
        self.update = update
        self.optimizers = optimizers
        self.device = device
        self.n_warmup = n_warmup
        self.n_calls: Counter[Any] = Counter()
        self.stream = th.cuda.Stream(device)
        self.graphs: dict[Any, tuple[th.cuda.CUDAGraph, Batch, Metrics]] = {}

    def __call__(self, batch: Batch, due: tuple[str, ...]) -> Metrics:
        """See :meth:`~sb3_diffusion.core.update.execution.Update.__call__`."""
        key = due, trained_parameters(self.optimizers()), tuple(_shapes(part) for part in batch)
        if key not in self.graphs:
            self.n_calls[key] += 1
            if self.n_calls[key] <= self.n_warmup:
                return self._eager(batch, due)
            self.graphs[key] = self._capture(batch, due)
        graph, static_batch, static_metrics = self.graphs[key]
        _copy(batch, static_batch)
        graph.replay()
        return {name: value.clone() for name, value in static_metrics.items()}

    def _eager(self, batch: Batch, due: tuple[str, ...]) -> Metrics:
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                group["capturable"] = True
                if not isinstance(group["lr"], th.Tensor):
                    group["lr"] = th.tensor(group["lr"], device=self.device)
        self.stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(self.stream):
            metrics = self.update(batch, due)
        th.cuda.current_stream().wait_stream(self.stream)
        return metrics

    def _capture(self, batch: Batch, due: tuple[str, ...]) -> tuple[th.cuda.CUDAGraph, Batch, Metrics]:
        static_batch = type(batch)(*(_clone(part) for part in batch))
        graph = th.cuda.CUDAGraph()
        with th.cuda.graph(graph):
            metrics = self.update(static_batch, due)
        return graph, static_batch, metrics


class CudaGraphActing:
    """
    Drawing actions as one CUDA graph per number of observations; weights are read where they are, so it follows the training.

    :param act: Function of a batch of observations on a CUDA device, without host synchronisation
    :param n_warmup: Eager calls before capturing
    """

    def __init__(self, act: Callable[[PyTorchObs], th.Tensor], n_warmup: int = 3):
        self.act = act
        self.n_warmup = n_warmup
        self.n_calls: Counter[Any] = Counter()
        self.graphs: dict[Any, tuple[th.cuda.CUDAGraph, PyTorchObs, th.Tensor]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # copies of the policy act eagerly: a graph belongs to the weights that it was captured with
        return type(None), ()

    def __call__(self, observations: PyTorchObs) -> th.Tensor:
        """Actions for a batch of observations."""
        key = _shapes(observations)
        if key not in self.graphs:
            self.n_calls[key] += 1
            if self.n_calls[key] <= self.n_warmup:
                return self.act(observations)
            static_observations, graph = _clone(observations), th.cuda.CUDAGraph()
            th.cuda.synchronize()
            with th.cuda.graph(graph):
                actions = self.act(static_observations)
            self.graphs[key] = graph, static_observations, actions
        graph, static_observations, actions = self.graphs[key]
        _copy_part(observations, static_observations)
        graph.replay()
        return actions.clone()


def _shapes(part: Any) -> Any:
    return tuple((key, value.shape) for key, value in part.items()) if isinstance(part, Mapping) else part.shape


def _clone(part: Any) -> Any:
    return {key: value.clone() for key, value in part.items()} if isinstance(part, Mapping) else part.clone()


def _copy(source: Batch, target: Batch) -> None:
    for new, old in zip(source, target, strict=True):
        _copy_part(new, old)


def _copy_part(source: Any, target: Any) -> None:
    for value, static in (
        zip(source.values(), target.values(), strict=True) if isinstance(source, Mapping) else ((source, target),)
    ):
        static.copy_(value)
