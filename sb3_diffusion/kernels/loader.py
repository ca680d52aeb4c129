"""The compiled kernels: how they are built, loaded and switched off, and what they may work on."""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch as th
from torch.autograd import forward_ad

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_switched_off = False


class KernelError(RuntimeError):
    """The kernels could not be compiled or loaded."""


class LayerStruct(ctypes.Structure):
    """``Layer`` in ``mlp.cpp``."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class NetworkStruct(ctypes.Structure):
    """``Network`` in ``mlp.cpp``."""

    _fields_ = (("layers", ctypes.POINTER(LayerStruct)), ("n_layers", ctypes.c_int64), ("activation", ctypes.c_int64))


def usable(*tensors: th.Tensor, differentiable: bool = False) -> bool:
    """
    Whether the kernels may work on these tensors here and now: float32 on the CPU, outside compilers and forward mode, and
    outside autograd unless the caller takes part in it.

    :param tensors: representatives of inputs and weights
    :param differentiable: whether the caller's kernel has a backward pass
    """
    # forward mode works without gradients being enabled
    if (th.is_grad_enabled() and not differentiable) or forward_ad._current_level >= 0:
        return False
    if th.compiler.is_compiling() or _switched_off:
        return False
    for tensor in tensors:
        if tensor.dtype != th.float32 or not tensor.is_cpu:
            return False
    if th.is_autocast_enabled("cpu"):
        return False
    return load_kernels() is not None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Use PyTorch's operations only, for example to count them."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, built if necessary; ``None`` (after one warning) where that is impossible."""
    if os.environ.get("SB3_DIFFUSION_KERNELS", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(build()))
    except (KernelError, OSError) as error:
        warnings.warn(
            f"The compiled CPU kernels are not available, continuing with PyTorch's operations (sampling is slower): {error} "
            "SB3_DIFFUSION_KERNELS=0 silences this.",
            stacklevel=2,
        )
        return None
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    network = ctypes.POINTER(NetworkStruct)
    signatures: dict[str, list[Any]] = {
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
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    loaded.pieces_equal.restype = ctypes.c_bool
    return loaded


def compiled() -> ctypes.CDLL:
    """The compiled kernels for those who have asked :func:`usable`."""
    kernels = load_kernels()
    assert kernels is not None
    return kernels


def build(folder: Path | None = None) -> Path:
    """
    Compile the kernels unless that has been done.

    :param folder: where the library is kept
    :return: path of the shared library
    :raises KernelError: if there is no compiler, or it fails
    """
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_diffusion"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise KernelError("no C++ compiler found; install g++ or clang++, or set CXX.")
    # a home folder may be shared by different machines
    key = "\n".join((SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, _processor()))
    target = folder / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            output = Path(scratch) / target.name
            _compile(compiler, output)
            output.replace(target)  # in one piece, whatever other processes do
    except OSError as error:
        raise KernelError(f"{folder} cannot be written: {error}.") from error
    return target


def _compile(compiler: str, output: Path) -> None:
    message = ""
    for flags in (("-fopenmp",), ()):  # Apple's compiler has no OpenMP
        command = [*compiler.split(), *FLAGS, *flags, "-shared", "-fPIC", "-o", str(output), str(SOURCE)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelError(f"{compiler} did not run: {error}.") from error
        if done.returncode == 0:
            return
        message = message or done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
    raise KernelError(f"{compiler} failed: {message}.")


def _processor() -> str:
    """What ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags: list[str] = []
    if cpuinfo.is_file():
        flags = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "model name"))]
    return "\n".join((platform.machine(), platform.processor(), *flags[:2]))


def mish(x: th.Tensor, out: th.Tensor, slope: th.Tensor | None = None) -> None:
    """
    Mish and its derivative in one pass.

    :param x: contiguous, any shape
    :param out: takes the values; may be ``x``
    :param slope: takes the derivative
    """
    compiled().mish(x.data_ptr(), out.data_ptr(), None if slope is None else slope.data_ptr(), x.numel(), th.get_num_threads())


class Pieces:
    """
    Tensors as pieces of memory that can be compared with a copy made earlier.

    :param tensors: contiguous, on the CPU
    """

    def __init__(self, tensors: Sequence[th.Tensor]):
        sizes = [tensor.nbytes for tensor in tensors]
        self._n_bytes = sum(sizes)
        self._addresses = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        self._sizes = (ctypes.c_int64 * len(tensors))(*sizes)

    def copy(self) -> th.Tensor:
        """The bytes of all tensors, one behind the other."""
        target = th.empty(self._n_bytes, dtype=th.uint8)
        compiled().copy_pieces(self._addresses, self._sizes, len(self._sizes), target.data_ptr())
        return target

    def equal(self, copy: th.Tensor) -> bool:
        """
        Whether all bytes are those of a copy.

        :param copy: result of :meth:`copy`, of these or other tensors
        """
        if len(copy) != self._n_bytes:
            return False
        return bool(compiled().pieces_equal(self._addresses, self._sizes, len(self._sizes), copy.data_ptr()))
