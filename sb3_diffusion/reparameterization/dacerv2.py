"""DACERv2: DACER whose chain also follows the direction in which the critics' value grows, so that few steps suffice."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import override

from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.reparameterization.dacer import DACER, chain_metrics

FIELD_FORMS = ("score", "eps")


class DACERv2(DACER):
    r"""
    DACER with a Q-gradient field (DACERv2).

    Reparameterisation with a uniform reference. Critics, exploration noise and its regulation are DACER's. To the value of
    the final action an auxiliary loss is added that supervises every step of the chain: at its states the score of the
    policy is pulled towards the direction of the critics' action gradient, with a length ``w(t)`` that is larger for noisier
    states. Five steps are then enough.

    Paper: Wang et al. 2025, Enhanced DACER Algorithm with High Diffusion Efficiency, https://arxiv.org/abs/2505.23426

    Differences from the reference implementation: none is public, and not all details of the auxiliary loss could be
    established. That the score is compared with the normalised gradient, that ``w`` is an exponential function of the time,
    that ``field_weight`` is 1 or 0.01 depending on the task, and five steps are published. The constants of ``w``, the form
    of the score (``field_form``) and the states at which the loss is taken (here those of the chain that the value loss runs
    through, without their gradients) are our reading. Everything else is as in
    :class:`~sb3_diffusion.reparameterization.dacer.DACER`.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param field_weight: Weight of the auxiliary loss; with 0 the method is DACER with five steps
    :param field_growth: Factor of the step number ``t`` (1 is the last and least noisy step of the chain,
        ``diffusion_steps`` the first) in ``w(t) = exp(field_growth * t + field_offset)``; made for five steps, lower it for
        longer chains
    :param field_offset: Constant in the exponent of ``w(t)``
    :param field_form: What is compared with the gradient: ``"score"``, the noise network's output divided by ``-sigma``, or
        ``"eps"``, its negative output
    :param kwargs: See :class:`~sb3_diffusion.reparameterization.dacer.DACER`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        field_weight: float = 1.0,
        field_growth: float = 0.4,
        field_offset: float = -1.8,
        field_form: str = "score",
        **kwargs: Any,
    ):
        self.field_weight = real("field_weight", field_weight, low=0, remedy="pass 0 to leave the auxiliary loss out")
        self.field_growth = real("field_growth", field_growth)
        self.field_offset = real("field_offset", field_offset)
        self.field_form = choice("field_form", field_form, FIELD_FORMS)
        super().__init__(policy, env, learning_rate, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {**super().policy_settings(), "diffusion_steps": 5}

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        chain = self.watched_chain(context)
        # the states are fixed: the auxiliary loss moves the field at them, not them to another place
        states = chain.states[:-1]
        # a solver that evaluates the network several times per step does so at the state's own time first
        times = self.actor.update_chain.times.view(len(states), -1)[:, 0]
        with th.no_grad():
            critic_context = self.critic.encode(batch.observations)
        value_loss = -self.critic.q(chain.samples, critic_context).amin(0).mean()
        field_loss = self.field_loss(states, times, context, critic_context)
        loss = value_loss + self.field_weight * field_loss
        return loss, {"value_loss": value_loss.detach(), "field_loss": field_loss.detach(), **chain_metrics(chain)}

    def field_loss(self, states: th.Tensor, times: th.Tensor, context: th.Tensor, critic_context: th.Tensor) -> th.Tensor:
        """
        ``mean over steps and batch of |w(t) grad Q / |grad Q| - S(s, a_t, t)|^2``.

        :param states: States ``a_t`` of the chain, noisiest first, ``(steps, batch, action_dim)``
        :param times: Their diffusion times ``(steps,)``
        :param context: Result of ``actor.encode``
        :param critic_context: Result of ``critic.encode``
        :return: Scalar
        """
        a_t = states.transpose(0, 1)
        steps = th.arange(len(times), 0, -1, device=times.device, dtype=times.dtype)
        weight = th.exp(self.field_growth * steps + self.field_offset).unsqueeze(-1)
        target = weight * self.q_direction(a_t, critic_context)
        score = -self.actor.denoiser(a_t, context, self.actor.encode_time(times.unsqueeze(-1)).unsqueeze(0))
        if self.field_form == "score":
            score = score / self.actor.process.coefficients(times.unsqueeze(-1))[1]
        return (target - score).square().sum(-1).mean()

    def q_direction(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        Direction in which the smaller critic's value grows.

        :param actions: ``(batch, steps, action_dim)``
        :param context: Result of ``critic.encode``
        :return: Vectors of length one (zero where the gradient is), of the shape of ``actions``
        """
        _, gradient = self.critic.value_and_gradient(actions, context)
        return gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-6)
