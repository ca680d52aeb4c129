"""Networks and chains of the compiled kernels as single nodes of autograd, which keep what their backward pass needs."""

from typing import Any

import torch as th
from typing_extensions import override

from sb3_diffusion.kernels import loader
from sb3_diffusion.kernels.guard import is_plain
from sb3_diffusion.kernels.records import is_large
from sb3_diffusion.kernels.task import Task
from sb3_diffusion.kernels.unguarded import Member, UnguardedNetwork

_WAY_OUT = "run the forward pass within sb3_diffusion.kernels.switched_off()."


def _refuse_second_derivative() -> None:
    if th.is_grad_enabled():
        raise RuntimeError(f"The compiled kernels have no second derivative; for create_graph=True {_WAY_OUT}")


def _checked(network: UnguardedNetwork, parameters: Any, *tensors: th.Tensor) -> list[Member]:
    """The members of the forward pass, once it is certain that its tensors and the gradient still are arrays."""
    members = network.members(parameters)
    if members is None or not all(map(is_plain, tensors)):
        raise RuntimeError(f"The compiled kernels pull back plain float32 arrays only; for anything else {_WAY_OUT}")
    return members


class Evaluation(th.autograd.Function):
    """A network as one node: :meth:`~sb3_diffusion.kernels.network.Network.evaluate`."""

    @override
    @staticmethod
    def forward(ctx: Any, network: UnguardedNetwork, x: th.Tensor, context: th.Tensor, *parameters: th.Tensor) -> th.Tensor:
        x = x.contiguous()
        ctx.network, ctx.record = network, None
        if any(ctx.needs_input_grad):
            ctx.record = network.new_record(x, len(x))
            ctx.save_for_backward(x, context, *parameters)
        return network.compute(x, context, parameters, record=ctx.record)

    @override
    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        x, context, *parameters = ctx.saved_tensors  # autograd checks that nobody has changed them
        network, record, ctx.record = ctx.network, ctx.record, None
        members = _checked(network, parameters, x, context, gradient)
        kernels, threads, rows = loader.compiled(), th.get_num_threads(), len(x)
        if record is None:  # an earlier pass has consumed it (retain_graph=True)
            record = network.new_record(x, rows)
            network.compute(x, context, parameters, record=record)
        _, needs_x, needs_context, *needs = ctx.needs_input_grad
        gradient = gradient.contiguous()
        x_gradient = x.new_empty((len(members), *x.shape))
        sums = x.new_zeros((len(members), threads, network.n_gradients)) if any(needs) else None
        for m, (member, _) in enumerate(members):
            kernels.pull_back(
                member,
                x.data_ptr(),
                record.data_ptr() + 4 * m * record.numel() // len(members),
                gradient.data_ptr() + 4 * m * rows * network.output_dim,
                x_gradient.data_ptr() + 4 * m * x.numel(),
                None if sums is None else sums.data_ptr() + 4 * m * threads * network.n_gradients,
                network.n_gradients,
                rows,
                threads,
            )
        context_gradient = None
        if needs_context:
            contexts, width = context.shape[-2:]
            context_gradient = record[..., 1, 0, :, :width]
            if contexts != rows:
                context_gradient = context_gradient.unflatten(-2, (contexts, rows // max(contexts, 1))).sum(-2)
            elif is_large(record):
                context_gradient = context_gradient.clone()
        network.records.give_back(record)
        return (
            None,
            x_gradient.sum(0) if needs_x else None,
            context_gradient,
            *([None] * len(needs) if sums is None else network.split_gradients(sums, parameters, needs)),
        )


class Chain(th.autograd.Function):
    """A whole reverse chain as one node: :meth:`~sb3_diffusion.kernels.network.Network.run_chain`."""

    @override
    @staticmethod
    def forward(
        ctx: Any,
        network: UnguardedNetwork,
        task: Task,
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        *parameters: th.Tensor,
    ) -> th.Tensor:
        ctx.network, ctx.clip, ctx.kept = network, task.clip, None
        needed = any(ctx.needs_input_grad)
        if needed:
            ctx.kept = network.new_chain_record(x, len(task.steps))
        points = network.compute_chain(task, x, context, times, parameters, ctx.kept)
        if needed:
            ctx.save_for_backward(points, task.steps, task.draws, context, times, *parameters)
        return points

    @override
    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        points, steps, draws, context, times, *parameters = ctx.saved_tensors  # autograd checks that nobody has changed them
        network, kept, ctx.kept = ctx.network, ctx.kept, None
        ((member, _),) = _checked(network, parameters, points, steps, context, times, gradient)
        kernels, threads = loader.compiled(), th.get_num_threads()
        if kept is None:  # an earlier pass has consumed it (retain_graph=True)
            kept = network.new_chain_record(points[0], len(steps))
            network.compute_chain(Task(steps, draws, ctx.clip), points[0], context, times, parameters, kept)
        predictions, record = kept
        _, _, needs_x, needs_context, needs_times, *needs = ctx.needs_input_grad
        gradients = gradient.clone(memory_format=th.contiguous_format)
        n_steps, rows, _ = predictions.shape
        contexts, width = context.shape
        encoded = points.new_zeros((rows, network.first_width))
        sums = points.new_zeros((threads, network.n_gradients + n_steps * network.first_width))
        kernels.pull_back_chain(
            member,
            steps.data_ptr(),
            n_steps,
            *ctx.clip,
            *(tensor.data_ptr() for tensor in (points, gradients, predictions, record, encoded, sums)),
            sums.shape[1],
            rows,
            threads,
        )
        network.records.give_back(record)
        return (
            *(None, None),
            gradients[0] if needs_x else None,
            encoded[:, :width].unflatten(0, (contexts, rows // max(contexts, 1))).sum(1) if needs_context else None,
            sums[0, network.n_gradients :].view(n_steps, -1)[:, :width] if needs_times else None,
            *network.split_gradients(sums, parameters, needs),
        )
