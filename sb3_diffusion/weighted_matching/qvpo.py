"""QVPO: the best of many policy samples is imitated with its advantage as weight; uniform actions keep the entropy up."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.arguments.schedules import check_schedule, scheduled
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.actors.selection import best_candidates
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.particles import AGGREGATIONS, particle_values


class QVPO(OffPolicyDiffusion):
    """
    Q-weighted Variational Policy Optimization (QVPO).

    Weighted matching with a uniform reference: for every state the policy proposes many actions, and the denoising loss is
    evaluated at the best of them, weighted with its advantage over their mean. That narrows the policy with every update.
    Uniformly random actions, which carry a small share of the same weight, are the counterweight: they keep the entropy up.

    Paper: Ding et al. 2024, Diffusion-based Reinforcement Learning via Q-weighted Variational Policy Optimization,
    https://arxiv.org/abs/2405.16173

    Differences from the reference implementation: random actions cover the whole box [-1, 1] (the reference draws them
    from [0, 1)); weights use the smaller critic as the authors do (``weight_aggregation="mean"`` is the reference's);
    training acts with the best of ``n_behavior_candidates`` actions as the authors do (the reference takes one);
    the actor uses the critics after their step; only terminations end the bootstrap.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param n_particles: Actions of the policy per state among which the actor's update finds the best
    :param ent_coef: Weight of the random actions relative to the best action: a float, or a function of the remaining
        progress (1 to 0)
    :param n_uniform_actions: Random actions per state
    :param weight_aggregation: What the weights take over the critics: ``"min"`` or ``"mean"``
    :param n_target_candidates: Actions of the averaged actor of which the target critics choose the best in the value target
    :param n_behavior_candidates: Actions of which the critics choose the best while training
    :param n_action_candidates: The same when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`; ``tau`` is also the rate of the averaged
        actor
    """

    actor_target: DiffusionActor

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        n_particles: int = 64,
        ent_coef: float | Schedule = 0.01,
        n_uniform_actions: int = 10,
        weight_aggregation: str = "min",
        n_target_candidates: int = 2,
        n_behavior_candidates: int = 2,
        n_action_candidates: int = 32,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.ent_coef = check_schedule("ent_coef", ent_coef)
        self.n_uniform_actions = integer("n_uniform_actions", n_uniform_actions, low=1)
        self.weight_aggregation = choice("weight_aggregation", weight_aggregation, AGGREGATIONS)
        self.n_target_candidates = integer("n_target_candidates", n_target_candidates, low=1)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"actor_target": True}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {
            "net_arch": {"pi": [256, 256], "qf": [256, 256]},
            "n_behavior_candidates": self.n_behavior_candidates,
            "n_action_candidates": self.n_action_candidates,
        }

    def _setup_model(self) -> None:
        super()._setup_model()
        self.ent_coef_schedule = FloatSchedule(self.ent_coef)
        self.current_ent_coef = th.tensor(scheduled("ent_coef", self.ent_coef_schedule, 1.0), device=self.device)

    @override
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        # in place, so that compiled code and CUDA graphs read the new value
        self.current_ent_coef.fill_(scheduled("ent_coef", self.ent_coef_schedule, self._current_progress_remaining))
        super().train(gradient_steps, batch_size)

    @override
    def target_actions(self, batch: Batch) -> th.Tensor:
        actor = self.actor_target
        context = actor.encode(batch.next_observations)
        candidates = actor.sample(context, self.randomness, "next_action", self.n_target_candidates)
        context = self.critic_target.encode(batch.next_observations)
        return best_candidates(candidates, particle_values(self.critic_target, candidates, context))

    @override
    def update_targets(self) -> None:
        super().update_targets()
        polyak_update(self.actor_target, self.actor, self.tau)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        with th.no_grad():
            actions, weights = self.weighted_actions(batch, context)
        # one best and many random actions per state, each with a time and noise of its own
        x_t, t, _, _, eps = self.actor.add_noise(actions, self.randomness, "actor")
        predicted = self.actor.denoise(x_t, t, context)
        loss = (weights.unsqueeze(-1) * (predicted - eps).square()).mean()
        return loss, {"advantage": weights[:, 0].mean()}

    def weighted_actions(self, batch: Batch, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        What to imitate: the best action of the policy with its advantage, and random actions with a share of it.

        :param batch: Batch of transitions
        :param context: ``actor.encode(batch.observations)``
        :return: Actions ``(batch, 1 + n_uniform_actions, action_dim)`` and their weights ``(batch, 1 + n_uniform_actions)``
        """
        candidates = self.actor.sample(context, self.randomness, "candidates", self.n_particles)
        critic_context = self.critic.encode(batch.observations)
        values = particle_values(self.critic, candidates, critic_context, self.weight_aggregation)
        best = best_candidates(candidates, values).unsqueeze(1)
        # never negative, up to rounding: the squared loss would be unbounded below
        advantage = (values.amax(1, keepdim=True) - values.mean(1, keepdim=True)).clamp(min=0.0)

        shape = (len(best), self.n_uniform_actions, self.actor.action_dim)
        uniform = self.randomness.uniform(shape, "uniform_actions", best, -1.0, 1.0)
        share = self.current_ent_coef * advantage.expand(-1, self.n_uniform_actions)
        return th.cat([best, uniform], dim=1), th.cat([advantage, share], dim=1)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "ent_coef_schedule", "current_ent_coef"]
