"""Two policies on the same path: how far apart the steps of their reverse chains are."""

import torch as th

from sb3_diffusion.generative.ddpm import DiscreteDiffusion
from sb3_diffusion.generative.process import Denoise


class PathDivergence:
    """
    A network for a chain that notes, at every state on its way, how far its step is from that of another network. The sum over
    the steps is, in the mean over paths, the divergence of the two distributions of whole paths.

    :param process: The process, every step of whose table the chain takes
    :param followed: The network whose chain it is
    :param other: The one that it is compared with
    :param times: Times of the evaluations ``(n_evaluations,)``
    """

    def __init__(self, process: DiscreteDiffusion, followed: Denoise, other: Denoise, times: th.Tensor) -> None:
        self.process = process
        self.followed, self.other = followed, other
        self.times = times
        self.steps: list[th.Tensor] = []

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        """The prediction of the followed network at ``x``, at the evaluation number ``k``."""
        predicted = self.followed(x, k)
        self.steps.append(self.process.step_divergence(predicted, self.other(x, k), self.times[k : k + 1]))
        return predicted

    @property
    def total(self) -> th.Tensor:
        """Sum over the steps so far, of the shape of the samples without their last axis."""
        return th.stack(self.steps).sum(0)
