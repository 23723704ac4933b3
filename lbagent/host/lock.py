"""One writer at a time: flock on a file that is never unlinked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

_STEP = 0.02
"""Seconds between two tries: short beside a reload (60 ms), long beside a system call."""


@contextlib.contextmanager
def locked(path: str, wait: float = 0.0, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock at `path`, trying for `wait` seconds `unless` told not to; yields whether it was had.

    Raises OSError.
    """
    # For its owner alone: whoever can open a file can lock it, and keep all others waiting.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait
        while not (had := _try(descriptor)) and time.monotonic() < deadline and not unless():
            time.sleep(_STEP)
        yield had
    finally:
        os.close(descriptor)


def held(path: str) -> bool:
    """Whether somebody holds the lock at `path` now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return _listed(path)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def ours(path: str) -> bool:
    """Whether this user may take the lock at `path`; of one that nobody has made yet, whether he may make it."""
    if os.geteuid() == 0:
        return True  # a disk that is read-only is another failure, and said as that
    folder = os.path.dirname(path)
    return os.access(path if os.path.exists(path) else folder, os.W_OK) or not os.path.exists(folder)


def _listed(path: str) -> bool:
    """Whether the kernel's list, which everybody may read, has a flock on the file at `path`."""
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as file:
        # Its device is told in a way that not every file system shares with stat: the inode has to do.
        inode = f":{os.stat(path).st_ino}"
        rows = (line.split() for line in file)
        return any(row[1] == "FLOCK" and row[-3].endswith(inode) for row in rows)
    return False


def _try(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
