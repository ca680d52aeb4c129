"""Soft Diffusion Actor-Critic: denoising regression on reverse-sampled actions, weighted by exp(Q / temperature)."""

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
from sb3_diffusion.policies.particles import effective_sample_size, matched_noise


class SDAC(OffPolicyDiffusion):
    """
    Soft Diffusion Actor-Critic (SDAC).

    Weighted matching with a uniform reference: the policy samples ``pi(a|s) ~ exp(Q(s,a) / temperature)``. For a noisy
    action the clean actions it may come from are drawn by inverting the forward kernel (reverse sampling), so no samples of
    the target distribution are needed; the noise network regresses onto their noise, averaged with weights
    ``softmax(Q / temperature)``.

    Paper: Ma et al. 2025, Efficient Online Reinforcement Learning for Diffusion Policies, https://arxiv.org/abs/2502.00361

    Differences from the reference implementation: the weighted regression is collapsed to one target per noisy action (same
    gradient up to the factor ``n_particles`` by which the reference divides the loss, and no network output per particle);
    the actor uses the critics after their step of the same update; sampled actions are clipped to the box.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param temperature: Temperature of the policy in units of Q
    :param n_particles: Reverse samples per noisy action
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        temperature: float = 0.05,
        n_particles: int = 500,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates}

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        # replayed actions only have to cover the space: the regression is conditional on a_t
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        with th.no_grad():
            # sum_k w_k |eps_theta - noise_k|^2 and |eps_theta - sum_k w_k noise_k|^2 have the same gradient
            context = self.critic.encode(batch.observations)
            target, weights = matched_noise(
                noisy, self.critic, context, self.temperature, self.n_particles, self.randomness, "actor.eps_reverse"
            )
        predicted = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        loss = (predicted - target).square().mean()
        return loss, {"effective_particles": effective_sample_size(weights)}
