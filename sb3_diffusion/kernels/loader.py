"""The compiled kernels as Python calls them."""

import ctypes
import functools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch as th

from sb3_diffusion.kernels.guard import allows
from sb3_diffusion.kernels.library import KernelError, build
from sb3_diffusion.kernels.structures import MIRRORS, NetworkStruct, compiled_places, difference, mirrored_places


def _signatures() -> dict[str, list[Any]]:
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    network = ctypes.POINTER(NetworkStruct)
    return {
        "evaluate": [network, pointer, integer, *[pointer] * 4, integer, integer],
        "pull_back": [network, *[pointer] * 5, *[integer] * 3],
        "run_chain": [
            network,
            pointer,
            integer,
            pointer,
            *[pointer, integer] * 2,
            real,
            real,
            *[pointer] * 3,
            integer,
            integer,
        ],
        "encode_and_run_chain": [
            *[network, pointer, pointer, integer],
            *[network, pointer],
            *[pointer, integer] * 2,
            real,
            real,
            *[pointer] * 2,
            integer,
            integer,
        ],
        "pull_back_chain": [network, pointer, integer, real, real, *[pointer] * 6, *[integer] * 3],
        "mish": [*[pointer] * 3, integer, integer],
        "copy_pieces": [pointer, pointer, integer, pointer],
        "pieces_equal": [pointer, pointer, integer, pointer],
    }


def open_library(path: Path) -> ctypes.CDLL:
    """
    Load a library and make sure that it reads what Python writes.

    :param path: The shared library
    :raises KernelError: If a function is missing, or a field of a structure is not where its mirror has it
    :raises OSError: If it cannot be loaded
    """
    loaded = ctypes.CDLL(str(path))
    try:
        for name, arguments in _signatures().items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        loaded.pieces_equal.restype = ctypes.c_bool
        places = compiled_places(loaded)
    except AttributeError as error:
        raise KernelError(f"{path.name} is another library: {error}.") from error
    if (found := difference(places, mirrored_places(MIRRORS))) is not None:
        raise KernelError(f"{path.name} does not fit: {found}.")
    return loaded


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, built if necessary; ``None`` (after one warning) where that is impossible."""
    if os.environ.get("SB3_DIFFUSION_KERNELS", "1") == "0":
        return None
    try:
        return open_library(build(check=open_library))
    except (KernelError, OSError) as error:
        reason = error
    try:
        with tempfile.TemporaryDirectory() as folder:  # nobody else can write there; a loaded library needs no file
            loaded = open_library(build(Path(folder), open_library))
    except (KernelError, OSError) as error:
        warnings.warn(
            f"The compiled CPU kernels are not available, continuing with PyTorch's operations (sampling is slower): {error} "
            "SB3_DIFFUSION_KERNELS=0 silences this.",
            stacklevel=2,
        )
        return None
    warnings.warn(f"The compiled CPU kernels cannot be kept and were made for this process alone: {reason}", stacklevel=2)
    return loaded


def compiled() -> ctypes.CDLL:
    """The compiled kernels for those who have asked :func:`usable`."""
    kernels = load_kernels()
    assert kernels is not None
    return kernels


def usable(*tensors: th.Tensor, differentiable: bool = False) -> bool:
    """
    Whether the kernels are there, and may work on these tensors here and now.

    :param tensors: All inputs
    :param differentiable: Whether the caller's kernel has a backward pass
    """
    return allows(*tensors, differentiable=differentiable) and load_kernels() is not None


def mish(x: th.Tensor, out: th.Tensor, slope: th.Tensor | None = None) -> bool:
    """
    Mish and its derivative in one pass.

    :param x: Contiguous, any shape
    :param out: Takes the values; may be ``x``
    :param slope: Takes the derivative
    :return: Whether it was done; otherwise PyTorch has to do it
    """
    tensors = (x, out) if slope is None else (x, out, slope)
    if not usable(*tensors) or not all(tensor.shape == x.shape and tensor.is_contiguous() for tensor in tensors):
        return False
    compiled().mish(x.data_ptr(), out.data_ptr(), None if slope is None else slope.data_ptr(), x.numel(), th.get_num_threads())
    return True
