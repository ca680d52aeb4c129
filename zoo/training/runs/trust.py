"""
Which runs are the user's own (docs: guide/security).

Agents of rl-zoo3 are pickles, and their settings name code to import, so that whoever writes a run decides what the computer
does that opens it. A training therefore leaves a mark in its folder that nobody else can make: a keyed checksum
(HMAC) of the number and the time that the disk has given to a file there. The key is a file of the user's. Whatever is
downloaded, unpacked or copied gets another number and time, so that not even a mark that was once given away counts.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_diffusion.files import write_atomically
from sb3_diffusion.printable import printable

MARK, TAG = "trained_here", "trained_here.tag"
KEY_BYTES = 32
IMPORTED = ("env_wrapper", "vec_env_wrapper", "callback")
"""Settings that name code."""

UNKNOWN = "not known as a run of yours (somebody else's, a copy, or one of an earlier version)"
_NOTE = "Together with trained_here.tag this file shows that the run is its user's own. A copy of it shows nothing.\n"


def mark(folder: str | Path) -> None:
    """
    Note that a run is the user's own. Without a place for the key, nothing is noted. A mark that holds stays as it is: whoever
    is killed here does not lose a run.

    :param folder: Log folder of the run, which exists
    """
    key = _key(make=True)
    if key is not None and not is_own(folder):
        with contextlib.suppress(OSError):  # a full disk; the training says so when it loses something
            write_atomically(Path(folder, MARK), _NOTE.encode())
            write_atomically(Path(folder, TAG), _tag(Path(folder), key).encode())


def is_own(folder: str | Path) -> bool:
    """
    :param folder: Log folder of a run
    :return: Whether a training of this user has made it, in this place
    """
    key = _key(make=False)
    try:
        return key is not None and hmac.compare_digest(Path(folder, TAG).read_bytes(), _tag(Path(folder), key).encode())
    except OSError:
        return False


def check_own(folder: str | Path, trusted: bool, consequence: str) -> None:
    """
    :param folder: Log folder of a run
    :param trusted: Whether the user has given ``--trust-remote-code``
    :param consequence: What will be done with it, and thereby run
    :raises ValueError: If it is neither the user's own nor trusted
    """
    if is_own(folder):
        return
    if not trusted:
        raise ValueError(
            f"{printable(folder)} is {UNKNOWN}. If you trust whoever wrote it, add --trust-remote-code: {consequence}."
        )
    print(f"--trust-remote-code: {consequence}")


def what_runs(hyperparams: Mapping[str, Any], command_line: Sequence[str]) -> str:
    """
    :param hyperparams: Settings of a run
    :param command_line: Options that its saved arguments become
    :return: What of them is run or obeyed when the run goes on, in one line
    """
    imported = [key for key in IMPORTED if hyperparams.get(key)]
    imported += ["policy"] if "." in str(hyperparams.get("policy", "")) else []
    found = [f"{key} {printable(repr(hyperparams[key]), 500)} is imported and run" for key in imported]
    settings = f"of config.yml {'; '.join(found)}; " if found else ""
    return f"{settings}args.yml becomes the command line {printable(shlex.join(command_line), 1000)}"


def _tag(folder: Path, key: bytes) -> str:
    # both stay when the folder is renamed, and are the same on all machines that share the disk; nobody can choose them
    status = Path(folder, MARK).stat(follow_symlinks=False)
    return hmac.new(key, f"run {status.st_ino} {status.st_ctime_ns}".encode(), hashlib.sha256).hexdigest()


def key_file() -> Path | None:
    """Where the key is; ``None`` if the user has no home."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(configured) if configured else Path.home() / ".config") / "sb3_diffusion" / "run_key"
    except RuntimeError:
        return None


def _key(make: bool) -> bytes | None:
    """The user's key; ``None`` if there is none, or others may know it."""
    path = key_file()
    if path is None:
        return None
    if make and not path.exists():
        with contextlib.suppress(OSError):  # no place for it, or another process was faster
            _make_key(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY_BYTES)
    except OSError:
        return None
    secret = os.name != "posix" or (status.st_uid == os.getuid() and status.st_mode & 0o077 == 0)
    return key if secret and len(key) == KEY_BYTES else None


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # readable for the user only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        os.link(temporary, path)  # of two processes, the first one's stays
    finally:
        os.unlink(temporary)
