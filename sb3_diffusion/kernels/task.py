"""What a chain does beside evaluating the network."""

from typing import NamedTuple

import torch as th

from sb3_diffusion.kernels.structures import CompiledStep


class Task(NamedTuple):
    """
    The steps of a chain and their noise.

    :param steps: Coefficients, one row per evaluation; the columns are the fields of
        :class:`~sb3_diffusion.kernels.structures.CompiledStep`
    :param draws: Standard normal noise ``(n_noisy, ...)`` of the first steps, with the shape of the starting points behind
    :param clip: Bounds of the state where a step clips it
    """

    steps: th.Tensor
    draws: th.Tensor | None
    clip: tuple[float, float]

    def tensors(self) -> list[th.Tensor]:
        """All that compiled code reads."""
        return [self.steps] if self.draws is None else [self.steps, self.draws]

    def contiguous_draws(self) -> th.Tensor | None:
        """The draws as compiled code reads them."""
        return None if self.draws is None else self.draws.contiguous()

    def fits(self, x: th.Tensor) -> bool:
        """
        Whether these are constant steps, and draws for these points.

        :param x: Starting points
        """
        steps, draws = self.steps, self.draws
        size = steps.shape
        if len(size) != 2 or size[1] != len(CompiledStep._fields) or steps.requires_grad or not steps.is_contiguous():
            return False
        return draws is None or (draws.shape[1:] == x.shape and not draws.requires_grad)
