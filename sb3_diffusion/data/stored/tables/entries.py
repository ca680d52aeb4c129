"""How an observation is stored: float32, or uint8 for images, which have their channels first as networks read them."""

from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_diffusion.data.stored.tables.columns import Column, Columns


class Entry(NamedTuple):
    """
    An observation, or what a key of a Dict observation holds.

    :param shape: Shape of one
    :param dtype: float32 or uint8
    :param channels_last: Whether the channels of what was recorded have to be brought to the front
    """

    shape: tuple[int, ...]
    dtype: type
    channels_last: bool

    def stored(self, block: np.ndarray) -> np.ndarray:
        """
        :param block: What was recorded, ``(rows, ...)``
        :return: The same in the shape in which it is stored
        """
        block = block.transpose(0, 3, 1, 2) if self.channels_last else block
        return block.reshape(len(block), *self.shape)


def inferred_space(columns: Columns) -> spaces.Space:
    """
    :param columns: Observations
    :return: A space that holds them: without bounds, and that of images for uint8 in three axes
    """
    if isinstance(columns, dict):
        return spaces.Dict({key: inferred_space(column) for key, column in columns.items()})
    shape = columns.shape[1:] or (1,)
    if columns.dtype == np.uint8 and len(shape) == 3:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def stored_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: Space of what was recorded
    :return: Space of what is stored, the one that a model of Stable-Baselines3 has for it
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: stored_space(part) for key, part in space.items()})
    return VecTransposeImage.transpose_space(space) if _has_channels_last(space) else space  # type: ignore[arg-type]


def entries(columns: Columns, space: spaces.Space) -> "Entry | dict[str, Entry]":
    """
    :param columns: Observations
    :param space: Their space
    :return: How each is stored
    :raises ValueError: If they do not belong to the space
    """
    if not isinstance(space, spaces.Dict):
        if isinstance(columns, dict):
            raise ValueError(f"observations have the keys {', '.join(columns)}, but observation_space={space} has none.")
        return _entry(columns, space)
    if not isinstance(columns, dict) or set(columns) != set(space.spaces):
        keys = f"the keys {', '.join(columns)}" if isinstance(columns, dict) else "no keys"
        raise ValueError(f"observations have {keys}, but observation_space has the keys {', '.join(space.spaces)}.")
    return {key: _entry(columns[key], part) for key, part in space.items()}


def _entry(column: Column, space: spaces.Space) -> Entry:
    shape = get_obs_shape(space)
    assert isinstance(shape, tuple)
    if (column.shape[1:] or (1,)) not in (shape, space.shape) or 0 in shape:
        raise ValueError(
            f"{column.name} has shape {column.shape}, of which the axes behind the first should be {shape}, as in {space}."
        )
    image = space.dtype == np.uint8
    if image and column.dtype != np.uint8:
        raise ValueError(f"{column.name} has type {column.dtype}, but {space} holds uint8; convert it with astype('uint8').")
    last = _has_channels_last(space)
    return Entry((shape[2], *shape[:2]) if last else shape, np.uint8 if image else np.float32, last)


def _has_channels_last(space: spaces.Space) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(space)  # type: ignore[arg-type]
