"""DACER: -Q is backpropagated through the whole chain, added noise is adapted to an entropy target."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.critics.distributional import dsac_loss
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.solvers.watching import WatchedSamples
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.actors.exploration import mixture_entropy
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.multiplier import Multiplier

NOISE_FACTOR_RANGE = (math.exp(-5.0), math.exp(3.0))
"""Saturated actions make the mixture's entropy arbitrarily small, which would drive the noise to infinity."""


def chain_metrics(chain: WatchedSamples) -> Metrics:
    """
    :param chain: A chain through which the loss is backpropagated
    :return: ``saturated_actions`` of its end, and ``clipped_gradients``: of the coordinates of all its steps, the share whose
        gradient the clip of the step has cut off
    """
    cut_off = {} if chain.cut_off is None else {"clipped_gradients": chain.cut_off}
    return {**saturation(chain.samples), **cut_off}


class DACER(OffPolicyDiffusion):
    """
    Diffusion Actor-Critic with Entropy Regulator (DACER).

    Reparameterisation with a uniform reference: the critics' value is maximised by backpropagation through all steps of the
    sampling chain. Exploration is additive noise, ``noise factor * noise_scale * N(0, I)``. The factor, the paper's
    ``alpha``, is adapted until the entropy of the noisy actions, estimated by Gaussian mixtures, meets a target. The critics
    are Gaussian (DSAC-T).

    Paper: Wang et al. 2024, Diffusion Actor-Critic with Entropy Regulator, https://arxiv.org/abs/2405.15177

    Differences from the reference implementation: the critic whose sampled target is used is chosen per transition (the
    reference chooses one for the whole batch from two of its rows); the learned standard deviation is compared with the full
    squared error (``half_squared_error=True`` gives the reference's, whose fixed point is too small by sqrt 2); the actor
    uses the critics after their step; mixtures are fitted in one batch for ``n_entropy_states`` states; the noise factor is
    bounded.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param reward_scale: Factor of the rewards
    :param noise_scale: Standard deviation of the exploration noise per unit of the noise factor
    :param initial_alpha: Initial noise factor
    :param alpha_learning_rate: Learning rate of the logarithm of the noise factor, 0 to keep it
    :param target_entropy: Entropy target in nats, ``"auto"`` for -0.9 per action dimension
    :param alpha_update_interval: Updates of the networks between two updates of the noise factor (the first one updates it)
    :param n_entropy_samples: Actions per state to which a mixture is fitted
    :param n_entropy_states: States of the batch over which the entropy is averaged
    :param half_squared_error: Use the reference's variance target
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        reward_scale: float = 0.2,
        noise_scale: float = 0.1,
        initial_alpha: float = 3.0,
        alpha_learning_rate: float = 0.03,
        target_entropy: float | str = "auto",
        alpha_update_interval: int = 10_000,
        n_entropy_samples: int = 200,
        n_entropy_states: int = 64,
        half_squared_error: bool = False,
        n_action_candidates: int = 1,
        policy_delay: int = 2,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        if isinstance(target_entropy, str) and target_entropy != "auto":
            raise ValueError(f"target_entropy={target_entropy!r} must be a number of nats or 'auto' (-0.9 per dimension).")
        self.reward_scale = real("reward_scale", reward_scale)
        self.noise_scale = real("noise_scale", noise_scale, low=0, remedy="pass a standard deviation >= 0")
        learned = "it is positive, and its logarithm is learned within these bounds"
        self.initial_alpha = real("initial_alpha", initial_alpha, *NOISE_FACTOR_RANGE, remedy=learned)
        self.alpha_learning_rate = real("alpha_learning_rate", alpha_learning_rate, low=0, remedy="0 keeps the noise as it is")
        self.target_entropy = target_entropy if target_entropy == "auto" else real("target_entropy", target_entropy)
        self.alpha_update_interval = integer("alpha_update_interval", alpha_update_interval, low=1)
        self.n_entropy_samples = integer("n_entropy_samples", n_entropy_samples, low=1)
        self.n_entropy_states = integer("n_entropy_states", n_entropy_states, low=1)
        self.half_squared_error = half_squared_error
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        low, high = NOISE_FACTOR_RANGE
        factor = {"initial": self.initial_alpha, "learning_rate": self.alpha_learning_rate, "low": low, "high": high}
        return {"critic_head": "gaussian", "multipliers": {"noise_factor": factor}, "exploration_multiplier": "noise_factor"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"exploration_noise": self.noise_scale, "n_action_candidates": self.n_action_candidates}

    @property
    def noise_factor(self) -> Multiplier:
        """The learned factor of the exploration noise, logged as ``alpha``."""
        return self.policy.multipliers["noise_factor"]  # type: ignore[return-value]

    def noisy_samples(self, context: th.Tensor, label: str, n_candidates: int | None = None) -> th.Tensor:
        """
        Training actions: the chain, plus exploration noise, clipped to the box.

        :param context: Result of ``actor.encode``
        :param label: Prefix of the names of the draws
        :param n_candidates: Actions per row, ``None`` for one without a candidate axis
        :return: Actions ``(batch, [n_candidates,] action_dim)``
        """
        actions = self.actor.sample(context, self.randomness, label, n_candidates, clip_output=False)
        return self.policy.exploration(actions, self.randomness, f"{label}.explore")

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        with th.no_grad():
            target_mean, target_sample = self.value_targets(batch)
        mean, std = self.critic.ensemble(batch.actions, self.critic.encode(batch.observations))
        running_std = self.critic.ensemble.running_std
        loss = dsac_loss(mean, std, target_mean, target_sample, running_std, self.half_squared_error).mean(1).sum()
        with th.no_grad():
            running_std.lerp_(std.mean(), self.tau)
        return loss, {"q_mean": mean.detach().mean(), "q_std": std.detach().mean()}

    def value_targets(self, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Batch of transitions
        :return: Bellman targets of the mean and of a sample of the return, ``(batch,)`` each
        """
        actions = self.noisy_samples(self.actor.encode(batch.next_observations), "next_action")
        mean, std = self.critic_target.ensemble(actions, self.critic_target.encode(batch.next_observations))
        sample = mean + std * self.randomness.normal(mean.shape, "target.z", like=mean).clamp(-3.0, 3.0)
        value, critic = mean.min(0)  # the more pessimistic critic of every transition
        rewards = self.reward_scale * batch.rewards
        chosen = sample.gather(0, critic.unsqueeze(0)).squeeze(0)
        return rewards + batch.discounts * value, rewards + batch.discounts * chosen

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        chain = self.watched_chain(self.actor.encode(batch.observations))
        with th.no_grad():
            context = self.critic.encode(batch.observations)
        loss = -self.critic.q(chain.samples, context).amin(0).mean()
        return loss, chain_metrics(chain)

    def watched_chain(self, context: th.Tensor) -> WatchedSamples:
        """
        Actions of the actor's loss. The gradient flows through every step of the chain; a clamp at its end would cut it off
        outside the box.

        :param context: Result of ``actor.encode``
        :return: Actions ``(batch, action_dim)``, and the way to them
        """
        sampler = self.actor.update_chain
        denoise, shape = self.actor.bind(context, sampler.times), (context.shape[0], self.actor.action_dim)
        return sampler.sample_and_watch(denoise, shape, self.randomness, "actor")  # type: ignore[no-any-return]

    @override
    def after_update(self, batch: Batch) -> Metrics:
        if (self._n_updates - 1) % self.alpha_update_interval != 0:
            return {}
        with th.no_grad():
            context = self.actor.encode(batch.observations)[: self.n_entropy_states]
            samples = self.noisy_samples(context, "entropy", self.n_entropy_samples)
            entropy = mixture_entropy(samples, self.randomness, "entropy").mean()
        return self.update_noise_factor(entropy)

    def update_noise_factor(self, entropy: th.Tensor) -> Metrics:
        """
        One step on ``log(noise factor) * (entropy - target)``: too much entropy lowers the noise.

        :param entropy: Estimated entropy of the noisy actions in nats, scalar
        :return: Quantities to log
        """
        target = -0.9 * self.actor.action_dim if self.target_entropy == "auto" else float(self.target_entropy)
        loss = self.noise_factor.descend(entropy - target, logarithmic=True)
        return {"entropy": entropy, "alpha": self.noise_factor(), "alpha_loss": loss}
