"""EDP: as D-QL, with the expected clean action of one noisy action in the place of a whole chain."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.networks.regression import expectile_loss
from sb3_diffusion.numeric import optional, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.values.critic import reduce_critics
from sb3_diffusion.policies.values.state_value import StateValue
from sb3_diffusion.reparameterization.dql import DQL

MODES = ("td3", "crr", "iql")
WEIGHTS = {"crr": (1.0, 20.0), "iql": (3.0, 100.0)}
"""Mode -> inverse temperature and largest value of the weights of the data's actions."""
N_AROUND = 10
"""Actions around the policy's over whose mean value ``"crr"`` measures an advantage."""


class EDP(DQL):
    r"""
    Efficient Diffusion Policy (EDP).

    Reparameterisation with the behaviour policy as reference. D-QL without backpropagation through the chain: an action of the
    data is made noisy, and one evaluation of the denoiser gives both the error of imitation and the expected clean action
    ``a_0``, which stands for an action of the policy. The chain can be long in training (1000 levels of noise); acting and the
    targets of the critics go through it in 15 steps of a fast solver.

    Paper: Kang et al. 2023, Efficient Diffusion Policies for Offline Reinforcement Learning, https://arxiv.org/abs/2305.20081

    ``mode`` says what is done with ``a_0``. ``"td3"`` maximises its value, by one critic in units of its own magnitude.
    ``"crr"`` and ``"iql"`` take ``N(a_0, 1)`` as the policy and raise the likelihood of the data's actions, with weights
    ``exp(inverse_temperature * advantage)``: the advantage is over actions that are drawn around ``a_0`` (CRR), or over a
    value of the state, an expectile of the values of the data's actions, from which the critics learn, too (IQL).

    There is no reference implementation beside the authors' own. Differences from it: the 15 steps are those of ``"dpm++2m"``,
    evenly spread over the levels; both critics have one optimizer; layers are initialised orthogonally.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param mode: ``"td3"``, ``"crr"`` or ``"iql"``
    :param eta: Weight of the value in the actor's loss with ``"td3"``
    :param normalizer: Whose magnitude the value of a critic is divided by: that of the ``"other"`` critic, or the ``"same"``
    :param inverse_temperature: Factor of the advantage in the weights; ``None`` for 1 (``"crr"``) and 3 (``"iql"``)
    :param max_weight: Largest weight; ``None`` for 20 (``"crr"``) and 100 (``"iql"``)
    :param expectile: Which expectile of the values ``"iql"`` learns
    :param value_learning_rate: Learning rate of its state value if it differs
    :param kwargs: See :class:`~sb3_diffusion.reparameterization.dql.DQL`
    """

    choose_with_target = False
    value_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        mode: str = "td3",
        eta: float = 2.0,
        normalizer: str = "same",
        inverse_temperature: float | None = None,
        max_weight: float | None = None,
        expectile: float = 0.7,
        value_learning_rate: float | Schedule | None = None,
        **kwargs: Any,
    ):
        self.mode = choice("mode", mode, MODES)
        self.inverse_temperature = optional(real, "inverse_temperature", inverse_temperature, low=0)
        self.max_weight = optional(real, "max_weight", max_weight, above=0)
        self.expectile = real("expectile", expectile, above=0, below=1, remedy="0.5 is the mean, larger is greedier")
        self.value_learning_rate = optional(check_schedule, "value_learning_rate", value_learning_rate)
        super().__init__(policy, env, learning_rate, eta=eta, normalizer=normalizer, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        networks = {"networks": {"value": {"kind": "value"}}} if self.mode == "iql" else {}
        return {**super().policy_requirements(), **networks}

    @override
    def chain_settings(self) -> dict[str, Any]:
        # 1000 levels of noise, of which a chain visits 15
        levels = {"noise_schedule": "scaled_linear", "process_kwargs": {"diffusion_steps": 1000}}
        return {"process": "discrete", **levels, "diffusion_steps": 15, "solver": "dpm++2m"}

    @override
    def parts(self) -> Sequence[Part]:
        return [*([Part("value", self.value_loss, self.value)] if self.mode == "iql" else []), *super().parts()]

    @property
    def value(self) -> StateValue:
        """Value of a state, with ``mode="iql"``."""
        if self.mode != "iql":
            raise AttributeError(f"EDP has a value of states with mode='iql' only, not with mode={self.mode!r}.")
        return self.policy.trained["value"]  # type: ignore[return-value]

    def value_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Expectile regression on the values of the data's actions.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        value = self.value(batch.observations)
        return expectile_loss(value, self.data_values(batch), self.expectile).mean(), {"v_mean": value.detach().mean()}

    @th.no_grad()
    def data_values(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: Values of its actions by the smaller target critic, ``(batch,)``
        """
        return reduce_critics(self.critic_target.q(batch.actions, self.critic_target.encode(batch.observations)))

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        return (self.value(batch.next_observations), {}) if self.mode == "iql" else super().next_values(batch)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        predicted = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        imitation = (predicted - noisy.eps).square().mean()
        # where this is clipped, at the noisier levels, no gradient of the value passes
        actions = self.actor.process.predicted_clean(noisy.x_t, noisy.t, predicted).clamp(-1.0, 1.0)
        if self.mode == "td3":
            value = self.normalized_value(self.action_values(actions, batch))
            return imitation - self.eta * value, {"bc_loss": imitation.detach(), "q_term": value.detach()}
        weights = self.weights(batch, actions.detach())
        likelihood = -0.5 * (batch.actions - actions).square().sum(-1)  # of N(a_0, 1), up to a constant
        loss = imitation - (weights * likelihood).mean()
        return loss, {"bc_loss": imitation.detach(), "weight_mean": weights.mean()}

    @th.no_grad()
    def weights(self, batch: Batch, actions: th.Tensor) -> th.Tensor:
        """
        How much the likelihood of the data's actions counts.

        :param batch: Batch of transitions
        :param actions: Actions of the policy ``(batch, action_dim)``
        :return: Weights ``(batch,)``
        """
        if self.mode == "iql":
            base = self.value(batch.observations)
        else:
            shape = (len(actions), N_AROUND, actions.shape[-1])
            around = actions.unsqueeze(1) + self.randomness.normal(shape, "actor.around", like=actions)
            context = self.critic_target.encode(batch.observations)
            base = reduce_critics(self.critic_target.q(around.clamp(-1.0, 1.0), context)).mean(1)
        inverse_temperature, largest = WEIGHTS[self.mode]
        inverse_temperature = inverse_temperature if self.inverse_temperature is None else self.inverse_temperature
        exponent = inverse_temperature * (self.data_values(batch) - base)
        return exponent.exp().clamp(max=largest if self.max_weight is None else self.max_weight)
