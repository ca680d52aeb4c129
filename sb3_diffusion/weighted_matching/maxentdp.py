"""MaxEntDP: maximum-entropy reinforcement learning, with the log density of the diffusion policy in the value target."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.likelihood import RULES
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import MAX_STEPS, integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.particles import effective_sample_size, matched_noise


class MaxEntDP(OffPolicyDiffusion):
    """
    Maximum Entropy Reinforcement Learning with Diffusion Policy (MaxEntDP).

    Weighted matching with a uniform reference: the policy samples ``pi(a|s) ~ exp(Q(s,a) / temperature)``, and the critics
    learn the *soft* value, which pays for entropy: ``V(s) = Q(s,a) - temperature * log pi(a|s)``. The noise network
    regresses onto the noise of reverse-sampled clean actions, weighted with ``softmax(Q / temperature)``; the log density is
    an integral of the errors of that network over the noise levels.

    Paper: Dong et al. 2025, Maximum Entropy Reinforcement Learning with Diffusion Policy, https://arxiv.org/abs/2502.11612

    Differences from the authors' implementation: the integral uses the trapezoidal rule over the log signal-to-noise ratio,
    which for the same number of network evaluations is far more accurate (``likelihood_rule="rectangle"`` is the authors'
    rule); the networks are those of the other methods of this library; the learning rate does not decay.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param temperature: Temperature of the policy and price of entropy, in units of Q
    :param n_particles: Reverse samples per noisy action
    :param backup_entropy: Whether the value target contains the entropy
    :param n_likelihood_steps: Intervals of the integral for the log density
    :param n_likelihood_samples: Noises per interval at which the error of the network is measured
    :param likelihood_rule: ``"trapezoid"`` or ``"rectangle"``,
        see :class:`~sb3_diffusion.generative.likelihood.LikelihoodEstimator`
    :param n_action_candidates: Actions of which the target critics choose the best when evaluating (``deterministic=True``)
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
        backup_entropy: bool = True,
        n_likelihood_steps: int = 20,
        n_likelihood_samples: int = 50,
        likelihood_rule: str = "trapezoid",
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.backup_entropy = backup_entropy
        self.n_likelihood_steps = integer("n_likelihood_steps", n_likelihood_steps, 1, MAX_STEPS)
        self.n_likelihood_samples = integer("n_likelihood_samples", n_likelihood_samples, low=1)
        self.likelihood_rule = choice("likelihood_rule", likelihood_rule, RULES)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"choose_with_target": True}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates, "time_input": "logsnr"}

    def _setup_model(self) -> None:
        super()._setup_model()
        likelihood = self.actor.process.likelihood(self.n_likelihood_steps, self.likelihood_rule)
        self.likelihood = likelihood.to(self.device)

    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Soft value ``min Q'(s', a') - temperature * log pi(a' | s')`` at one policy sample.

        :param batch: Batch of transitions
        :return: Values ``(batch,)``, and quantities to log
        """
        if not self.backup_entropy:
            return super().next_values(batch)
        context = self.actor.encode(batch.next_observations)
        actions = self.actor.sample(context, self.randomness, "next_action")
        values = self.critic_target.q(actions, self.critic_target.encode(batch.next_observations)).amin(0)
        log_prob = self.log_prob(actions, context)
        return values - self.temperature * log_prob, {"entropy": -log_prob.mean(), **saturation(actions)}

    def log_prob(self, actions: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        Estimated log density of the policy.

        :param actions: Actions in [-1, 1], ``(batch, action_dim)``
        :param context: Result of ``actor.encode``
        :return: Log densities in nats ``(batch,)``
        """
        denoise, label = self.actor.bind(context, self.likelihood.times), "next_action.likelihood"
        return self.likelihood.log_prob(denoise, actions, self.randomness, label, self.n_likelihood_samples)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        # replayed actions only have to cover the space: the regression is conditional on a_t
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        with th.no_grad():
            # E[noise | a_t] if a_0 ~ exp(Q' / temperature); one target per noisy action, not one per particle
            context = self.critic_target.encode(batch.observations)
            target, weights = matched_noise(
                noisy, self.critic_target, context, self.temperature, self.n_particles, self.randomness, "actor.eps_reverse"
            )
        predicted = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        loss = (predicted - target).square().mean()
        return loss, {"effective_particles": effective_sample_size(weights)}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "likelihood"]
