"""Flow matching on straight paths."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn

from sb3_diffusion.generative import conversions
from sb3_diffusion.generative.process import Denoise, GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers import check_bounds, check_choice, check_steps

#: What clipping applies to.
FLOW_CLIP_TARGETS = ("output", "state")


class _RungeKutta(NamedTuple):
    """Explicit rule in which every stage starts from the velocity of the stage before it only."""

    nodes: tuple[float, ...]  # time of stage j is t + nodes[j] * h, its state x + nodes[j] * h * (velocity of stage j - 1)
    weights: tuple[float, ...]


FLOW_SOLVERS: dict[str, _RungeKutta] = {
    "euler": _RungeKutta((0.0,), (1.0,)),
    "midpoint": _RungeKutta((0.0, 0.5), (0.0, 1.0)),
    "heun": _RungeKutta((0.0, 1.0), (0.5, 0.5)),
    "rk4": _RungeKutta((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class FlowSampler(nn.Module):
    """
    Integrates ``dx/dt = v(x, t)`` from noise at ``t = 0`` to data at ``t = 1`` with equal steps.

    Has the interface of :class:`~sb3_diffusion.generative.solvers.Sampler`; there is no step noise. The number of network
    evaluations per step is 1 for ``euler``, 2 for ``midpoint`` and ``heun``, 4 for ``rk4``.

    :param steps: number of steps, at least 1
    :param solver: one of :data:`FLOW_SOLVERS`
    :param clip: whether ``clip_target="state"`` is in effect
    :param clip_bounds: lower and upper bound of clipping and of ``clip_output``
    :param clip_target: ``"output"`` leaves the path alone (intermediate states are noise and rightly exceed the box), so
        that only ``clip_output`` limits the result; ``"state"`` clips the running state after each step, as the reference
        implementation does when its sampler is asked to clip
    :raises ValueError: for unknown names, ``steps < 1`` or inverted bounds
    """

    times: th.Tensor

    def __init__(
        self,
        steps: int,
        solver: str = "euler",
        *,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
        clip_target: str = "output",
    ) -> None:
        super().__init__()
        check_steps(steps)
        check_choice("solver", solver, sorted(FLOW_SOLVERS))
        check_choice("clip_target", clip_target, FLOW_CLIP_TARGETS)
        check_bounds(clip_bounds)
        self.steps = steps
        self.solver = solver
        self.clip_low, self.clip_high = clip_bounds
        self._clip_state = clip and clip_target == "state"
        self._rule = FLOW_SOLVERS[solver]
        times = [(i + node) / steps for i in range(steps) for node in self._rule.nodes]
        self.register_buffer("times", th.tensor(times), persistent=False)

    def _step(self, velocity: Denoise, x: th.Tensor, first_evaluation: int) -> th.Tensor:
        width = 1.0 / self.steps
        total = x
        slope = x  # not used by the first stage, whose node is 0
        for j, (node, weight) in enumerate(zip(self._rule.nodes, self._rule.weights, strict=True)):
            point = x if node == 0.0 else th.add(x, slope, alpha=node * width)
            slope = velocity(point, first_evaluation + j)
            if weight != 0.0:
                total = th.add(total, slope, alpha=weight * width)
        return total.clamp(self.clip_low, self.clip_high) if self._clip_state else total

    def _run(
        self, velocity: Denoise, shape: Sequence[int], noise: Randomness, label: str, visit: Callable[[th.Tensor], None] | None
    ) -> th.Tensor:
        x = noise.normal(tuple(shape), f"{label}.x_T", like=self.times)
        if visit is not None:
            visit(x)
        for i in range(self.steps):
            x = self._step(velocity, x, i * len(self._rule.nodes))
            if visit is not None:
                visit(x)
        return x

    def sample(
        self, denoise: Denoise, shape: Sequence[int], noise: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Integrate from fresh noise; the only draw is ``"<label>.x_T"`` of shape ``shape``.

        :param denoise: ``denoise(x, k)`` returns the velocity, of the shape of ``x``, for the evaluation number ``k``
            (Python integer) at time ``times[k]``
        :param shape: shape of the samples ``(..., action_dim)``
        :param noise: source of the draw
        :param label: prefix of its label
        :param clip_output: clamp the result to the clip bounds
        :return: samples of shape ``shape``
        """
        x = self._run(denoise, shape, noise, label, None)
        return x.clamp(self.clip_low, self.clip_high) if clip_output else x

    def chain(
        self, denoise: Denoise, shape: Sequence[int], noise: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Integrate and keep the state after every step. Parameters as in :meth:`sample`.

        :param denoise: the velocity network
        :param shape: shape of the samples
        :param noise: source of the draw
        :param label: prefix of its label
        :param clip_output: clamp the last state to the clip bounds
        :return: ``(steps + 1, *shape)``, starting noise first, sample last
        """
        states: list[th.Tensor] = []
        self._run(denoise, shape, noise, label, states.append)
        if clip_output:
            states[-1] = states[-1].clamp(self.clip_low, self.clip_high)
        return th.stack(states)

    def extra_repr(self) -> str:
        return f"solver={self.solver!r}, steps={self.steps}"


class FlowMatching(GenerativeProcess):
    """
    Straight path ``x_t = t x_0 + (1 - t) eps`` between noise (``t = 0``) and data (``t = 1``); the network predicts the
    velocity ``x_0 - eps`` (Lipman et al. 2023; Liu et al. 2023). ``x_0`` is the clean sample, as in every process here.
    """

    prediction: ClassVar[str] = "velocity"

    def coefficients(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GenerativeProcess.coefficients`: ``(t, 1 - t)``."""
        return t, 1 - t

    def sample_time(self, shape: Sequence[int], noise: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.sample_time`; uniform in ``[0, 1)``."""
        return noise.uniform(shape, label, like)

    def regression_target(self, x0: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """The velocity ``x0 - eps``."""
        return conversions.flow_velocity(x0, eps)

    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.predicted_clean`."""
        return conversions.flow_velocity_to_clean(x_t, prediction, t)

    def sampler(self, steps: int, solver: str = "euler", *, clip: bool = True, **options: Any) -> FlowSampler:
        """
        Build the integrator.

        :param steps: number of steps, at least 1
        :param solver: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"``
        :param clip: see :class:`FlowSampler`; without ``clip_target="state"`` it has no effect on the path
        :param options: ``clip_bounds`` and ``clip_target`` of :class:`FlowSampler`
        :return: the sampler
        :raises ValueError: for unknown names and ``steps < 1``
        """
        return FlowSampler(steps, solver, clip=clip, **options)
