"""The training loop of every off-policy algorithm, online and on stored data; a subclass supplies the losses."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from typing_extensions import Self, override

from sb3_diffusion.core.arguments.algorithm import check_norm, check_seed, check_verbose
from sb3_diffusion.core.arguments.data import Dataset, check_transform
from sb3_diffusion.core.arguments.off_policy import check_fraction, check_train_freq
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.model_buffer import check_environments
from sb3_diffusion.core.offline import LearnsFromData
from sb3_diffusion.core.reporting.divergence import likely_cause
from sb3_diffusion.core.reporting.metrics import MetricLog, Metrics, saturation
from sb3_diffusion.core.saving import replaced
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.update.execution import check_execution
from sb3_diffusion.core.update.graphs import CudaGraphActing
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.rewards import RewardTransform
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import check_no_unknown
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.values.critic import ObservationCritic


class OffPolicyDiffusion(LearnsFromData):
    """
    Base class of the off-policy algorithms.

    :param policy: ``"DiffusionPolicy"``, which picks the features extractor from the observation space; SB3's
        ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, which name the same policy with the features extractor that
        they have in SB3; or a subclass
    :param env: The environment, or its id if it is registered; ``None`` to learn from ``dataset`` alone, whose spaces are used
    :param learning_rate: Learning rate of actor and critics: a float, or a function of the remaining progress (1 to 0)
    :param buffer_size: Size of the replay buffer in transitions
    :param learning_starts: Steps of uniformly random actions before the first update
    :param batch_size: Transitions per update
    :param tau: Rate of the target critics: ``target = tau * critic + (1 - tau) * target``
    :param gamma: Discount factor
    :param train_freq: Update every ``train_freq`` steps, or ``(n, "step")`` or ``(n, "episode")``
    :param gradient_steps: Updates per rollout; -1 for as many as transitions were collected
    :param action_noise: Noise added to the actions on top of the method's own exploration
    :param replay_buffer_class: Replay buffer, such as ``HerReplayBuffer``; ``None`` selects a
        :class:`~sb3_diffusion.data.replay.TensorReplayBuffer`
    :param replay_buffer_kwargs: Its keyword arguments
    :param optimize_memory_usage: Store each observation once (see SB3's ``ReplayBuffer``)
    :param n_steps: Number of steps of the bootstrapped return
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param actor_learning_rate: Learning rate of the actor if it differs
    :param critic_learning_rate: Learning rate of the critics if it differs
    :param max_grad_norm: Clip the norm of each network's gradient, ``None`` for no clipping
    :param execution: How the update runs: ``"eager"``, ``"compile"`` (``torch.compile``), ``"cuda_graph"``,
        or ``"auto"`` for the fastest that has been measured (eager)
    :param dataset: Stored transitions: an :class:`~sb3_diffusion.OfflineDataset`, or the path or name of one
        (:func:`~sb3_diffusion.load_dataset`). :meth:`learn_offline` learns from it, :meth:`learn` from it and from experience
    :param reward_transform: What is done to all rewards before they are learned from, by a name of
        :data:`~sb3_diffusion.data.rewards.REWARD_TRANSFORMS`; its numbers come from the data, and are saved with the agent
    :param normalize_observations: Whether the networks see observations standardised by mean and standard deviation of the
        data, which are saved with the weights
    :param offline_fraction: Share of the batches of :meth:`learn` that comes from the data set, between 0 and 1; ``"append"``
        for its share of all transitions
    :param stats_window_size: Window of the rollout statistics, in episodes
    :param tensorboard_log: Log folder for TensorBoard
    :param policy_kwargs: Arguments of the policy, see :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: Seed of all random generators
    :param device: Device of the networks (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    """

    actor: DiffusionActor
    actor_target: DiffusionActor | None
    critic: ObservationCritic
    critic_target: ObservationCritic

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 1,
        actor_learning_rate: float | Schedule | None = None,
        critic_learning_rate: float | Schedule | None = None,
        max_grad_norm: float | None = None,
        execution: str = "auto",
        dataset: Dataset = None,
        reward_transform: str | dict[str, Any] | RewardTransform = "none",
        normalize_observations: bool = False,
        offline_fraction: float | str = 0.5,
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
            policy,
            env,  # type: ignore[arg-type]  # None is Stable-Baselines3's for a model without environment
            check_schedule("learning_rate", learning_rate),
            integer("buffer_size", buffer_size, low=1),
            real("learning_starts", learning_starts, low=0),  # type: ignore[arg-type]  # 1e4 is as good as 10_000 here
            integer("batch_size", batch_size, low=1),
            real("tau", tau, 0, 1, remedy="1 copies the critics at every update"),
            real("gamma", gamma, 0, 1),
            check_train_freq(train_freq),
            integer("gradient_steps", gradient_steps, low=-1, remedy="-1 is for as many as transitions were collected"),
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=integer("n_steps", n_steps, low=1),
            policy_kwargs=policy_kwargs,
            stats_window_size=integer("stats_window_size", stats_window_size, low=1),
            tensorboard_log=tensorboard_log,
            verbose=check_verbose(verbose),
            device=device,
            seed=check_seed(seed),
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
        )
        self.policy_delay = integer("policy_delay", policy_delay, low=1, remedy="1 updates the actor at every update")
        self.actor_learning_rate = optional(check_schedule, "actor_learning_rate", actor_learning_rate)
        self.critic_learning_rate = optional(check_schedule, "critic_learning_rate", critic_learning_rate)
        self.max_grad_norm = check_norm(max_grad_norm)
        self.execution = check_execution(execution)
        self.dataset, self.dataset_identity = dataset, None  # type: ignore[assignment]
        self.reward_transform = check_transform(reward_transform)
        self.normalize_observations = normalize_observations
        self.offline_fraction = check_fraction(offline_fraction)
        if _init_setup_model:
            if env is None and dataset is None:
                raise ValueError(
                    "env=None says nothing of what is observed; pass an environment, or dataset=... to learn from."
                )
            self._setup_model()

    # -- what an algorithm supplies ---------------------------------------------------------------------------------

    @override
    def parts(self) -> Sequence[Part]:
        return [
            Part("critic", self.critic_loss, self.critic),
            Part("actor", self.actor_loss, self.actor, self.policy_delay),
        ]

    def target_actions(self, batch: Batch) -> th.Tensor:
        """
        Actions of the current policy at the next observations, for the bootstrapped value.

        :param batch: Batch of transitions
        :return: Actions ``(batch, action_dim)``
        """
        return self.actor.sample(self.actor.encode(batch.next_observations), self.randomness, "next_action")

    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Value of the next observations: the smallest target critic at one policy sample ``a'``.

        :param batch: Batch of transitions
        :return: Values ``(batch,)``, and quantities to log
        """
        actions = self.target_actions(batch)
        values = self.critic_target.q(actions, self.critic_target.encode(batch.next_observations)).amin(0)
        return values, saturation(actions)

    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Temporal-difference loss ``mean over critics and batch of (Q - y)^2`` with
        ``y = r + discount * V(s')`` and ``V`` from :meth:`next_values`.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        with th.no_grad():
            next_values, metrics = self.next_values(batch)
            target = batch.rewards + batch.discounts * next_values
        values = self.critic.q(batch.actions, self.critic.encode(batch.observations))
        loss = (values - target).square().mean()
        return loss, {"q_mean": values.detach().mean(), **metrics}

    @abstractmethod
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Loss of the actor; its gradient reaches the actor's parameters only.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """

    # -- the update -------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Sample batches from the replay buffer and update critics, actor and targets.

        :param gradient_steps: Number of updates
        :param batch_size: Transitions per update
        :raises TrainingDiverged: If a loss is not finite
        """
        check_surroundings(self.device)
        self.policy.set_training_mode(True)
        rates = self._set_learning_rates()
        log = MetricLog(self._n_updates + 1)
        for _ in range(gradient_steps):
            log.append(self.update(self.sample_batch(batch_size)))
        means = log.means(
            f"timestep {self.num_timesteps}",
            lambda untrained: likely_cause(self.replay_buffer, self._vec_normalize_env, rates, untrained),
        )
        self._report(means)

    @override
    def update_targets(self) -> None:
        """Move the target critics towards the critics at the rate ``tau``."""
        if self.critic_target is not self.critic:
            polyak_update(self.critic_target, self.critic, self.tau)

    # -- Stable-Baselines3's hooks ----------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self._setup_offline()
        self._check_settings()
        arguments = self._policy_arguments()
        # Stable-Baselines3 builds everything from its attributes; what is saved has to remain the user's own
        attributes = {"policy_kwargs": arguments, **self._buffer_attributes()}
        with replaced(self, attributes):
            super()._setup_model()
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self.actor_target = self.policy.actor_target
        self._standardize()
        self._check_prediction()
        self.randomness = Randomness()
        self._setup_update()
        if self.execution == "cuda_graph":
            self.policy.explore_graph = CudaGraphActing(self.policy.explore)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        continue_schedules: bool = False,
    ) -> Self:
        """
        Collect experience and train, on it and on the data set if there is one. After :meth:`learn_offline` the first
        ``learning_starts`` steps are taken by what was learned instead of at random.

        :param total_timesteps: Number of environment steps (summed over environments)
        :param callback: Callback(s) called at every step
        :param log_interval: Log every ``log_interval`` episodes
        :param tb_log_name: Name of the TensorBoard run; ``None`` for the algorithm's
        :param reset_num_timesteps: Whether to restart counting steps
        :param progress_bar: Show a progress bar (needs tqdm and rich)
        :param continue_schedules: Whether schedules stay where :meth:`learn_offline` has left them; they begin anew otherwise
        :return: The trained model
        """
        check_environments(self)
        self._check_online()
        self._holds_schedules = continue_schedules
        if reset_num_timesteps and not continue_schedules:
            self._current_progress_remaining = 1.0  # Stable-Baselines3 notes it after the first step
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
        return [*super()._excluded_save_params(), "actor", "actor_target", "critic", "critic_target"]
