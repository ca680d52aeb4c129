"""How good the actions of a rollout were: generalised advantages, with the right value behind a time-out."""

import torch as th

from sb3_diffusion.processes import moments

TIMEOUT_BOOTSTRAPS = ("final_obs", "current", "next_obs", "off")
"""Whose value stands for the future where an episode was cut off, see :func:`following_values`."""


def following_values(
    rule: str,
    values: th.Tensor,
    next_values: th.Tensor,
    terminated: th.Tensor,
    truncated: th.Tensor,
    final_values: th.Tensor | None = None,
    final_valid: th.Tensor | None = None,
) -> th.Tensor:
    """
    The value that stands for what follows each step. All tensors have the shape ``(n_steps, n_envs)``.

    An environment that begins a new episode within the step returns an observation of the next episode, whose value has
    nothing to do with a time-out.

    :param rule: One of :data:`TIMEOUT_BOOTSTRAPS`, for time-outs: ``"final_obs"`` the value of the last observation where it
        is known, else of the one before; ``"current"`` always of the one before; ``"next_obs"`` of what the environment
        returned, the first observation of the next episode (the rule of the FlowRL paper's runs, for comparison only);
        ``"off"`` none, as if the episode had terminated
    :param values: Values of the observations
    :param next_values: Values of what the environment returned after each step
    :param terminated: Where an episode ended in a state that has no future, bool
    :param truncated: Where an episode was cut off, bool; never where ``terminated``
    :param final_values: Values of the last observations of episodes, ``None`` if nobody knows them
    :param final_valid: Where ``final_values`` means anything, bool
    :return: Values, 0 where there is no future
    """
    if rule == "off":
        return next_values.masked_fill(terminated | truncated, 0.0)
    behind = next_values
    if rule != "next_obs":
        behind = th.where(truncated, values, behind)
    if rule == "final_obs" and final_values is not None and final_valid is not None:
        behind = th.where(truncated & final_valid, final_values, behind)
    return behind.masked_fill(terminated, 0.0)


def generalized_advantages(
    rewards: th.Tensor, values: th.Tensor, following: th.Tensor, done: th.Tensor, gamma: float, gae_lambda: float
) -> th.Tensor:
    """
    Generalised advantage estimation (Schulman et al. 2016, eq. 16), backwards through a rollout:
    ``A_t = r_t + gamma * V'_t - V_t + gamma * lambda * (1 - done_t) * A_(t+1)``, 0 behind the last step.

    All tensors have the shape ``(n_steps, n_envs)``.

    :param rewards: Rewards
    :param values: Values of the observations
    :param following: Values of what follows, see :func:`following_values`
    :param done: Where an episode ended, bool
    :param gamma: Discount factor
    :param gae_lambda: Between 0 (one-step errors) and 1 (whole returns)
    :return: Advantages; the returns are ``advantages + values``
    """
    errors = rewards + gamma * following - values
    decay = gamma * gae_lambda * (~done).to(errors.dtype)
    advantages = th.empty_like(errors)
    carried = th.zeros_like(errors[0])
    for step in range(len(errors) - 1, -1, -1):
        th.addcmul(errors[step], decay[step], carried, out=advantages[step])
        carried = advantages[step]
    return advantages


def standardized(advantages: th.Tensor) -> th.Tensor:
    """
    Advantages of mean 0 and standard deviation 1 (of the population, as if there were no others), over all processes that
    train together.

    :param advantages: Of any shape
    """
    mean, variance = moments(advantages)
    return (advantages - mean) / (variance.sqrt() + 1e-8)
