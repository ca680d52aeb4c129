"""Spaces that the algorithms can be trained in."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import check_for_nested_spaces

_OBSERVATIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_observation_space(observation_space: spaces.Space) -> None:
    """
    Refuse observations that no network reads.

    :param observation_space: Observation space
    :raises ValueError: Naming the space and the remedy
    """
    check_for_nested_spaces(observation_space)
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    for key, space in parts.items():
        where = f"observation space {space}" if key is None else f"entry {key!r} of the observation space, {space},"
        if not isinstance(space, _OBSERVATIONS):
            known = ", ".join(kind.__name__ for kind in _OBSERVATIONS)
            raise ValueError(
                f"The {where} cannot be read by a network; use one of {known} or a Dict of them "
                "(gymnasium.wrappers.FlattenObservation makes a Box of many others)."
            )
        if isinstance(space, spaces.Box) and (space.shape == () or 0 in space.shape):
            raise ValueError(f"The {where} has no axis or no entry; return at least one number, in the shape (1,).")
        start = getattr(space, "start", 0)
        if np.any(start):
            raise ValueError(f"The {where} does not count from 0; subtract {start} from what the environment returns.")


def check_action_space(space: spaces.Space) -> None:
    """
    Refuse actions in which training would fail later, or go wrong without a word.

    :param space: Action space
    :raises ValueError: Naming the space and the remedy
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"The action space {space} is no Box; these methods choose real numbers. "
            "Use an algorithm for discrete actions, such as Stable-Baselines3's DQN."
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"The action space {space} holds integers, to which actions between its bounds would be cut off; "
            "declare a float32 Box and round the action in the environment's step()."
        )
    if 0 in space.shape:
        raise ValueError(f"The action space {space} is empty; it needs at least one number.")
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high - space.low
    if not np.isfinite(width).all():
        raise ValueError(
            f"The action space {space} has no finite width; give it finite bounds and stretch the action in step()."
        )
    if not (width > 0).all():
        raise ValueError(
            f"The action space {space} has entries whose bounds are equal, of which there is nothing to learn; "
            "leave them out of the space and put them in within the environment's step()."
        )


def interchangeable(first: spaces.Space, second: spaces.Space) -> bool:
    """
    :param first: A space
    :param second: Another one
    :return: Whether networks for one read the other: equal, or of equal shapes and both of real numbers, whose precision and
        bounds a file of transitions does not tell
    """
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        return first.spaces.keys() == second.spaces.keys() and all(
            interchangeable(part, second[key]) for key, part in first.spaces.items()
        )
    if not (isinstance(first, spaces.Box) and isinstance(second, spaces.Box)):
        return first == second
    real = all(np.issubdtype(space.dtype, np.floating) for space in (first, second))
    return first == second or (real and first.shape == second.shape)


def same_actions(first: spaces.Space, second: spaces.Space) -> bool:
    """
    :param first: Action space
    :param second: Another one
    :return: Whether they have the same shape and, but for rounding, the same bounds
    """
    if not (isinstance(first, spaces.Box) and isinstance(second, spaces.Box)) or first.shape != second.shape:
        return first == second
    return np.allclose(first.low, second.low) and np.allclose(first.high, second.high)
