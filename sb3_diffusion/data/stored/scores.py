"""Returns in the unit in which results on a data set are reported."""

from typing import Any

import numpy as np

from sb3_diffusion.data.stored.catalogue import find
from sb3_diffusion.data.stored.source import ReferenceScores
from sb3_diffusion.numeric import real


def normalized_score(returns: Any, reference: Any) -> Any:
    """
    ``scale * (R - low) / (high - low)`` for every episode. The score of an agent is the mean of those of its episodes.

    :param returns: Undiscounted returns of whole episodes, as the environment paid them: a number or an array
    :param reference: Where the scale comes from: an :class:`OfflineDataset` or its ``source``, a name such as
        ``"hopper-medium-v2"``, :class:`~sb3_diffusion.data.stored.source.ReferenceScores`, or a pair ``(low, high)``, whose
        scores are 0 and 100
    :return: Scores in the form of the returns: a float or an array
    :raises TypeError: If an argument is none of these
    :raises ValueError: If there are no reference scores, or they are no two different numbers
    """
    scores = find_reference(reference)
    values = _numbers(returns)
    result = scores.scale * (values - scores.low) / (scores.high - scores.low)
    return float(result) if result.ndim == 0 else result


def find_reference(reference: Any) -> ReferenceScores:
    """
    :param reference: See :func:`normalized_score`
    :return: The scale
    :raises ValueError: If there is none
    """
    # a name stands for a data set, a data set for its source, a source for its scale
    source = find(reference) if isinstance(reference, str) else getattr(reference, "source", reference)
    name = getattr(source, "name", "the data")
    reference = getattr(source, "reference", source)
    if reference is None:
        raise ValueError(f"{name} has no reference scores; pass the pair of returns (low, high) that shall be 0 and 100.")
    is_scale = isinstance(reference, ReferenceScores)  # it has more entries than what a user passes
    if not is_scale and (not isinstance(reference, tuple | list | np.ndarray) or len(reference) not in (2, 3)):
        raise TypeError(
            f"reference={reference!r} is no scale; pass the name of a data set, a data set, or a pair of returns (low, high)."
        )
    scores = reference if is_scale else ReferenceScores(*reference)
    low, high = real("reference low", scores.low), real("reference high", scores.high)
    if low == high:
        raise ValueError(f"reference low={low} and high={high} must differ; pass the returns that shall be 0 and 100.")
    return scores


def _numbers(returns: Any) -> np.ndarray:
    try:
        return np.asarray(returns, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"returns={str(returns)[:100]!r} must be a number or an array of numbers; the reference is the second argument."
        ) from error
