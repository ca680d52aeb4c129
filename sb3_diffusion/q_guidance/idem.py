"""Iterated Denoising Energy Matching: the noise network regresses onto value gradients averaged over reverse samples."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.particles import boltzmann_noise, effective_sample_size, particle_value_gradients, propose_clean


class iDEM(OffPolicyDiffusion):
    """
    Iterated Denoising Energy Matching (iDEM).

    Q-value guidance with a uniform reference: the policy approximates ``pi(a|s) ~ exp(Q(s,a) / temperature)``. The score of
    that density, diffused to time t, is estimated from the action gradients of the target critics at clean actions that a
    noisy one may come from, averaged with weights ``softmax(Q / temperature)``; the noise network regresses onto it.

    The estimate integrates by parts and drops what arises at the edges of the action box. Densities that vanish towards the
    edges are matched; where the density is large at an edge the policy puts too many actions there. SDAC has no such bias.

    Paper: Akhound-Sadegh et al. 2024, Iterated Denoising Energy Matching for Sampling from Boltzmann Densities,
    https://arxiv.org/abs/2402.06121

    Differences from the reference implementation: the target is clipped to the noise that leads out of the box, which a
    sampler that clips its estimate of the clean action does anyway; ``clip_target=False`` restores the reference's target,
    which grows like ``1 / alpha_t``. Exploring actions are clipped to the box before they are stored. The actor uses the
    target critics of before this update's averaging.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param temperature: Temperature of the policy: in units of the mean gradient magnitude if ``normalize_gradient``,
        else in units of Q
    :param normalize_gradient: Whether the temperature is in units of the mean gradient magnitude over batch and particles
    :param n_particles: Reverse samples per noisy action
    :param clip_target: Whether to limit the target of the noise network to noise that leads to ``a_t`` from inside the box
    :param exploration_noise: Standard deviation of the noise added to actions while training
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    proposal: str = "truncated"
    """Where the clean actions come from, see :func:`~sb3_diffusion.policies.particles.propose_clean`."""

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        temperature: float = 0.05,
        normalize_gradient: bool = True,
        n_particles: int = 500,
        clip_target: bool = True,
        exploration_noise: float = 0.1,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.normalize_gradient = normalize_gradient
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.clip_target = clip_target
        self.exploration_noise = real("exploration_noise", exploration_noise, low=0, remedy="pass a standard deviation >= 0")
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates, "exploration_noise": self.exploration_noise}

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        # replayed actions only have to cover the space: the regression is conditional on a_t
        a_t, t, alpha, sigma, _ = self.actor.add_noise(batch.actions, self.randomness, "actor")
        target, metrics = self.noise_target(batch, a_t, alpha, sigma)
        predicted = self.actor.denoise(a_t, t, self.actor.encode(batch.observations))
        loss = (predicted - target).square().mean()
        return loss, metrics

    @th.no_grad()
    def noise_target(self, batch: Batch, a_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> tuple[th.Tensor, Metrics]:
        """
        Target of the noise network, ``-(sigma / alpha) sum_k w_k grad Q(a_k) / temperature``.

        :param batch: Batch of transitions
        :param a_t: Noisy actions ``(batch, action_dim)``
        :param alpha: Signal coefficients ``(batch, 1)``
        :param sigma: Noise coefficients ``(batch, 1)``
        :return: Target ``(batch, action_dim)``, and quantities to log
        """
        a_0, slope = propose_clean(a_t, alpha, sigma, self.n_particles, self.proposal, self.randomness, "actor.eps_reverse")
        context = self.critic_target.encode(batch.observations)
        values, gradients = particle_value_gradients(self.critic_target, a_0, context)
        size = gradients.abs().mean()
        # the same temperature in the weights and in the score, so that both belong to one density
        temperature = self.temperature * (size + 1e-6) if self.normalize_gradient else self.temperature
        target, weights = boltzmann_noise(values, gradients, slope, sigma, temperature)
        metrics = {
            "effective_particles": effective_sample_size(weights),
            "q_gradient": size,
            "largest_target": target.abs().amax(),
        }
        if self.clip_target:
            # eps = (a_t - alpha a_0) / sigma for a_0 at the two ends of the box
            target = target.clamp((a_t - alpha) / sigma, (a_t + alpha) / sigma)
        return target, metrics
