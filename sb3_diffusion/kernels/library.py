"""
The shared library of the kernels: compiled when it is first needed, kept, and checked whenever it is found.

A file is named after what it was made from and after its own content. One that does not have the content that its name says is
damaged, and is made anew. Nothing is loaded from a folder to which somebody else can write.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

SOURCE = Path(__file__).with_name("mlp.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("c++", "g++", "clang++")
#: Checks a library that has just been made, and raises :class:`KernelError` or ``OSError`` if it is none.
Check = Callable[[Path], object]


class KernelError(RuntimeError):
    """The kernels could not be compiled or loaded."""


def cache_folder() -> Path:
    """
    Where libraries are kept: ``$XDG_CACHE_HOME/sb3_diffusion``, or ``~/.cache/sb3_diffusion``.

    :raises KernelError: If there is no home folder
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(named).is_absolute():  # relative paths do not count, says the specification
        try:
            home = Path.home()
        except RuntimeError:
            home = Path()
        if not home.is_absolute():
            raise KernelError("there is no home folder; set XDG_CACHE_HOME to a folder of your own.")
        named = str(home / ".cache")
    return Path(named) / "sb3_diffusion"


def build(folder: Path | None = None, check: Check | None = None) -> Path:
    """
    Compile the kernels unless that has been done.

    :param folder: Where the library is kept; None for :func:`cache_folder`
    :param check: What a new library has to pass
    :return: Path of the shared library
    :raises KernelError: If there is no compiler, none works, or the folder cannot be used
    """
    folder = cache_folder() if folder is None else folder
    _refuse_foreign(folder)
    named, problems = os.environ.get("CXX", "").strip(), []
    for command in (named, *COMPILERS) if named else COMPILERS:
        key = _key(command)
        library = _kept(folder, key)
        if library is None and command in COMPILERS and shutil.which(command) is None:
            continue
        try:
            library = library or _make(folder, key, command, check)
        except _CompilerError as error:
            problems.append(str(error))
            continue
        if problems and named:
            warnings.warn(f"CXX={named} cannot compile the kernels, {command} does it instead: {problems[0]}.", stacklevel=2)
        return library
    raise KernelError(f"{'; '.join(problems) or 'no C++ compiler found'}; install g++ or clang++, or set CXX.")


class _CompilerError(Exception):
    """A compiler is not there or does not work; there may be another one."""


def _key(command: str) -> str:
    # a home folder may be shared by different machines
    parts = (SOURCE.read_text(encoding="utf-8"), command, *FLAGS, _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    flags: list[str] = []
    if cpuinfo.is_file():
        flags = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "model name"))]
    return "\n".join((platform.machine(), platform.processor(), *flags[:2]))


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _is_whole(library: Path) -> bool:
    return library.stem.rpartition("-")[2] == _digest(library)


def _kept(folder: Path, key: str) -> Path | None:
    """The library that is kept under a key, None where there is none that is whole and our own."""
    for library in sorted(folder.glob(f"kernels-{key}-*.so")):
        with contextlib.suppress(OSError):  # unreadable, or gone
            if _is_ours(library) and _is_whole(library):
                return library
    return None


def _make(folder: Path, key: str, command: str, check: Check | None) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise KernelError(f"{folder} cannot be written: {error}.") from error
    with scratch:
        output = Path(scratch.name) / "kernels.so"
        _compile(command, output)
        try:
            if check is not None:
                check(output)
            library = folder / f"kernels-{key}-{_digest(output)}.so"
        except (KernelError, OSError) as error:
            raise _CompilerError(f"{command} makes no library: {error}") from error
        try:
            output.replace(library)  # in one piece, whatever other processes do
        except OSError as error:
            raise KernelError(f"{folder} cannot be written: {error}.") from error
    for other in folder.glob(f"kernels-{key}-*.so"):
        with contextlib.suppress(OSError):
            if not _is_whole(other):
                other.unlink()
    return library


def _compile(command: str, output: Path) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _CompilerError(f"{command!r} is no command: {error}") from error
    if shutil.which(words[0]) is None:
        raise _CompilerError(f"{command} did not run: there is no {words[0]}")
    message = ""
    for flags in (("-fopenmp",), ()):  # Apple's compiler has no OpenMP
        arguments = [*words, *FLAGS, *flags, "-shared", "-fPIC", "-o", str(output), str(SOURCE)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _CompilerError(f"{command} did not run: {error}") from error
        if done.returncode == 0:
            return
        said = done.stderr.strip().splitlines()
        message = message or (said[0] if said else f"exit status {done.returncode}")
    raise _CompilerError(f"{command} failed: {message}")


def _refuse_foreign(folder: Path) -> None:
    """A library is code: nobody else may be able to put one in its place."""
    if os.name != "posix":
        return
    if folder.exists() and not (_is_ours(folder) and folder.is_dir()):
        raise KernelError(
            f"{folder} is not a folder that only you can write to; remove it, or set XDG_CACHE_HOME to another place."
        )
    for parent in folder.absolute().resolve().parents:
        # in a sticky folder such as /tmp nobody moves what belongs to others
        if parent.exists() and parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise KernelError(f"{folder} lies in {parent}, to which everybody can write; set XDG_CACHE_HOME to another place.")


def _is_ours(path: Path) -> bool:
    """Whether a file or folder belongs to this user or to the administrator, and nobody else can write to it."""
    if os.name != "posix":
        return True
    status = path.stat()
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
