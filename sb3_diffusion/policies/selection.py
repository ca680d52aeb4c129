"""Which of several candidate actions is taken: how values become a choice."""

import torch as th


def best_candidates(candidates: th.Tensor, values: th.Tensor) -> th.Tensor:
    """
    The candidate with the largest value in every row.

    :param candidates: Actions ``(batch, n_candidates, action_dim)``
    :param values: Their values ``(batch, n_candidates)``
    :return: Actions ``(batch, action_dim)``
    """
    best = values.argmax(1)[:, None, None].expand(-1, 1, candidates.shape[-1])
    return candidates.gather(1, best).squeeze(1)
