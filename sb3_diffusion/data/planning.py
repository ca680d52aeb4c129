"""Returns of stored episodes, in which a value may take the place of what really followed."""

import torch as th

from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.names import choice

LABEL_RULES = ("paper", "official")


def planned_returns(
    dataset: OfflineDataset, rewards: th.Tensor, gamma: float, values: th.Tensor | None = None, rule: str = "paper"
) -> th.Tensor:
    """
    Discounted returns, backwards through every episode. With values of states, the better of what followed and of the value
    counts at every step: planning within the data.

    ``"paper"``: ``R_i = r_i + gamma max(R_{i+1}, V(s_{i+1}))``; where an episode was cut, what followed is the value alone.
    ``"official"``, the authors' code: ``R_i = max(r_i + gamma R_{i+1}, V(s_i))``, which also raises the return of an action to
    the value of its own state, and takes nothing for what followed a cut.

    :param dataset: The transitions
    :param rewards: Their rewards, ``(n,)``
    :param gamma: Discount factor
    :param values: Values of all states of its table, ``(n + m,)``; ``None`` for the returns as they were, ended by cuts, too
    :param rule: One of :data:`LABEL_RULES`
    :return: Returns ``(n,)``
    :raises ValueError: If there is no such rule
    """
    choice("label_rule", rule, LABEL_RULES)
    returns = rewards.clone()
    lengths = dataset.episode_lengths()
    ends = lengths.cumsum(0) - 1  # the last row of every episode
    if values is not None:
        own, following = values[: len(rewards)], values[dataset.next_index]
        if rule == "paper":
            returns[ends] += gamma * ~dataset.terminated[ends] * following[ends]
        else:
            returns[ends] = th.maximum(returns[ends], own[ends])
    for step in range(1, int(lengths.max())):
        rows = ends[lengths > step] - step  # of all episodes that go back so far
        later = returns[rows + 1]
        if values is None:
            returns[rows] += gamma * later
        elif rule == "paper":
            returns[rows] += gamma * th.maximum(later, following[rows])
        else:
            returns[rows] = th.maximum(returns[rows] + gamma * later, own[rows])
    return returns
