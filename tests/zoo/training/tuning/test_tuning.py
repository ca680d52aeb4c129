"""Searches for hyperparameters: workers that share a study, trials that fail, and settings that all construct."""

import argparse
import contextlib
import inspect
import math
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_diffusion.taxonomy import available_methods, get_method
from tests.environments import PointEnv
from tests.zoo.processes import TINY, check, run, script, start
from zoo.training.manager import Manager
from zoo.training.options.registry import convert_params, register_algorithms
from zoo.training.tuning.report import draw_history, print_summary, train_command, write_report
from zoo.training.tuning.search import Search
from zoo.training.tuning.study import load_trial, open_storage, open_study, storage_lock

from ..options.test_hyperparams import load

register_algorithms()

TINY_POLICY = "policy_kwargs:dict(net_arch=[16],diffusion_steps=2)"
NOT_SAMPLED = (
    *("n_timesteps", "policy", "policy_kwargs", "buffer_size", "n_envs", "normalize", "env_wrapper", "env_kwargs"),
    *("preset", "n_steps"),
)
"""Entries of the files that the zoo reads, or that this test makes small."""


def make_search(objective: Any, n_trials: int = 1, storage: str | None = None, **kwargs: Any) -> Search:
    lock = storage_lock(storage)
    sampler, pruner = optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()
    study = open_study(storage, "demo", lock, sampler, pruner, {"algo": "qsm"})
    return Search(study, objective, lock, n_trials, **kwargs)


def make_manager(tmp_path: Path, **kwargs: Any) -> Manager:
    small = {"learning_starts": 10, "buffer_size": 50, "policy_kwargs": {"net_arch": [8], "diffusion_steps": 2}}
    options: dict[str, Any] = {
        "n_timesteps": 20,
        "n_eval_episodes": 1,
        "n_evaluations": 1,
        "sampler": "random",
        "hyperparams": small,
    }
    return Manager(argparse.Namespace(), "qsm", "Pendulum-v1", str(tmp_path / "logs"), **(options | kwargs))


# -- search spaces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [20, pytest.param(200, marks=pytest.mark.expensive)])
@pytest.mark.parametrize("name", [method.zoo_name for method in available_methods()])
def test_every_sample_of_a_search_space_constructs(name: str, n_samples: int) -> None:
    env = PointEnv()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    entries = list({str(entry): entry for entry in load(name).values()}.values())
    tiny: dict[str, Any] = {"net_arch": [4], "state_arch": [4], "diffusion_steps": 2}
    for number in range(n_samples):
        # what is not sampled comes from the file
        entry = {key: value for key, value in entries[number % len(entries)].items() if key not in NOT_SAMPLED}
        sampled = HYPERPARAMS_SAMPLER[name](study.ask(), 2, 1, {})
        settings = Manager._preprocess_schedules(entry | sampled)
        algorithm: Any = ALGOS[name]
        policy = next(iter(algorithm.policy_aliases))
        known = inspect.signature(algorithm.policy_aliases[policy]).parameters
        small = {key: value for key, value in tiny.items() if key in known}
        memory = {"buffer_size": 10} if get_method(name).setting != "on-policy" else {}
        algorithm(policy, env, device="cpu", policy_kwargs=small, **memory, **settings)


# -- a study shared by workers -----------------------------------------------------------------------------------------------

WORKER = """
import sys
import optuna
from zoo.training.tuning.search import Search
from zoo.training.tuning.study import open_study, storage_lock

storage = sys.argv[1]
lock = storage_lock(storage)
sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
study = open_study(storage, "demo", lock, sampler, pruner, {"algo": "qsm"})
Search(study, lambda trial: trial.suggest_float("x", 0, 1), lock, 1, max_total_trials=15).run()
"""


@pytest.mark.parametrize("storage", ["sqlite:///new/study.db", "new/study.log"])
def test_workers_share_trials_exactly(storage: str, tmp_path: Path) -> None:
    """Two processes that create the database together and have nothing to do but to race for trials."""
    workers = [start("-c", WORKER, storage, cwd=tmp_path) for _ in range(2)]
    outputs = ["".join(worker.communicate(timeout=200)) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    done = [int(number) for output in outputs for number in re.findall(r"^Trial (\d+): value", output, flags=re.MULTILINE)]
    assert sorted(done) == list(range(15))
    opened = open_storage(storage.replace("new", str(tmp_path / "new")))
    assert opened is not None
    study = optuna.load_study(study_name="demo", storage=opened)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 15


def test_threads_share_trials_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    search = make_search(lambda trial: trial.suggest_float("x", 0.0, 1.0), max_total_trials=3)
    ask, meeting = search.study.ask, threading.Barrier(2)

    def ask_late() -> optuna.Trial:
        # threads that have both counted, and not yet claimed, would meet here
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.3)
        return ask()

    monkeypatch.setattr(search.study, "ask", ask_late)
    search.run(n_jobs=2)
    assert not meeting.n_waiting and meeting.broken
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 3


@pytest.mark.expensive  # three processes; that workers share trials exactly is tested above
def test_two_trainings_share_a_study_and_its_best_trial_is_trained(tmp_path: Path) -> None:
    options = ["--algo", "qsm", "--env", "Pendulum-v1", *TINY, TINY_POLICY]
    study = ["--storage", "sqlite:///db/study.db", "--study-name", "demo"]
    search = ["-optimize", "--max-total-trials", "3", "--n-evaluations", "1", "--sampler", "random", *study]
    workers = [start(script("train"), *options, "--seed", str(seed), *search, cwd=tmp_path) for seed in (1, 2)]
    outputs = [worker.communicate(timeout=250) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    trials = optuna.load_study(study_name="demo", storage=f"sqlite:///{tmp_path}/db/study.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    # the worker that finished last has seen all trials
    out = next(out for out, _ in outputs if "(3 of 3 done, best" in out)
    summary = out[out.index("Study demo: 3 trials (3 complete)") :]
    best = max(trials, key=lambda trial: float(trial.value or -math.inf))
    assert f"Best trial: {best.number}, value {best.value:.2f}" in summary
    # a search leaves a report and no folder of a run
    left = sorted(path.name for path in (tmp_path / "logs" / "qsm").iterdir())
    assert left == ["report_Pendulum-v1_demo.csv", "report_Pendulum-v1_demo.png"]

    command = re.search(r"^Train with its settings: python (.*)$", summary, flags=re.MULTILINE)
    assert command
    check(run(*shlex.split(command.group(1)), cwd=tmp_path))
    config = tmp_path / "logs" / "qsm" / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml"
    saved = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader)
    settings = convert_params(best.params)
    assert {key: saved[key] for key in settings} == settings
    assert saved["buffer_size"] == 200  # -params of the search


# -- trials that fail -------------------------------------------------------------------------------------------------------


def test_any_exception_fails_its_own_trial_only(capsys: pytest.CaptureFixture[str]) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0.0, 1.0)
        if trial.number == 0:
            raise RuntimeError("out of memory\nand more")
        if trial.number == 1:
            return math.nan
        trial.report(math.nan if trial.number == 2 else -7.0, 1)
        if trial.number in (2, 3):
            raise optuna.TrialPruned
        return -5.0

    search = make_search(objective, n_trials=5)
    search.run()
    states = [trial.state.name for trial in search.study.trials]
    assert states == ["FAIL", "FAIL", "FAIL", "PRUNED", "COMPLETE"]
    assert capsys.readouterr().out.splitlines() == [
        "Trial 0: failed (RuntimeError: out of memory) (1 of 5 done, no complete trial yet)",
        "Trial 1: failed (ValueError: the mean reward is not a number) (2 of 5 done, no complete trial yet)",
        "Trial 2: failed (ValueError: the mean reward is not a number) (3 of 5 done, no complete trial yet)",
        "Trial 3: pruned at -7.00 (4 of 5 done, no complete trial yet)",
        "Trial 4: value -5.00 (5 of 5 done, best -5.00 in trial 4)",
    ]
    print_summary(search.study, [])
    assert capsys.readouterr().out.splitlines() == [
        "Study demo: 5 trials (1 complete, 1 pruned, 3 fail)",
        "Best trial: 4, value -5.00",
        f"    x: {search.study.trials[4].params['x']}",
        "The study was in memory; --storage and --study-name keep it for --trial-id.",
    ]


def test_an_interrupted_trial_is_not_left_running(capsys: pytest.CaptureFixture[str]) -> None:
    def objective(trial: optuna.Trial) -> float:
        raise KeyboardInterrupt

    search = make_search(objective, n_trials=3)
    search.run()
    (trial,) = search.study.trials
    assert (trial.state, trial.user_attrs["error"]) == (TrialState.FAIL, "interrupted")
    print_summary(search.study, [])
    assert capsys.readouterr().out.splitlines()[-1] == "No trial is complete, so there is no best one."


def test_an_error_of_the_training_is_no_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = ALGOS["qsm"]
    learn, calls = algorithm.learn, []

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise ValueError("actions are not finite")
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(algorithm, "learn", broken)
    storage = f"sqlite:///{tmp_path}/study.db"
    search = {"optimize_hyperparameters": True, "n_trials": 2, "storage": storage, "study_name": "demo"}
    manager = make_manager(tmp_path, **search, no_optim_plots=True)
    assert manager.setup_experiment() is None
    manager.hyperparameters_optimization()
    first, second = optuna.load_study(study_name="demo", storage=storage).trials
    assert (first.state, first.user_attrs["error"]) == (TrialState.FAIL, "ValueError: actions are not finite")
    assert second.state == TrialState.COMPLETE
    assert [path.name for path in (tmp_path / "logs" / "qsm").iterdir()] == ["report_Pendulum-v1_demo.csv"]


# -- settings of a trial -----------------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """A study with a complete, a pruned, a failed and a running trial of QSM."""
    name = f"sqlite:///{tmp_path}/study.db"

    def objective(trial: optuna.Trial) -> float:
        HYPERPARAMS_SAMPLER["qsm"](trial, 1, 1, {})
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise RuntimeError("broken")
        return 1.0

    search = make_search(objective, n_trials=3, storage=name)
    search.run()
    search.study.ask()
    return name


def test_the_command_for_the_best_trial_keeps_what_is_no_part_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "zoo/train.py"])
    typed = "zoo/train.py --algo qsm -n 50 --sampler=random -optimize --n-trials 3 --storage sqlite:///a.db -params tau:0.1"
    expected = "python zoo/train.py --algo qsm -n 50 --storage sqlite:///a.db -params tau:0.1 --study-name demo"
    assert train_command(typed.split(), "demo") == expected.split()
    assert train_command([*typed.split(), "--study-name=mine"], "mine")[-1] == "--study-name=mine"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "zoo.train"])
    assert train_command(typed.split(), "demo")[:4] == ["python", "-m", "zoo.train", "--algo"]


@pytest.mark.parametrize("trial_id", [0, 1])
def test_trial_settings_come_before_the_file_and_after_the_command_line(trial_id: int, storage: str, tmp_path: Path) -> None:
    manager = make_manager(tmp_path, storage=storage, study_name="demo", trial_id=trial_id, hyperparams={"tau": 0.5})
    _, saved = manager.read_hyperparameters()
    params = optuna.load_study(study_name="demo", storage=storage).trials[trial_id].params
    expected = {**convert_params(params), "tau": 0.5}
    assert {key: saved[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trial_id": 4}, "--trial-id 4: the study demo has 4 trials, numbered from 0"),
        ({"trial_id": -1}, "--trial-id -1: the study demo has 4 trials"),
        ({"trial_id": 2}, "--trial-id 2 is failed (RuntimeError: broken); choose one that is complete or pruned"),
        ({"trial_id": 3}, "--trial-id 3 is running"),
        ({"trial_id": 0, "study_name": "dem"}, "has no such study; it has demo"),
        ({"trial_id": 0, "study_name": None}, "--trial-id 0 needs --storage and --study-name"),
        ({"trial_id": 0, "storage": None}, "--trial-id 0 needs --storage and --study-name"),
        ({"trial_id": 0, "storage": "sqlite:///nowhere.db"}, "--storage sqlite:///nowhere.db does not exist"),
        ({"trial_id": 0, "storage": "study.db"}, "--storage study.db is no database; write sqlite:///study.db"),
    ],
)
def test_wrong_trials_are_explained(
    options: dict[str, Any], message: str, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = make_manager(tmp_path, **({"storage": storage, "study_name": "demo"} | options))
    with pytest.raises(SystemExit) as error:
        manager.read_hyperparameters()
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_study_belongs_to_an_algorithm(storage: str) -> None:
    with pytest.raises(ValueError, match="--study-name demo is a study of qsm, not of sdac; choose another name"):
        load_trial(storage, "demo", 0, "sdac")
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    with pytest.raises(ValueError, match="is a study of qsm"):
        open_study(storage, "demo", storage_lock(storage), sampler, pruner, {"algo": "sdac"})


def test_the_automatic_sampler_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(SystemExit):
        make_manager(tmp_path)._create_sampler("auto")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: --sampler auto needs the package optunahub")


def test_the_picture_shows_trials_and_the_best_so_far() -> None:
    values = [3.0, 1.0, 5.0, 4.0]
    search = make_search(lambda trial: values[trial.number], n_trials=4)
    search.run()
    (axes,) = draw_history(search.study).axes
    points, best = (np.asarray(line.get_xydata()) for line in axes.get_lines())
    assert points.tolist() == [[0.0, 3.0], [1.0, 1.0], [2.0, 5.0], [3.0, 4.0]]
    assert best[:, 1].tolist() == [3.0, 3.0, 5.0, 5.0, 5.0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trial", "mean evaluation return")


# -- importance of the parameters --------------------------------------------------------------------------------------------


def study_of(objective: Any, n_trials: int) -> optuna.Study:
    search = make_search(objective, n_trials=n_trials)
    search.run()
    return search.study


def one_matters(trial: optuna.Trial) -> float:
    trial.suggest_float("idle", 0.0, 1.0)
    if trial.number % 7 == 6:
        raise RuntimeError("fails now and then")
    if trial.number % 2:
        trial.suggest_float("sometimes", 0.0, 1.0)
    return -abs(trial.suggest_float("decisive", 1e-5, 1e-1, log=True) - 1e-3) * 1e3


def test_the_parameter_that_decides_is_the_most_important(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(one_matters, 40)
    capsys.readouterr()
    write_report(study, tmp_path / "report", picture=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["report.csv", "report.png", "report_importance.csv", "report_importance.png"]
    rows = (tmp_path / "report_importance.csv").read_text(encoding="utf-8").split()
    assert rows[0] == "parameter,importance"
    shares = {name: float(share) for name, share in (row.split(",") for row in rows[1:])}
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert set(shares) == {"idle", "decisive", "sometimes"}
    assert shares["decisive"] > 0.6
    assert math.isclose(sum(shares.values()), 1.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4].startswith("Importance of the parameters (share")
    assert printed[-3].split() == ["decisive", f"{shares['decisive']:.1%}"]


def infinite(trial: optuna.Trial) -> float:
    return -math.inf if trial.suggest_float("x", 0.0, 1.0) < 2.0 else 0.0


@pytest.mark.parametrize(
    ("objective", "n_trials", "reason"),
    [
        (one_matters, 9, "it takes 10 complete trials, the study has 8"),
        (one_matters, 0, "it takes 10 complete trials, the study has 0"),
        (infinite, 12, "it takes 10 complete trials, the study has 0"),
        (lambda trial: trial.suggest_float("x", 0.0, 1.0), 12, "fewer than two parameters differ between the trials"),
        (lambda trial: 1.0, 12, "fewer than two parameters differ between the trials"),
        (
            lambda trial: trial.suggest_float("x", 0.0, 1.0) + trial.suggest_categorical("y", [3]),
            12,
            "fewer than two parameters differ between the trials",
        ),
    ],
)
def test_importance_that_cannot_be_told_is_no_error(
    objective: Any, n_trials: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(objective, n_trials)
    write_report(study, tmp_path / "report", picture=True)
    assert capsys.readouterr().out.splitlines()[-1] == f"Importance of the parameters: {reason}."
    assert not list(tmp_path.glob("*importance*"))


def test_equal_values_have_an_importance_or_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flat(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0.0, 1.0)
        trial.suggest_categorical("y", [True, False])
        return 1.0

    write_report(study_of(flat, 12), tmp_path / "report", picture=False)
    assert "Importance of the parameters" in capsys.readouterr().out
