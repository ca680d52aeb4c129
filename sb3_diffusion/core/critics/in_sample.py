"""Critics that learn from data without asking for an action that is not in it: their target is a value of states."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.decay import DECAYS, CosineDecay, is_number
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import optional, real
from sb3_diffusion.policies.actor_critic import ActorCritic
from sb3_diffusion.policies.values.state_value import StateValue


class InSampleArguments(OffPolicyArguments, total=False):
    """What every method with these critics hands on to :class:`InSampleCritics` unchanged."""

    expectile: float
    value_learning_rate: float | Schedule | None
    actor_decay: str
    policy_delay: int


class InSampleCritics(OffPolicyDiffusion):
    """
    Base class of the methods with critics of implicit Q-learning (Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169).

    A value of states is an upper expectile of Q over the actions of the data, and is what the critics bootstrap from.

    :param policy: Name or class of the policy
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param expectile: Which expectile of Q the value is: 0.5 is the mean, towards 1 it approaches the best action of the data
    :param value_learning_rate: Learning rate of the value if it differs
    :param actor_decay: Whether the actor's learning rate, where it is a number, falls to zero during the training:
        ``"cosine"`` or ``"none"``
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    value_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[ActorCritic],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        expectile: float = 0.7,
        value_learning_rate: float | Schedule | None = None,
        actor_decay: str = "cosine",
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.expectile = real("expectile", expectile, above=0, below=1, remedy="0.5 is the mean, larger is greedier")
        self.value_learning_rate = optional(check_schedule, "value_learning_rate", value_learning_rate)
        self.actor_decay = choice("actor_decay", actor_decay, DECAYS)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)  # type: ignore[arg-type]  # or Gaussian

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"networks": {"value": {"kind": "value"}}}

    @property
    def value(self) -> StateValue:
        """The value of states."""
        return self.policy.trained["value"]  # type: ignore[return-value]

    @override
    def parts(self) -> Sequence[Part]:
        return [
            Part("value", self.value_loss, self.value),
            Part("actor", self.actor_loss, self.actor, self.policy_delay),
            Part("critic", self.critic_loss, self.critic),
        ]

    @override
    def lr_schedule_of(self, part: str) -> Schedule:
        decays = part == "actor" and self.actor_decay == "cosine" and is_number(self, part)
        schedule = super().lr_schedule_of(part)
        return CosineDecay(schedule) if decays else schedule

    def data_values(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: The smaller target critic at their actions, a constant, ``(batch,)``
        """
        with th.no_grad():
            return self.critic_target.q(batch.actions, self.critic_target.encode(batch.observations)).amin(0)

    def value_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Regression of the value onto Q at the actions of the data.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        values = self.value(batch.observations)
        return self.value_error(self.data_values(batch), values), {"v_mean": values.detach().mean()}

    def value_error(self, q: th.Tensor, values: th.Tensor) -> th.Tensor:
        """
        The asymmetric square whose minimum is the expectile.

        :param q: Q at the actions of the data, ``(batch,)``
        :param values: Values of the same states, ``(batch,)``
        :return: Error, a scalar
        """
        weights = th.where(q > values, self.expectile, 1.0 - self.expectile)
        return (weights * (q - values).square()).mean()

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        return self.value(batch.next_observations), {}
