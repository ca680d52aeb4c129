"""Memory of large records, which is used again: to be given fresh pages costs as much as to fill them."""

import math
from collections.abc import Sequence

import torch as th

LARGE = 2**23
"""Numbers from which on the usual allocator of Linux asks for fresh pages every time (32 MB)."""
MAX_SPARE = 2


class Records:
    """
    Gives out memory and takes it back when a backward pass has consumed it. A network keeps at most two large records, no
    larger than those that it has needed; small ones are none of its business.
    """

    def __init__(self) -> None:
        self._spare: list[th.Tensor] = []  # whose methods are atomic, for the sake of other threads

    def new(self, like: th.Tensor, shape: Sequence[int]) -> th.Tensor:
        """
        :param like: Tensor of the type that is wanted
        :param shape: Shape
        :return: Memory that holds anything
        """
        size = math.prod(shape)
        if size < LARGE:
            return like.new_empty(shape)
        try:
            flat = self._spare.pop()
        except IndexError:
            flat = like.new_empty(0)
        if flat.numel() < size:
            flat = like.new_empty(size)
        return flat[:size].view(shape)

    def give_back(self, record: th.Tensor) -> None:
        """
        :param record: What nobody reads any more; the next one overwrites it
        """
        if is_large(record) and len(self._spare) < MAX_SPARE:
            self._spare.append(record.flatten() if record._base is None else record._base)


def is_large(record: th.Tensor) -> bool:
    """
    :param record: A record
    :return: Whether it is kept for the next one, so that what is read of it later has to be copied
    """
    return record.numel() >= LARGE
