"""What episodes are worth beside their returns: on the scale of the data that an agent learned from, or solved or not."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sb3_diffusion import normalized_score

SUCCESS = "success"
"""Scale of tasks that are solved or not, where the data have none of returns: 100 is a solved episode."""


def solved(info: dict[str, Any]) -> bool | None:
    """
    :param info: Of the last step of an episode
    :return: Whether the task was solved, as goal environments (``is_success``) or OGBench and Adroit (``success``) say it;
        ``None`` if it is not said
    """
    said: Any = info.get("is_success", info.get("success"))
    return None if said is None or np.size(said) != 1 else bool(said)


def counting(successes: list[bool]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """
    :param successes: List to which every episode of an evaluation adds whether it was solved, if that is said
    :return: Callback of SB3's ``evaluate_policy``
    """

    def look(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"] and (said := solved(local["info"])) is not None:
            successes.append(said)

    return look


def score_of(model: Any, returns: Sequence[float], successes: Sequence[bool] = ()) -> dict[str, Any]:
    """
    :param model: An agent
    :param returns: Returns of its episodes
    :param successes: Whether these were solved, if that is said
    :return: What the episodes are on the scale of the agent's data, or whether they were solved where there is no such scale;
        nothing where neither is known
    """
    dataset = getattr(model, "dataset", None)
    reference = None if dataset is None else dataset.source.reference
    if reference is not None and len(returns):
        scores = normalized_score(returns, reference).tolist()
        return {"scale": reference.origin, "low": reference.low, "high": reference.high, "scores": scores}
    if successes and len(successes) == len(returns):
        return {"scale": SUCCESS, "scores": [100.0 * success for success in successes]}
    return {}


def in_words(score: dict[str, Any]) -> str:
    """
    :param score: Result of :func:`score_of`, not empty
    :return: A line about it
    """
    mean, spread = np.mean(score["scores"]), np.std(score["scores"])
    if score["scale"] == SUCCESS:
        return f"Success rate: {mean:.1f} %"
    return f"Normalised score ({score['scale']}'s scale): {mean:.1f} +/- {spread:.1f}"
