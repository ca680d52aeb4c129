"""A callback that stores the complete state of a training, and continues from it."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_diffusion.checkpoints.trainings.state import TrainingState, constructor_arguments, why_not
from sb3_diffusion.checkpoints.trainings.store import Checkpoint, CheckpointStore
from sb3_diffusion.clock import environment_steps, shows_updates
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real

CLOCKS = ("steps", "updates")


class TrainingStopped(KeyboardInterrupt):
    """Ends ``learn()`` after :meth:`TrainingCheckpoints.request`; like a Ctrl-C, it is no error."""


class CannotContinue(ValueError):
    """A checkpoint does not belong to the training that shall continue from it; the message is one line."""


class TrainingCheckpoints(BaseCallback):
    """
    Stores everything that an interrupted training needs to continue as if nothing had happened (docs: guide/resume).

    A checkpoint is taken at the start of a rollout, the only moment at which nothing is half done, and at the end of the
    training; saving changes no random number. To continue, build the same environments, algorithm and callbacks, and call
    ``learn()`` with the same arguments and with ``resume=True`` here. With a larger number of steps it goes on beyond the end.
    Put this callback last in the list.

    :param folder: Folder of the checkpoints
    :param every: Steps of the clock between two checkpoints; 0 for none
    :param keep: Number of checkpoints to keep
    :param resume: Continue from the newest intact checkpoint, if there is one
    :param files: Files that belong to the training, such as the best model so far: stored with each checkpoint and put back
    :param max_share: Save less often where saving would take more than this share of the time; ``None`` for no such limit
    :param verbose: 1 reports from which step the training continues
    :param clock: What ``every`` counts: ``"steps"`` of the environments or ``"updates"``, for trainings on stored data
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 10_000,
        keep: int = 2,
        resume: bool = False,
        files: Sequence[str | Path] = (),
        max_share: float | None = 0.02,
        verbose: int = 1,
        clock: str = "steps",
    ):
        super().__init__(verbose)
        self.store = CheckpointStore(folder, keep)
        self.every = integer("every", every, low=0, remedy="0 writes no checkpoints")
        self.clock = choice("clock", clock, CLOCKS)
        self.resume = resume
        self.files = [Path(path) for path in files]
        self.max_share = optional(real, "max_share", max_share, above=0, remedy="None is for no limit")
        self.complete = False
        """Whether ``learn()`` came to its end."""
        self.stopped = False
        """Whether ``learn()`` was ended by :meth:`request`, with a checkpoint unless there was a reason to write none."""
        self._checkpoint: Checkpoint | None = None
        self._saved_at: tuple[int, int] | None = None
        self._not_before = 0.0
        self._n_rollouts = 0
        self._warned = False
        self._enabled = True
        self._requested = self._stop = self._rollout_ended = self._at_end = False

    @property
    def last_step(self) -> int | None:
        """Step of the newest checkpoint, ``None`` if there is none yet."""
        return None if self._checkpoint is None else self._checkpoint.step

    def request(self, *, stop: bool) -> None:
        """
        Ask for a checkpoint out of turn, at the start of the next rollout. Meant for handlers of signals: it only notes.

        :param stop: End the training after it, with :class:`TrainingStopped`. The agent is then the one of the checkpoint
        """
        self._requested = True
        self._stop = self._stop or stop

    def _on_training_start(self) -> None:
        reason = why_not(self.model)
        if reason is not None:
            if self.resume:
                raise ValueError(f"This training cannot be resumed: {reason}.")
            if self.every > 0:
                warnings.warn(f"No checkpoints to resume from are written: {reason}.", stacklevel=2)
            self._enabled = False
            return
        # what learn() made of its argument
        self.training_state = TrainingState(self.model, self.locals["callback"], self.files)
        self._log_interval = self.locals["log_interval"] if isinstance(self.model, OnPolicyAlgorithm) else None
        if self.resume:
            self._checkpoint, problems = self.store.latest()
            for problem in problems:
                self._say(problem)
            if self._checkpoint is None and problems:
                raise ValueError(f"No checkpoint in {self.store.folder} is intact.")
            # that of a training which came to its end: there is no rollout at whose start it could be put back
            if self._checkpoint is not None:
                now = self._checkpoint.updates if shows_updates(self.model) else self._checkpoint.step
                self._at_end = now >= self.locals["total_timesteps"]

    def _on_rollout_start(self) -> None:
        self._rollout_ended = False
        if not self._enabled or self._at_end:
            return
        if self.resume:
            self.resume = False
            self._restore()
        elif self._due() or (self._requested and self._may_save()):
            self._save()
        if self._stop and (self._saved_at == self._now() or self.every == 0):
            self._end()
        self._n_rollouts += 1

    def _on_rollout_end(self) -> None:
        self._rollout_ended = True

    def _on_step(self) -> bool:
        if self._stop and not self._enabled:
            self._end()
        return not self._at_end

    def _end(self) -> None:
        self.stopped = True
        raise TrainingStopped

    def _on_training_end(self) -> None:
        if self._at_end:
            self._restore()
        elif self._enabled and self.every > 0 and self._rollout_ended:  # otherwise a callback ended it in the middle of one
            self._save()
        self.complete = True

    def _may_save(self) -> bool:
        """On-policy algorithms count rollouts up to the next log line in a local variable."""
        return self.every > 0 and (self._log_interval is None or self._n_rollouts % self._log_interval == 0)

    def _now(self) -> tuple[int, int]:
        """Both clocks of the training: environment steps, updates. Nothing assumes that the first moves."""
        return environment_steps(self.model), getattr(self.model, "_n_updates", 0)

    def _due(self) -> bool:
        if self.every == 0:
            return False
        if self._saved_at is None:
            return True  # so that there is always something to continue from
        clock = CLOCKS.index("updates" if shows_updates(self.model) else self.clock)
        if self._now()[clock] - self._saved_at[clock] < self.every or not self._may_save():
            return False
        return time.monotonic() >= self._not_before

    def _save(self) -> None:
        start = time.monotonic()
        self._requested = False
        saved = None if self._checkpoint is None else (self._checkpoint.step, self._checkpoint.updates)
        if saved is not None and self._saved_at == saved == self._now():
            return  # it is there already
        self._saved_at = step, updates = self._now()
        extra = {"n_rollouts": self._n_rollouts, "n_calls": self.n_calls}
        extra["offline"] = shows_updates(self.model)
        try:
            parts = self.training_state.parts(self.store.folder, self._checkpoint, extra)
            self._checkpoint = self.store.save(step, parts, updates)
            self.training_state.written()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"No checkpoint could be written to {self.store.folder} ({error}); the training goes on, earlier "
                    "checkpoints are intact. Further failures are not reported.",
                    stacklevel=2,
                )
        if self.max_share is not None:
            end = time.monotonic()
            self._not_before = end + (end - start) / self.max_share

    def _restore(self) -> None:
        if self._checkpoint is None:
            self._say("There is no checkpoint yet, the training begins at step 0.")
            return
        same_phase = self.training_state.extra(self._checkpoint).get("offline", False) == shows_updates(self.model)
        if not same_phase and not shows_updates(self.model):
            self._say("The newest checkpoint is one of learn_offline(), which is over: learn() begins at step 0.")
            return
        asked = constructor_arguments(self.model)
        try:
            extra, lost = self.training_state.restore(self._checkpoint, callbacks=same_phase)
        except ValueError as error:
            raise CannotContinue(" ".join(str(error).split())) from error
        self.store.remove_newer(self._checkpoint)
        self._n_rollouts, self.n_calls = extra["n_rollouts"], extra["n_calls"]
        self.num_timesteps = self.model.num_timesteps
        self._saved_at = self._now()
        if self._log_interval is not None:
            _shift_iterations(self.logger, self._n_rollouts)
        self._say(f"Continuing at {'update' if shows_updates(self.model) else 'step'} {self.model.num_timesteps}.")
        stored = constructor_arguments(self.model)
        other = [f"{name} {stored[name]} (not {value})" for name, value in sorted(asked.items()) if stored.get(name) != value]
        if other:
            self._say(f"The settings are those of the checkpoint: {', '.join(other)}.")
        if lost:
            self._say(f"The state of the environments cannot be restored, new episodes begin: {'; '.join(lost[:3])}")

    def _say(self, text: str) -> None:
        if self.verbose > 0:
            print(text)


def _shift_iterations(logger: Logger, offset: int) -> None:
    """The number of the rollout is a local variable of ``learn()``, which starts at 0."""
    record = logger.record

    def shifted(key: str, value: Any, exclude: Any = None) -> None:
        record(key, value + offset if key == "time/iterations" else value, exclude)

    logger.record = shifted  # type: ignore[method-assign]
