"""Where the compiled library comes from: compilers, caches, and what is not trusted."""

import ctypes
import os
import platform
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sb3_diffusion import kernels
from sb3_diffusion.kernels import library, structures
from sb3_diffusion.kernels.loader import open_library

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="the compiled kernels need a C++ compiler"),
    pytest.mark.filterwarnings("error"),
]
SOURCE = """
#include <cstddef>
#include <cstdint>
struct Layer { void *weight, *bias; int64_t SIZES; };
struct Network { void* layers; int64_t n_layers, activation; };
struct Step {
    float estimate_state, estimate_noise, low, high, state, noise, previous, noise_std;
    float needs_estimate, clip_estimate, clip_state, is_midpoint;
};
struct Field { const char *structure, *name; int64_t offset, size; };
extern "C" {
#define F(name) void name() {}
F(evaluate) F(pull_back) F(run_chain) F(encode_and_run_chain) F(pull_back_chain) F(mish) F(copy_pieces) F(pieces_equal)
#define WHOLE(type) {#type, "", 0, sizeof(type)}
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(type::name)}
const Field* structure_fields(int64_t* n) {
    static const Field fields[] = {
        WHOLE(Layer), FIELD(Layer, weight), FIELD(Layer, bias), FIELD(Layer, inputs), FIELD(Layer, outputs),
        WHOLE(Network), FIELD(Network, layers), FIELD(Network, n_layers), FIELD(Network, activation),
        WHOLE(Step), FIELD(Step, estimate_state), FIELD(Step, estimate_noise), FIELD(Step, low), FIELD(Step, high),
        FIELD(Step, state), FIELD(Step, noise), FIELD(Step, previous), FIELD(Step, noise_std), FIELD(Step, needs_estimate),
        FIELD(Step, clip_estimate), FIELD(Step, clip_state), FIELD(Step, is_midpoint)
    };
    *n = sizeof(fields) / sizeof(Field);
    return fields;
}
}
"""


@pytest.fixture(autouse=True)
def quick_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A library with the same functions that takes no time to compile, and nothing inherited from the machine's user."""
    source = tmp_path / "source" / "quick.cpp"
    source.parent.mkdir()
    source.write_text(SOURCE)
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setattr(library, "FLAGS", ("-DSIZES=inputs,outputs",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    kernels.load_kernels.cache_clear()
    yield
    kernels.load_kernels.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "sb3_diffusion"


def compiler(tmp_path: Path, script: str) -> str:
    """A compiler of one's own, by name."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_built_once(folder: Path) -> None:
    built = kernels.build()
    time = built.stat().st_mtime_ns
    assert kernels.build() == built and built.stat().st_mtime_ns == time
    assert [path.name for path in folder.iterdir()] == [built.name]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["truncated", "emptied", "a byte changed"])
def test_a_damaged_library_is_made_anew(damage: str, folder: Path) -> None:
    built = kernels.build()
    content = built.read_bytes()
    broken = {"truncated": content[:5000], "emptied": b"", "a byte changed": content[:-1] + bytes([content[-1] ^ 1])}[damage]
    built.write_bytes(broken)
    assert kernels.load_kernels() is not None
    assert len(list(folder.iterdir())) == 1
    assert kernels.build().read_bytes() != broken


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ("outputs,inputs", "Layer.inputs is 8 bytes at 24 in the library and 8 bytes at 16 in structures.py"),
        ("inputs,outputs,more", "structure Layer is 40 bytes at 0 in the library and 32 bytes at 0 in structures.py"),
    ],
)
def test_a_library_with_other_structures_is_refused(
    sizes: str, complaint: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(library, "FLAGS", (f"-DSIZES={sizes}",))
    with pytest.raises(kernels.KernelError, match=re.escape(complaint)):
        kernels.build(check=open_library)
    assert not list(folder.iterdir())
    with pytest.warns(UserWarning, match=re.escape(complaint)):  # PyTorch computes instead
        assert kernels.load_kernels() is None


def _renamed(fields: list[Any]) -> list[Any]:
    return [("flavour" if name == "noise_std" else name, kind) for name, kind in fields]


@pytest.mark.parametrize(
    ("structure", "change", "complaint"),
    [
        # sizes alone would not tell
        (
            "Layer",
            lambda fields: [fields[1], fields[0], *fields[2:]],
            "Layer.bias is 8 bytes at 8 in the library and 8 bytes at 0",
        ),
        ("Network", lambda fields: [fields[0], fields[2], fields[1]], "Network.activation is 8 bytes at 16 in the library"),
        ("Step", lambda fields: [*fields[:2], fields[3], fields[2], *fields[4:]], "Step.high is 4 bytes at 12 in the library"),
        ("Step", _renamed, "Step.flavour is nothing in the library and 4 bytes at 28"),
        ("Step", lambda fields: fields[:-1], "structure Step is 48 bytes at 0 in the library and 44 bytes at 0"),
        ("Layer", lambda fields: [*fields[:2], ("inputs", ctypes.c_int32), fields[3]], "Layer.inputs is 8 bytes at 16 in the"),
        ("Step", lambda fields: [(name, ctypes.c_double) for name, _ in fields], "structure Step is 48 bytes"),
    ],
)
def test_mirrors_that_differ_in_a_field_are_refused(
    structure: str, change: Callable[[list[Any]], list[Any]], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = kernels.build(check=open_library)
    fields = change(list(structures.MIRRORS[structure]._fields_))
    other = type("Other", (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setitem(structures.MIRRORS, structure, other)
    with pytest.raises(kernels.KernelError, match=re.escape(complaint)):
        open_library(built)


def test_a_structure_without_a_mirror_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = kernels.build()
    monkeypatch.delitem(structures.MIRRORS, "Step")
    with pytest.raises(
        kernels.KernelError, match=r"structure Step is 48 bytes at 0 in the library and nothing in structures\.py"
    ):
        open_library(built)


@pytest.mark.parametrize("function", ["structure_fields", "pull_back_chain"])
def test_a_library_without_a_function_is_refused(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library.SOURCE.write_text(SOURCE.replace(f"{function}(int64_t* n)", "other(int64_t* n)").replace(f"F({function})", ""))
    with pytest.raises(kernels.KernelError, match=f"is another library: .*{function}"):
        kernels.build(check=open_library)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-compiler", "did not run"),
        ("no-such-compiler -O1", "did not run"),
        ("false", "failed: exit status 1"),
        ("true", "makes no library"),
        ("g++ '", "is no command"),
        ("garbage", "makes no library"),
        ("complaint", "failed: what is this"),
    ],
)
def test_a_useless_cxx_is_named_and_replaced(
    command: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripts = {
        "garbage": 'while [ "$1" != -o ]; do shift; done; echo garbage > "$2"',
        "complaint": "echo what is this >&2; exit 3",
    }
    command = compiler(tmp_path, scripts[command]) if command in scripts else command
    monkeypatch.setenv("CXX", command)
    with pytest.warns(UserWarning, match="CXX=.*c\\+\\+ does it instead") as caught:
        assert kernels.load_kernels() is not None
    assert command in str(caught[0].message) and reason in str(caught[0].message)
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing else there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with pytest.raises(kernels.KernelError, match="CXX"):
        kernels.build(check=open_library)


@pytest.mark.parametrize("command", ["env LANG=C g++", "g++ -g", "  ", ""])
def test_a_compiler_may_have_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", command)
    assert kernels.load_kernels() is not None


def test_a_path_with_a_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my tools").mkdir()
    path = compiler(tmp_path / "my tools", 'exec g++ "$@"')
    monkeypatch.setenv("CXX", f"'{path}'")
    assert kernels.load_kernels() is not None


def test_no_compiler_gives_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found; install g\\+\\+"):
        assert kernels.load_kernels() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load_kernels() is None


def test_a_kept_library_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = kernels.build()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kernels.build() == built


def test_neither_home_nor_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container with a user number that has no entry: the library is made for the process."""
    import pwd

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.warns(UserWarning, match="made for this process alone: there is no home folder; set XDG_CACHE_HOME"):
        assert kernels.load_kernels() is not None


@pytest.mark.parametrize("cache", ["relative/folder", ""])
def test_a_relative_cache_does_not_count(cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert kernels.build().parent == tmp_path / ".cache" / "sb3_diffusion"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(kernels.KernelError, match="cannot be written"):
        kernels.build()
    with pytest.warns(UserWarning, match="made for this process alone: .*cannot be written"):
        assert kernels.load_kernels() is not None


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_to_which_others_can_write_is_not_trusted(mode: int, folder: Path) -> None:
    library_there = kernels.build()
    folder.chmod(mode)
    with pytest.raises(kernels.KernelError, match="only you can write"):
        kernels.build()
    folder.chmod(0o755)
    assert kernels.build() == library_there


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only the administrator can give files away")
def test_what_belongs_to_others_is_not_trusted(folder: Path) -> None:
    built = kernels.build()
    os.chown(built, 12345, 12345)
    assert kernels.build().stat().st_uid == 0
    os.chown(folder, 12345, 12345)
    with pytest.raises(kernels.KernelError, match="only you can write"):
        kernels.build()


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")
def test_a_folder_that_others_can_exchange_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    with pytest.raises(kernels.KernelError, match="to which everybody can write"):
        kernels.build()
    (tmp_path / "open").chmod(0o1777)  # where nobody moves what belongs to others
    assert kernels.build().is_file()


def test_two_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is done first; neither disturbs the other, and nothing is left over."""
    compile_now = library._compile
    built: list[Path] = []

    def meanwhile(command: str, output: Path) -> None:
        monkeypatch.setattr(library, "_compile", compile_now)
        built.append(kernels.build())
        compile_now(command, output)

    monkeypatch.setattr(library, "_compile", meanwhile)
    library_here = kernels.build()
    assert library_here.is_file() and built[0].is_file()
    assert {path.suffix for path in folder.iterdir()} == {".so"}


@pytest.mark.skipif(platform.system() != "Linux", reason="the address of a loaded library is read from /proc")
def test_a_library_for_one_process_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="for this process alone"):
        assert kernels.load_kernels() is not None
    assert set(tmp_path.iterdir()) == before
