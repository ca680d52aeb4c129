"""Three ways to execute the same update: eagerly, through ``torch.compile``, or as one CUDA graph."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.core.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice

EXECUTION_MODES = ("auto", "eager", "compile", "cuda_graph")
Update = Callable[[Batch, bool], Metrics]
Loss = Callable[[Batch], tuple[th.Tensor, Metrics]]


class Trainable(Protocol):
    """What an algorithm offers to be executed."""

    @property
    def device(self) -> th.device:
        """Device of the networks."""

    @property
    def optimizers(self) -> list[th.optim.Optimizer]:
        """Optimizers that :meth:`update` steps."""

    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """Loss of the critics, and quantities to log."""

    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """Loss of the actor, and quantities to log."""

    def update(self, batch: Batch, with_actor: bool, critic_loss: Loss | None = ..., actor_loss: Loss | None = ...) -> Metrics:
        """One update, with stand-ins for the losses."""


def check_execution(mode: str) -> str:
    """
    :param mode: Value of the argument ``execution``
    :return: The same value
    :raises ValueError: If there is no such mode
    """
    choice("execution", mode, EXECUTION_MODES)
    return mode


def make_update(algorithm: Trainable, mode: str) -> Update:
    """
    The function that performs one update of an algorithm.

    :param algorithm: Algorithm whose networks are built
    :param mode: One of :data:`EXECUTION_MODES`; ``"auto"`` is eager, the fastest mode measured so far
    :return: Function of the batch and of whether to update the actor
    :raises ValueError: If a CUDA graph is asked for without a CUDA device
    """
    if mode == "compile":
        # optimizer steps stay eager: they are fused kernels already
        losses = CompiledLoss(algorithm.critic_loss), CompiledLoss(algorithm.actor_loss)
        return lambda batch, with_actor: algorithm.update(batch, with_actor, *losses)
    if mode == "cuda_graph":
        if algorithm.device.type != "cuda":
            raise ValueError(f"execution='cuda_graph' needs device='cuda', not {str(algorithm.device)!r}; use 'eager' here.")
        return CudaGraphUpdate(algorithm)
    return algorithm.update


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
    The whole update (losses, backward passes, optimizers, targets) as one CUDA graph per value of ``with_actor`` and per set
    of trained parameters (``requires_grad_(False)`` freezes some).

    The first updates run eagerly on a side stream: they are real updates and at the same time the warm-up that capturing
    requires. The graph then reads from static copies of the batch and of the learning rates.

    :param algorithm: Algorithm whose networks are built, on a CUDA device
    :param n_warmup: Eager updates before capturing
    """

    def __init__(self, algorithm: Trainable, n_warmup: int = 3):
        self.algorithm = algorithm
        self.n_warmup = n_warmup
        self.n_calls: Counter[Any] = Counter()
        self.stream = th.cuda.Stream(algorithm.device)
        self.graphs: dict[Any, tuple[th.cuda.CUDAGraph, Batch, Metrics]] = {}

    def __call__(self, batch: Batch, with_actor: bool) -> Metrics:
        """One update, like :meth:`OffPolicyDiffusion.update`."""
        key = with_actor, trained_parameters(self.algorithm.optimizers)
        if key not in self.graphs:
            self.n_calls[key] += 1
            if self.n_calls[key] <= self.n_warmup:
                return self._eager(batch, with_actor)
            self.graphs[key] = self._capture(batch, with_actor)
        graph, static_batch, static_metrics = self.graphs[key]
        _copy(batch, static_batch)
        graph.replay()
        return {name: value.clone() for name, value in static_metrics.items()}

    def _eager(self, batch: Batch, with_actor: bool) -> Metrics:
        for optimizer in self.algorithm.optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
                if not isinstance(group["lr"], th.Tensor):
                    group["lr"] = th.tensor(group["lr"], device=self.algorithm.device)
        self.stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(self.stream):
            metrics = self.algorithm.update(batch, with_actor)
        th.cuda.current_stream().wait_stream(self.stream)
        return metrics

    def _capture(self, batch: Batch, with_actor: bool) -> tuple[th.cuda.CUDAGraph, Batch, Metrics]:
        static_batch = Batch(*(_clone(part) for part in batch))
        graph = th.cuda.CUDAGraph()
        with th.cuda.graph(graph):
            metrics = self.algorithm.update(static_batch, with_actor)
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
    return tuple((key, value.shape) for key, value in part.items()) if isinstance(part, dict) else part.shape


def _clone(part: Any) -> Any:
    return {key: value.clone() for key, value in part.items()} if isinstance(part, dict) else part.clone()


def _copy(source: Batch, target: Batch) -> None:
    for new, old in zip(source, target, strict=True):
        _copy_part(new, old)


def _copy_part(source: Any, target: Any) -> None:
    for value, static in (
        zip(source.values(), target.values(), strict=True) if isinstance(source, dict) else ((source, target),)
    ):
        static.copy_(value)
