"""Learning rates that fall during a training, where a number alone is given."""

import math

from stable_baselines3.common.type_aliases import Schedule

from sb3_diffusion.core.algorithm import DiffusionAlgorithm

DECAYS = ("cosine", "none")


class CosineDecay:
    """
    A learning rate that falls like half a cosine.

    :param schedule: The rate without it, as a function of the remaining progress
    :param share: How much of the half cosine the training runs through; with all of it the rate ends at zero
    """

    def __init__(self, schedule: Schedule, share: float = 1.0):
        self.schedule, self.share = schedule, share

    def __call__(self, progress_remaining: float) -> float:
        """The rate at a remaining progress, from 1 to 0."""
        left = self.share * progress_remaining + (1.0 - self.share)
        return self.schedule(progress_remaining) * 0.5 * (1.0 - math.cos(math.pi * left))


def is_number(model: DiffusionAlgorithm, part: str) -> bool:
    """
    :param model: An algorithm
    :param part: Name of a part
    :return: Whether its learning rate is a number, and neither a schedule of the user's nor one that a callback has set
    """
    rate = getattr(model, f"{part}_learning_rate", None)
    rate = model.learning_rate if rate is None else rate
    return not callable(rate) and part not in model._own_lr_schedules
