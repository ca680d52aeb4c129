"""
The part of a search for hyperparameters that one process runs.

rl-zoo3 counts the trials of a study after each of its own, so that workers that finish together start too many, and most
exceptions end its search. Here a trial is claimed under a lock, and an exception fails its own trial only.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import best_trial, state_of


def learning_offline(algorithm: type) -> type:
    """
    :param algorithm: An algorithm that learns from data
    :return: The same for rl-zoo3, which knows ``learn`` alone: it learns from its data there
    """

    def learn(model: Any, total_updates: int, callback: Any = None) -> Any:
        return model.learn_offline(int(total_updates), callback=callback)

    return type(algorithm.__name__, (algorithm,), {"learn": learn, "__module__": algorithm.__module__})


class Search:
    """
    The part of a study that one process runs.

    :param study: The study
    :param objective: Trains with the settings of a trial and returns its value
    :param lock: See :func:`storage_lock`
    :param n_trials: Number of trials of this process
    :param max_total_trials: Number of trials of the study, instead of ``n_trials``
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Callable[[optuna.Trial], float],
        lock: AbstractContextManager[Any],
        n_trials: int,
        max_total_trials: int | None = None,
    ):
        self.study = study
        self.objective = objective
        self.lock = lock
        self.n_trials = n_trials
        self.max_total_trials = max_total_trials
        self._claimed = 0
        self._interrupted = False

    def run(self, n_jobs: int = 1) -> None:
        """
        Run trials until the number is reached, or the user interrupts.

        :param n_jobs: Number of threads
        """
        if n_jobs == 1:
            try:
                self._work()
            except KeyboardInterrupt:
                print("Interrupted")
            return
        with ThreadPoolExecutor(n_jobs) as pool:
            try:
                for future in [pool.submit(self._work) for _ in range(n_jobs)]:
                    future.result()
            except KeyboardInterrupt:
                self._interrupted = True
                print("Interrupted, waiting for the running trials")

    def _work(self) -> None:
        while (trial := self._claim()) is not None:
            self._run_trial(trial)

    def _claim(self) -> optuna.Trial | None:
        with self.lock:
            count, limit = self._progress()
            if count >= limit or self._interrupted:
                return None
            self._claimed += 1
            return self.study.ask()

    def _progress(self, *, finished: bool = False) -> tuple[int, int]:
        """Number of trials that were begun, or finished, and the number that was asked for."""
        if self.max_total_trials is None:
            return self._claimed, self.n_trials
        trials = self.study.get_trials(deepcopy=False)
        if finished:
            return sum(trial.state.is_finished() for trial in trials), self.max_total_trials
        # trials that somebody enqueued are still to be claimed
        return sum(trial.state != TrialState.WAITING for trial in trials), self.max_total_trials

    def _run_trial(self, trial: optuna.Trial) -> None:
        error: BaseException | None = None
        try:
            value = self.objective(trial)
            if math.isnan(value):
                raise ValueError("the mean reward is not a number")
            self.study.tell(trial, value)
        except optuna.TrialPruned:
            values = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values.values()
            # pruners take what is not a number for a bad value
            if any(map(math.isnan, values)):
                error = ValueError("the mean reward is not a number")
            else:
                self.study.tell(trial, state=TrialState.PRUNED)
        except Exception as caught:
            error = caught
        except KeyboardInterrupt:
            self._fail(trial, "interrupted")
            raise
        if error is not None:
            self._fail(trial, f"{type(error).__name__}: {error}")
        self._report(self.study.get_trials(deepcopy=False)[trial.number])

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr("error", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _report(self, trial: FrozenTrial) -> None:
        """One line: what came out, how far the search is, and the best trial."""
        outcome = state_of(trial)
        if trial.state == TrialState.COMPLETE:
            outcome = f"value {trial.value:.2f}"
        elif trial.state == TrialState.PRUNED and trial.value is not None:
            outcome += f" at {trial.value:.2f}"
        count, limit = self._progress(finished=True)
        best = best_trial(self.study)
        leader = f"best {best.value:.2f} in trial {best.number}" if best is not None else "no complete trial yet"
        print(f"Trial {trial.number}: {outcome} ({count} of {limit} done, {leader})", flush=True)
