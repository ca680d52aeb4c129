"""FPO++: a ratio for every draw of a flow policy's error, and a penalty where an advantage is negative."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import CommonArguments
from sb3_diffusion.core.ratios.flow_matching import FlowMatchingRatio
from sb3_diffusion.core.ratios.surrogate import asymmetric_surrogate, divergence_estimate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy

TIMES = ("continuous", "grid")
FIRST_TIME, LAST_TIME = 0.005, 0.995
"""Where continuous times begin and end: at pure noise and at the action itself an error says little."""


class FPOpp(FlowMatchingRatio):
    r"""
    FPO++: flow policy optimisation that stays stable on robots.

    As in :class:`~sb3_diffusion.policy_gradient.fpo.FPO` an action has become likelier where the flow's error
    :math:`\ell(\epsilon_j, t_j)` on it has become smaller. Every draw has a ratio of its own,
    :math:`\rho_j = \exp(\ell_{\mathrm{old}, j} - \ell_j)`, so that no draw hides behind the mean of the others, and the trust
    region is asymmetric (ASPO):

    .. math:: \mathrm{mean}\,\begin{cases}
        \min(\rho_j A,\ \mathrm{clip}(\rho_j, 1 - \varepsilon, 1 + \varepsilon) A) & A \ge 0 \\
        \rho_j A - \frac{|A|}{2 \varepsilon} (\rho_j - 1)^2 & A < 0 \end{cases}

    The second line is largest at :math:`\rho_j = 1 - \varepsilon`, and what has gone beyond is pulled back: an error cannot be
    made worse without end, which is how FPO collapses. Errors are limited to ``max_error``, where they have no gradient;
    log-ratios are limited in value only, so that those beyond the limit are still pulled back. ``predict(deterministic=True)``
    acts with a moving average of the actor.

    Paper: Yi et al. 2026, https://arxiv.org/abs/2602.02481

    Differences from the reference implementation, each with the argument that undoes it: actions are learned from as the
    policy answered them, as in the authors' code (``action_limit=2`` cuts them off before); the flow takes 16 steps
    (``policy_kwargs=dict(diffusion_steps=64)``); the errors of the policy that acted are computed when the rollout is
    complete, all at once. The authors have one optimizer for both networks, whose gradients are clipped together, and octaves
    of the time without a network behind (``policy_kwargs=dict(time_embedding="octave", time_dim=8)``).

    :param policy: ``"DiffusionPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param n_draws: Pairs of noise and time for every action
    :param times: Where the flow is asked: at ``"continuous"`` times from 0.005 to 0.995, or on the ``"grid"`` of its own steps
        without the first
    :param time_power: Continuous times have the density of the ``time_power``-th power of a distance from the noise; 1 is
        uniform, more are closer to the action
    :param error: Whose error is compared: that of the ``"velocity"``, or of the ``"noise"`` that it implies
    :param error_reduction: Whether errors are the ``"mean"`` of the squares of all dimensions, their ``"sum"``, or ``"sqrt"``,
        the sum divided by the root of their number, with which ratios vary as much in many dimensions as in few
    :param max_error: Largest error, old and new; ``None`` for no limit
    :param max_error_negative: Largest new error where the advantage is negative, ``None`` for no other limit
    :param max_log_ratio: Largest log-ratio; gradients pass through the limit
    :param min_log_ratio: The same for the smallest, ``None`` for none
    :param max_advantage: Largest absolute advantage
    :param output_std: Standard deviation of the noise that is added to the end of the flow while it explores
    :param clip_states: Whether the flow is clipped to the box after every step
    :param action_limit: Where actions are cut off before they are learned from, ``None`` for nowhere; the environment's are
        cut off at 1 in any case
    :param average_decay: What a rollout's update leaves of the averaged actor; 0 evaluates the actor itself
    :param average_start: Rollouts before which the average is the actor itself
    :param n_epochs: Passes over a rollout
    :param clip_range: How far ratios may be from one; a float, or a function of the remaining progress
    :param value_learning_rate: Learning rate of the value; ``None`` for that of the actor
    :param desired_kl: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`; the divergence is what the ratios say
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flowrl_paper": {
            "times": "grid",
            "error_reduction": "mean",
            "max_error": None,
            "max_log_ratio": 5.0,
            "min_log_ratio": -5.0,
            "output_std": 0.1,
            "clip_states": True,
            "average_decay": 0.0,
            "value_learning_rate": 1e-3,
            "policy_kwargs": {
                "net_arch": [256, 256, 256],
                "activation_fn": {"pi": "silu", "qf": "elu"},
                "diffusion_steps": 64,
                "optimizer_class": {"pi": "AdamW", "qf": "Adam"},
                "optimizer_kwargs": {"pi": {"betas": (0.9, 0.95), "weight_decay": 1e-4}},
            },
        },
        "flowrl_code": {"action_limit": 2.0, "clip_range_vf": None, "policy_kwargs": {"diffusion_steps": 64}},
    }

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        n_draws: int = 16,
        times: str = "continuous",
        time_power: float = 1.0,
        error: str = "velocity",
        error_reduction: str = "sqrt",
        max_error: float | None = 20.0,
        max_error_negative: float | None = 20.0,
        max_log_ratio: float = 10.0,
        min_log_ratio: float | None = None,
        max_advantage: float = 100.0,
        output_std: float = 0.02,
        clip_states: bool = False,
        action_limit: float | None = None,
        average_decay: float = 0.95,
        average_start: int = 500,
        n_epochs: int = 16,
        clip_range: float | Schedule = 0.05,
        value_learning_rate: float | Schedule | None = 1e-4,
        desired_kl: float | None = None,
        **kwargs: Unpack[CommonArguments],
    ):
        self.times = choice("times", times, TIMES)
        self.time_power = real("time_power", time_power, above=0)
        self.max_error = optional(real, "max_error", max_error, above=0)
        self.max_error_negative = optional(real, "max_error_negative", max_error_negative, above=0)
        self.max_log_ratio = real("max_log_ratio", max_log_ratio, above=0)
        self.min_log_ratio = optional(real, "min_log_ratio", min_log_ratio, below=0)
        self.max_advantage = real("max_advantage", max_advantage, above=0)
        self.action_limit = optional(real, "action_limit", action_limit, low=1)
        self.average_decay = real("average_decay", average_decay, 0, below=1)
        self.average_start = integer("average_start", average_start, low=0)
        self._n_rollouts = 0
        super().__init__(
            policy,
            env,
            learning_rate,
            n_draws=n_draws,
            error=error,
            error_reduction=error_reduction,
            output_std=output_std,
            clip_states=clip_states,
            n_epochs=n_epochs,
            clip_range=clip_range,
            value_learning_rate=value_learning_rate,
            desired_kl=desired_kl,
            **kwargs,
        )

    @override
    def policy_requirements(self) -> dict[str, Any]:
        averaged = {"actor_target": True, "evaluating": "actor_target"} if self.average_decay else {}
        return {**super().policy_requirements(), **averaged}

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {"net_arch": {"pi": [256, 256, 256], "qf": [512, 512, 512]}, "activation_fn": "elu"}
        optimizer = {"optimizer_class": "AdamW", "optimizer_kwargs": {"weight_decay": 1e-4}}
        return {**super().policy_settings(), **networks, **optimizer, "diffusion_steps": 16}

    @override
    def _setup_model(self) -> None:
        super()._setup_model()
        if self.times == "grid" and self.actor.acting_chain.steps < 2:
            raise ValueError("times='grid' has no time behind the first one of a single step; use times='continuous'.")

    @override
    def draw_times(self, shape: Sequence[int], like: th.Tensor) -> th.Tensor:
        if self.times == "grid":
            steps = self.actor.acting_chain.steps
            return self.randomness.integers(1, steps, shape, "act.t_index", like) / steps
        remaining = 1.0 - self.randomness.uniform(shape, "act.u", like)
        return FIRST_TIME + (LAST_TIME - FIRST_TIME) * remaining ** (1.0 / self.time_power)

    @override
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        actions, fields = super().act(observations)
        return (actions if self.action_limit is None else actions.clamp(-self.action_limit, self.action_limit)), fields

    @override
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        old, new = self.limited_errors(batch)
        log_ratio = self.limited_log_ratio(old - new)
        advantages = self.advantages(batch).clamp(-self.max_advantage, self.max_advantage)
        loss, metrics = asymmetric_surrogate(log_ratio, advantages.unsqueeze(1), self.clip)
        return loss, {**metrics, "approx_kl": divergence_estimate(log_ratio), "flow_error": new.detach().mean()}

    def limited_errors(self, batch: RolloutBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Rows of the rollout
        :return: Old and new errors ``(batch, n_draws)``; beyond their limits they have no gradient
        """
        old, new = (error.clamp(max=self.max_error) if self.max_error else error for error in self.errors(batch))
        if self.max_error_negative:
            new = th.where(batch.advantages.unsqueeze(1) < 0.0, new.clamp(max=self.max_error_negative), new)
        return old, new

    def limited_log_ratio(self, difference: th.Tensor) -> th.Tensor:
        """
        :param difference: Old errors without new ones
        :return: The same, limited in value, with the gradient that it would have without the limits
        """
        return difference + (difference.clamp(self.min_log_ratio, self.max_log_ratio) - difference).detach()

    @override
    def train(self) -> None:
        super().train()
        self.move_average()

    def move_average(self) -> None:
        """Move the actor of deterministic actions, at the end of the updates from a rollout."""
        self._n_rollouts += 1
        if self.policy.actor_target is not None:
            share = 1.0 if self._n_rollouts <= self.average_start else 1.0 - self.average_decay
            polyak_update(self.policy.actor_target, self.policy.actor, share)
