"""The training loop of every online off-policy algorithm; a subclass supplies the losses."""

import inspect
import io
import math
import zipfile
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import Self

from sb3_diffusion.checkpoints.agents import description_members, write_file
from sb3_diffusion.core.arguments import check_schedule, check_train_freq, complete_signature, scheduled
from sb3_diffusion.core.compilation import CudaGraphActing, Loss, check_execution, make_update, set_learning_rate
from sb3_diffusion.core.metrics import MetricLog, Metrics
from sb3_diffusion.core.model_buffer import ModelBuffer, check_buffer_kwargs, check_environments
from sb3_diffusion.core.spaces import check_action_space, check_observation_space
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.targets import follow
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.replay import TensorReplayBuffer, default_buffer_class
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import check_no_unknown
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.actor import DiffusionActor
from sb3_diffusion.policies.critic import CriticEnsemble
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.names import POLICIES


class OffPolicyDiffusion(OffPolicyAlgorithm):
    """
    Base class of the online off-policy algorithms.

    :param policy: ``"DiffusionPolicy"``, which picks the features extractor from the observation space; SB3's
        ``"MlpPolicy"``, ``"CnnPolicy"`` or ``"MultiInputPolicy"``, which name the same policy with the features extractor that
        they have in SB3; or a subclass
    :param env: The environment, or its id if it is registered
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
    :param stats_window_size: Window of the rollout statistics, in episodes
    :param tensorboard_log: Log folder for TensorBoard
    :param policy_kwargs: Arguments of the policy, see :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    :param verbose: 0 no output, 1 info messages, 2 debug messages
    :param seed: Seed of all random generators
    :param device: Device of the networks (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES
    policy: DiffusionPolicy
    prediction: str = "noise"
    """What the actor's network has to predict for the method's losses (``prediction`` of the process)."""
    actor: DiffusionActor
    actor_target: DiffusionActor | None
    critic: CriticEnsemble
    critic_target: CriticEnsemble
    replay_buffer = ModelBuffer()  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str,
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
            env,
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
            verbose=verbose,
            device=device,
            seed=None if seed is None else integer("seed", seed, 0, 2**32 - 1),
            sde_support=False,
            support_multi_env=True,
            supported_action_spaces=(spaces.Box,),
        )
        self.policy_delay = integer("policy_delay", policy_delay, low=1, remedy="1 updates the actor at every update")
        self.actor_learning_rate = optional(check_schedule, "actor_learning_rate", actor_learning_rate)
        self.critic_learning_rate = optional(check_schedule, "critic_learning_rate", critic_learning_rate)
        if max_grad_norm != math.inf:  # measures the norm and clips nothing
            max_grad_norm = optional(real, "max_grad_norm", max_grad_norm, above=0, remedy="None is for no clipping")
        self.max_grad_norm = max_grad_norm
        self.execution = check_execution(execution)
        if _init_setup_model:
            self._setup_model()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the complete constructor in ``help()``, editors and the documentation, not ``**kwargs``."""
        super().__init_subclass__(**kwargs)
        parent = next(base for base in cls.__mro__[1:] if issubclass(base, OffPolicyDiffusion))
        cls.__signature__ = complete_signature(cls.__init__, parent)  # type: ignore[attr-defined]

    # -- what an algorithm supplies ---------------------------------------------------------------------------------

    def policy_settings(self) -> dict[str, Any]:
        """Arguments of the policy that the method prescribes; ``policy_kwargs`` override them."""
        return {}

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
        return self.critic_target.q(actions, self.critic_target.encode(batch.next_observations)).amin(0), {}

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
        return loss, {"critic_loss": loss.detach(), "q_mean": values.detach().mean(), **metrics}

    @abstractmethod
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Loss of the actor; its gradient reaches the actor's parameters only.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log (``"actor_loss"`` among them)
        """

    def after_update(self, batch: Batch) -> Metrics:
        """
        What happens after the networks' update, outside compiled code and CUDA graphs (e.g. rare temperature updates).

        :param batch: Batch of transitions
        :return: Quantities to log
        """
        return {}

    def review(self, means: dict[str, float]) -> None:
        """
        Look at the logged quantities after a call of :meth:`train`, e.g. to warn of settings that do not fit.

        :param means: Mean of every quantity over the updates of the call
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
        log = MetricLog(self._n_updates + 1, self._set_learning_rates())
        for _ in range(gradient_steps):
            self._n_updates += 1
            samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            batch = Batch.from_replay(samples, self.gamma)
            metrics = self._run_update(batch, self._n_updates % self.policy_delay == 0)
            log.append({**metrics, **self.after_update(batch)})
        means = log.means(self.replay_buffer, self.num_timesteps, self._vec_normalize_env)
        self.review(means)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)

    def update(
        self, batch: Batch, with_actor: bool, critic_loss: Loss | None = None, actor_loss: Loss | None = None
    ) -> Metrics:
        """
        One update as a function of tensors, without host synchronisation.

        :param batch: Batch of transitions
        :param with_actor: Whether to update the actor too
        :param critic_loss: Stand-in for :meth:`critic_loss` (its compiled version)
        :param actor_loss: Stand-in for :meth:`actor_loss`
        :return: Quantities to log, as detached scalar tensors
        """
        loss, metrics = (critic_loss or self.critic_loss)(batch)
        self._step(self.critic.optimizer, loss, self.policy.critic_parameters)
        if with_actor:
            loss, actor_metrics = (actor_loss or self.actor_loss)(batch)
            self._step(self.actor.optimizer, loss, self.policy.actor_parameters)
            metrics = {**metrics, **actor_metrics}
        self.update_targets()
        return metrics

    def update_targets(self) -> None:
        """Move the target critics towards the critics at the rate ``tau``."""
        if self.critic_target is not self.critic:
            follow(self.critic_target, self.critic, self.tau)

    @property
    def optimizers(self) -> list[th.optim.Optimizer]:
        """Optimizers of the networks and of the learned multipliers."""
        learned: Any = self.policy.multipliers.values()
        return [self.actor.optimizer, self.critic.optimizer, *(multiplier.optimizer for multiplier in learned)]

    def _step(self, optimizer: th.optim.Optimizer, loss: th.Tensor, parameters: list[th.nn.Parameter]) -> None:
        # optimizers pass over what has no gradient: decay and momentum leave frozen parameters where they are
        optimizer.zero_grad(set_to_none=True)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if len(trained) < len(parameters) and not (trained and loss.requires_grad):
            return
        # restricting the inputs keeps every other network free of gradients, and saves computing them
        loss.backward(inputs=trained)
        self.limit_gradients(parameters)
        optimizer.step()

    def limit_gradients(self, parameters: list[th.nn.Parameter]) -> None:
        """
        Clip the gradients before a step.

        :param parameters: ``policy.actor_parameters`` or ``policy.critic_parameters``
        """
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    # -- Stable-Baselines3's hooks ----------------------------------------------------------------------------------

    def _setup_lr_schedule(self) -> None:
        check_schedule("learning_rate", self.learning_rate)  # somebody may have changed it
        super()._setup_lr_schedule()
        self._own_lr_schedules: dict[str, Schedule] = {}

    @property
    def actor_lr_schedule(self) -> Schedule:
        """Learning rate of the actor: what was assigned here, ``actor_learning_rate``, or else ``lr_schedule``."""
        return self._lr_schedule_of("actor", self.actor_learning_rate)

    @actor_lr_schedule.setter
    def actor_lr_schedule(self, schedule: Schedule) -> None:
        self._own_lr_schedules["actor"] = schedule

    @property
    def critic_lr_schedule(self) -> Schedule:
        """Learning rate of the critics: what was assigned here, ``critic_learning_rate``, or else ``lr_schedule``."""
        return self._lr_schedule_of("critic", self.critic_learning_rate)

    @critic_lr_schedule.setter
    def critic_lr_schedule(self, schedule: Schedule) -> None:
        self._own_lr_schedules["critic"] = schedule

    def _lr_schedule_of(self, network: str, rate: float | Schedule | None) -> Schedule:
        # looked up at every call, since callbacks replace each of the three
        common = self.lr_schedule if rate is None else FloatSchedule(rate)
        return self._own_lr_schedules.get(network, common)

    def _set_learning_rates(self) -> dict[str, float]:
        """Set and log what the schedules say now; the rates of the networks."""
        progress = self._current_progress_remaining
        self.logger.record("train/learning_rate", scheduled("learning_rate", self.lr_schedule, progress))
        rates = {}
        for name, schedule, optimizer in (
            ("actor", self.actor_lr_schedule, self.actor.optimizer),
            ("critic", self.critic_lr_schedule, self.critic.optimizer),
        ):
            rates[name] = scheduled(f"{name}_learning_rate", schedule, progress)
            if schedule is not self.lr_schedule:
                self.logger.record(f"train/{name}_learning_rate", rates[name])
            set_learning_rate(optimizer, rates[name])
        for name, options in self._policy_arguments.get("multipliers", {}).items():
            learned: Any = self.policy.multipliers[name]
            set_learning_rate(learned.optimizer, options["learning_rate"])
        return rates

    @property
    def _policy_arguments(self) -> dict[str, Any]:
        """The method's arguments of the policy, and the user's."""
        return {**self.policy_settings(), **self.policy_kwargs}

    def _setup_model(self) -> None:
        check_observation_space(self.observation_space)
        check_action_space(self.action_space)
        user_kwargs = self.policy_kwargs
        parameters = inspect.signature(self.policy_class).parameters
        takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        known = list(parameters)[3:]  # behind the spaces and the schedule, which SB3 passes
        unknown = [] if takes_all else [name for name in user_kwargs if name not in known]
        if unknown:
            raise ValueError(
                f"Unknown policy_kwargs {', '.join(unknown)}; {self.policy_class.__name__} knows {', '.join(known)}."
            )
        # SB3 builds the policy from self.policy_kwargs; what is saved has to remain the user's own
        self.policy_kwargs = self._policy_arguments
        if self.replay_buffer_class is None:
            self.replay_buffer_class = default_buffer_class(self.observation_space, self.n_steps)
        check_buffer_kwargs(self)
        user_buffer_kwargs, n_steps = self.replay_buffer_kwargs, self.n_steps
        if issubclass(self.replay_buffer_class, TensorReplayBuffer):
            # SB3 tells n_steps only to the buffer that it chooses itself, and warns about all others
            self.replay_buffer_kwargs = {"n_steps": n_steps, "gamma": self.gamma, **user_buffer_kwargs}
            self.n_steps = 1
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.replay_buffer_kwargs, self.n_steps = user_kwargs, user_buffer_kwargs, n_steps
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self.actor_target = self.policy.actor_target
        if self.actor.process.prediction != self.prediction:
            process = self.policy.constructor_arguments["process"]
            raise ValueError(
                f"process={process!r} has a network of {self.actor.process.prediction}, but the losses of "
                f"{type(self).__name__} are for one of {self.prediction}; leave process out of policy_kwargs."
            )
        self.randomness = Randomness()
        self._run_update = make_update(self, self.execution)
        if self.execution == "cuda_graph":
            self.policy.explore_graph = CudaGraphActing(self.policy.explore)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_observation_space(env.observation_space)  # Stable-Baselines3's wrappers fail on some without a reason
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"Policy {policy_name!r} unknown; known are {', '.join(self.policy_aliases)}.")
        return self.policy_aliases[policy_name]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Collect experience and train.

        :param total_timesteps: Number of environment steps (summed over environments)
        :param callback: Callback(s) called at every step
        :param log_interval: Log every ``log_interval`` episodes
        :param tb_log_name: Name of the TensorBoard run; ``None`` for the algorithm's
        :param reset_num_timesteps: Whether to restart counting steps
        :param progress_bar: Show a progress bar (needs tqdm and rich)
        :return: The trained model
        """
        check_surroundings(self.device)
        check_environments(self)
        if total_timesteps != math.inf:  # until a callback ends it
            total_timesteps = real("total_timesteps", total_timesteps, low=0)  # type: ignore[assignment]  # 1e6 is a number
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def save(
        self, path: str | Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
    ) -> None:
        """
        Save the model for :meth:`load`, and for :func:`~sb3_diffusion.checkpoints.agents.load_agent`, which runs nothing that
        is in the file.

        :param path: The file, or an open binary file
        :param exclude: Attributes to leave out, in addition to the default ones
        :param include: Attributes to keep that would be left out otherwise
        """
        content = io.BytesIO()
        super().save(content, exclude, include)
        with zipfile.ZipFile(content, "a") as archive:
            for name, data in description_members(self).items():
                archive.writestr(name, data)
        if isinstance(path, str | Path):
            write_file(path, content.getvalue())
        else:
            open_path(path, "w").write(content.getvalue())

    def _excluded_save_params(self) -> list[str]:
        rebuilt = ["actor", "actor_target", "critic", "critic_target", "randomness", "_run_update"]
        return [*super()._excluded_save_params(), *rebuilt, "_own_lr_schedules"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        learned = [f"policy.multipliers.{name}.optimizer" for name in self.policy.multipliers]
        return ["policy", "actor.optimizer", "critic.optimizer", *learned], []
