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
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the entry in the folder has to reach the disk as well
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
