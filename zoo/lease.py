"""A lock with an owner and a sign of life, for folders that several processes, and machines with a common disk, may want."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import SoftFileLease, Timeout

LEASE_SECONDS = 60.0
"""An owner on another machine that gave no sign of life for so long is taken for dead; on the same machine it is looked up."""


class Taken(ValueError):
    """The lock belongs to a living process; the message names it."""


def lease(path: Path) -> SoftFileLease:
    """
    A lock with an owner and a heartbeat, that works between machines which share a file system. That of a dead process is
    taken over.

    :param path: File of the lock
    """
    return SoftFileLease(path, lease_duration=LEASE_SECONDS, poll_interval=0.5)


def owner_of(lock: SoftFileLease) -> str:
    """
    :param lock: A lock
    :return: Who holds it, in words
    """
    owner = lock.owner
    return "somebody else" if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def take(path: Path, say: Callable[[str], None] = print) -> SoftFileLease:
    """
    Take a lock, now if it is free or its owner is known to be dead. An owner on another machine is watched until it gives a
    sign of life or is taken for dead.

    :param path: File of the lock
    :param say: Is told about the waiting
    :return: The lock, which the caller releases
    :raises Taken: If the owner lives
    """
    lock = lease(path)
    first, polls = _sign_of_life(path), 0

    def hopeless() -> bool:
        nonlocal polls
        polls += 1
        owner = lock.owner
        if owner is None or polls < 3:  # a dead owner's lock is removed by the first try and taken by the second
            return False
        if owner.hostname == _this_host():
            return True
        if polls == 3:
            say(f"Waiting for a sign of life of {owner_of(lock)}, for {LEASE_SECONDS:g} seconds at most")
        return _sign_of_life(path) != first

    try:
        lock.acquire(timeout=10 * LEASE_SECONDS, cancel_check=hopeless)
    except Timeout:
        raise Taken(owner_of(lock)) from None
    return lock


def living_owner(path: Path) -> str | None:
    """
    Look without touching anything: a reader must not get between a dead owner and its successor.

    :param path: File of a lock
    :return: Who holds it, in words; ``None`` if nobody does
    """
    lock, heard = lease(path), _sign_of_life(path)
    owner = lock.owner
    # clocks of two machines may differ by minutes
    if owner is None or heard is None or time.time() - heard / 1e9 > 10 * LEASE_SECONDS:
        return None
    return None if owner.hostname == _this_host() and not _runs(owner.pid) else owner_of(lock)


def _sign_of_life(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _runs(pid: int) -> bool:
    if sys.platform == "win32":  # where a signal 0 ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@cache
def _this_host() -> str:
    """This machine (and, in a container, the container) as owners of locks are written down."""
    with tempfile.TemporaryDirectory() as folder, lease(Path(folder, "lease")) as lock:
        assert lock.owner is not None
        return lock.owner.hostname
