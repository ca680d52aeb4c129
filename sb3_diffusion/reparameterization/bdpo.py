"""BDPO: a value of every step of the chain, and a penalty for every step that leaves the behaviour's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.clock import shows_updates
from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.off_policy import CommonArguments
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.decay import DECAYS, CosineDecay, is_number
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Part, Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.generative.paths import PathDivergence
from sb3_diffusion.names import choice
from sb3_diffusion.networks.reducers import check_rule, state_values
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor, NoisyActions
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.parts import begin_as, forget_moments
from sb3_diffusion.policies.values.critic import ObservationCritic

ACTOR_DECAYS = ("partial_cosine", *DECAYS)


class BDPO(OffPolicyDiffusion):
    r"""
    Behaviour-regularised Diffusion Policy Optimisation (BDPO).

    Reparameterisation with the behaviour policy as reference. The divergence of the *whole path* of the policy's chain from
    the path of a denoiser that imitates the data is a sum over the steps, each a squared difference of two noise predictions.
    Every step is then a decision with a penalty: a value ``V(s, a_t, t)`` tells what is to be expected from a noisy action on,
    and the actor maximises it one step ahead, ``t`` at random, so that no gradient passes through the chain. Its last step
    leads to an action and to ``Q(s, a)``. The fixed point is ``data * exp(Q / eta)`` up to where chains start.

    :meth:`learn_offline` has three stages: ``"behavior"`` imitates; ``"critic"`` trains both values with the behaviour as
    policy; ``"training"`` trains all, actor and behaviour in every ``policy_delay``-th update. The actor begins with the
    behaviour's averaged weights. :meth:`learn` has no stages: all parts learn together, from the replay buffer and the data
    set, if there is one, and the behaviour imitates what these hold.

    Paper: Gao et al. 2025, Behavior-Regularized Diffusion Policy Optimization for Offline Reinforcement Learning,
    https://arxiv.org/abs/2502.04778

    Differences from the reference implementation, which is the authors': none that is known; the chain's steps are clipped and
    the last one adds no noise, which the penalty ignores as theirs does.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of behaviour, critics and step value
    :param eta: Weight of the penalty, in units of Q: the temperature of the policy
    :param target_reduction: What targets take of several values: ``"lcb"`` the mean less ``rho`` standard deviations,
        ``"min"`` the smallest, ``"convex"`` ``rho`` of the smallest and the rest of the largest, ``"random_convex"`` a mean
        with random weights
    :param rho: Its pessimism
    :param max_q_backup: Whether the critics' target values the best of ``n_target_candidates`` next actions, not their mean
    :param n_target_candidates: Next actions per transition, and samples of the next step per noisy action
    :param n_action_candidates: Actions of the averaged actor of which the mean of the target critics chooses the best
    :param actor_learning_rate: Learning rate of the actor
    :param actor_decay: How it falls during the training, where it is a number: ``"partial_cosine"`` by the first
        ``1 / policy_delay`` of half a cosine, as the reference, which counts the actor's steps on a cosine as long as all
        updates; ``"cosine"`` to zero; ``"none"``
    :param behavior_learning_rate: Learning rate of the behaviour if it differs
    :param step_value_learning_rate: Learning rate of the step value if it differs
    :param behavior_updates: Share of the stage of ``learn_offline`` that learns the behaviour
    :param critic_updates: Share of the stage that trains the values alone
    :param training_updates: Share of the stage that trains all networks
    :param behavior_keeps_training: Whether that includes the behaviour, as in the reference
    :param max_grad_norm: Clip the norm of each network's gradient, ``None`` for no clipping
    :param policy_delay: Update actor and behaviour every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    behavior_lr_schedule = PartSchedule()
    step_value_lr_schedule = PartSchedule()

    def __init__(  # type: ignore[misc]  # max_grad_norm has another default
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        eta: float = 0.15,
        target_reduction: str = "lcb",
        rho: float = 1.0,
        max_q_backup: bool = False,
        n_target_candidates: int = 10,
        n_action_candidates: int = 10,
        actor_learning_rate: float | Schedule | None = 1e-5,
        actor_decay: str = "partial_cosine",
        behavior_learning_rate: float | Schedule | None = None,
        step_value_learning_rate: float | Schedule | None = None,
        behavior_updates: int = 2_000_000,
        critic_updates: int = 50_000,
        training_updates: int = 1_950_000,
        behavior_keeps_training: bool = True,
        max_grad_norm: float | None = 1.0,
        policy_delay: int = 5,
        **kwargs: Unpack[CommonArguments],
    ):
        self.eta = real("eta", eta, low=0, remedy="0 forgets the behaviour")
        self.target_reduction, self.rho = check_rule(target_reduction, rho)
        self.max_q_backup = max_q_backup
        self.n_target_candidates = integer("n_target_candidates", n_target_candidates, low=1)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self.actor_decay = choice("actor_decay", actor_decay, ACTOR_DECAYS)
        self.behavior_learning_rate = optional(check_schedule, "behavior_learning_rate", behavior_learning_rate)
        self.step_value_learning_rate = optional(check_schedule, "step_value_learning_rate", step_value_learning_rate)
        self.behavior_updates = integer("behavior_updates", behavior_updates, low=0, remedy="0 learns it beside the actor")
        self.critic_updates = integer("critic_updates", critic_updates, low=0)
        self.training_updates = integer("training_updates", training_updates, low=1)
        self.behavior_keeps_training = behavior_keeps_training
        super().__init__(
            policy,
            env,
            learning_rate,
            actor_learning_rate=actor_learning_rate,
            max_grad_norm=max_grad_norm,
            policy_delay=policy_delay,
            **kwargs,
        )

    # -- the policy -------------------------------------------------------------------------------------------------

    @override
    def policy_requirements(self) -> dict[str, Any]:
        time = {"time_embedding": "positional", "time_dim": self.policy_kwargs.get("time_dim", 64)}
        step_value = {"kind": "critic", "target": True, "layer_norm": True, **time}
        networks = {"step_value": step_value, "behavior": {"kind": "actor", "target": True}}
        return {"networks": networks, "actor_target": True, "acting": "actor_target"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        widths = {"pi": [256, 256, 256, 256], "qf": [256, 256, 256]}
        networks = {"net_arch": widths, "activation_fn": "mish", "state_arch": (), "n_critics": 10}
        chain = {"process": "discrete", "noise_schedule": "vp", "diffusion_steps": 5, "time_embedding": "positional"}
        if self.policy_kwargs.get("process", "discrete") != "discrete":
            chain = {}  # refused, but not for the schedule
        n = self.n_action_candidates
        acting = {"n_action_candidates": n, "n_behavior_candidates": n, "choose_with_target": True}
        return {**networks, **chain, **acting, "selection": {"reduction": "mean", "target": True}}

    @override
    def _check_prediction(self) -> None:
        given, needed = self.policy.constructor_arguments, {"process": "discrete", "solver": "ddpm", "variance": "beta"}
        for name, value in needed.items():
            if given[name] not in (None, value):
                raise ValueError(
                    f"policy_kwargs: {name}={given[name]!r} makes other steps than those whose divergence the penalty of "
                    f"{type(self).__name__} is; leave it out ({value!r})."
                )

    @override
    def _setup_model(self) -> None:
        super()._setup_model()
        for network in (self.behavior, self.averaged_behavior):  # no penalty for the first policy
            network.load_state_dict(self.actor.state_dict())

    @property
    def behavior(self) -> DiffusionActor:
        """The denoiser that imitates."""
        return self.policy.trained["behavior"]  # type: ignore[return-value]

    @property
    def averaged_behavior(self) -> DiffusionActor:
        """Its moving average, which the penalty is measured from."""
        return self.policy.behavior_target  # type: ignore[return-value]

    @property
    def averaged_actor(self) -> DiffusionActor:
        """The actor that acts, and whose chains the critics' targets follow."""
        assert self.actor_target is not None
        return self.actor_target

    @property
    def step_value(self) -> ObservationCritic:
        """Values of noisy actions at their times."""
        return self.policy.trained["step_value"]  # type: ignore[return-value]

    @property
    def step_value_target(self) -> ObservationCritic:
        """Its moving average."""
        return self.policy.step_value_target  # type: ignore[return-value]

    # -- parts and stages -------------------------------------------------------------------------------------------

    @override
    def parts(self) -> Sequence[Part]:
        def averaged(average: Any, network: Any) -> Any:
            return partial(polyak_update, average, network, self.tau)

        # in the order in which the reference asks averages: those of both values move before the actor's step, and the step
        # value's target is of the critics of before
        seldom = 1 if self._only_imitates else self.policy_delay
        value, critic, actor, behavior = self.step_value, self.critic, self.actor, self.behavior
        return [
            Part("step_value", self.step_value_loss, value, then=averaged(self.step_value_target, value)),
            Part("critic", self.critic_loss, critic, then=averaged(self.critic_target, critic)),
            Part("actor", self.actor_loss, actor, self.policy_delay, averaged(self.averaged_actor, actor)),
            Part("behavior", self.behavior_loss, behavior, seldom, averaged(self.averaged_behavior, behavior)),
        ]

    @override
    def update_targets(self) -> None:
        """Nothing is left to move: every average moves behind the step of its network."""

    @override
    def stages(self) -> Sequence[Stage]:
        values = ("step_value", "critic")
        everything = (*values, "actor", "behavior") if self.behavior_keeps_training else (*values, "actor")
        stages = [
            Stage("behavior", ("behavior",), self.behavior_updates),
            Stage("critic", values, self.critic_updates, self.begin_with_behavior),
            Stage("training", everything, self.training_updates, self.begin_with_behavior),
        ]
        return [stage for stage in stages if stage.updates > 0]

    @property
    def _only_imitates(self) -> bool:
        """Whether the stage that learns the behaviour is running."""
        return shows_updates(self) and self.stages()[self._stage].name == "behavior"

    def begin_with_behavior(self) -> None:
        """Let the actor be the behaviour, as long as it has not learned anything better in this stage."""
        if self._stage_updates > 0:  # interrupted
            return
        begin_as(self.actor, self.averaged_behavior)
        self.averaged_actor.load_state_dict(self.actor.state_dict())
        forget_moments(self.actor.optimizer)  # type: ignore[arg-type]

    @override
    def lr_schedule_of(self, part: str) -> Schedule:
        schedule = super().lr_schedule_of(part)
        if part != "actor" or self.actor_decay == "none" or not is_number(self, part):
            return schedule
        return CosineDecay(schedule, 1.0 if self.actor_decay == "cosine" else 1.0 / self.policy_delay)

    # -- losses -----------------------------------------------------------------------------------------------------

    def behavior_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Imitation: error of the predicted noise at actions of the data.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        context = self.behavior.encode(batch.observations)
        return self.behavior.denoising_error(batch.actions, context, self.randomness, "behavior").mean(), {}

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        actor, observations, chain = self.averaged_actor, batch.next_observations, self.actor.update_chain
        if chain.steps != self.actor.process.diffusion_steps:
            raise ValueError(
                f"policy_kwargs: a chain of diffusion_steps={chain.steps} that skips levels of its process, which has "
                f"{self.actor.process.diffusion_steps}, takes other steps than those that {type(self).__name__} values."
            )
        own, other = (network.bind(network.encode(observations), chain.times) for network in (actor, self.averaged_behavior))
        path = PathDivergence(self.actor.process, own, other, chain.times)
        shape = (len(batch.rewards), self.n_target_candidates, actor.action_dim)
        actions = chain.sample(path, shape, self.randomness, "next_action")
        values = self.critic_target.q(actions, self.critic_target.encode(observations))
        penalty = path.total.mean(1)
        value = self.reduced(values, "next_action", best=self.max_q_backup)
        return value - self.eta * penalty, {"path_penalty": penalty.mean(), **saturation(actions)}

    def step_value_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Temporal-difference loss of the value along the chain, at noisy actions of the data.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        noisy = self.actor.add_noise(batch.actions, self.randomness, "value")
        with th.no_grad():
            value, penalty = self.value_of_step(self.averaged_actor, noisy, batch, "value")
            target = value - self.eta * penalty
        values = self.step_value.q(noisy.x_t, self.step_value.encode(batch.observations), noisy.t)
        return (values - target).square().mean(), {"step_value_mean": values.detach().mean()}

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        value, penalty = self.value_of_step(self.actor, noisy, batch, "actor")
        loss = (self.eta * penalty - value).mean()
        return loss, {"step_penalty": penalty.detach().mean(), "q_policy": value.detach().mean()}

    def value_of_step(
        self, actor: DiffusionActor, noisy: NoisyActions, batch: Batch, label: str
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        What is to be expected behind one step of an actor's chain, and what the step costs. The gradient reaches the actor's
        prediction only.

        :param actor: The actor
        :param noisy: Where the step begins
        :param batch: The batch of whose observations the noisy actions are
        :param label: Prefix of the names of the draws
        :return: Values and penalties, ``(batch,)`` each
        """
        x_t, t, observations = noisy.x_t, noisy.t, batch.observations
        predicted = actor.denoise(x_t, t, actor.encode(observations))
        with th.no_grad():
            imitated = self.averaged_behavior.denoise(x_t, t, self.averaged_behavior.encode(observations))
            contexts = [network.encode(observations) for network in (self.step_value_target, self.critic_target)]
        clip_target = self.policy.constructor_arguments["clip_target"]
        clip = {"clip": False} if clip_target == "none" else {"clip_target": clip_target}
        noise = self.randomness, f"{label}.step_noise"
        cleaner = actor.process.reverse_step(x_t, t, predicted, *noise, n_samples=self.n_target_candidates, **clip)
        # both for all rows, of which one counts: the number of last steps would differ from batch to batch
        earlier = self.step_value_target.q(cleaner, contexts[0], (t - 1.0).clamp(min=1.0))
        last = self.critic_target.q(cleaner, contexts[1])
        value = th.where(t.squeeze(-1) > 1.0, self.reduced(earlier, label), self.reduced(last, label))
        return value, actor.process.step_divergence(predicted, imitated, t)

    def reduced(self, values: th.Tensor, label: str, best: bool = False) -> th.Tensor:
        """
        :param values: Values ``(n_critics, batch, n)``
        :param label: Prefix of the name of a draw
        :param best: Whether each critic takes the best of the n
        :return: Pessimistic values ``(batch,)``
        """
        return state_values(values, self.target_reduction, self.rho, best, self.randomness, f"{label}.critics")
