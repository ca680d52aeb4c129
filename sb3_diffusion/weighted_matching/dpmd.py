"""Diffusion Policy Mirror Descent: denoising regression on actions of the previous policy, weighted by their value."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import CommonArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor, NoisyActions
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.multiplier import Multiplier
from sb3_diffusion.policies.particles import (
    effective_sample_size,
    kl_from_uniform,
    particle_values,
    self_normalized_weights,
    sparse_weights,
)

WEIGHTS = {"exp": self_normalized_weights, "linear": sparse_weights}
_PAPER = {"weights": "linear", "target_kl": 2.5}


class DPMD(OffPolicyDiffusion):
    """
    Diffusion Policy Mirror Descent (DPMD).

    Weighted matching with the previous policy as reference: ``pi_new(a|s) ~ pi_old(a|s) exp(Q(s,a) / temperature)``. Actions
    of a frozen copy of the policy are weighted by their value, and the noise network is trained on them. The temperature is
    the multiplier of a constraint: the weights may differ from equal ones by a Kullback-Leibler divergence of ``target_kl``.

    Paper: Ma et al. 2025, Efficient Online Reinforcement Learning for Diffusion Policies, https://arxiv.org/abs/2502.00361

    Differences from the reference implementation: perturbed particles are clipped to the box before the critics see them
    (``clip_particles=False`` leaves them out of it, as the reference does); the actor uses the critics after their step of
    the same update; sampled actions are clipped to the box; the temperature stays within bounds.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the critics, and of the actor if it has none of its own
    :param actor_learning_rate: Learning rate of the actor; ``None`` for ``learning_rate``
    :param n_particles: Actions of the previous policy per state; a single one has nothing to be compared with, so that the
        policy imitates the previous one whatever the values
    :param weights: ``"exp"``: ``softmax(Q / temperature)``; ``"linear"``: ``max(Q - threshold, 0) / temperature``, many of
        which are zero
    :param target_kl: Divergence of the weights from equal ones in nats, less than ``log(n_particles)``; a value ``d`` leaves
        about ``n_particles * exp(-d)`` particles with a say
    :param initial_temperature: Initial temperature in units of Q
    :param temperature_learning_rate: Learning rate of the logarithm of the temperature, 0 fixes it
    :param refresh_interval: Updates between two copies of the policy to the previous policy (the first one copies)
    :param particle_noise: Standard deviation of the noise added to the particles, so that the policy can leave the support
        of the previous one
    :param clip_particles: Whether to clip the noisy particles to the box
    :param loss_clip: Squared errors above this have no gradient, ``None`` for no such limit
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    actor_target: DiffusionActor

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flowrl_paper": _PAPER,
        "flowrl_paper_ant": {**_PAPER, "particle_noise": 0.1},
    }
    """What the text of the FlowRL paper says of this method and its code does not; of the task Ant it says more."""

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        actor_learning_rate: float | Schedule | None = 1e-4,
        n_particles: int = 64,
        weights: str = "exp",
        target_kl: float = 2.0,
        initial_temperature: float = 1.0,
        temperature_learning_rate: float = 3e-4,
        refresh_interval: int = 1000,
        particle_noise: float = 0.2,
        clip_particles: bool = True,
        loss_clip: float | None = 3.0,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[CommonArguments],
    ):
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.target_kl = real("target_kl", target_kl, above=0)
        # a single particle has nothing to be compared with: its weight is one, whatever the temperature
        if n_particles > 1 and target_kl >= math.log(n_particles):
            raise ValueError(
                f"target_kl={target_kl} must be below log(n_particles) = {math.log(n_particles):.2f}, "
                "the divergence of a single particle that takes all; lower it or raise n_particles."
            )
        self.weights = choice("weights", weights, WEIGHTS)
        learned = "its logarithm is learned"
        self.initial_temperature = real("initial_temperature", initial_temperature, above=0, remedy=learned)
        rate = real("temperature_learning_rate", temperature_learning_rate, low=0, remedy="0 for a fixed one")
        self.temperature_learning_rate = rate
        self.refresh_interval = integer("refresh_interval", refresh_interval, low=1)
        self.particle_noise = real("particle_noise", particle_noise, low=0, remedy="pass a standard deviation >= 0")
        self.clip_particles = clip_particles
        self.loss_clip = optional(real, "loss_clip", loss_clip, above=0, remedy="None is for no limit")
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(
            policy, env, learning_rate, actor_learning_rate=actor_learning_rate, policy_delay=policy_delay, **kwargs
        )

    @override
    def policy_requirements(self) -> dict[str, Any]:
        temperature = {"initial": self.initial_temperature, "learning_rate": self.temperature_learning_rate}
        return {"actor_target": True, "multipliers": {"temperature": temperature}}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates}

    @property
    def temperature(self) -> Multiplier:
        """The learned temperature."""
        return self.policy.multipliers["temperature"]  # type: ignore[return-value]

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        with th.no_grad():
            particles = self.particles(batch)
            # the weights take the mean over the critics, the critics' target the minimum
            values = particle_values(self.critic, particles, self.critic.encode(batch.observations), "mean")
            weights = WEIGHTS[self.weights](values, self.temperature())

        # every particle has its own time and noise, so that the network is evaluated at each
        noisy = self.actor.add_noise(particles, self.randomness, "actor")
        context = self.actor.encode(batch.observations)
        error = self.actor.denoise(noisy.x_t, noisy.t, context) - self.regression_target(particles, noisy, context)
        squared = error.square() if self.loss_clip is None else error.square().clamp(max=self.loss_clip)
        # the mean over particles of n_particles * weight * error
        loss = (weights * squared.mean(-1)).sum(1).mean()
        return loss, {
            "weight_kl": kl_from_uniform(weights),
            "effective_particles": effective_sample_size(weights),
            "temperature": self.temperature(),
        }

    def particles(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: Noisy actions of the previous policy, ``(batch, n_particles, action_dim)``
        """
        context = self.actor_target.encode(batch.observations)
        actions = self.actor_target.sample(context, self.randomness, "particles", self.n_particles)
        noise = self.randomness.normal(actions.shape, "particles.additive", like=actions)
        actions = actions + self.particle_noise * noise
        return actions.clamp(-1.0, 1.0) if self.clip_particles else actions

    def regression_target(self, particles: th.Tensor, noisy: NoisyActions, context: th.Tensor) -> th.Tensor:
        """
        What the network should output at noisy particles.

        :param particles: Clean actions ``(batch, n_particles, action_dim)``
        :param noisy: The same with noise
        :param context: Result of ``actor.encode``
        :return: Target of the shape of ``particles``
        """
        return self.actor.process.regression_target(particles, noisy.eps)

    @override
    def adapt_multipliers(self, metrics: Metrics) -> Metrics:
        if "weight_kl" in metrics:  # weights that are too unequal raise the temperature
            self.temperature.descend(self.target_kl - metrics["weight_kl"])
        return {}

    @override
    def after_update(self, batch: Batch) -> Metrics:
        if (self._n_updates - 1) % self.refresh_interval == 0:
            polyak_update(self.actor_target, self.actor, tau=1.0)
        return {}
