"""What was changed of a training while it ran: schedules that callbacks replaced, and parameters that were frozen."""

import warnings
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule

from sb3_diffusion.checkpoints.plain import NotPlain, from_plain, to_plain

SCHEDULES = ("lr_schedule", "actor_lr_schedule", "critic_lr_schedule", "_own_lr_schedules")
"""Attributes that are described here, and not with the rest of a model."""


def describe_changes(model: BaseAlgorithm) -> dict[str, Any]:
    """
    :param model: The algorithm
    :return: Plain data: names of the frozen parameters, and the schedules that are not those of the constructor's arguments
    """
    replaced = {f"{name}_lr_schedule": schedule for name, schedule in getattr(model, "_own_lr_schedules", {}).items()}
    if not _is_made_of(model.lr_schedule, model.learning_rate):
        replaced["lr_schedule"] = model.lr_schedule
    return {
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
        "schedules": {name: _describe(name, schedule) for name, schedule in replaced.items()},
    }


def restore_changes(model: BaseAlgorithm, changes: dict[str, Any] | None) -> None:
    """
    Make the changes again.

    :param model: The algorithm, with the arguments of its constructor restored
    :param changes: Result of :func:`describe_changes`; ``None`` in checkpoints of before
    """
    model._setup_lr_schedule()
    if changes is None:
        return
    frozen = set(changes["frozen"])
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, description in changes["schedules"].items():
        if description is None:
            warnings.warn(
                f"model.{name} had been replaced by a function, which no checkpoint can hold: the training goes on with the "
                f"learning rate of the constructor; assign model.{name} again.",
                stacklevel=2,
            )
        else:
            setattr(model, name, from_plain(description["schedule"], name))


def _is_made_of(schedule: Any, rate: Any) -> bool:
    """Whether a schedule is the one of the constructor's argument."""
    if not isinstance(schedule, FloatSchedule):
        return False
    now, first = schedule.value_schedule, FloatSchedule(rate).value_schedule
    same_number = isinstance(now, ConstantSchedule) and isinstance(first, ConstantSchedule) and now.val == first.val
    return now is first or same_number


def _describe(name: str, schedule: Any) -> dict[str, Any] | None:
    try:
        return {"schedule": to_plain(schedule, name)}
    except NotPlain:
        return None
