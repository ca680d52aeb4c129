"""The study of a search: where it is kept, how processes share it, and its trials."""

import math
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sb3_diffusion.printable import printable

from ..options.hyperparameters import EXPRESSIONS
from ..runs.trust import IMPORTED

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
        raise ValueError(f"--trial-id {trial_id} is {state_of(trial)}; choose one that is complete or pruned")
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


def state_of(trial: FrozenTrial) -> str:
    """
    :param trial: A trial
    :return: Its state in a sentence
    """
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
