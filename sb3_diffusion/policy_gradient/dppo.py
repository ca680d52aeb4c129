"""Diffusion policy policy optimisation: every denoising step is an action of its own, with a density that PPO can use."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import OnPolicyArguments
from sb3_diffusion.core.behavior.pretraining import ImitatesFirst
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.core.ratios.surrogate import clipped_surrogate, divergence_estimate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.generative.solvers.sampler import Sampler
from sb3_diffusion.names import choice
from sb3_diffusion.networks.gaussian import gaussian_log_density
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy

LOG_PROB_LIMITS = (-5.0, 2.0)
"""Log-densities are limited to this, where they have no gradient."""
LIMITED = ("dimension", "sum", "none")
REDUCTIONS = ("sum", "mean")
_AS_THE_REFERENCE = {"min_sampling_std": 0.0, "clip_density": False, "log_prob_limit": "sum"}
_REFERENCE_CHAIN = {"process": "continuous", "variance": "beta", "time_embedding": "fourier", "output_gain": 2.0**0.5}


class DPPO(ImitatesFirst, OnPolicyDiffusion):
    r"""
    Diffusion Policy Policy Optimization (DPPO): the steps of the reverse chain as steps of a Markov decision process.

    Each of the ``T`` steps :math:`x_k \to x_{k+1}` of a chain is a Gaussian around a mean that the denoiser predicts, with a
    standard deviation that is known, so it has a density as PPO needs it; only the end of the chain is executed. All steps
    share the advantage of the action that they lead to, discounted towards the noise:

    .. math:: \mathrm{mean}_k\,\min(\rho_k A_k,\ \mathrm{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon) A_k), \qquad
        A_k = \gamma_d^{T-1-k} A, \quad
        \rho_k = \frac{\pi(x_{k+1} | x_k, s)}{\pi_{\mathrm{old}}(x_{k+1} | x_k, s)}

    Its strength is fine-tuning a policy that has been learned from demonstrations; from nothing, a Gaussian policy usually
    learns faster, at a fraction of the cost of its ``T`` evaluations per action.

    Paper: Ren et al. 2024, Diffusion Policy Policy Optimization, https://arxiv.org/abs/2409.00588

    Differences from the reference implementation, each with the argument that undoes it: the chain is sampled with the
    standard deviation that its density assumes, so that the last step explores and the densities are those of the policy that
    acts (``min_sampling_std=0``); densities clip the estimate of the clean action as the sampler does
    (``clip_density=False``); limits of the log-density hold for every dimension, where they hardly ever act, and not for their
    sum, where they remove most of the gradient (``log_prob_limit="sum"``). The authors' code takes the mean over dimensions,
    with a smaller range of the ratios (``log_prob_reduction="mean", clip_range=0.1``).

    :param policy: ``"DiffusionPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param gamma_denoising: Discount ``gamma_d`` of the steps towards the noise; 0 leaves the last step alone
    :param min_std: Smallest standard deviation of a step, in its density and, without ``min_sampling_std``, in the chain
    :param min_sampling_std: Smallest standard deviation of the chain's own noise, if another; 0 has none in the last step
    :param clip_density: Whether densities clip the estimate of the clean action to the box, as the sampler does
    :param log_prob_reduction: Whether the log-densities of the dimensions are summed, or averaged
    :param log_prob_limit: What is limited to [-5, 2]: the log-density of every ``"dimension"``, their ``"sum"``, or ``"none"``
    :param clip_range_base: Range of the ratios of the first, noisiest step, from which it grows to ``clip_range`` in the last;
        ``None`` for the same range everywhere
    :param clip_range_rate: How steeply it grows
    :param finetune_steps: Last steps of the chain that are learned, behind those of the policy as it was after
        :meth:`pretrain`, which stay as they are; ``None`` for all of them
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flowrl_paper": {
            **_AS_THE_REFERENCE,
            "normalize_advantage": "minibatch",
            "mask_timeouts": False,
            "policy_kwargs": {**_REFERENCE_CHAIN, "activation_fn": {"pi": "mish", "qf": "mish"}},
        },
        "flowrl_code": {
            **_AS_THE_REFERENCE,
            "policy_kwargs": {**_REFERENCE_CHAIN, "state_arch": [128, 128], "activation_fn": {"pi": "mish", "qf": "elu"}},
        },
    }
    rows_at_once: ClassVar[int] = 2048
    actor: DiffusionActor

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        gamma_denoising: float = 0.99,
        min_std: float = 0.1,
        min_sampling_std: float | None = None,
        clip_density: bool = True,
        log_prob_reduction: str = "sum",
        log_prob_limit: str = "dimension",
        clip_range_base: float | None = None,
        clip_range_rate: float = 3.0,
        finetune_steps: int | None = None,
        **kwargs: Unpack[OnPolicyArguments],
    ):
        self.gamma_denoising = real("gamma_denoising", gamma_denoising, 0, 1)
        self.min_std = real("min_std", min_std, above=0, remedy="without noise a step has no density")
        self.min_sampling_std = optional(real, "min_sampling_std", min_sampling_std, low=0)
        self.clip_density = clip_density
        self.log_prob_reduction = choice("log_prob_reduction", log_prob_reduction, REDUCTIONS)
        self.log_prob_limit = choice("log_prob_limit", log_prob_limit, LIMITED)
        self.clip_range_base = optional(real, "clip_range_base", clip_range_base, above=0)
        self.clip_range_rate = real("clip_range_rate", clip_range_rate, above=0)
        self.finetune_steps = optional(integer, "finetune_steps", finetune_steps, low=1, remedy="None is for all of them")
        super().__init__(policy, env, learning_rate, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        noise = self.min_std if self.min_sampling_std is None else self.min_sampling_std
        chain = {"solver": "ddpm", "sampler_kwargs": {"min_std": noise}, "finetune_steps": self.finetune_steps}
        return {**super().policy_requirements(), **chain}

    @override
    def policy_settings(self) -> dict[str, Any]:
        # a fresh policy without an opinion: with one of its own it would explore nothing else
        networks = {"net_arch": [256, 256, 256], "activation_fn": "mish", "state_arch": (), "output_gain": 0.01}
        chain = {"process": "discrete", "diffusion_steps": 10, "variance": "posterior"}
        return {**networks, **chain, "time_embedding": "sinusoidal", "time_dim": 32}

    @override
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        actor, chain = self.actor, self.actor.acting_chain
        denoise = actor.bind_observations(observations, chain.times)
        shape = len(denoise.features), actor.action_dim
        states = chain.chain(denoise, shape, self.randomness, "act", clip_output=False)
        return states[-1], {"chain": states[-self.n_steps_learned - 1 :].transpose(0, 1)}

    @override
    def remember(self, batch: RolloutBatch) -> dict[str, th.Tensor]:
        return {"log_prob": self.step_log_prob(batch.observations, batch.fields["chain"])}

    def step_log_prob(self, observations: Any, states: th.Tensor) -> th.Tensor:
        """
        Log-density of every step of chains.

        :param observations: Batch of observations
        :param states: Chains ``(batch, T + 1, action_dim)``, the noise first; with ``finetune_steps``, their ends
        :return: Log-densities ``(batch, T)``
        """
        return self._log_prob(states, self._predictions(observations, states))

    def _predictions(self, observations: Any, states: th.Tensor) -> th.Tensor:
        """What the denoiser says at every state but the last, in one pass."""
        actor = self.actor
        times = actor.encode_time(self.density.times[-self.n_steps_learned :].unsqueeze(-1)).unsqueeze(0)
        return actor.denoiser(states[:, :-1], actor.encode(observations), times)  # type: ignore[no-any-return]

    def _log_prob(self, states: th.Tensor, predictions: th.Tensor) -> th.Tensor:
        means = self.density.means(states[:, :-1], predictions)
        std = self.density.step_std[-self.n_steps_learned :].unsqueeze(-1)
        log_prob = gaussian_log_density(states[:, 1:], means, std)
        if self.log_prob_limit == "dimension":
            log_prob = log_prob.clamp(*LOG_PROB_LIMITS)
        log_prob = log_prob.sum(-1) if self.log_prob_reduction == "sum" else log_prob.mean(-1)
        return log_prob.clamp(*LOG_PROB_LIMITS) if self.log_prob_limit == "sum" else log_prob

    @override
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        states = batch.fields["chain"]
        predictions = self._predictions(batch.observations, states)
        log_ratio = self._log_prob(states, predictions) - batch.fields["log_prob"]
        advantages = self.advantages(batch).unsqueeze(-1) * self.step_weights
        loss, metrics = clipped_surrogate(log_ratio, advantages, self.step_clip_range())
        clipped = self.density.clipped(states[:, :-1], predictions.detach()).float().mean()
        moved = log_ratio.shape[1] * divergence_estimate(log_ratio)  # of whole chains
        return loss, {**metrics, "approx_kl": moved, "clipped_estimates": clipped}

    def step_clip_range(self) -> th.Tensor:
        """Range of the ratios of every step, ``(T,)``, the noisiest first."""
        if self.clip_range_base is None:
            return self.clip
        return self.clip_range_base + (self.clip - self.clip_range_base) * self.clip_growth

    @override
    def imitation_error(self, batch: Batch) -> th.Tensor:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor")

    @override
    def after_pretraining(self) -> None:
        self.actor.copy_to_clone()

    @override
    def _setup_model(self) -> None:
        super()._setup_model()
        actor, steps = self.actor, self.actor.acting_chain.steps
        self.density: Sampler = actor.acting_chain
        if self.min_sampling_std is not None or not self.clip_density:
            clip = {} if self.clip_density else {"clip": False}
            self.density = actor.make_chain(steps, min_std=self.min_std, **clip).to(self.device)
        self.n_steps_learned = steps = steps if self.finetune_steps is None else self.finetune_steps
        k = th.arange(steps, device=self.device)
        self.step_weights = self.gamma_denoising ** (steps - 1 - k).float()
        progress = self.clip_range_rate * k / max(steps - 1, 1)
        self.clip_growth = progress.expm1() / th.tensor(self.clip_range_rate).expm1()

    @override
    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "density", "step_weights", "clip_growth", "n_steps_learned"]
