"""Files that are complete or absent, whenever the machine stops."""

import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """
    Write a file at once: a full disk or an interruption leaves the previous one as it was.

    :param path: The file; its folder is made, and a link is followed
    :param content: What to write
    :raises OSError: If it cannot be written
    """
    target = Path(path).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        put_in_place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(part: Path, target: Path) -> None:
    """
    Give a complete file its name, once it has reached the disk.

    :param part: The file under another name, in the same folder
    :param target: Its name; a file of that name is replaced
    :raises OSError: If that fails; both files are then as they were
    """
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    if hasattr(os, "O_DIRECTORY"):  # the entry in the folder has to reach the disk as well
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
