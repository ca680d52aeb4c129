"""Three ways to execute an update: eagerly, with the losses through ``torch.compile``, or all of it as one CUDA graph."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn
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
                loss, logged = self.train(part, batch)
                if part.then is not None:
                    part.then()
                metrics |= {f"{part.name}_loss": loss.detach(), **logged}
        return metrics | self.finish(metrics)

    def train(self, part: Part, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        One step of a part.

        :param part: What is trained
        :param batch: Batch of transitions
        :return: Its loss, and what that loss logs
        """
        loss, logged = part.loss(batch)
        if part.before is not None:
            part.before(logged)
        self.step(part, loss)
        return loss, logged


class CompiledUpdate(Update):
    """
    The same with losses through ``torch.compile``; optimizer steps stay eager, they are fused kernels already.

    Random draws fall back to PyTorch's own, so that all modes draw the same numbers. Where no compiler works, a part goes on
    eagerly after one warning, with the draws at which it failed: in the loss, or in its gradient, which is compiled only when
    it is first asked for.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.losses: dict[str, Loss] = {}
        self.eager: set[str] = set()
        """Names of the parts whose loss does not compile."""

    @override
    def train(self, part: Part, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """See :meth:`Update.train`."""
        if part.name in self.eager:
            return super().train(part, batch)
        if part.name not in self.losses:
            self.losses[part.name] = th.compile(part.loss, dynamic=False, options={"fallback_random": True})
        before = _Before(part.network, part.parameters[0].device)
        try:
            loss, logged = self.losses[part.name](batch)
        except Exception as error:
            before.restore()
            loss, logged = super().train(part, batch)
            self._give_up(part, error)
            return loss, logged
        if part.before is not None:
            part.before(logged)
        try:
            self.step(part, loss)
        except Exception as error:
            before.restore()
            loss, logged = part.loss(batch)
            self.step(part, loss)
            self._give_up(part, error)
        return loss, logged

    def _give_up(self, part: Part, error: Exception) -> None:
        """After any error, since those of compilers have no common kind; one of the loss itself has come back eagerly."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        end = next((i for i, line in enumerate(lines) if not line.endswith(":")), 0)  # "backend='inductor' raised:" goes on
        reason = " ".join(lines[: end + 1])
        warnings.warn(f"torch.compile failed, continuing eagerly: {reason}", stacklevel=4)
        self.eager.add(part.name)


class _Before:
    """
    What a loss changes beside its gradient: PyTorch's random numbers, and running statistics of the network.

    :param network: What is trained
    :param device: Its device
    """

    def __init__(self, network: nn.Module, device: th.device):
        self.buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self.device, self.host = device, th.get_rng_state()
        self.own = th.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Go back."""
        for buffer, value in self.buffers:
            buffer.copy_(value)
        th.set_rng_state(self.host)
        if self.own is not None:
            th.cuda.set_rng_state(self.own, self.device)


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
