"""Policies whose density nobody knows: how much better a flow knows an action stands for how much likelier it has become."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import OnPolicyArguments
from sb3_diffusion.core.behavior.pretraining import ImitatesFirst
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy

ERRORS = ("velocity", "noise")
"""Whose error is compared: that of the velocity, or of the noise that it implies, which is ``t`` times as large."""
REDUCTIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "mean": lambda squares: squares.mean(-1),
    "sum": lambda squares: squares.sum(-1),
    "sqrt": lambda squares: squares.sum(-1) / squares.shape[-1] ** 0.5,
}
"""What becomes of the squares of all dimensions: with ``"sqrt"``, ratios vary as much in many dimensions as in few."""


class FlowMatchingRatio(ImitatesFirst, OnPolicyDiffusion):
    """
    Base class of the methods that compare flow-matching errors of the policy before and after updates, in the place of
    log-densities. The errors are those of the same ``n_draws`` pairs of noise and time, which are drawn once for every action:
    new ones would be noise in the exponent of the ratios.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param n_draws: Pairs of noise and time for every action
    :param error: Whose error is compared, one of :data:`ERRORS`
    :param error_reduction: What becomes of the squares of all dimensions, one of :data:`REDUCTIONS`
    :param output_std: Standard deviation of the noise that is added to the end of the flow while it explores
    :param clip_states: Whether the flow is clipped to the box after every step
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    rows_at_once: ClassVar[int] = 2048
    prediction = "velocity"
    actor: DiffusionActor

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        *,
        n_draws: int,
        error: str,
        error_reduction: str,
        output_std: float,
        clip_states: bool,
        **kwargs: Unpack[OnPolicyArguments],
    ):
        self.n_draws = integer("n_draws", n_draws, low=1)
        self.error = choice("error", error, ERRORS)
        self.error_reduction = choice("error_reduction", error_reduction, REDUCTIONS)
        self.output_std = real("output_std", output_std, low=0)
        self.clip_states = clip_states
        super().__init__(policy, env, learning_rate, **kwargs)

    @abstractmethod
    def draw_times(self, shape: Sequence[int], like: th.Tensor) -> th.Tensor:
        """
        :param shape: Shape of the result
        :param like: Tensor on whose device it is
        :return: Times at which the flow is asked
        """

    @override
    def policy_requirements(self) -> dict[str, Any]:
        ending = {"clip_target": "state" if self.clip_states else "output", "output_std": self.output_std}
        return {**super().policy_requirements(), "process": "flow", "sampler_kwargs": ending}

    @override
    def policy_settings(self) -> dict[str, Any]:
        times = {"time_embedding": "fourier", "time_dim": 16, "time_activation": "mish"}
        return {"net_arch": [256, 256, 256], "state_arch": (), **times}

    @override
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        return self.actor.act(observations, self.randomness, "act", clip_output=False), {}

    @override
    def remember(self, batch: RolloutBatch) -> dict[str, th.Tensor]:
        n, action_dim = batch.actions.shape
        eps = self.randomness.normal((n, self.n_draws, action_dim), "act.eps", like=batch.actions)
        t = self.draw_times((n, self.n_draws, 1), like=batch.actions)
        return {"eps": eps, "t": t, "error": self.flow_matching_error(batch.observations, batch.actions, eps, t)}

    def flow_matching_error(self, observations: Any, actions: th.Tensor, eps: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        How wrong the velocity is on the straight way from noise to actions.

        :param observations: Batch of observations
        :param actions: Actions ``(batch, action_dim)``
        :param eps: Noise ``(batch, n_draws, action_dim)``
        :param t: Times ``(batch, n_draws, 1)``
        :return: Squared errors ``(batch, n_draws)``
        """
        actor, clean = self.actor, actions.unsqueeze(1)
        x_t = t * clean + (1.0 - t) * eps
        error = actor.denoise(x_t, t, actor.encode(observations)) - (clean - eps)
        return REDUCTIONS[self.error_reduction]((error if self.error == "velocity" else t * error).square())

    @override
    def imitation_error(self, batch: Batch) -> th.Tensor:
        return self.actor.denoising_error(batch.actions, self.actor.encode(batch.observations), self.randomness, "actor")

    def errors(self, batch: RolloutBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Rows of the rollout
        :return: Errors ``(batch, n_draws)`` of the policy that acted, and of the policy now, for the same draws
        """
        old, eps, t = (batch.fields[name] for name in ("error", "eps", "t"))
        return old, self.flow_matching_error(batch.observations, batch.actions, eps, t)
