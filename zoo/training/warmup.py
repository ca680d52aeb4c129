"""
The steps before the first update, when an off-policy agent acts at random (``learning_starts``).

The network that would be evaluated then has learned nothing, and a budget that is mostly warm-up is a common mistake.
"""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

LONG = 0.25
"""Share of the budget from which on a warm-up is worth a line."""


def is_warming_up(model: BaseAlgorithm) -> bool:
    """
    Whether the agent is still to make its first update, which evaluations wait for. (Deterministic actions draw no random
    numbers, so that the training is the same with and without them.) One that will make no update is not waited for.

    :param model: Agent in training
    """
    if not isinstance(model, OffPolicyAlgorithm):
        return False
    return model._n_updates == 0 and model.learning_starts < model._total_timesteps


def warm_up_notice(learning_starts: int, n_timesteps: int) -> str:
    """
    What to tell about a long warm-up.

    :param learning_starts: Random steps at the beginning, 0 for methods that have none
    :param n_timesteps: Steps of the training
    :return: One line, empty if the warm-up is short
    """
    if learning_starts <= LONG * n_timesteps:
        return ""
    remedy = "train longer with -n, or start earlier with -params learning_starts:N"
    if learning_starts >= n_timesteps:
        return f"No update at all: learning_starts is {learning_starts}, and the training has {n_timesteps} steps; {remedy}"
    return (
        f"No update before step {learning_starts + 1} of {n_timesteps}: the steps until then are random, "
        f"and evaluations begin after them; {remedy}"
    )


def announce_warm_up(learning_starts: int, n_timesteps: int) -> None:
    """
    Print the notice, if there is one.

    :param learning_starts: See :func:`warm_up_notice`
    :param n_timesteps: See :func:`warm_up_notice`
    """
    notice = warm_up_notice(learning_starts, n_timesteps)
    if notice:
        print(notice)
