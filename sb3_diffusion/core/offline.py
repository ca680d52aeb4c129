"""Learning from stored transitions: stages of updates, and going on with new experience."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import configure_logger
from typing_extensions import Self, override

from sb3_diffusion.checkpoints.old_names import old_modules
from sb3_diffusion.checkpoints.trainings.state import all_callbacks
from sb3_diffusion.clock import ShownClock, logged_time
from sb3_diffusion.core.arguments.data import check_same_spaces, spaces_in_place
from sb3_diffusion.core.attached_data import AttachedData
from sb3_diffusion.core.reporting.divergence import cause_of_data
from sb3_diffusion.core.reporting.metrics import MetricLog
from sb3_diffusion.core.reporting.progress import ProgressBar
from sb3_diffusion.core.saving import replaced
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.update.parts import Stage, divided
from sb3_diffusion.data.sampler import DatasetSampler
from sb3_diffusion.numeric import integer

# updates between two looks at the metrics of an accelerator, each of which waits for it
_LOOK_EVERY = 100


class LearnsFromData(AttachedData):
    """
    An off-policy algorithm that can learn from a data set, alone (:meth:`learn_offline`) or beside new experience.

    Its two clocks are ``num_timesteps``, the environment steps, and ``_n_updates``.
    """

    num_timesteps = ShownClock()  # type: ignore[assignment]
    prepared: dict[str, th.Tensor]
    """Quantities of every transition of the data ``(n, ...)`` that a stage prepared: they become the batches' ``extras``."""
    state_tables: dict[str, th.Tensor]
    """The same for every state of the data's table ``(n + m, ...)``, as ``<name>`` and ``next_<name>``. They may be large, and
    are in no checkpoint: see :meth:`_lacks_prepared`."""
    _n_offline_updates: int
    _logs_behind: int
    _stage: int
    _stage_updates: int
    _prepared_stage: int
    _holds_schedules: bool
    _metric_log: MetricLog | None

    # -- what a method supplies --------------------------------------------------------------------------------------

    def stages(self) -> Sequence[Stage]:
        """What :meth:`learn_offline` does, in its order; all parts at once where a method does not say otherwise."""
        return [Stage("training", tuple(part.name for part in self.parts()), 1)]

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn_offline(
        self,
        total_updates: int,
        callback: MaybeCallback = None,
        log_interval: int = 1000,
        tb_log_name: str | None = None,
        reset_num_updates: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Learn from the data set, without an environment.

        The method's stages follow each other, each with its share of the updates, its schedules from the beginning, and its
        progress bar. Callbacks are called at every update, and find the number of updates where they look for that of steps:
        ``CheckpointCallback(save_freq=10_000)`` saves every 10,000 updates.

        :param total_updates: Number of updates of all stages together
        :param callback: Callback(s) called at every update; ``EvalCallback`` needs a model with an environment
        :param log_interval: Log every ``log_interval`` updates
        :param tb_log_name: Name of the TensorBoard run; ``None`` for the algorithm's
        :param reset_num_updates: Whether to begin with the first stage; ``False`` goes on where the last call ended, with the
            stages that are left
        :param progress_bar: Show progress bars (needs tqdm)
        :return: The trained model
        :raises TrainingDiverged: If a loss is not finite
        """
        check_surroundings(self.device)
        total_updates = integer("total_updates", total_updates, low=0)
        integer("log_interval", log_interval, low=1)
        sampler, stages = self._data_sampler(), self.stages()
        if reset_num_updates:
            self._stage = self._stage_updates = 0
            self._forget_prepared()
        lengths = divided(total_updates, [stage.updates * (k >= self._stage) for k, stage in enumerate(stages)])
        lengths[self._stage] += self._stage_updates
        with self._update_clock():
            callback = self._setup_learn_offline(callback, tb_log_name, reset_num_updates)
            end = self._n_updates + total_updates
            given = {"self": self, "callback": callback, "total_timesteps": end, "log_interval": log_interval}
            callback.on_training_start(given, {})
            self._run_stages(stages, lengths, sampler, callback, log_interval, progress_bar)
            callback.on_training_end()
        return self

    def _run_stages(
        self,
        stages: Sequence[Stage],
        lengths: Sequence[int],
        sampler: DatasetSampler,
        callback: BaseCallback,
        log_interval: int,
        progress_bar: bool,
    ) -> None:
        self.bar = ProgressBar(progress_bar)
        # where it stands is told by the model alone: a callback may put it back to a checkpoint at the start of an update
        while self._move_on(lengths):
            callback.on_rollout_start()
            if not self._move_on(lengths):
                break
            stage, length = stages[self._stage], lengths[self._stage]
            if self._prepared_stage != self._stage or self._lacks_prepared():
                self._prepare(stage)
            self._current_progress_remaining = 1.0 - self._stage_updates / length
            self._offline_update(stage, sampler)
            self._stage_updates += 1
            self._n_offline_updates += 1
            self.bar.show(stage.name, self._stage_updates, length)
            if not callback.on_step():
                break
            callback.on_rollout_end()
            if self._n_updates % log_interval == 0:
                self._dump_offline(stage)
        self._look_at_metrics()
        self.bar.close()

    def _prepare(self, stage: Stage) -> None:
        if stage.prepare is not None:
            self.prepared, self.state_tables = {}, {}
            stage.prepare()
        self._prepared_stage = self._stage

    def _lacks_prepared(self) -> bool:
        """Whether a stage has to be prepared again, because a checkpoint was put back that knows of other ``state_tables``."""
        return False

    def _forget_prepared(self) -> None:
        self._prepared_stage, self.prepared, self.state_tables = -1, {}, {}

    def _move_on(self, lengths: Sequence[int]) -> bool:
        """Go to the stage that is due; whether there is one."""
        while self._stage_updates >= lengths[self._stage] and self._stage < len(lengths) - 1:
            self._stage, self._stage_updates = self._stage + 1, 0
        return self._stage_updates < lengths[self._stage]

    def _offline_update(self, stage: Stage, sampler: DatasetSampler) -> None:
        self.policy.set_training_mode(True)
        self._rates = self._set_learning_rates()
        size = stage.batch_size or self.batch_size
        batch = sampler.sample(size, self._vec_normalize_env, self.prepared, self.state_tables)
        if self._metric_log is None:
            self._metric_log = MetricLog(self._n_updates + 1)
        self._metric_log.append(self.update(batch, stage.parts))
        if self.device.type == "cpu" or self._n_updates % _LOOK_EVERY == 0:
            self._look_at_metrics()

    def _look_at_metrics(self) -> None:
        """Hand the metrics of the last updates to the logger, which keeps running means; end a training that diverged."""
        if self._metric_log is None:
            return
        log, self._metric_log = self._metric_log, None
        when = f"stage {self.stages()[self._stage].name!r}"
        for numbers in log.values(when, lambda untrained: cause_of_data(self._rates, untrained)):
            for name, value in numbers.items():
                self.logger.record_mean(f"train/{name}", value)

    def _dump_offline(self, stage: Stage) -> None:
        self._look_at_metrics()
        means = self.logger.name_to_value
        self.review({name.removeprefix("train/"): value for name, value in means.items() if name.startswith("train/")})
        elapsed = (time.time_ns() - self.start_time) / 1e9
        done = self._n_updates - self._n_updates_at_start
        self.logger.record("time/updates_per_second", int(done / max(elapsed, 1e-9)))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/stage", stage.name, exclude="tensorboard")
        self.logger.dump(step=self._n_updates)

    def _setup_learn_offline(self, callback: MaybeCallback, tb_log_name: str | None, reset: bool) -> BaseCallback:
        self.start_time = time.time_ns()
        self._n_updates_at_start = self._n_updates
        self._metric_log, self._rates, self._logs_behind = None, {}, 0
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, self._run_name(tb_log_name), reset)
        if self.env is None and any(isinstance(child, EvalCallback) for child in all_callbacks(callback)):
            raise ValueError(
                "EvalCallback compares its environment with the model's, which has none; pass env=... to the constructor "
                "beside dataset=..., or call set_env()."
            )
        return self._init_callback(callback, progress_bar=False)

    @contextmanager
    def _update_clock(self) -> Iterator[None]:
        self._shows_updates = True
        try:
            yield
        finally:
            self._shows_updates = False

    # -- going on online ---------------------------------------------------------------------------------------------

    def _check_online(self) -> None:
        """Refuse what has no meaning while experience is collected."""
        name = type(self).__name__
        if self.env is None and self.dataset is not None:
            raise ValueError(
                f"learn() collects experience, but this {name} has no environment; call set_env(), or learn_offline()."
            )
        if self._transform is None:
            raise ValueError(
                f"reward_transform={self.reward_transform!r} takes its numbers from data, which this {name} has not; pass "
                "dataset=..."
            )
        if self.n_steps > 1 and self._transform.shift != 0.0:
            raise ValueError(
                f"reward_transform={self._transform.name!r} adds {self._transform.shift:g} to every reward, which sums of "
                f"n_steps={self.n_steps} new rewards do not allow; use n_steps=1, or a transform that only scales."
            )

    @override
    def _sample_action(self, learning_starts: int, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        # what has learned from data acts as it has learned while the first experience is collected
        starts = 0 if self._n_offline_updates > 0 else learning_starts
        return super()._sample_action(starts, *args, **kwargs)

    @override
    def _setup_learn(self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any) -> Any:
        # logged into the same files, what follows comes behind the updates
        goes_on = self._custom_logger or not (args[0] if args else kwargs.get("reset_num_timesteps", True))
        self._logs_behind = self._n_offline_updates if goes_on else 0
        return super()._setup_learn(total_timesteps, callback, *args, **kwargs)

    @override
    def dump_logs(self) -> None:
        start = self._num_timesteps_at_start + self._logs_behind
        with replaced(self, {"num_timesteps": logged_time(self), "_num_timesteps_at_start": start}):
            super().dump_logs()

    @override
    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        if not self._holds_schedules:
            super()._update_current_progress_remaining(num_timesteps, total_timesteps)

    @classmethod
    @override
    def load(  # type: ignore[override]  # the rest as there
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        See :meth:`~sb3_diffusion.core.algorithm.DiffusionAlgorithm.load`. What learned from data fits every environment whose
        spaces have the same shapes, since a file of transitions does not tell the precision of the numbers. As in the
        constructor, ``env`` may be the id of a registered environment.
        """
        if env is not None:
            env = cls._wrap_env(maybe_make_env(env, 0))
            custom_objects = custom_objects or {}
            with old_modules():
                custom_objects = spaces_in_place(path, env, custom_objects) | custom_objects
        return super().load(path, env, device, custom_objects, **kwargs)

    @override
    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        Go on with another environment.

        :param env: The environment, or its id if it is registered
        :param force_reset: Whether to reset it before training goes on
        """
        wrapped = self._wrap_env(maybe_make_env(env, self.verbose), self.verbose)
        if self.env is None and self.dataset is not None:
            # a file of transitions does not tell the type of the numbers, and often no bounds
            check_same_spaces(self, self.dataset, wrapped)
            spaces = {"observation_space": wrapped.observation_space, "action_space": wrapped.action_space}
            vars(self).update(spaces)
        super().set_env(wrapped, force_reset)

    def _setup_offline(self) -> None:
        """Attach the data, and give every attribute of this class a value that a file may lack."""
        self._attach_dataset()
        counters = ("_stage", "_stage_updates", "_n_offline_updates", "_logs_behind")
        defaults: dict[str, Any] = {**dict.fromkeys(counters, 0), "_holds_schedules": False}
        of_the_call = {"_prepared_stage": -1, "prepared": {}, "state_tables": {}, "_metric_log": None}
        self.__dict__ = {**defaults, **vars(self), **of_the_call}

    @override
    def _excluded_save_params(self) -> list[str]:
        of_the_call = ["_metric_log", "_rates", "_n_updates_at_start", "_shows_updates", "bar"]
        prepared = ["_prepared_stage", "prepared", "state_tables"]
        return [*super()._excluded_save_params(), "dataset", "_sampler", "_transform", *of_the_call, *prepared]
