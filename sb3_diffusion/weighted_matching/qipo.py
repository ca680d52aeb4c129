"""QIPO: a flow or a diffusion imitates imitated actions, each as much as it is better than the others of its state."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.behavior.support import DrawsSupport, SupportArguments, in_support_values
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Part, Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.parts import begin_as

VARIANTS = {"flow": "velocity", "diffusion": "noise"}
"""Which model it is -> what its network predicts."""
PROPOSALS = ("support", "dataset")
"""Which actions are imitated."""
RENEWALS = {"support": 2, "dataset": 0}


class QIPO(DrawsSupport):
    r"""
    Q-weighted Iterative Policy Optimization (QIPO).

    Weighted matching with the behaviour policy as reference, in stages. A behaviour model imitates the data. Critics learn
    from it: the value of a next state is a softmax average over actions that the model draws there. Then the policy, which
    begins as a copy of the model, imitates such actions of every state with weights ``softmax(inverse_temperature * Q)``. The
    minimum of that weighted regression is the velocity, or score, of ``mu exp(inverse_temperature Q)``: no gradient of a
    critic is needed, and none when acting. A renewal draws the actions from the policy, which multiplies the factor once
    more: after ``n`` of them the policy tends to ``mu exp((n + 1) inverse_temperature Q)``.

    Paper: Zhang, Zhang and Gu 2025, Energy-Weighted Flow Matching for Offline Reinforcement Learning,
    https://arxiv.org/abs/2503.04975

    What is uncertain: there is no public code, neither the authors' nor another one, so that this is our reading. What the
    minimum of the regression is can be derived, and is tested. The order of the stages, when actions are drawn anew, and all
    numbers are our choice, and therefore arguments: the networks are those of FQL (``"flow"``), of SfBC (``"diffusion"``) and
    of QGPO (critics). Weights are normalised over the actions of a state, not over the batch, which has the same minimum, but
    lets no state outweigh the others.

    Learning online, all parts are trained together: the behaviour model imitates the replay buffer, actions are drawn from it
    for every batch, and nothing is renewed.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param variant: The generative model, ``"flow"`` on straight paths (QIPO-OT), or ``"diffusion"`` (QIPO-Diff)
    :param proposal: Which actions are imitated: ``"support"``, those of the behaviour model, or ``"dataset"``, those of the
        data, with weights ``exp(inverse_temperature (Q(s, a) - V(s)))``
    :param inverse_temperature: Factor of Q in the exponent of the weights, in units of the transformed rewards
    :param backup_inverse_temperature: The same of the softmax average that is the value of a state
    :param max_weight: Largest weight of an action of the data
    :param n_renewals: How often the support actions are drawn anew, from the policy; ``None`` for 2, and for none with
        ``proposal="dataset"``
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param actor_tau: Rate of the averaged policy, which acts, and from which renewals draw
    :param behavior_learning_rate: Learning rate of the behaviour model if it differs
    :param behavior_updates: Updates of the behaviour model in ``learn_offline``, relative to the others
    :param critic_updates: Updates of the critics
    :param policy_updates: Updates of the policy, all rounds between renewals together
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.support.DrawsSupport`
    """

    behavior_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        variant: str = "flow",
        proposal: str = "support",
        inverse_temperature: float = 3.0,
        backup_inverse_temperature: float = 1.0,
        max_weight: float = 100.0,
        n_renewals: int | None = None,
        n_action_candidates: int = 1,
        actor_tau: float = 0.005,
        behavior_learning_rate: float | Schedule | None = None,
        behavior_updates: int = 600_000,
        critic_updates: int = 500_000,
        policy_updates: int = 150_000,
        **kwargs: Unpack[SupportArguments],
    ):
        self.variant = choice("variant", variant, VARIANTS)
        self.prediction = VARIANTS[variant]
        self.proposal = choice("proposal", proposal, PROPOSALS)
        self.inverse_temperature = real("inverse_temperature", inverse_temperature, low=0, remedy="0 imitates")
        self.backup_inverse_temperature = real("backup_inverse_temperature", backup_inverse_temperature, low=0)
        self.max_weight = real("max_weight", max_weight, above=0)
        self.n_renewals = RENEWALS[proposal] if n_renewals is None else integer("n_renewals", n_renewals, low=0)
        if proposal == "dataset" and self.n_renewals > 0:
            raise ValueError(f"n_renewals={n_renewals} renews nothing with proposal='dataset'; leave it out.")
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self.actor_tau = real("actor_tau", actor_tau, 0, 1, remedy="1 lets the trained policy act")
        self.behavior_learning_rate = optional(check_schedule, "behavior_learning_rate", behavior_learning_rate)
        self.behavior_updates = integer("behavior_updates", behavior_updates, low=1)
        self.critic_updates = integer("critic_updates", critic_updates, low=1)
        self.policy_updates = integer("policy_updates", policy_updates, low=1)
        super().__init__(policy, env, learning_rate, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"networks": {"behavior": {"kind": "actor"}}, "actor_target": True, "acting": "actor_target"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        critics = [256, 256, 256]
        acting = {"n_action_candidates": self.n_action_candidates}
        if self.variant == "flow":
            return {
                "process": "flow",
                "diffusion_steps": 10,
                "net_arch": {"pi": [512, 512, 512, 512], "qf": critics},
                "activation_fn": {"pi": "gelu"},
                "time_embedding": "raw",
                "state_arch": (),
                **acting,
            }
        chain: dict[str, Any] = {"noise_schedule": "linear", "solver": "dpm++2m", "diffusion_steps": 15}
        if self.policy_kwargs.get("process", "continuous") != "continuous":
            chain = {}
        return {
            "net_arch": {"pi": [512, 256, 128], "qf": critics},
            "backbone": {"pi": "unet"},
            "activation_fn": {"pi": "silu"},
            "time_embedding": "random",
            "time_dim": 32,
            "state_arch": (32,),
            **chain,
            **acting,
        }

    @override
    def parts(self) -> Sequence[Part]:
        return [Part("behavior", self.behavior_loss, self.behavior), *super().parts()]

    @override
    def stages(self) -> Sequence[Stage]:
        bounds = [round(self.policy_updates * k / (self.n_renewals + 1)) for k in range(self.n_renewals + 2)]
        rounds = [
            Stage(f"renewal {k}" if k else "policy", ("actor",), bounds[k + 1] - bounds[k], partial(self.prepare_round, k))
            for k in range(self.n_renewals + 1)
        ]
        behavior = Stage("behavior", ("behavior",), self.behavior_updates)
        return [behavior, Stage("critic", ("critic",), self.critic_updates, self.draw_support), *rounds]

    @property
    def behavior(self) -> DiffusionActor:
        """Who draws the support actions: an imitator of the data, and after a renewal the policy of the round before."""
        return self.policy.trained["behavior"]  # type: ignore[return-value]

    @property
    @override
    def support_actor(self) -> DiffusionActor:
        return self.behavior

    # -- the losses ---------------------------------------------------------------------------------------------------

    def behavior_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Imitation of the data.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        context = self.behavior.encode(batch.observations)
        return self.behavior.denoising_error(batch.actions, context, self.randomness, "behavior").mean(), {}

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        actions = self.next_support(batch)
        values = self.smaller_values(batch.next_observations, actions)
        return in_support_values(values, self.backup_inverse_temperature), saturation(actions)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        if self.proposal == "dataset":
            errors = self.actor.denoising_error(batch.actions, context, self.randomness, "actor").mean(-1)
            weights = self.data_weights(batch)
            return (weights * errors).mean(), {"weight_mean": weights.mean()}
        actions = self.support(batch)
        weights = th.softmax(self.inverse_temperature * self.energies(batch, actions), dim=1)
        errors = self.actor.denoising_error(actions, context, self.randomness, "actor").mean(-1)
        # close to 1, a single action is imitated: the temperature is too low for the scale of the rewards
        return (weights * errors).sum(1).mean(), {"effective_actions": (1.0 / weights.square().sum(1)).mean()}

    @th.no_grad()
    def data_weights(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: Weights of its actions by how much better they are than what the behaviour model draws, ``(batch,)``
        """
        values = self.smaller_values(batch.observations, batch.actions)
        others = self.energies(batch, self.support(batch))
        advantage = values - in_support_values(others, self.backup_inverse_temperature)
        return (self.inverse_temperature * advantage).exp().clamp(max=self.max_weight)

    def energies(self, batch: Batch, actions: th.Tensor) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :param actions: Its support actions
        :return: Their values, constants ``(batch, n_support)``
        """
        known = batch.extras.get("energies")
        return self.smaller_values(batch.observations, actions) if known is None else known

    @th.no_grad()
    def smaller_values(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: Batch of observations
        :param actions: ``(batch, action_dim)`` or ``(batch, n, action_dim)``
        :return: Values of the smaller target critic, constants without the last axis
        """
        return self.critic_target.q(actions, self.critic_target.encode(observations)).amin(0)

    # -- stages -------------------------------------------------------------------------------------------------------

    @th.no_grad()
    def prepare_round(self, number: int) -> None:
        """
        Begin the policy as a copy of the behaviour model, or renew: draw the actions that it imitates from what it is by now.
        Their values are computed once, since the critics stay as they are.

        :param number: Number of renewals so far
        """
        if self._stage_updates == 0:
            assert self.actor_target is not None
            if number > 0:
                begin_as(self.behavior, self.actor_target)
            else:
                begin_as(self.actor, self.behavior)
                self.actor_target.load_state_dict(self.actor.state_dict())
        actions = self.draw_support()
        pieces = self.pieces_of_states("values of the support actions")
        found = [self.smaller_values(observations, actions[rows].to(self.device)) for rows, observations in pieces]
        self.state_tables["energies"] = th.cat(found)

    @override
    def finish_update(self, metrics: Metrics) -> Metrics:
        # copies follow what was trained: the critics' values stand still while the policy learns from them
        if "critic_loss" in metrics:
            polyak_update(self.critic_target, self.critic, self.tau)
        assert self.actor_target is not None
        if "actor_loss" in metrics:
            polyak_update(self.actor_target, self.actor, self.actor_tau)
        elif "behavior_loss" in metrics:  # which acts as long as there is no policy
            polyak_update(self.actor_target, self.behavior, self.actor_tau)
        return {}
