"""
Search for hyperparameters with a study of Optuna that several processes may share.

rl-zoo3 counts the trials of a study after each of its own, so that workers that finish together start too many, and most
exceptions end its search. Here a trial is claimed under a lock, and an exception fails its own trial only.
"""

import math
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sb3_diffusion.printable import printable

from .. import figures
from .importance import report_importance
from .options.commands import ZOO
from .options.hyperparameters import EXPRESSIONS
from .runs.trust import IMPORTED

SEARCH_OPTIONS = {
    **dict.fromkeys(["-optimize", "--optimize-hyperparameters", "--no-optim-plots"], True),
    **dict.fromkeys(["--n-trials", "--max-total-trials", "--n-jobs", "--sampler", "--pruner"], False),
    **dict.fromkeys(["--n-startup-trials", "--n-evaluations", "--optimization-log-path", "--trial-id"], False),
}
"""Options that only a search has, and whether they are flags."""


def learning_offline(algorithm: type) -> type:
    """
    :param algorithm: An algorithm that learns from data
    :return: The same for rl-zoo3, which knows ``learn`` alone: it learns from its data there
    """

    def learn(model: Any, total_updates: int, callback: Any = None) -> Any:
        return model.learn_offline(int(total_updates), callback=callback)

    return type(algorithm.__name__, (algorithm,), {"learn": learn, "__module__": algorithm.__module__})


SQLITE_TIMEOUT = 60
"""Seconds that a worker waits for another one that writes; SQLite's own default is too short for many workers."""


def storage_file(storage: str) -> Path | None:
    """
    :param storage: Value of ``--storage``
    :return: The file behind it, ``None`` if it is a database server
    :raises ValueError: If it is neither a URL nor a journal
    """
    if storage.endswith(".log"):
        return Path(storage)
    try:
        url = make_url(storage)
    except ArgumentError:
        message = "write sqlite:///study.db, the URL of another database, or the name of a journal, study.log"
        raise ValueError(f"--storage {storage} is no database; {message}") from None
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def open_storage(storage: str | None) -> BaseStorage | None:
    """
    :param storage: Value of ``--storage``
    :return: The storage, ``None`` for one in memory
    :raises ValueError: If it cannot be opened
    """
    if storage is None:
        return None
    file = storage_file(storage)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    if storage.endswith(".log"):
        return JournalStorage(JournalFileBackend(storage))
    kwargs = {"connect_args": {"timeout": SQLITE_TIMEOUT}} if file is not None else None
    try:
        return RDBStorage(storage, engine_kwargs=kwargs)
    except (SQLAlchemyError, ImportError) as error:
        raise ValueError(f"--storage {storage} cannot be opened: {error.__cause__ or error}") from error


def storage_lock(storage: str | None) -> AbstractContextManager[Any]:
    """
    What keeps workers from claiming trials, or creating the tables, at the same time: a lock beside the file, which works
    between processes. Workers that share a server have no common file, and may claim one trial more each.

    :param storage: Value of ``--storage``
    """
    file = storage_file(storage) if storage is not None else None
    if file is None:
        return threading.Lock()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.claim.lock")  # a journal has a .lock of its own


def load_trial(storage: str, study_name: str, trial_id: int, algo: str) -> dict[str, Any]:
    """
    Parameters of a trial.

    :param storage: Value of ``--storage``
    :param study_name: Name of the study
    :param trial_id: Number of the trial
    :param algo: Algorithm that is to be trained with them
    :raises ValueError: If there is no such study or trial, or it is one of another algorithm
    """
    file = storage_file(storage)
    if file is not None and not file.is_file():
        raise ValueError(f"--storage {storage} does not exist; name the database of the study")
    opened = open_storage(storage)
    assert opened is not None
    try:
        study = optuna.load_study(storage=opened, study_name=study_name)
    except KeyError:
        known = printable(", ".join(sorted(optuna.get_all_study_names(opened))) or "none", 500)
        raise ValueError(f"--study-name {study_name}: {storage} has no such study; it has {known}") from None
    check_algorithm(study, algo)
    trials = study.get_trials(deepcopy=False)
    if not 0 <= trial_id < len(trials):
        raise ValueError(f"--trial-id {trial_id}: the study {study_name} has {len(trials)} trials, numbered from 0")
    trial = trials[trial_id]
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        raise ValueError(f"--trial-id {trial_id} is {_state(trial)}; choose one that is complete or pruned")
    code = sorted(set(trial.params) & {*EXPRESSIONS, *IMPORTED, "policy"})
    if code:  # no search of ours or of rl-zoo3 draws them
        raise ValueError(f"--trial-id {trial_id} sets {code[0]}, which no search draws; nothing of the study was run")
    return trial.params


def check_algorithm(study: optuna.Study, algo: str) -> None:
    """
    :param study: A study
    :param algo: Algorithm that its trials are to train
    :raises ValueError: If the study is one of another algorithm
    """
    other = study.user_attrs.get("algo", algo)
    if other != algo:
        raise ValueError(
            f"--study-name {study.study_name} is a study of {printable(other, 100)}, not of {algo}; choose another name"
        )


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
        outcome = _state(trial)
        if trial.state == TrialState.COMPLETE:
            outcome = f"value {trial.value:.2f}"
        elif trial.state == TrialState.PRUNED and trial.value is not None:
            outcome += f" at {trial.value:.2f}"
        count, limit = self._progress(finished=True)
        best = best_trial(self.study)
        leader = f"best {best.value:.2f} in trial {best.number}" if best is not None else "no complete trial yet"
        print(f"Trial {trial.number}: {outcome} ({count} of {limit} done, {leader})", flush=True)


def _state(trial: FrozenTrial) -> str:
    """State of a trial in a sentence."""
    if trial.state == TrialState.FAIL:
        reason = str(trial.user_attrs.get("error", "unknown reason")).splitlines() or [""]
        return f"failed ({printable(reason[0], 300)})"
    return trial.state.name.lower()


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The best of the complete trials, ``None`` as long as there is none."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(trials, key=lambda trial: trial.value if trial.value is not None else -math.inf, default=None)


def open_study(
    storage: str | None,
    study_name: str | None,
    lock: AbstractContextManager[Any],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
    attributes: dict[str, Any],
) -> optuna.Study:
    """
    Create a study, or join it if it exists.

    :param storage: Value of ``--storage``
    :param study_name: Its name, ``None`` for a new one
    :param lock: See :func:`storage_lock`
    :param sampler: Where settings come from
    :param pruner: What ends bad trials early
    :param attributes: Stored with a new study; ``"algo"`` among them
    :raises ValueError: If the study exists and is one of another algorithm
    """
    with lock:
        study = optuna.create_study(
            storage=open_storage(storage),
            study_name=study_name,
            sampler=sampler,
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
        check_algorithm(study, attributes["algo"])
        for key in sorted(attributes.keys() - study.user_attrs.keys()):
            study.set_user_attr(key, attributes[key])
    return study


def print_summary(study: optuna.Study, train: list[str]) -> None:
    """
    Print how many trials ended how, the best one, and how to train with its settings.

    :param study: The study
    :param train: Command that trains with a trial's settings, without its number; empty if the study is in memory
    """
    trials = study.get_trials(deepcopy=False)
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    states = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
    print(f"Study {printable(study.study_name, 200)}: {len(trials)} trials ({states or 'none'})")
    best = best_trial(study)
    if best is None:
        print("No trial is complete, so there is no best one.")
        return
    print(f"Best trial: {best.number}, value {best.value:.2f}")
    for key, value in best.params.items():
        print(f"    {printable(key, 200)}: {printable(value, 200)}")
    if train:
        print(f"Train with its settings: {shlex.join([*train, '--trial-id', str(best.number)])}")
    else:
        print("The study was in memory; --storage and --study-name keep it for --trial-id.")


def write_report(study: optuna.Study, path: Path, *, picture: bool) -> None:
    """
    Write all trials as csv, their values as a picture, and how much each parameter mattered.

    :param study: The study
    :param path: Where, without suffix
    :param picture: Whether to draw the picture too
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    study.trials_dataframe().to_csv(f"{path}.csv")
    print(f"Report written to {path}.csv")
    if picture and best_trial(study) is not None:
        figures.save(draw_history(study), Path(f"{path}.png"))
        print(f"Picture drawn as {path}.png")
    report_importance(study, path, picture=picture)


def draw_history(study: optuna.Study) -> Figure:
    """The value of every complete trial, and the best one so far."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    numbers, values = [trial.number for trial in trials], [float(trial.value or 0.0) for trial in trials]
    best = [max(values[: index + 1]) for index in range(len(values))]
    figure = Figure(figsize=(6.2, 3.5), layout="constrained")
    axes = figure.add_subplot()
    figures.value_axes(axes, study.study_name, "mean evaluation return")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style = figures.line_style(0)
    axes.plot(numbers, values, "o", color=style["color"], markersize=5, label="complete trial")
    style = figures.line_style(1)
    axes.step(
        [*numbers, len(study.get_trials(deepcopy=False)) - 1], [*best, best[-1]], where="post", label="best so far", **style
    )
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def train_command(argv: Sequence[str], study_name: str) -> list[str]:
    """
    Turn the command of a search into one that trains with settings of its study.

    :param argv: The command, without the interpreter
    :param study_name: Name of the study, which need not have been given
    """
    program = ["-m", f"{ZOO}.train"] if "-m" in sys.orig_argv else [argv[0]]
    command, is_value = ["python", *program], False
    for word in argv[1:]:
        option, assignment, _ = word.partition("=")
        if is_value:
            is_value = False
        elif option in SEARCH_OPTIONS:
            is_value = not assignment and not SEARCH_OPTIONS[option]
        else:
            command.append(word)
    named = any(word.partition("=")[0] == "--study-name" for word in command)
    return command if named else [*command, "--study-name", study_name]
