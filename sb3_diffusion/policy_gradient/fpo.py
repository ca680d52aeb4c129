"""Flow policy optimisation: a flow's own error on an action in the place of the density that PPO asks for."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import CommonArguments
from sb3_diffusion.core.ratios.flow_matching import FlowMatchingRatio
from sb3_diffusion.core.ratios.surrogate import clipped_surrogate, divergence_estimate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.policies.diffusion import DiffusionPolicy

_AS_THE_REFERENCE = {"positive_only": True, "output_std": 0.1, "clip_states": True, "error": "noise"}


class FPO(FlowMatchingRatio):
    r"""
    Flow Policy Optimization (FPO): PPO with a ratio that is made of flow-matching errors.

    The density of a flow's actions is expensive. But the error :math:`\ell(\epsilon, t)` of its velocity at a point of the
    straight way from noise :math:`\epsilon` to an action bounds minus the log-density, up to a constant, in the mean over
    noise and times. So the action has become likelier where the error, of the same ``n_draws`` pairs, has become smaller:

    .. math:: \mathrm{mean}\,\min(\rho A,\ \mathrm{clip}(\rho, 1 - \varepsilon, 1 + \varepsilon) A), \qquad
        \rho = \exp\big(\mathrm{mean}_j\,\ell_{\mathrm{old}}(\epsilon_j, t_j) - \mathrm{mean}_j\,\ell(\epsilon_j, t_j)\big)

    The flow may be integrated by any solver, with as many steps as one likes.

    **Negative advantages.** An error is no log-density: it has no upper bound, and nothing that it gains elsewhere has to be
    lost here. Where ``A < 0``, the objective can be improved forever by making the velocity worse; the clipped ratio stops
    that within the updates from one rollout, and those from the next begin anew. With many epochs or a high learning rate the
    velocity explodes and the policy collapses. ``positive_only=True`` learns from actions with a positive advantage alone; so
    did the FlowRL paper. :class:`~sb3_diffusion.policy_gradient.fpopp.FPOpp` keeps the others and bounds them. Watch
    ``train/flow_error``.

    Paper: McAllister et al. 2025, Flow Matching Policy Gradients, https://arxiv.org/abs/2507.21053

    Differences from the reference implementation, each with the argument that undoes it: all advantages count
    (``positive_only=True``), as in the paper of the method; nothing is added to the end of the flow (``output_std=0.1``),
    whose own spread explores; its states are not clipped (``clip_states=True``), since those on the way are noise and rightly
    exceed the box; the error is that of the velocity (``error="noise"`` weighs it by ``t**2``, so that one of the draws at the
    beginning of the flow says nothing). A deterministic action begins at zero noise; the reference's evaluation is random. The
    errors of the policy that acted are computed when the rollout is complete, all at once. The authors' code squashes actions
    by a tanh, scales rewards by ten, has one optimizer for both networks, and recomputes advantages in every minibatch.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param positive_only: Whether actions with a negative advantage teach the actor nothing
    :param n_draws: Pairs of noise and time for every action
    :param error: Whose error is compared: that of the ``"velocity"``, or of the ``"noise"`` that it implies
    :param error_reduction: Whether errors are the ``"mean"`` of the squares of all dimensions, their ``"sum"``, or ``"sqrt"``,
        the sum divided by the root of their number
    :param output_std: Standard deviation of the noise that is added to the end of the flow while it explores
    :param clip_states: Whether the flow is clipped to the box after every step
    :param n_epochs: Passes over a rollout
    :param clip_range: How far ratios may be from one; a float, or a function of the remaining progress
    :param value_learning_rate: Learning rate of the value; ``None`` for that of the actor
    :param desired_kl: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`; the divergence is what the ratios say
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"flowrl_paper": _AS_THE_REFERENCE}

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        positive_only: bool = False,
        n_draws: int = 8,
        error: str = "velocity",
        error_reduction: str = "mean",
        output_std: float = 0.0,
        clip_states: bool = False,
        n_epochs: int = 4,
        clip_range: float | Schedule = 0.05,
        value_learning_rate: float | Schedule | None = 1e-3,
        desired_kl: float | None = None,
        **kwargs: Unpack[CommonArguments],
    ):
        self.positive_only = positive_only
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
    def policy_settings(self) -> dict[str, Any]:
        flow = {"activation_fn": {"pi": "silu", "qf": "elu"}, "diffusion_steps": 10, "output_scale": 0.25}
        return {**super().policy_settings(), **flow}

    @override
    def draw_times(self, shape: Sequence[int], like: th.Tensor) -> th.Tensor:
        steps = self.actor.acting_chain.steps  # the times at which the flow is asked when it acts
        return self.randomness.integers(0, steps, shape, "act.t_index", like) / steps

    @override
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        old, new = self.errors(batch)
        log_ratio = (old - new).mean(1)
        advantages = self.advantages(batch)
        if self.positive_only:
            advantages = advantages.clamp(min=0.0)
        loss, metrics = clipped_surrogate(log_ratio, advantages, self.clip)
        return loss, {**metrics, "approx_kl": divergence_estimate(log_ratio), "flow_error": new.detach().mean()}
