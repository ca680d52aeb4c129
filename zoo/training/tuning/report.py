"""What a search found: the best trial, all of them as a table and a picture, and how to train with one."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import TrialState

from sb3_diffusion.printable import printable

from ... import figures
from ..options.commands import ZOO
from .importance import report_importance
from .study import best_trial

SEARCH_OPTIONS = {
    **dict.fromkeys(["-optimize", "--optimize-hyperparameters", "--no-optim-plots"], True),
    **dict.fromkeys(["--n-trials", "--max-total-trials", "--n-jobs", "--sampler", "--pruner"], False),
    **dict.fromkeys(["--n-startup-trials", "--n-evaluations", "--optimization-log-path", "--trial-id"], False),
}
"""Options that only a search has, and whether they are flags."""


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
