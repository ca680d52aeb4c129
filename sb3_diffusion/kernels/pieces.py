"""Tensors that are compared with what they held before."""

import ctypes
from collections.abc import Sequence
from operator import attrgetter

import torch as th

from sb3_diffusion.kernels import loader

Layout = tuple[list[int], list[th.Size], list[th.dtype], list[bool]]
_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")


class Pieces:
    """
    A copy of tensors, made to find out later whether they still hold the same, bit by bit.

    :param tensors: Contiguous tensors on the CPU, see :meth:`can_copy`
    """

    def __init__(self, tensors: Sequence[th.Tensor]):
        if not self.can_copy(tensors):
            raise ValueError(f"tensors={tensors} have to be contiguous and on the CPU.")
        self._layout = layout_of(tensors)
        self._addresses = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        self._sizes = (ctypes.c_int64 * len(tensors))(*(tensor.nbytes for tensor in tensors))
        # whatever the default device is
        self._copy = th.empty(sum(self._sizes), dtype=th.uint8, device="cpu")
        loader.compiled().copy_pieces(self._addresses, self._sizes, len(self._sizes), self._copy.data_ptr())

    @staticmethod
    def can_copy(tensors: Sequence[th.Tensor]) -> bool:
        """
        Whether tensors are in one piece each.

        :param tensors: Any tensors
        """
        return all(
            tensor.is_cpu
            and tensor.layout is th.strided
            and not tensor.is_nested
            and not tensor.is_neg()
            and tensor.is_contiguous()
            and (tensor.data_ptr() != 0 or tensor.nbytes == 0)
            for tensor in tensors
        )

    def equal(self, tensors: Sequence[th.Tensor]) -> bool:
        """
        Whether tensors are where they were and hold what they held.

        :param tensors: The same tensors again
        """
        return layout_of(tensors) == self._layout and self.same_bits()

    def same_bits(self) -> bool:
        """
        Whether the memory holds what it held. Only where the tensors are known to be where they were; elsewhere nobody says
        whose memory that is.
        """
        return bool(loader.compiled().pieces_equal(self._addresses, self._sizes, len(self._sizes), self._copy.data_ptr()))


def layout_of(tensors: Sequence[th.Tensor]) -> Layout:
    """
    Where tensors are, and in which form: addresses, shapes, number formats, contiguity. Asked for at every action, and
    therefore without a loop of Python's.

    :param tensors: Any tensors
    :raises RuntimeError: If one of them is no array
    """
    return (
        list(map(th.Tensor.data_ptr, tensors)),
        list(map(_SHAPE, tensors)),
        list(map(_DTYPE, tensors)),
        list(map(th.Tensor.is_contiguous, tensors)),
    )
