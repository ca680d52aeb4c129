"""Flow matching on straight paths, and flows that know their average velocity."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn
from torch.autograd import forward_ad
from typing_extensions import override

from sb3_diffusion.generative.process import Denoise, GenerativeProcess, flow_velocity, flow_velocity_to_clean
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.generative.solvers.compiled import run_compiled
from sb3_diffusion.generative.solvers.grid import check_bounds, check_steps
from sb3_diffusion.kernels.structures import CompiledStep
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

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

MEAN_FLOW_SOLVERS = ("euler",)


class FlowSampler(nn.Module):
    """
    Integrates ``dx/dt = v(x, t)`` from noise at ``t = 0`` to data at ``t = 1`` with equal steps.

    Has the interface of :class:`~sb3_diffusion.generative.solvers.sampler.Sampler`; the steps have no noise. The number of
    network evaluations per step is 1 for ``euler``, 2 for ``midpoint`` and ``heun``, 4 for ``rk4``.

    :param steps: Number of steps, at least 1
    :param solver: One of :data:`FLOW_SOLVERS`
    :param clip: Whether ``clip_target="state"`` is in effect
    :param clip_bounds: Lower and upper bound of clipping and of ``clip_output``
    :param clip_target: ``"output"`` leaves the path alone (intermediate states are noise and rightly exceed the box), so
        that only ``clip_output`` limits the result; ``"state"`` clips the running state after each step, as the reference
        implementation does when its sampler is asked to clip
    :param output_std: Standard deviation of the noise that is added to the last state, before ``clip_output``
    :raises ValueError: For unknown names, ``steps < 1`` or inverted bounds
    """

    times: th.Tensor
    coefficients: th.Tensor | None

    def __init__(
        self,
        steps: int,
        solver: str = "euler",
        *,
        clip: bool = True,
        clip_bounds: tuple[float, float] = (-1.0, 1.0),
        clip_target: str = "output",
        output_std: float = 0.0,
    ) -> None:
        super().__init__()
        check_steps(steps)
        self.output_std = real("output_std", output_std, low=0)
        choice("solver", solver, sorted(FLOW_SOLVERS))
        choice("clip_target", clip_target, FLOW_CLIP_TARGETS)
        check_bounds(clip_bounds)
        self.steps = steps
        self.solver = solver
        self.clip_low, self.clip_high = clip_bounds
        self._clip_state = clip and clip_target == "state"
        self._rule = FLOW_SOLVERS[solver]
        times = [(i + node) / steps for i in range(steps) for node in self._rule.nodes]
        self.register_buffer("times", th.tensor(times), persistent=False)
        self.register_buffer("coefficients", self._table(), persistent=False)
        self._is_midpoint = [weight == 0.0 for weight in self._rule.weights] * steps

    def _table(self) -> th.Tensor | None:
        """The steps as a compiled chain reads them; None for rules whose updates take several velocities."""
        *others, last = self._rule.weights
        if any(others):
            return None
        # lengths from the state to the points at which the next stages begin, and to the end of the step
        between = [CompiledStep(state=1.0, noise=node / self.steps, is_midpoint=True) for node in self._rule.nodes[1:]]
        end = CompiledStep(state=1.0, noise=last / self.steps, clip_state=self._clip_state)
        return th.tensor([*between, end] * self.steps)

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
        self,
        velocity: Denoise,
        shape: Sequence[int],
        randomness: Randomness,
        label: str,
        visit: Callable[[th.Tensor], None] | None,
    ) -> th.Tensor:
        x = randomness.normal(tuple(shape), f"{label}.x_T", like=self.times)
        if self.coefficients is not None:
            clip = (self.clip_low, self.clip_high)
            if (compiled := run_compiled(velocity, x, self.coefficients, self._is_midpoint, None, clip, visit)) is not None:
                return compiled
        if visit is not None:
            visit(x)
        for i in range(self.steps):
            x = self._step(velocity, x, i * len(self._rule.nodes))
            if visit is not None:
                visit(x)
        return x

    def sample(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Integrate from fresh noise, ``"<label>.x_T"`` of shape ``shape``. With ``output_std`` there is a second draw,
        ``"<label>.step_noise"`` of shape ``(1, *shape)``.

        :param denoise: ``denoise(x, k)`` returns the velocity, of the shape of ``x``, for the evaluation number ``k``
            (Python integer) at time ``times[k]``
        :param shape: Shape of the samples ``(..., action_dim)``
        :param randomness: Source of the draw
        :param label: Prefix of its label
        :param clip_output: Clamp the result to the clip bounds
        :return: Samples of shape ``shape``
        """
        x = self._ended(self._run(denoise, shape, randomness, label, None), randomness, label)
        return x.clamp(self.clip_low, self.clip_high) if clip_output else x

    def chain(
        self, denoise: Denoise, shape: Sequence[int], randomness: Randomness, label: str = "sample", clip_output: bool = True
    ) -> th.Tensor:
        """
        Integrate and keep the state after every step. Parameters as in :meth:`sample`.

        :param denoise: The velocity network
        :param shape: Shape of the samples
        :param randomness: Source of the draw
        :param label: Prefix of its label
        :param clip_output: Clamp the last state to the clip bounds
        :return: ``(steps + 1, *shape)``, starting noise first, sample last
        """
        states: list[th.Tensor] = []
        self._run(denoise, shape, randomness, label, states.append)
        states[-1] = self._ended(states[-1], randomness, label)
        if clip_output:
            states[-1] = states[-1].clamp(self.clip_low, self.clip_high)
        return th.stack(states)

    def _ended(self, x: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        if self.output_std == 0.0:
            return x
        draw = randomness.normal((1, *x.shape), f"{label}.step_noise", like=x)[0]
        return th.add(x, draw, alpha=self.output_std)

    @override
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

    def sample_time(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.sample_time`; uniform in ``[0, 1)``."""
        return randomness.uniform(shape, label, like)

    def regression_target(self, x0: th.Tensor, eps: th.Tensor) -> th.Tensor:
        """The velocity ``x0 - eps``."""
        return flow_velocity(x0, eps)

    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.predicted_clean`."""
        return flow_velocity_to_clean(x_t, prediction, t)

    def sampler(self, steps: int, solver: str = "euler", *, clip: bool = True, **options: Any) -> FlowSampler:
        """
        Build the integrator.

        :param steps: Number of steps, at least 1
        :param solver: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"``
        :param clip: See :class:`FlowSampler`; without ``clip_target="state"`` it has no effect on the path
        :param options: ``clip_bounds``, ``clip_target`` and ``output_std`` of :class:`FlowSampler`
        :return: The sampler
        :raises ValueError: For unknown names and ``steps < 1``
        """
        return FlowSampler(steps, solver, clip=clip, **options)


class MeanFlowSampler(FlowSampler):
    """
    Jumps ``x_{t+h} = x_t + h u(x_t, t, h)`` from noise at ``t = 0`` to data at ``t = 1`` with equal steps.

    The network knows the average velocity ``u`` over a whole step: there is no discretisation error, and one step is enough.
    ``times`` has shape ``(steps, 2)``: start and length of each step.

    :param steps: Number of steps, at least 1
    :param options: ``clip``, ``clip_bounds``, ``clip_target`` and ``output_std`` of :class:`FlowSampler`
    """

    def __init__(self, steps: int, **options: Any) -> None:
        super().__init__(steps, "euler", **options)
        self.times = th.stack((self.times, th.full_like(self.times, 1.0 / steps)), dim=-1)


class MeanFlow(FlowMatching):
    """
    The straight path of :class:`FlowMatching` with a network that predicts the average velocity (Geng et al. 2025).

    A time consists of two numbers ``(t, h)``. The network predicts ``u(x_t, t, h)``, the average over ``[t, t + h]`` of the
    velocity along the path through ``x_t``. It obeys ``u = v + h du/dt`` with ``v = x_0 - eps``, where ``du/dt`` is the
    derivative along the path while the end ``t + h`` stays in place. The paper's time runs the other way round.
    :meth:`regression_target` holds for ``h = 0``; :meth:`average_target` for all times.

    :param instantaneous: Share of the training times with ``h = 0``, at which the network learns the velocity itself
    :raises ValueError: If the share is not in [0, 1]
    """

    prediction: ClassVar[str] = "average velocity"
    n_times: ClassVar[int] = 2

    def __init__(self, instantaneous: float = 0.5) -> None:
        super().__init__()
        self.instantaneous = real("instantaneous", instantaneous, 0, 1, remedy="it is a share")

    def coefficients(self, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GenerativeProcess.coefficients`: ``(t, 1 - t)`` of times ``(..., 2)``."""
        return super().coefficients(t[..., :1])

    def sample_time(self, shape: Sequence[int], randomness: Randomness, label: str, like: th.Tensor) -> th.Tensor:
        """
        Start and length of an interval between two uniform draws, or a single time where the length is zero.

        :param shape: Shape of the result but for its last axis, which becomes 2
        :param randomness: Source of the draws
        :param label: Label of the two ends; ``"<label>.instantaneous"`` decides which intervals have length zero
        :param like: Tensor whose device and floating-point dtype the result takes
        :return: Times ``(..., 2)``
        """
        ends = randomness.uniform((*shape[:-1], 2), label, like)
        instantaneous = randomness.uniform((*shape[:-1], 1), f"{label}.instantaneous", like) < self.instantaneous
        # a single time is the first draw: the smaller of two would favour noisy times
        start = th.where(instantaneous, ends[..., :1], ends.amin(-1, keepdim=True))
        return th.cat((start, th.where(instantaneous, start, ends.amax(-1, keepdim=True)) - start), dim=-1)

    def average_target(self, velocity: th.Tensor, t: th.Tensor, derivative: th.Tensor) -> th.Tensor:
        """
        Target of the network at any time.

        :param velocity: Velocity along the path, ``x0 - eps``
        :param t: Times ``(..., 2)``
        :param derivative: Derivative of the network along ``(velocity, *time_direction)``, a constant of the regression
        :return: Target of the shape of ``velocity``
        """
        return velocity + t[..., 1:] * derivative

    @staticmethod
    def time_direction(t: th.Tensor) -> th.Tensor:
        """How a time ``(t, h)`` changes while its start moves and its end stays: ``(1, -1)``, of the shape of ``t``."""
        return th.stack((th.ones_like(t[..., 0]), -th.ones_like(t[..., 1])), dim=-1)

    def predicted_clean(self, x_t: th.Tensor, t: th.Tensor, prediction: th.Tensor) -> th.Tensor:
        """See :meth:`GenerativeProcess.predicted_clean`; exact for intervals that reach the data, ``t + h = 1``."""
        return super().predicted_clean(x_t, t[..., :1], prediction)

    def sampler(self, steps: int, solver: str = "euler", *, clip: bool = True, **options: Any) -> FlowSampler:
        """
        Build the sampler.

        :param steps: Number of steps, at least 1
        :param solver: ``"euler"``, the only one: a step with the average velocity is exact
        :param clip: See :class:`FlowSampler`
        :param options: ``clip_bounds``, ``clip_target`` and ``output_std`` of :class:`FlowSampler`
        :return: The sampler
        :raises ValueError: For unknown names and ``steps < 1``
        """
        choice("solver", solver, MEAN_FLOW_SOLVERS)
        return MeanFlowSampler(steps, clip=clip, **options)


def directional_derivative(
    function: Callable[..., th.Tensor], arguments: Sequence[th.Tensor], directions: Sequence[th.Tensor]
) -> th.Tensor:
    """
    Derivative of a network along a direction of its arguments, such as noisy actions and times (forward mode, for the cost of
    two passes).

    :param function: Function of the arguments
    :param arguments: Where the derivative is taken
    :param directions: One per argument, of its shape
    :return: Derivative, of the shape of the function's result
    """
    with forward_ad.dual_level():
        output = function(*map(forward_ad.make_dual, arguments, directions))
        derivative = forward_ad.unpack_dual(output).tangent
    return derivative  # type: ignore[no-any-return]
