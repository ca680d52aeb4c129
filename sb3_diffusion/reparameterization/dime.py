"""DIME: maximum-entropy reinforcement learning with a chain that bounds the entropy of its own actions."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.critics.distributional import categorical_loss, clipped_shares, warn_if_clipped
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch, joined
from sb3_diffusion.generative.controlled import ControlledDiffusion, ControlledSampler, PathSample
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.multiplier import Multiplier
from sb3_diffusion.policies.parts import train_unless_frozen

TEMPERATURE_RANGE = (math.exp(-10.0), math.exp(5.0))
"""An entropy that the policy cannot reach would drive the temperature to infinity."""


class DIME(OffPolicyDiffusion):
    r"""
    Diffusion-Based Maximum Entropy Reinforcement Learning (DIME).

    Reparameterisation with a uniform reference. The policy is a Langevin diffusion with learned control that runs from a
    normal prior to the action. The log ratio ``l`` of this path and of a fixed path that leads back to the prior bounds the
    log density of the action, and takes its place in the objective of SAC: the critics learn the soft value with
    ``-temperature * l`` as entropy, the actor minimises ``temperature * l - Q`` through all steps of the chain, and the
    temperature, the paper's ``alpha``, is adapted to a target. The critics are categorical and do without target critics:
    states and next states pass through them as one batch, normalised by batch renormalisation (CrossQ).

    Paper: Celik et al. 2025, DIME: Diffusion-Based Maximum Entropy Reinforcement Learning, https://arxiv.org/abs/2502.02316

    Differences from the reference implementation: a gradient that is not finite stops training instead of being set to
    zero; the learned step sizes and the temperature are bounded; the deterministic action is the one of the silent chain,
    not a random one; the online actor takes the place of its copy, which is renewed at each of its updates. That the step
    sizes fall along the chain could not be established and is our reading (``noise_schedule``).

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param gradient_steps: Updates per rollout; -1 for as many as transitions were collected
    :param policy_delay: Update the actor and the temperature every ``policy_delay`` updates of the critics
    :param v_min: Smallest return that the critics can represent. No value suits every task: discounted returns and entropies
        have to lie between ``v_min`` and ``v_max``, and a range that is too wide wastes resolution
    :param v_max: Largest return that the critics can represent
    :param n_atoms: Number of returns between which the critics interpolate
    :param critic_entropy_coef: Weight of the entropy of the predicted distributions in the critics' loss
    :param initial_alpha: Initial temperature
    :param alpha_learning_rate: Learning rate of the logarithm of the temperature, 0 to keep it
    :param target_run_cost: Target of ``l`` without the log density of the starting noise, in nats; ``"auto"`` for 4 per
        action dimension, an entropy of about -1.665 per dimension
    :param max_actor_grad: Largest absolute value of an entry of the actor's gradient, ``None`` for no limit
    :param batch_renorm: Whether the critics renormalise their inputs and layers, or arguments of
        :class:`~sb3_diffusion.networks.norms.BatchRenorm`
    :param target_critics: Use target critics instead of the joint batch
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    prediction = ControlledDiffusion.prediction

    def __init__(  # type: ignore[misc]  # gradient_steps, which all have, has another default here
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        gradient_steps: int = 2,
        policy_delay: int = 3,
        v_min: float = -200.0,
        v_max: float = 200.0,
        n_atoms: int = 101,
        critic_entropy_coef: float = 0.005,
        initial_alpha: float = 1.0,
        alpha_learning_rate: float = 1e-3,
        target_run_cost: float | str = "auto",
        max_actor_grad: float | None = 1.0,
        batch_renorm: bool | dict[str, Any] = True,
        target_critics: bool = False,
        n_action_candidates: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        if isinstance(target_run_cost, str) and target_run_cost != "auto":
            raise ValueError(f"target_run_cost={target_run_cost!r} must be a number of nats or 'auto' (4 per dimension).")
        self.v_min = real("v_min", v_min)
        self.v_max = real("v_max", v_max)
        self.n_atoms = integer("n_atoms", n_atoms, low=2)
        self.critic_entropy_coef = real("critic_entropy_coef", critic_entropy_coef)
        learned = "it is positive, and its logarithm is learned within these bounds"
        self.initial_alpha = real("initial_alpha", initial_alpha, *TEMPERATURE_RANGE, remedy=learned)
        self.alpha_learning_rate = real("alpha_learning_rate", alpha_learning_rate, low=0, remedy="0 keeps the temperature")
        self.target_run_cost = target_run_cost if target_run_cost == "auto" else real("target_run_cost", target_run_cost)
        self.max_actor_grad = optional(real, "max_actor_grad", max_actor_grad, above=0, remedy="None is for no limit")
        self.batch_renorm = batch_renorm
        self.target_critics = target_critics
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self._warned = False
        super().__init__(policy, env, learning_rate, gradient_steps=gradient_steps, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        low, high = TEMPERATURE_RANGE
        temperature = {"initial": self.initial_alpha, "learning_rate": self.alpha_learning_rate, "low": low, "high": high}
        support = {"n_atoms": self.n_atoms, "v_min": self.v_min, "v_max": self.v_max, "batch_renorm": self.batch_renorm}
        return {
            "critic_head": "categorical",
            "critic_kwargs": support,
            "target_critics": self.target_critics,
            "multipliers": {"temperature": temperature},
        }

    @override
    def policy_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "process": "controlled",
            "diffusion_steps": 16,
            "output_gain": 1e-8,  # no control at first: the policy starts as the prior
            "net_arch": {"pi": [256, 256, 256], "qf": [2048, 2048]},
            "n_action_candidates": self.n_action_candidates,
        }
        if "optimizer_class" not in self.policy_kwargs:
            settings["optimizer_kwargs"] = {"betas": (0.5, 0.999)}
        return settings

    @property
    def temperature(self) -> Multiplier:
        """The learned temperature, logged as ``alpha``."""
        return self.policy.multipliers["temperature"]  # type: ignore[return-value]

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        critics = self.critic.ensemble
        train_unless_frozen(critics)
        with th.no_grad():
            path = self.sample_path(batch.next_observations, "next_action")
        log_probs, next_log_probs = self.log_probs(batch, path.samples)
        with th.no_grad():
            # entropy first, so that it is discounted like the value that it belongs to
            shift = batch.rewards - batch.discounts * self.temperature() * path.log_ratio
            atoms = shift.unsqueeze(-1) + batch.discounts.unsqueeze(-1) * critics.atom_values
            # averaging the members before the projection, which is linear, saves one of the two
            probabilities = next_log_probs.exp().mean(0)
            target = critics.project(probabilities, atoms)
            # what leaves the support counts as its end: a reward that is not finite would go unnoticed
            target = target + 0.0 * shift.unsqueeze(-1)
        loss = categorical_loss(log_probs, target, self.critic_entropy_coef).mean(1).sum()
        with th.no_grad():
            metrics = {
                "q_mean": critics.value(log_probs).mean(),
                **clipped_shares(probabilities, atoms, critics.atom_values),
                **saturation(path.samples),
            }
        return loss, metrics

    def sample_path(self, observations: PyTorchObs, label: str) -> PathSample:
        """
        Run the chain, and bound the log density of the actions at its end.

        :param observations: Batch of observations
        :param label: Prefix of the names of the draws
        :return: Actions ``(batch, action_dim)`` and the parts of their log ratio ``(batch,)``
        """
        chain, context = self.actor.update_chain, self.actor.encode(observations)
        assert isinstance(chain, ControlledSampler)
        denoise, shape = self.actor.bind(context, chain.times), (context.shape[0], self.actor.action_dim)
        return chain.sample_with_log_ratio(denoise, shape, self.randomness, label)

    def log_probs(self, batch: Batch, next_actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Log probabilities of the atoms ``(n_critics, batch, n_atoms)``, at the stored and at the next actions."""
        critics, target = self.critic, self.critic_target
        if target is not critics:
            logits = critics.ensemble(batch.actions, critics.encode(batch.observations))
            with th.no_grad():
                next_logits = target.ensemble(next_actions, target.encode(batch.next_observations))
            return critics.ensemble.log_probs(logits), target.ensemble.log_probs(next_logits)
        # one batch, so that both halves are normalised by the same statistics
        context = critics.encode(joined(batch.observations, batch.next_observations))
        logits = critics.ensemble(th.cat((batch.actions, next_actions)), context)
        now, following = critics.ensemble.log_probs(logits).chunk(2, dim=1)
        return now, following.detach()

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        self.critic.ensemble.eval()  # running statistics
        path = self.sample_path(batch.observations, "actor")
        with th.no_grad():
            context = self.critic.encode(batch.observations)
        value = self.critic.q(path.samples, context).mean(0)
        loss = (self.temperature() * path.log_ratio - value).mean()
        # a bound of the entropy, per action
        entropy, run_cost = -path.log_ratio.detach().mean(), path.run_cost.detach().mean()
        return loss, {"entropy_bound": entropy, "run_cost": run_cost}

    @override
    def limit_gradients(self, part: Part) -> None:
        if self.max_actor_grad is not None and part.name == "actor":
            th.nn.utils.clip_grad_value_(part.parameters, self.max_actor_grad)
        super().limit_gradients(part)

    @override
    def adapt_multipliers(self, metrics: Metrics) -> Metrics:
        return self.update_temperature(metrics["run_cost"]) if "run_cost" in metrics else {}

    def update_temperature(self, run_cost: th.Tensor) -> Metrics:
        """One step on ``-temperature (run_cost - target)``: a run cost above its target, too little entropy, raises it."""
        target = 4.0 * self.actor.action_dim if self.target_run_cost == "auto" else float(self.target_run_cost)
        self.temperature.descend(target - run_cost)
        return {"alpha": self.temperature()}

    @override
    def review(self, means: dict[str, float]) -> None:
        self._warned = self._warned or warn_if_clipped(means, self.v_min, self.v_max, self._n_updates)
