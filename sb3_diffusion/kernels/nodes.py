"""Networks and chains of the compiled kernels as single nodes of autograd, which keep what their backward pass needs."""

from typing import TYPE_CHECKING, Any

import torch as th

from sb3_diffusion.kernels import loader

if TYPE_CHECKING:
    from sb3_diffusion.kernels.network import Network


def _refuse_second_derivative() -> None:
    if th.is_grad_enabled():
        raise RuntimeError(
            "The compiled kernels have no second derivative; for create_graph=True run the forward pass within "
            "sb3_diffusion.kernels.switched_off()."
        )


class Evaluation(th.autograd.Function):
    """A network as one node: :meth:`Network.evaluate`."""

    @staticmethod
    def forward(ctx: Any, network: "Network", x: th.Tensor, context: th.Tensor, *parameters: th.Tensor) -> th.Tensor:
        x = x.contiguous()
        ctx.network = network
        ctx.record = network.new_record(x, len(x)) if any(ctx.needs_input_grad) else None
        ctx.save_for_backward(x, context, *parameters)
        return network._evaluate(x, context, record=ctx.record)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        x, context, *_ = ctx.saved_tensors  # autograd checks that they and the parameters are those of the forward pass
        kernels, threads, rows = loader.compiled(), th.get_num_threads(), len(x)
        network, record, ctx.record = ctx.network, ctx.record, None
        if record is None:  # an earlier pass has consumed it (retain_graph=True)
            record = network.new_record(x, rows)
            network._evaluate(x, context, record=record)
        _, needs_x, needs_context, *needs = ctx.needs_input_grad
        gradient, members = gradient.contiguous(), network.members()
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
                context_gradient = context_gradient.unflatten(-2, (contexts, -1)).sum(-2)
        return (
            None,
            x_gradient.sum(0) if needs_x else None,
            context_gradient,
            *([None] * len(needs) if sums is None else network.split_gradients(sums, needs)),
        )


class Chain(th.autograd.Function):
    """A whole reverse chain as one node: :meth:`Network.run_chain`."""

    @staticmethod
    def forward(
        ctx: Any,
        network: "Network",
        steps: th.Tensor,
        draws: th.Tensor | None,
        clip: tuple[float, float],
        x: th.Tensor,
        context: th.Tensor,
        times: th.Tensor,
        *parameters: th.Tensor,
    ) -> th.Tensor:
        ctx.network, ctx.clip = network, clip
        ctx.kept = network.new_chain_record(x, len(steps)) if any(ctx.needs_input_grad) else None
        points = network._run_chain(steps, draws, clip, x, context, times, ctx.kept)
        ctx.save_for_backward(points, steps, draws, context, times, *parameters)
        return points

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        _refuse_second_derivative()
        # autograd checks that they and the parameters are those of the forward pass
        points, steps, draws, context, times, *_ = ctx.saved_tensors
        kernels, threads = loader.compiled(), th.get_num_threads()
        network, kept, ctx.kept = ctx.network, ctx.kept, None
        if kept is None:  # an earlier pass has consumed it (retain_graph=True)
            kept = network.new_chain_record(points[0], len(steps))
            network._run_chain(steps, draws, ctx.clip, points[0], context, times, kept)
        predictions, record = kept
        _, _, _, _, needs_x, needs_context, needs_times, *needs = ctx.needs_input_grad
        gradients = gradient.clone(memory_format=th.contiguous_format)
        n_steps, rows, _ = predictions.shape
        contexts, width = context.shape
        encoded = points.new_zeros((rows, network.first_width))
        sums = points.new_zeros((threads, network.n_gradients + n_steps * network.first_width))
        ((member, _),) = network.members()
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
        return (
            *(None, None, None, None),
            gradients[0] if needs_x else None,
            encoded[:, :width].unflatten(0, (contexts, -1)).sum(1) if needs_context else None,
            sums[0, network.n_gradients :].view(n_steps, -1)[:, :width] if needs_times else None,
            *network.split_gradients(sums, needs),
        )
