"""Number formats of the forward passes of many particles, where rounding may be traded for speed."""

import contextlib
from collections.abc import Iterator

import torch as th

from sb3_diffusion.names import choice

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_precision(precision: str) -> str:
    """
    :param precision: One of :data:`PRECISIONS`
    :return: The same value
    :raises ValueError: If there is no such format
    """
    choice("particle_precision", precision, PRECISIONS)
    return precision


def reduced_precision(precision: str, device: th.device) -> contextlib.AbstractContextManager[object]:
    """
    Compute matrix products in another format.

    :param precision: ``"float32"``, ``"tf32"`` (inputs rounded to 10 bits of mantissa, on CUDA devices that have it) or
        ``"bfloat16"`` (everything rounded to 7 bits)
    :param device: Device of the tensors
    """
    if precision == "tf32":
        return _tf32()
    if precision == "bfloat16":
        # without the cache of converted weights, which a CUDA graph would keep after they have changed
        return th.autocast(device.type, dtype=th.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)
