"""DTQL: a policy of one step maximises Q where a denoiser of the data's actions says that it may be trusted."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.critics.in_sample import InSampleArguments, InSampleCritics
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.parts import Part, Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.numeric import integer, optional, real, widths
from sb3_diffusion.policies.actors.edm_denoiser import EDMDenoiser
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES, GaussianPolicy
from sb3_diffusion.policies.values.critic import reduce_critics


class DTQL(InSampleCritics):
    """
    Diffusion Trusted Q-Learning (DTQL).

    Reparameterisation with the behaviour policy as reference. A denoiser learns the actions of the data, and is never sampled.
    A Gaussian policy of one step draws an action, and is drawn to where the critics' value is large and the denoiser's error
    small: the error of a denoiser is small only at actions such as it was trained with. The critics are those of implicit
    Q-learning. Nothing in it is a chain, neither in training nor in acting.

    Paper: Chen et al. 2024, Diffusion Policies creating a Trust Region for Offline Reinforcement Learning,
    https://arxiv.org/abs/2405.19690

    Differences from the reference implementation: every update and every action draws fresh noise (the reference draws the
    same numbers again and again), and the choice among candidates is a draw from the softmax of their values (the reference
    takes a softmax of that softmax, which makes the choice almost uniform); the critics bootstrap from the state value after
    its step; layers are initialised orthogonally.

    :param policy: ``"GaussianPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param alpha: Weight of the denoiser's error in the actor's loss
    :param likelihood_weight: Weight of minus the log-likelihood of the data's actions in it
    :param sum_critic_losses: Whether the critics' loss is the sum over the critics, and not their mean
    :param behavior_net_arch: Widths of the denoiser's hidden layers
    :param behavior_learning_rate: Learning rate of the denoiser if it differs
    :param pretraining_updates: Share of the stage of ``learn_offline`` that trains denoiser, state value and critics alone
    :param training_updates: Share of the stage that trains all networks
    :param n_action_candidates: Actions of which the target critics choose: the best when evaluating (``deterministic=True``),
        a draw from the softmax of their values otherwise
    :param selection_temperature: Temperature of that softmax, in units of Q
    :param actor_decay: Whether the actor's learning rate, where it is a number, falls to zero during the training:
        ``"cosine"`` or ``"none"``
    :param kwargs: See :class:`~sb3_diffusion.core.critics.in_sample.InSampleCritics`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = GAUSSIAN_POLICIES  # type: ignore[assignment]
    behavior_lr_schedule = PartSchedule()

    def __init__(  # type: ignore[misc]  # actor_decay has another default
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        alpha: float = 5.0,
        likelihood_weight: float = 0.0,
        sum_critic_losses: bool = True,
        behavior_net_arch: Sequence[int] = (256, 256, 256, 256),
        behavior_learning_rate: float | Schedule | None = None,
        pretraining_updates: int = 50_000,
        training_updates: int = 1_000_000,
        n_action_candidates: int = 64,
        selection_temperature: float = 1.0,
        actor_decay: str = "none",
        **kwargs: Unpack[InSampleArguments],
    ):
        self.alpha = real("alpha", alpha, low=0, remedy="larger stays closer to the data")
        self.likelihood_weight = real("likelihood_weight", likelihood_weight, low=0)
        self.sum_critic_losses = sum_critic_losses
        self.behavior_net_arch = widths("behavior_net_arch", behavior_net_arch)
        self.behavior_learning_rate = optional(check_schedule, "behavior_learning_rate", behavior_learning_rate)
        self.pretraining_updates = integer("pretraining_updates", pretraining_updates, low=0)
        self.training_updates = integer("training_updates", training_updates, low=1)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        greedy = "smaller is greedier"
        self.selection_temperature = real("selection_temperature", selection_temperature, above=0, remedy=greedy)
        super().__init__(policy, env, learning_rate, actor_decay=actor_decay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        behavior = {"kind": "edm", "net_arch": self.behavior_net_arch}
        return {"networks": {"value": {"kind": "value", "layer_norm": False}, "behavior": behavior}}

    @override
    def policy_settings(self) -> dict[str, Any]:
        gaussian = {"squash": "action", "state_dependent_std": True, "log_std_bounds": (-5.0, 2.0)}
        networks = {"net_arch": [256, 256, 256], "activation_fn": {"pi": "relu", "qf": "mish"}, "layer_norm": {"qf": True}}
        rule = {"rule": "softmax", "temperature": self.selection_temperature, "target": True}
        n = self.n_action_candidates
        acting = {"n_action_candidates": n, "n_behavior_candidates": n, "choose_with_target": True, "selection": rule}
        return {**gaussian, **networks, **acting}

    @override
    def parts(self) -> Sequence[Part]:
        actor = Part("actor", self.actor_loss, self.actor, self.policy_delay)
        others = [part for part in super().parts() if part.name != "actor"]
        return [Part("behavior", self.behavior_loss, self.behavior), *others, actor]

    @override
    def stages(self) -> Sequence[Stage]:
        first, everything = ("behavior", "value", "critic"), tuple(part.name for part in self.parts())
        stages = [Stage("pretraining", first, self.pretraining_updates), Stage("training", everything, self.training_updates)]
        return stages if self.pretraining_updates else stages[1:]

    @property
    def behavior(self) -> EDMDenoiser:
        """The denoiser of the data's actions."""
        return self.policy.trained["behavior"]  # type: ignore[return-value]

    @override
    def data_values(self, batch: Batch) -> th.Tensor:
        with th.no_grad():  # of the critics themselves: their averages choose among actions, and do nothing else
            return reduce_critics(self.critic.q(batch.actions, self.critic.encode(batch.observations)))

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        loss, metrics = super().critic_loss(batch)
        return loss * self.critic.n_critics if self.sum_critic_losses else loss, metrics

    def behavior_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Error of the denoiser at the actions of the data.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        context = self.behavior.encode(batch.observations)
        return self.behavior.error(batch.actions, context, self.randomness, "behavior"), {}

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        features = self.actor.encode(batch.observations)
        actions = self.actor.sample(features, self.randomness, "actor")
        with th.no_grad():
            behavior, critics = self.behavior.encode(batch.observations), self.critic.encode(batch.observations)
        distrust = self.behavior.error(actions, behavior, self.randomness, "actor")
        value = reduce_critics(self.critic.q(actions, critics)).mean()
        loss = self.alpha * distrust - value
        metrics = {"distrust": distrust.detach(), "q_policy": value.detach(), **saturation(actions)}
        if self.likelihood_weight > 0.0:
            network: Any = self.actor.network
            likelihood = network.log_prob(features, batch.actions).mean()
            loss = loss - self.likelihood_weight * likelihood
            metrics["log_likelihood"] = likelihood.detach()
        return loss, metrics
