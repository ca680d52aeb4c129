"""Arguments that may be functions of the remaining progress, such as learning rates."""

from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.numeric import real

_REMEDY = "it must not be negative, and may be a function of the remaining progress (1 to 0)"


def check_schedule(name: str, value: Any) -> float | Schedule:
    """
    :param name: Name of the argument
    :param value: A number that is not negative, or a function of the remaining progress
    :return: The same
    :raises TypeError: If it is neither
    :raises ValueError: If it is a number out of range
    """
    return value if callable(value) else real(name, value, low=0, remedy=_REMEDY)  # type: ignore[no-any-return]


def scheduled(name: str, schedule: Schedule, progress: float) -> float:
    """
    :param name: Name of the argument that the schedule was made of
    :param schedule: Function of the remaining progress
    :param progress: Remaining progress, from 1 to 0
    :return: Its value
    :raises ValueError: If that is negative, NaN or infinite
    """
    remedy = f"its schedule returned this at a remaining progress of {progress:g}"
    return real(name, schedule(progress), low=0, remedy=remedy)
