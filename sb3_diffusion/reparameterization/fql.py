"""FQL: a flow imitates the data, and a student of one step imitates the flow and maximises Q."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.randomness import RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.one_step import OneStepActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.values.critic import REDUCTIONS, reduce_critics


class FQL(OffPolicyDiffusion):
    """
    Flow Q-Learning (FQL).

    Reparameterisation with the behaviour policy as reference. A flow (the actor) learns to sample the actions of the data, by
    flow matching alone. A second network, the student, turns noise into an action in one step: it is drawn to where the flow
    ends from the same noise, with weight ``alpha``, and to actions of high value. The student acts, so that an action costs
    one pass of a network, and no gradient passes through a chain.

    Paper: Park et al. 2025, Flow Q-Learning, https://arxiv.org/abs/2502.02538

    Differences from the reference implementation: the losses take their steps one after the other, the student's first, so
    that the critics' next actions come from the student after its step (the reference computes all three before any step);
    the student's values are divided by their mean magnitude unless ``normalize_q_loss=False``, because ``alpha`` would have to
    follow the scale of the rewards; layers are initialised orthogonally.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of flow, student and critics
    :param alpha: Weight of the distance between student and flow
    :param normalize_q_loss: Whether to divide the values in the student's loss by their mean magnitude
    :param target_reduction: What the target of the critics takes of the target critics, ``"mean"`` or ``"min"``
    :param student_learning_rate: Learning rate of the student if it differs
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update flow and student every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    prediction = "velocity"
    student_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        alpha: float = 10.0,
        normalize_q_loss: bool = True,
        target_reduction: str = "mean",
        student_learning_rate: float | Schedule | None = None,
        n_action_candidates: int = 1,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.alpha = real("alpha", alpha, low=0, remedy="larger stays closer to the data")
        self.normalize_q_loss = normalize_q_loss
        self.target_reduction = choice("target_reduction", target_reduction, REDUCTIONS)
        self.student_learning_rate = optional(check_schedule, "student_learning_rate", student_learning_rate)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"networks": {"student": {"kind": "one_step"}}, "acting": "student"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {
            "process": "flow",
            "diffusion_steps": 10,
            "net_arch": [512, 512, 512, 512],
            "activation_fn": "gelu",
            "layer_norm": {"qf": "post"},
            "time_embedding": "raw",
            "state_arch": (),
            "n_action_candidates": self.n_action_candidates,
        }

    @override
    def parts(self) -> Sequence[Part]:
        critic, flow = super().parts()
        # the student looks at the flow and at the critics from before their steps
        return [Part("student", self.student_loss, self.student, self.policy_delay), flow, critic]

    @property
    def student(self) -> OneStepActor:
        """The actor of one step, which acts."""
        return self.policy.trained["student"]  # type: ignore[return-value]

    @override
    def target_actions(self, batch: Batch) -> th.Tensor:
        return self.student.sample(self.student.encode(batch.next_observations), self.randomness, "next_action")

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context, actions = self.critic_target.encode(batch.next_observations), self.target_actions(batch)
        return reduce_critics(self.critic_target.q(actions, context), self.target_reduction), saturation(actions)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        velocity = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        return (velocity - self.actor.process.regression_target(batch.actions, noisy.eps)).square().mean(), {}

    def student_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Distance to the flow's action from the same noise, and the value of the student's.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        noise = self.randomness.normal(batch.actions.shape, "student.x_T", like=batch.actions)
        same = RecordedDraws({"student.x_T": noise})
        # unclipped, since nothing would lead an action back that has left the box
        actions = self.student.sample(self.student.encode(batch.observations), same, "student", clip_output=False)
        with th.no_grad():
            taught = self.actor.sample(self.actor.encode(batch.observations), same, "student")
            context = self.critic.encode(batch.observations)
        distance = (actions - taught).square().mean()
        values = self.critic.q(actions.clamp(-1.0, 1.0), context).mean(0)
        value = values.mean()
        if self.normalize_q_loss:
            value = value / values.detach().abs().mean().clamp(min=1e-6)
        return self.alpha * distance - value, {"distillation_loss": distance.detach(), "q_term": value.detach()}
