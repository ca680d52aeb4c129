"""How values of several candidates by several critics become one value of a state: over the candidates, then the critics."""

import torch as th

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real

ENSEMBLE_RULES = ("lcb", "min", "convex", "random_convex")


def check_rule(rule: str, rho: float) -> tuple[str, float]:
    """
    :param rule: Value of the argument ``target_reduction``, one of :data:`ENSEMBLE_RULES`
    :param rho: Value of the argument ``rho``
    :return: The same values
    :raises ValueError: If there is no such rule, or its number is out of range
    """
    rule = choice("target_reduction", rule, ENSEMBLE_RULES)
    if rule == "convex":
        return rule, real("rho", rho, 0, 1, remedy="it is the share of the smallest value, 1 is target_reduction='min'")
    return rule, real("rho", rho, low=0, remedy="larger is more pessimistic")


def state_values(values: th.Tensor, rule: str, rho: float, best: bool, randomness: Randomness, label: str) -> th.Tensor:
    """
    One value of a state: each critic takes the mean of its candidates or the best of them, and only then the critics are
    reduced. A maximum behind the reduction would find the candidate that is overestimated most.

    :param values: Values ``(n_critics, batch, n_candidates)``
    :param rule: ``"lcb"`` the mean over the critics less ``rho`` of their standard deviations, ``"min"`` the smallest,
        ``"convex"`` ``rho`` of the smallest and the rest of the largest, ``"random_convex"`` a mean with random weights
    :param rho: Number of the rule
    :param best: Whether a critic takes its best candidate
    :param randomness: Source of the random weights
    :param label: Name of their draw
    :return: Values ``(batch,)``
    """
    by_critic = values.amax(2) if best else values.mean(2)
    if rule == "min":
        return by_critic.amin(0)
    if rule == "convex":
        return rho * by_critic.amin(0) + (1.0 - rho) * by_critic.amax(0)
    if rule == "random_convex":
        weights = randomness.uniform(by_critic.shape, label, like=by_critic)
        return (by_critic * weights / (weights.sum(0) + 1e-6)).sum(0)
    # of the critics there are, not of a population that they were drawn from
    return by_critic.mean(0) - rho * by_critic.std(0, correction=0)
