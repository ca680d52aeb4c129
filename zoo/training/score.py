"""Returns on the scale of the data that an agent learned from."""

from typing import Any

from sb3_diffusion import normalized_score


def score_of(model: Any, returns: list[float]) -> dict[str, Any]:
    """
    :param model: An agent
    :param returns: Returns of its episodes
    :return: What the returns are on the scale of its data, if they have one
    """
    dataset = getattr(model, "dataset", None)
    reference = None if dataset is None else dataset.source.reference
    if reference is None or not returns:
        return {}
    scores = normalized_score(returns, reference).tolist()
    return {"scale": reference.origin, "low": reference.low, "high": reference.high, "scores": scores}
