"""A whole chain in one call, where the network can do that."""

from collections.abc import Callable, Sequence

import torch as th

from sb3_diffusion.generative.process import Denoise


def run_compiled(
    denoise: Denoise,
    x: th.Tensor,
    coefficients: th.Tensor,
    is_midpoint: Sequence[bool],
    draws: th.Tensor | None,
    clip: tuple[float, float],
    visit: Callable[[th.Tensor], None] | None,
) -> th.Tensor | None:
    """
    A chain of linear updates in one call, where the network can do that.

    :param denoise: The network
    :param x: Starting points
    :param coefficients: One row per evaluation, see :meth:`~sb3_diffusion.kernels.Network.run_chain`
    :param is_midpoint: For each evaluation, whether its result is not a state of the chain
    :param draws: Standard normal noise of the first steps
    :param clip: Bounds of the state where a step clips it
    :param visit: Called with every state
    :return: The last state, None where the network cannot do it
    """
    points = compiled_points(denoise, x, coefficients, draws, clip)
    if points is None:
        return None
    if visit is not None:
        visit(points[0])
        for point, is_between in zip(points[1:], is_midpoint, strict=True):
            if not is_between:
                visit(point)
    return points[-1]


def compiled_points(
    denoise: Denoise, x: th.Tensor, coefficients: th.Tensor, draws: th.Tensor | None, clip: tuple[float, float]
) -> th.Tensor | None:
    """
    :param denoise: See :func:`run_compiled`
    :param x: See there
    :param coefficients: See there
    :param draws: See there
    :param clip: See there
    :return: The starting points, and what every evaluation led to, ``(n_evaluations + 1, ...)``; None where the network cannot
        do it
    """
    run_chain = getattr(denoise, "run_chain", None)
    return None if run_chain is None else run_chain(x, coefficients, draws, clip)  # type: ignore[no-any-return]
