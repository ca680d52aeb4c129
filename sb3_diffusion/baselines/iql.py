"""Implicit Q-learning: critics that never ask for an action outside of the data, and weighted regression of a policy."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.critics.in_sample import InSampleArguments, InSampleCritics
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES, GaussianPolicy

OBJECTIVES = ("expectile", "sparse", "exponential")
MAX_EXPONENT = 5.0
"""Largest exponent of the exponential objective."""


class IQL(InSampleCritics):
    r"""
    Implicit Q-Learning (IQL), and the two losses of implicit value regularisation (IVR).

    The Gaussian baseline of the offline methods. A value of states learns an upper expectile of Q over the actions of the
    data, so that the critics' target asks for no other action; the policy imitates the data's actions with weights
    ``exp(beta * (Q - V))``.

    ``value_objective`` names what the value minimises and what weighs the imitation, with ``A = Q - V``:

    * ``"expectile"`` (IQL): asymmetric square of ``A``; weights ``exp(beta * A)``
    * ``"sparse"`` (SQL of IVR): ``[u > 0] u^2 + V / alpha`` with ``u = A / (2 alpha) + 1``; weights ``A`` where it is positive
    * ``"exponential"`` (EQL of IVR): ``exp(A / alpha) + V / alpha``; weights ``exp(10 A / alpha)``

    Papers: Kostrikov et al. 2021, Offline Reinforcement Learning with Implicit Q-Learning, https://arxiv.org/abs/2110.06169;
    Xu et al. 2023, Offline RL with No OOD Actions: In-Sample Learning via Implicit Value Regularization,
    https://arxiv.org/abs/2303.15810

    Differences from the reference implementation: observations are not normalised unless asked for, as in the authors' code;
    ``dropout`` of the policy is that of the actor alone, and is never part of a target. Values are asked without it.

    :param policy: ``"GaussianPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor, value and critics
    :param value_objective: ``"expectile"``, ``"sparse"`` or ``"exponential"``
    :param beta: Inverse temperature of the weights, per unit of Q; 0 clones the data; for ``"expectile"`` only
    :param alpha: Strength of the regularisation, in units of Q; for ``"sparse"`` and ``"exponential"`` only
    :param max_weight: Largest weight of an action
    :param value_layer_norm: Whether the value normalises its hidden layers; ``None`` for not with ``"expectile"``
    :param value_dropout: Share of the value's hidden units that is dropped in its own loss
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``), the
        mean among them
    :param kwargs: See :class:`~sb3_diffusion.core.critics.in_sample.InSampleCritics`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**GAUSSIAN_POLICIES}
    actor: GaussianActor  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        value_objective: str = "expectile",
        beta: float = 3.0,
        alpha: float = 1.0,
        max_weight: float = 100.0,
        value_layer_norm: bool | None = None,
        value_dropout: float = 0.0,
        n_action_candidates: int = 1,
        **kwargs: Unpack[InSampleArguments],
    ):
        self.value_objective = choice("value_objective", value_objective, OBJECTIVES)
        self.beta = real("beta", beta, low=0, remedy="0 clones the data, larger is greedier")
        self.alpha = real("alpha", alpha, above=0, remedy="smaller is greedier")
        self.max_weight = real("max_weight", max_weight, above=0)
        self.value_layer_norm = value_layer_norm
        self.value_dropout = real("value_dropout", value_dropout, 0, below=1, remedy="0 drops nothing")
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        normed = self.value_objective != "expectile" if self.value_layer_norm is None else self.value_layer_norm
        return {"networks": {"value": {"kind": "value", "layer_norm": normed, "dropout": self.value_dropout}}}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates}

    @override
    def value_error(self, q: th.Tensor, values: th.Tensor) -> th.Tensor:
        if self.value_objective == "expectile":
            return super().value_error(q, values)
        advantages = q - values
        if self.value_objective == "sparse":
            excess = (advantages / (2.0 * self.alpha) + 1.0).clamp(min=0.0)
            return (excess.square() + values / self.alpha).mean()
        exponents = (advantages / self.alpha).clamp(max=MAX_EXPONENT)
        # the whole loss is divided by exp(largest), so that it does not overflow
        largest = exponents.detach().amax().clamp(min=-1.0)
        return ((exponents - largest).exp() + (-largest).exp() * values / self.alpha).mean()

    def imitation_weights(self, advantages: th.Tensor) -> th.Tensor:
        """
        How much the policy imitates an action.

        :param advantages: ``Q - V`` of the actions of the data, ``(batch,)``
        :return: Weights ``(batch,)``, from 0 to ``max_weight``
        """
        if self.value_objective == "sparse":
            return advantages.clamp(0.0, self.max_weight)
        scale = self.beta if self.value_objective == "expectile" else 10.0 / self.alpha
        return (scale * advantages).exp().clamp(max=self.max_weight)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        with th.no_grad():
            advantages = self.data_values(batch) - self.value(batch.observations)
            weights = self.imitation_weights(advantages)
        loss = (weights * self.actor.imitation_error(batch.observations, batch.actions)).mean()
        return loss, {"advantage": advantages.mean(), "imitation_weight": weights.mean()}

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        loss, metrics = super().critic_loss(batch)
        # the two papers' codes differ: IQL sums over the critics, IVR takes the mean
        return (loss * self.critic.n_critics if self.value_objective == "expectile" else loss), metrics
