"""DAC: imitation of the data, with noise targets that the gradient of the critics shifts."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.behavior.averaged_actor import AveragedActor, AveragedActorArguments
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.decay import DECAYS, CosineDecay, is_number
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.networks.reducers import check_rule, state_values
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy

ETA_RANGE = (0.001, 100.0)


class DAC(AveragedActor):
    r"""
    Diffusion Actor-Critic (DAC).

    Q-value guidance with the behaviour policy as reference. Policy iteration under a bound of the divergence from the data,
    written as a regression of noise: the target of the noise network is the noise that was added to an action of the data,
    less a multiple of the critics' gradient at the *noisy* action. A pessimistic mean of ten critics is what they bootstrap
    from. The weight ``eta`` of imitation is a multiplier that falls as long as the error of imitation is below
    ``bc_threshold``.

    The gradient at a noisy action is not that of the exact intermediate energy, so the policy is only near
    ``data * exp(Q / lambda)`` with ``lambda = 2 * eta * mean |Q|``.

    Paper: Fang et al. 2024, Diffusion Actor-Critic: Formulating Constrained Policy Iteration as Diffusion Noise Regression for
    Offline Reinforcement Learning, https://arxiv.org/abs/2405.20555

    Differences from the reference implementation: the embedded step has the widths of the authors' code, 16, 32 and 32
    (the reference: 64 throughout), of which both layers are activated; in the authors' code the last one is linear, and
    ``eta`` follows the error of after the actor's step.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param eta: Initial weight of imitation, in units of the mean magnitude of Q
    :param eta_learning_rate: Largest step of ``eta`` in an update; 0 keeps it
    :param bc_threshold: Error of imitation below which ``eta`` falls; to predict no noise at all has an error of 1
    :param target_reduction: What the critics' target takes of the target critics: ``"lcb"`` the mean less ``rho`` standard
        deviations, ``"min"`` the smallest, ``"convex"`` ``rho`` of the smallest and the rest of the largest,
        ``"random_convex"`` a mean with random weights
    :param rho: Its pessimism
    :param max_q_backup: Whether each critic values the best of ``n_target_candidates`` next actions, and not their mean
    :param n_target_candidates: Next actions per transition
    :param n_action_candidates: Actions of which the mean of the target critics chooses the best
    :param selection_temperature: Temperature, in units of Q, of a softmax that chooses instead where ``deterministic=False``;
        0 takes the best one there, too
    :param lr_decay: Whether the learning rates, where they are numbers, fall to zero during the training: ``"cosine"`` or
        ``"none"``
    :param max_grad_norm: Clip the norm of each network's gradient, ``None`` for no clipping
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.averaged_actor.AveragedActor`
    """

    def __init__(  # type: ignore[misc]  # max_grad_norm has another default
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        eta: float = 1.0,
        eta_learning_rate: float = 0.001,
        bc_threshold: float = 1.0,
        target_reduction: str = "lcb",
        rho: float = 1.0,
        max_q_backup: bool = False,
        n_target_candidates: int = 10,
        n_action_candidates: int = 10,
        selection_temperature: float = 0.0,
        lr_decay: str = "cosine",
        max_grad_norm: float | None = 1.0,
        **kwargs: Unpack[AveragedActorArguments],
    ):
        self.eta = real("eta", eta, *ETA_RANGE, remedy="smaller follows the critics, larger the data")
        self.eta_learning_rate = real("eta_learning_rate", eta_learning_rate, low=0, remedy="0 keeps eta")
        self.bc_threshold = real("bc_threshold", bc_threshold, low=0)
        self.target_reduction, self.rho = check_rule(target_reduction, rho)
        self.max_q_backup = max_q_backup
        self.n_target_candidates = integer("n_target_candidates", n_target_candidates, low=1)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        greedy = "0 takes the best candidate"
        self.selection_temperature = real("selection_temperature", selection_temperature, low=0, remedy=greedy)
        self.lr_decay = choice("lr_decay", lr_decay, DECAYS)
        super().__init__(policy, env, learning_rate, max_grad_norm=max_grad_norm, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        eta = {"initial": self.eta, "learning_rate": self.eta_learning_rate, "low": ETA_RANGE[0], "high": ETA_RANGE[1]}
        return {**super().policy_requirements(), "multipliers": {"eta": {"plain": True, **eta}}}

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {"net_arch": [256, 256, 256], "activation_fn": "mish", "state_arch": (), "n_critics": 10}
        time = {"time_embedding": "positional", "time_dim": 16, "time_arch": (32, 32)}
        chain = {"process": "discrete", "noise_schedule": "vp", "diffusion_steps": 5}
        warm = {"rule": "softmax", "temperature": self.selection_temperature} if self.selection_temperature else {}
        n = self.n_action_candidates
        acting = {"n_action_candidates": n, "n_behavior_candidates": n, "choose_with_target": True}
        rule = {"reduction": "mean", "target": True, **warm}
        return {**networks, **time, **self.fitting_chain(chain), **acting, "selection": rule}

    @override
    def parts(self) -> Sequence[Part]:
        critic, actor = super().parts()
        # the actor follows the target critics of after this update's step
        return [critic._replace(then=super().update_targets), actor]

    @override
    def update_targets(self) -> None:
        """Nothing is left to move: the target critics moved behind the critics' step."""

    @override
    def lr_schedule_of(self, part: str) -> Schedule:
        schedule = super().lr_schedule_of(part)
        return CosineDecay(schedule) if self.lr_decay == "cosine" and is_number(self, part) else schedule

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.averaged_actor.encode(batch.next_observations)
        actions = self.averaged_actor.sample(context, self.randomness, "next_action", self.n_target_candidates)
        values = self.critic_target.q(actions, self.critic_target.encode(batch.next_observations))
        rule = self.target_reduction, self.rho, self.max_q_backup
        return state_values(values, *rule, self.randomness, "next_action.critics"), saturation(actions)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        predicted = self.actor.denoise(noisy.x_t, noisy.t, self.actor.encode(batch.observations))
        imitation = (predicted - noisy.eps).square().mean()
        gradient, size = self.guidance(batch, noisy.x_t)
        guided = (noisy.sigma * gradient * predicted).mean()
        eta: th.Tensor = self.policy.multipliers["eta"]()
        metrics = {"bc_loss": imitation.detach(), "guidance": guided.detach(), "q_size": size, "eta": eta}
        return eta * imitation + guided, metrics

    @th.no_grad()
    def guidance(self, batch: Batch, noisy_actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Gradient of the mean of the target critics, in units of their magnitude at the actions of the data.

        :param batch: Batch of transitions
        :param noisy_actions: Where the gradient is taken, ``(batch, action_dim)``
        :return: Gradient ``(batch, action_dim)``, and that magnitude
        """
        context = self.critic_target.encode(batch.observations)
        size = self.critic_target.q(batch.actions, context).abs().mean()
        _, gradient = self.critic_target.value_and_gradient(noisy_actions, context, reduction="mean")
        return gradient / (size + 1e-6), size

    @override
    def adapt_multipliers(self, metrics: Metrics) -> Metrics:
        if "bc_loss" in metrics:  # ascent on the error of imitation less its bound
            multiplier: Any = self.policy.multipliers["eta"]
            multiplier.descend((self.bc_threshold - metrics["bc_loss"]).clamp(-1.0, 1.0))
        return {}
