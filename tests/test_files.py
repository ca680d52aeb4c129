"""Files that are complete or absent, and that nobody writes in another way."""

import ast
import os
from pathlib import Path

import pytest

from sb3_diffusion.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_is_replaced_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"first", b"", bytes(100_000)):
        write_atomically(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_atomically(str(tmp_path / "link"), b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_survives_a_failure(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_there_is_one_atomic_writer() -> None:
    """``os.replace`` and ``os.fsync`` are called in one file, of the package and of the zoo."""
    callers = set()
    for folder in ("sb3_diffusion", "zoo"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.replace", "os.rename", "os.fsync"):
                    callers.add(path.relative_to(ROOT).as_posix())
    assert callers == {"sb3_diffusion/files.py"}
