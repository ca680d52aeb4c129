"""Three ways to execute an update: eagerly, with the losses through ``torch.compile``, or all of it as one CUDA graph."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from typing_extensions import override

from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.graphs import CudaGraphUpdate
from sb3_diffusion.core.update.parts import Loss, Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice

EXECUTION_MODES = ("auto", "eager", "compile", "cuda_graph")


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
                if part.before is not None:
                    part.before(logged)
                self.step(part, loss)
                if part.then is not None:
                    part.then()
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
