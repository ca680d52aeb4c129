"""
One update as a list of parts: each has a loss, the network that gets the gradient, and an optimizer that steps. Three ways to
execute it: eagerly, with the losses through ``torch.compile``, or all of it as one CUDA graph.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from typing_extensions import override

from sb3_diffusion.core.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice

EXECUTION_MODES = ("auto", "eager", "compile", "cuda_graph")
Loss = Callable[[Batch], tuple[th.Tensor, Metrics]]


class Part(NamedTuple):
    """
    What an update trains at once.

    :param name: ``"critic"``, ``"actor"``, ``"value"``, ...: prefix of its loss in the logs, key of its learning rate
    :param loss: Function of a batch, the method of the algorithm that reads like the paper; returns a scalar and further
        quantities to log
    :param network: Network of the policy whose parameters get the gradient; its attribute ``optimizer`` steps
    :param every: Updates between two of its steps
    """

    name: str
    loss: Loss
    network: nn.Module
    every: int = 1

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the network."""
        return self.network.optimizer  # type: ignore[return-value]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer steps."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Stage(NamedTuple):
    """
    A part of a training on stored data, such as learning the behaviour before its critics.

    :param name: ``"behavior"``, ``"critic"``, ...
    :param parts: Names of the parts that it trains
    :param updates: Its share: ``learn_offline`` divides its updates among the stages in proportion to these numbers
    :param prepare: What happens before its first update and may take minutes, such as drawing actions for every state. It may
        leave quantities of the transitions in ``prepared``, or of all states in ``state_tables``, which then come with every
        batch. It is repeated where it was interrupted, and in the middle of the stage where a checkpoint lacks its tables
    :param batch_size: Transitions per update, ``None`` for the algorithm's
    """

    name: str
    parts: tuple[str, ...]
    updates: int
    prepare: Callable[[], object] | None = None
    batch_size: int | None = None


def divided(total: int, shares: Sequence[int]) -> list[int]:
    """
    :param total: Number of updates
    :param shares: Proportions of the stages
    :return: Updates of each stage, ``total`` together
    """
    bounds = [round(total * sum(shares[:end]) / max(1, sum(shares))) for end in range(len(shares) + 1)]
    return [end - start for start, end in pairwise(bounds)]


def due_parts(parts: Sequence[Part], n_updates: int) -> tuple[str, ...]:
    """
    :param parts: Parts of an update
    :param n_updates: Number of the update, the first one is 1
    :return: Names of those that this update trains
    """
    return tuple(part.name for part in parts if n_updates % part.every == 0)


class Update:
    """
    One update as a function of tensors, without host synchronisation.

    :param parts: Function that returns the parts, in their order
    :param step: One step of a part's optimizer on its loss
    :param finish: Called with the metrics after the steps (multipliers, targets); returns further ones
    """

    def __init__(
        self,
        parts: Callable[[], Sequence[Part]],
        step: Callable[[Part, th.Tensor], None],
        finish: Callable[[Metrics], Metrics],
    ):
        self.parts = parts
        self.step = step
        self.finish = finish

    def __call__(self, batch: Batch, due: tuple[str, ...]) -> Metrics:
        """
        :param batch: Batch of transitions
        :param due: Names of the parts to train
        :return: Quantities to log, as detached scalar tensors
        """
        metrics: Metrics = {}
        for part in self.parts():
            if part.name in due:
                loss, logged = self.loss_of(part)(batch)
                self.step(part, loss)
                metrics |= {f"{part.name}_loss": loss.detach(), **logged}
        return metrics | self.finish(metrics)

    def loss_of(self, part: Part) -> Loss:
        """
        :param part: One of the parts
        :return: What computes its loss
        """
        return part.loss


class CompiledUpdate(Update):
    """The same with losses through ``torch.compile``; optimizer steps stay eager, they are fused kernels already."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.losses: dict[str, CompiledLoss] = {}

    @override
    def loss_of(self, part: Part) -> Loss:
        if part.name not in self.losses:
            self.losses[part.name] = CompiledLoss(part.loss)
        return self.losses[part.name]


@th.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """
    Move a copy of a network towards it, ``target = tau * source + (1 - tau) * target``; 1 copies.

    Running statistics (batch normalisation in a features extractor) are measured, not learned: copied as they are.

    :param target: The copy
    :param source: The network, of the same structure
    :param tau: Between 0 and 1
    """
    th._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)


def check_execution(mode: str) -> str:
    """
    :param mode: Value of the argument ``execution``
    :return: The same value
    :raises ValueError: If there is no such mode
    """
    return choice("execution", mode, EXECUTION_MODES)


def make_update(
    mode: str, update: tuple[Any, Any, Any], optimizers: Callable[[], list[th.optim.Optimizer]], device: th.device
) -> Callable[[Batch, tuple[str, ...]], Metrics]:
    """
    The function that performs one update.

    :param mode: One of :data:`EXECUTION_MODES`; ``"auto"`` is eager, the fastest mode measured so far
    :param update: Arguments of :class:`Update`
    :param optimizers: Function that returns all optimizers that step
    :param device: Device of the networks
    :return: Function of a batch and of the names of the parts that are due, see :class:`Update`
    :raises ValueError: If a CUDA graph is asked for without a CUDA device
    """
    if mode == "compile":
        return CompiledUpdate(*update)
    if mode == "cuda_graph":
        if device.type != "cuda":
            raise ValueError(f"execution='cuda_graph' needs device='cuda', not {str(device)!r}; use 'eager' here.")
        return CudaGraphUpdate(Update(*update), optimizers, device)
    return Update(*update)


def set_learning_rate(optimizer: th.optim.Optimizer, learning_rate: float) -> None:
    """
    Set the learning rate, in place where a CUDA graph reads it from a tensor.

    :param optimizer: The optimizer
    :param learning_rate: New value
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], th.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def trained_parameters(optimizers: list[th.optim.Optimizer]) -> tuple[bool, ...]:
    """
    :param optimizers: Optimizers of an update
    :return: Of each of their parameters, whether it is trained or frozen
    """
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return tuple(parameter.requires_grad for group in groups for parameter in group["params"])


class CompiledLoss:
    """
    A loss through ``torch.compile``; runs eagerly after one warning where no compiler works.

    Random draws fall back to PyTorch's own, so that all modes draw the same numbers.

    :param loss: Function of a batch
    """

    def __init__(self, loss: Loss):
        self.eager = loss
        self.run: Loss = th.compile(loss, dynamic=False, options={"fallback_random": True})

    def __call__(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """Run the loss, eagerly where the compiler fails."""
        try:
            return self.run(batch)
        except th._dynamo.exc.TorchDynamoException as error:
            warnings.warn(f"torch.compile failed, continuing eagerly: {str(error).splitlines()[0]}", stacklevel=2)
            self.run = self.eager
            return self.eager(batch)


class CudaGraphUpdate:
    """
    The whole update (losses, backward passes, optimizers, targets) as one CUDA graph per set of parts that are due, and per
    set of trained parameters (``requires_grad_(False)`` freezes some).

    The first updates run eagerly on a side stream: they are real updates and at the same time the warm-up that capturing
    requires. The graph then reads from static copies of the batch and of the learning rates.

    :param update: The update
    :param optimizers: Function that returns all optimizers that step
    :param device: A CUDA device
    :param n_warmup: Eager updates before capturing
    """

    def __init__(
        self, update: Update, optimizers: Callable[[], list[th.optim.Optimizer]], device: th.device, n_warmup: int = 3
    ):
        self.update = update
        self.optimizers = optimizers
        self.device = device
        self.n_warmup = n_warmup
        self.n_calls: Counter[Any] = Counter()
        self.stream = th.cuda.Stream(device)
        self.graphs: dict[Any, tuple[th.cuda.CUDAGraph, Batch, Metrics]] = {}

    def __call__(self, batch: Batch, due: tuple[str, ...]) -> Metrics:
        """See :meth:`Update.__call__`."""
        key = due, trained_parameters(self.optimizers())
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
        static_batch = Batch(*(_clone(part) for part in batch))
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
