"""Which of its two clocks an algorithm shows: environment steps, or updates while it learns from data."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm


class ShownClock:
    """
    The attribute ``num_timesteps`` of an algorithm.

    Callbacks, progress and logs of Stable-Baselines3 follow this number. While ``learn_offline`` runs, when no environment
    steps, it shows the number of updates instead; what is stored, and what files keep, are always the environment steps.
    """

    def __get__(self, model: BaseAlgorithm | None, owner: type | None = None) -> Any:
        if model is None:
            return self
        attributes = vars(model)
        try:
            return attributes["_n_updates" if attributes.get("_shows_updates") else "num_timesteps"]
        except KeyError:
            raise AttributeError(f"{type(model).__name__} has no num_timesteps yet.") from None

    def __set__(self, model: BaseAlgorithm, steps: int) -> None:
        vars(model)["num_timesteps"] = steps


def environment_steps(model: BaseAlgorithm) -> int:
    """
    :param model: An algorithm, of ours or of Stable-Baselines3
    :return: Its environment steps, whichever clock it shows
    """
    return int(vars(model)["num_timesteps"])


def shows_updates(model: BaseAlgorithm) -> bool:
    """
    :param model: An algorithm
    :return: Whether it is learning from data
    """
    return bool(vars(model).get("_shows_updates"))


def logged_time(model: BaseAlgorithm) -> int:
    """
    :param model: An algorithm, of ours or of Stable-Baselines3
    :return: What its logs have on their time axis: the clock that it shows, behind the updates in the same files
    """
    return model.num_timesteps + int(vars(model).get("_logs_behind", 0))
