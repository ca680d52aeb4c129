"""
How much each hyperparameter mattered in a study.

PED-ANOVA compares where the good trials lie with where all trials lie, one parameter at a time. Of Optuna's evaluators it is
the one that needs no further package.
"""

import csv
import math
import warnings
from pathlib import Path

import optuna
from matplotlib.figure import Figure
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from ... import figures

MIN_TRIALS = 10
"""Complete trials below which the numbers say nothing."""
GOOD_TRIALS = 5
"""Trials that count as good, or a tenth of all if that is more."""


def parameter_importance(study: optuna.Study) -> dict[str, float]:
    """
    :param study: A study that maximises a value
    :return: Share of each parameter, the largest first; together 1
    :raises ValueError: If they cannot be told; the message says why
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if len(trials) < MIN_TRIALS:
        raise ValueError(f"it takes {MIN_TRIALS} complete trials, the study has {len(trials)}")
    settings: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            settings.setdefault(name, set()).add(str(value))
    if sum(len(values) > 1 for values in settings.values()) < 2:
        raise ValueError("fewer than two parameters differ between the trials")
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, GOOD_TRIALS / len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about too few trials, which was dealt with
        found = get_param_importances(study, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    if not 0.0 < total < math.inf:
        raise ValueError("good trials have the same settings as the others")
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])}


def report_importance(study: optuna.Study, path: Path, *, picture: bool) -> None:
    """
    Print the importance of the parameters, and write it as csv and as a picture.

    :param study: The study
    :param path: Where, without suffix
    :param picture: Whether to draw the picture too
    """
    try:
        importance = parameter_importance(study)
    except ValueError as error:
        print(f"Importance of the parameters: {error}.")
        return
    print("Importance of the parameters (share of what tells good trials from the others):")
    width = max(map(len, importance))
    for name, share in importance.items():
        print(f"    {name:<{width}} {share:6.1%}")
    with Path(f"{path}_importance.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("parameter", "importance"), *importance.items()])
    if picture:
        figures.save(draw_importance(importance, study.study_name), Path(f"{path}_importance.png"))


def draw_importance(importance: dict[str, float], heading: str) -> Figure:
    """
    :param importance: See :func:`parameter_importance`
    :param heading: Above the bars
    """
    figure = Figure(figsize=(6.2, 0.9 + 0.32 * len(importance)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(heading)
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=figures.line_style(0)["color"])
    axes.set_xlim(0.0, 1.0)
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
