"""The training loop of every on-policy algorithm, in tensors from simulator to loss; a subclass supplies the losses."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from typing_extensions import Self, override

from sb3_diffusion.core.adaptive_rates import AdaptsRates
from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.algorithm import check_norm, check_seed, check_verbose
from sb3_diffusion.core.arguments.on_policy import (
    NORMALIZATIONS,
    PRESETS,
    check_bounds,
    check_privileged,
    in_our_names,
    rows_of,
    steps_of,
)
from sb3_diffusion.core.arguments.schedules import check_schedule, scheduled
from sb3_diffusion.core.collecting import CollectsRollouts
from sb3_diffusion.core.reporting.divergence import cause_of_rollout
from sb3_diffusion.core.reporting.metrics import MetricLog, Metrics, saturation
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.together import TrainsTogether
from sb3_diffusion.core.update.execution import check_execution
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.advantages import TIMEOUT_BOOTSTRAPS, standardized
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import check_no_unknown, choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actor_critic import ActorCritic
from sb3_diffusion.policies.features import update_observation_statistics
from sb3_diffusion.policies.values.state_value import StateValue
from sb3_diffusion.processes import average


class OnPolicyDiffusion(TrainsTogether, AdaptsRates, CollectsRollouts):
    """
    Base class of the on-policy algorithms.

    Environments of tensors (:class:`~sb3_diffusion.envs.tensor.contract.TensorVecEnv`) are stepped without leaving their
    device; ordinary ones are adapted. Actions are normalised: what the policy answers is cut off at -1 and 1 and stretched to
    the bounds of the action space before it is executed, and learned from as it was answered.

    :param policy: Name of the policy, or a subclass
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor: a float, or a function of the remaining progress (1 to 0)
    :param n_steps: Steps of a rollout in every environment; ``None`` for 24, or as many as it takes for 2,048 transitions
    :param n_minibatches: Minibatches of an epoch
    :param batch_size: Transitions of a minibatch; ``None`` for the rollout divided by ``n_minibatches``
    :param n_epochs: Passes over a rollout
    :param gamma: Discount factor
    :param gae_lambda: Factor of generalised advantage estimation, between 0 and 1
    :param clip_range: How far ratios of densities may be from one; a float, or a function of the remaining progress
    :param clip_range_vf: How far values may move from those before the update, in units of returns; ``None`` for no limit
    :param normalize_advantage: Whether advantages are standardised over the rollout, or over every ``"minibatch"``
    :param normalize_observations: Whether the networks see observations standardised by running statistics, which are saved
        with the weights and stay as they are during a rollout and its update
    :param timeout_bootstrap: Whose value stands for the future where an episode was cut off, see
        :func:`~sb3_diffusion.data.advantages.following_values`
    :param mask_timeouts: Whether values learn nothing from steps at which an episode was cut off
    :param value_learning_rate: Learning rate of the value; ``None`` for that of the actor
    :param desired_kl: Divergence of policies to which both learning rates are adapted before every step of the actor; ``None``
        for rates that go by their schedules
    :param learning_rate_bounds: Smallest and largest adapted rate
    :param target_kl: Divergence of policies at 1.5 times of which the updates from a rollout end; ``None`` for no such limit
    :param max_grad_norm: Clip the norm of each network's gradient, ``None`` for no clipping
    :param random_phases: Whether environments that let us begin their first episodes in the middle, so that not all of them
        end at once
    :param value_warmup: Rollouts after an imitation of data from which the value learns alone: what it says of a policy that
        it has never seen would destroy the policy
    :param privileged: Entries of a ``Dict`` observation that the value sees and the actor does not; ``None`` for what the
        environment says of itself
    :param execution: How the update runs: ``"eager"``, ``"compile"`` (``torch.compile``), ``"cuda_graph"``,
        or ``"auto"`` for the fastest that has been measured (eager)
    :param stats_window_size: Window of the rollout statistics, in episodes
    :param tensorboard_log: Log folder for TensorBoard
    :param policy_kwargs: Arguments of the policy; ``net_arch`` and other arguments of both networks may be
        ``dict(pi=..., vf=...)``
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: Seed of all random generators
    :param device: Device of the networks (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    """

    policy: Any
    max_grad_norm: float | None  # type: ignore[assignment]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    """The FlowRL paper's runs of March 2026 and its code of June 2026, with their deviations from the published methods."""
    actor: Any
    value: StateValue
    _n_pretraining_updates: int = 0
    value_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[ActorCritic],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        n_steps: int | None = None,
        n_minibatches: int = 4,
        batch_size: int | None = None,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | None = None,
        normalize_advantage: bool | str = True,
        normalize_observations: bool = True,
        timeout_bootstrap: str = "final_obs",
        mask_timeouts: bool = False,
        value_learning_rate: float | Schedule | None = 1e-3,
        desired_kl: float | None = None,
        learning_rate_bounds: tuple[float, float] = (1e-5, 1e-2),
        target_kl: float | None = None,
        max_grad_norm: float | None = 1.0,
        random_phases: bool = True,
        value_warmup: int = 2,
        privileged: Sequence[str] | None = None,
        execution: str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ):
        check_no_unknown(type(self), unknown)
        super().__init__(
            policy,  # type: ignore[arg-type]  # ours is no ActorCriticPolicy of Stable-Baselines3
            env,  # type: ignore[arg-type]
            check_schedule("learning_rate", learning_rate),
            optional(integer, "n_steps", n_steps, low=1),  # type: ignore[arg-type]  # counted when the environments are known
            real("gamma", gamma, 0, 1),
            real("gae_lambda", gae_lambda, 0, 1, remedy="0 looks one step ahead, 1 to the end"),
            ent_coef=0.0,
            vf_coef=1.0,
            max_grad_norm=0.0,
            use_sde=False,
            sde_sample_freq=-1,
            policy_kwargs=policy_kwargs,
            stats_window_size=integer("stats_window_size", stats_window_size, low=1),
            tensorboard_log=tensorboard_log,
            verbose=check_verbose(verbose),
            device=device,
            seed=check_seed(seed),
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.n_minibatches = integer("n_minibatches", n_minibatches, low=1)
        self.batch_size = optional(integer, "batch_size", batch_size, low=1)
        self.n_epochs = integer("n_epochs", n_epochs, low=1)
        self.clip_range = check_schedule("clip_range", clip_range)
        self.clip_range_vf = optional(real, "clip_range_vf", clip_range_vf, above=0, remedy="None is for no limit")
        self.normalize_advantage = choice("normalize_advantage", normalize_advantage, NORMALIZATIONS)
        self.normalize_observations = normalize_observations
        self.timeout_bootstrap = choice("timeout_bootstrap", timeout_bootstrap, TIMEOUT_BOOTSTRAPS)
        self.mask_timeouts = mask_timeouts
        self.value_learning_rate = optional(check_schedule, "value_learning_rate", value_learning_rate)
        self.desired_kl = optional(real, "desired_kl", desired_kl, above=0, remedy="None keeps the rates of the schedules")
        self.learning_rate_bounds = check_bounds(learning_rate_bounds)
        self.target_kl = optional(real, "target_kl", target_kl, above=0, remedy="None is for no limit")
        self.max_grad_norm = check_norm(max_grad_norm)
        self.random_phases = random_phases
        self.value_warmup = integer("value_warmup", value_warmup, low=0)
        self._n_warmup_rollouts = 0
        self.privileged = check_privileged(privileged)
        self.execution = check_execution(execution)
        if _init_setup_model:
            if env is None:
                raise ValueError("env=None says nothing of what is observed; pass an environment.")
            self._setup_model()

    # -- what an algorithm supplies ---------------------------------------------------------------------------------

    @abstractmethod
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        """
        Loss of the actor; its gradient reaches the actor's parameters only.

        :param batch: Rows of the rollout
        :return: Loss, and quantities to log, among them ``approx_kl``: how far the policy has moved
        """

    def value_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        """
        Mean of ``(V - R)^2``, where it is larger of ``(V_old + clip(V - V_old) - R)^2``.

        :param batch: Rows of the rollout
        :return: Loss, and nothing to log
        """
        values = self.value(batch.observations)
        errors = (values - batch.returns).square()
        if self.clip_range_vf is not None:
            near = batch.values + (values - batch.values).clamp(-self.clip_range_vf, self.clip_range_vf)
            errors = th.maximum(errors, (near - batch.returns).square())
        if self.mask_timeouts:
            errors = errors.masked_fill(batch.truncated, 0.0)
        return errors.mean(), {}

    def advantages(self, batch: RolloutBatch) -> th.Tensor:
        """
        :param batch: Rows of the rollout
        :return: Their advantages as the actor's loss weighs them, ``(batch,)``
        """
        return standardized(batch.advantages) if self.normalize_advantage == "minibatch" else batch.advantages

    @override
    def parts(self) -> Sequence[Part]:
        adapts = None if self.desired_kl is None else self._adapt_learning_rates
        return [Part("actor", self.actor_loss, self.actor, before=adapts), Part("value", self.value_loss, self.value)]

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {
            "critics": False,
            "networks": {"value": {"kind": "value"}},
            "exploration_noise": 0.0,  # actions have to be those that are learned from
            "standardize_observations": "running" if self.normalize_observations else False,
            "privileged": self.privileged,
        }

    # -- the update -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """
        Update actor and value from the last rollout.

        :raises TrainingDiverged: If a loss is not finite
        """
        check_surroundings(self.device)
        self.policy.set_training_mode(True)
        rates = self._set_learning_rates()
        self.clip.fill_(scheduled("clip_range", self._clip_schedule, self._current_progress_remaining))
        buffer = self.rollout_buffer
        size = rows_of(self.batch_size, self.n_minibatches, buffer.size)
        log = MetricLog(self._n_updates + 1)
        for _ in range(self.n_epochs):
            order = self.randomness.permutation(buffer.size, "minibatches", like=buffer["rewards"])
            if not self._epoch(buffer.minibatches(size, order), log):
                break
        self._n_warmup_rollouts = max(0, self._n_warmup_rollouts - 1)
        means = log.means(
            f"timestep {self.num_timesteps}",
            lambda untrained: cause_of_rollout(self.returned(), rates, untrained),
        )
        self._report(means)
        self._report_values()
        if self.normalize_observations and not self._n_pretraining_updates:
            # at the very end: the next rollout and all of its updates see the same statistics
            update_observation_statistics(self.policy, buffer.flat("observations"))

    def _epoch(self, minibatches: Any, log: MetricLog) -> bool:
        for batch in minibatches:
            metrics = self.update(batch, ("value",) if self._n_warmup_rollouts else None)
            log.append(metrics)
            if self.target_kl is not None and "approx_kl" in metrics:
                average([metrics["approx_kl"]])
                if float(metrics["approx_kl"]) > 1.5 * self.target_kl:
                    return False
        return True

    def _report_values(self) -> None:
        values, returns = self.rollout_buffer["values"], self.rollout_buffer["returns"]
        shares = saturation(self.rollout_buffer["actions"])
        numbers = th.stack([(returns - values).var(), returns.var(), *shares.values()])
        unexplained, spread, *shown = numbers.tolist()  # the host waits once
        self.logger.record("train/explained_variance", 1.0 - unexplained / max(spread, 1e-12))
        for name, value in zip(shares, shown, strict=True):
            self.logger.record(f"train/{name}", value)

    # -- Stable-Baselines3's hooks ----------------------------------------------------------------------------------

    @override
    def _setup_model(self) -> None:
        self._check_settings()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if self.privileged is None:
            self.privileged = tuple(getattr(self.env, "privileged", ()))
        arguments = in_our_names(self._policy_arguments())
        policy: Any = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **arguments)
        self.policy = policy.to(self.device)
        self.actor, self.value = self.policy.actor, self.policy.value  # type: ignore[assignment]
        self._check_prediction()
        self._setup_collecting(steps_of(self.n_steps, self.n_envs))
        if self.env is not None:
            rows_of(self.batch_size, self.n_minibatches, self.rollout_buffer.size)
        self.randomness = Randomness()
        self.clip = th.zeros((), device=self.device)
        self._clip_schedule = FloatSchedule(self.clip_range)
        self._setup_update()

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Collect rollouts and learn from them, in turns.

        :param total_timesteps: Number of environment steps (summed over environments)
        :param callback: Callback(s) called at every step of all environments
        :param log_interval: Log every ``log_interval`` rollouts
        :param tb_log_name: Name of the TensorBoard run; ``None`` for the algorithm's
        :param reset_num_timesteps: Whether to restart counting steps
        :param progress_bar: Show a progress bar (needs tqdm and rich)
        :return: The trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=self._run_name(tb_log_name),
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @override
    def _excluded_save_params(self) -> list[str]:
        of_the_call = ["clip", "_clip_schedule", "_tensor_env", "_last_obs"]
        return [*super()._excluded_save_params(), "actor", "value", *of_the_call]
