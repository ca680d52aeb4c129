"""Multi-layer perceptrons by the compiled kernels, behind the guard."""

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.guard import Watch, allows
from sb3_diffusion.kernels.nodes import Chain, Evaluation
from sb3_diffusion.kernels.task import Task
from sb3_diffusion.kernels.unguarded import KernelLayer, UnguardedNetwork


class Network(UnguardedNetwork):
    """
    A multi-layer perceptron as the kernels see it. It follows its parameters when they change or move in memory.

    Every call asks the guard, and returns None where PyTorch has to do it: inputs do not fit, parameters or modules have been
    replaced, or somebody watches.

    :param layers: See :class:`~sb3_diffusion.kernels.unguarded.UnguardedNetwork`
    :param activation: See :class:`~sb3_diffusion.kernels.unguarded.UnguardedNetwork`
    :param n_members: See :class:`~sb3_diffusion.kernels.unguarded.UnguardedNetwork`
    :param watch: The modules that the layers come from
    :param beside: See :class:`~sb3_diffusion.kernels.unguarded.UnguardedNetwork`
    """

    def __init__(
        self,
        layers: Sequence[KernelLayer],
        activation: str,
        n_members: int | None,
        watch: Watch,
        beside: Sequence[str] = (),
    ) -> None:
        super().__init__(layers, activation, n_members, beside)
        self.watch = watch

    def _takes(self, x: th.Tensor, context: th.Tensor) -> bool:
        """Whether inputs have the right sizes, and each context serves equally many consecutive rows."""
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_dim or context.dim() < 2:
            return False
        lead, (*contexts, width) = x.shape[:-1], context.shape
        if width != self.context_dim:
            return False
        if self.n_members is not None and contexts[:1] != [self.n_members]:
            return False
        return tuple(contexts[len(self._lead) :]) in (lead, lead[:1], (1,))

    def _admitted(
        self, x: th.Tensor, context: th.Tensor, *others: th.Tensor, differentiable: bool = False
    ) -> list[Any] | None:
        """The parameters if a call may take the fast way, otherwise None."""
        if not allows(x, context, *others, differentiable=differentiable) or not self.watch.silent():
            return None
        if not self._takes(x, context) or not self.watch.same() or loader.load_kernels() is None:
            return None
        parameters = self.parameters()
        return None if self.members(parameters) is None else parameters

    def evaluate(self, x: th.Tensor, context: th.Tensor) -> th.Tensor | None:
        """
        :param x: ``(batch, in)`` or ``(batch, n, in)``, the same for all members
        :param context: What the first layer adds, ``(batch, width)``, ``(batch, n, width)`` or ``(1, width)``, for an ensemble
            with the member axis in front
        :return: Of the shape of ``x`` with the size of the output, for an ensemble with the member axis in front
        """
        parameters = self._admitted(x, context, differentiable=True)
        if parameters is None:
            return None
        rows, contexts = self._as_rows(x, context)
        if th.is_grad_enabled():
            out = Evaluation.apply(self, rows, contexts, *parameters)
        else:
            out = self.compute(rows, contexts, parameters)
        return out.view(*self._lead, *x.shape[:-1], self.output_dim)  # type: ignore[no-any-return]

    def evaluate_with_gradient(self, x: th.Tensor, context: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """
        Without autograd, for constants of a loss.

        :param x: See :meth:`evaluate`
        :param context: See :meth:`evaluate`
        :return: What :meth:`evaluate` returns, and the gradient of the first output with respect to ``x``, of the shape of
            ``x``, for an ensemble with the member axis in front
        """
        parameters = self._admitted(x, context)
        if parameters is None:
            return None
        rows, contexts = self._as_rows(x, context)
        gradient = x.new_empty((*self._lead, *rows.shape))
        out = self.compute(rows, contexts, parameters, gradient)
        lead = (*self._lead, *x.shape[:-1])
        return out.view(*lead, self.output_dim), gradient.view(*lead, self.input_dim)

    def _as_rows(self, x: th.Tensor, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Inputs and contexts as matrices (with the member axis for an ensemble)."""
        return x.reshape(-1, self.input_dim), context.reshape(*self._lead, -1, self.context_dim)

    def run_chain(
        self,
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
    ) -> th.Tensor | None:
        """
        Run a reverse chain.

        :param x: Starting points ``(batch, in)`` or ``(batch, n, in)``
        :param context: Encoded states ``(batch, width)`` or ``(1, width)``
        :param times: Encoded times, ``(n_steps, width)``
        :param steps: Coefficients, one row per evaluation; the columns are the fields of
            :class:`~sb3_diffusion.kernels.structures.CompiledStep`
        :param draws: Standard normal noise ``(n_noisy, *x.shape)`` of the first steps, constants
        :param clip: Bounds of the state where a step clips it
        :return: All points at which the network was evaluated, and the sample as the last one, ``(n_steps + 1, *x.shape)``
        """
        task = Task(steps, draws, clip)
        parameters = self._admitted(x, context, times, *task.tensors(), differentiable=True)
        if parameters is None or not self.runs(x, task) or context.dim() != 2:
            return None
        if times.shape != (len(steps), self.context_dim):
            return None
        if th.is_grad_enabled():
            return Chain.apply(self, task, x, context, times, *parameters)  # type: ignore[no-any-return]
        return self.compute_chain(task, x, context, times, parameters)

    def runs(self, x: th.Tensor, task: Task) -> bool:
        """
        Whether the network can take these steps.

        :param x: Starting points
        :param task: The steps
        """
        return self.n_members is None and self.input_dim == self.output_dim and task.fits(x)
