"""One writer at a time: flock on a file that lbagent never unlinks, but others may.

A lock belongs to an open file, not to its path. If the file was deleted, replaced or moved away with its directory, the
next process creates a new one and locks that: two writers. So path and descriptor are compared when the lock has been
acquired, and again before anything is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from lbagent.errors import Busy

RUN_WAIT = 30.0
"""Seconds to wait for the run of another process."""

_STEP = 0.02
"""Seconds between two attempts. A reload takes 60 ms."""

_PROBE_LIMIT = 1.0
"""Seconds for which a lock that `is_locked` probes is not busy. A probe takes a moment, or more on a busy machine."""

_ACQUIRED: dict[str, int] = {}
"""Descriptors of the locks that this process holds, by path."""

_WRITING: set[str] = set()
"""Paths of the locks that protect writing."""


class LockLost(Busy):
    """The lock file was replaced while this process held the lock: another process may hold the new one."""


@contextlib.contextmanager
def acquire_lock(
    path: str, wait: float = 0.0, unless: Callable[[], bool] = lambda: False, *, writes: bool = True
) -> Iterator[bool]:
    """Acquire the lock at `path` and yield whether that succeeded; retry for `wait` seconds `unless` returns True.

    `writes`: whether the lock protects writing, for `check_all_locks`. Raises OSError.
    """
    descriptor = _acquire(path, wait, unless)
    if descriptor is None:
        yield False
        return
    _ACQUIRED[path] = descriptor
    if writes:
        _WRITING.add(path)
    try:
        yield True
    finally:
        _WRITING.discard(path)
        _release(_ACQUIRED.pop(path))


def check_lock(path: str) -> None:
    """Raise LockLost if this process holds the lock at `path` and the file there is another one now.

    Does nothing if this process does not hold it. Raises OSError where the file cannot be examined.
    """
    descriptor = _ACQUIRED.get(path)
    if descriptor is not None and not is_same_file(path, descriptor):
        raise LockLost(f"{path}: the lock file was removed or replaced during a run; another run may have started")


def check_all_locks() -> None:
    """Raise LockLost if any lock that protects writing was lost; OSError where that is unknown."""
    for path in _WRITING:
        check_lock(path)


def acquire_again(path: str, wait: float) -> bool:
    """Replace a lost lock by one on the file that is at `path` now; retry for `wait` seconds. Raises OSError."""
    descriptor = _acquire(path, wait, lambda: False)
    if descriptor is None:
        return False
    _release(_ACQUIRED[path])
    _ACQUIRED[path] = descriptor
    return True


def is_locked(path: str) -> bool:
    """Return whether any process holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return bool(list_holders(path))
    except OSError:
        return False
    try:
        return not _try_flock(descriptor, fcntl.LOCK_SH)
    finally:
        _release(descriptor)


def is_held(path: str) -> bool:
    """Return whether this process holds the lock at `path`."""
    return path in _ACQUIRED


def may_lock(path: str) -> bool:
    """Return whether this user may open the lock at `path`, or create it if it is missing."""
    if os.geteuid() == 0:
        return True  # a read-only disk is reported as an error of its own
    folder = os.path.dirname(path)
    return os.access(path if os.path.exists(path) else folder, os.W_OK) or not os.path.exists(folder)


def is_same_file(path: str, descriptor: int) -> bool:
    """Return whether the file at `path` is the open one. Raises OSError if the disk reports an error."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    opened = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _acquire(path: str, wait: float, unless: Callable[[], bool]) -> int | None:
    """Return a descriptor that holds the lock; None if another process held it for `wait` seconds."""
    deadline = time.monotonic() + wait
    probes_end = time.monotonic() + _PROBE_LIMIT
    while True:
        # Mode 0600: any process that can open the file can lock it and block all others.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            acquired = _try_flock(descriptor)
            if acquired and is_same_file(path, descriptor):
                kept, descriptor = descriptor, -1
                return kept
            is_probed = not acquired and _try_flock(descriptor, fcntl.LOCK_SH)
        finally:
            if descriptor >= 0:
                _release(descriptor)
        # If the file was replaced between open and flock, retry at once.
        if not acquired:
            if time.monotonic() >= (max(deadline, probes_end) if is_probed else deadline) or unless():
                return None
            time.sleep(_STEP)


def list_holders(path: str) -> list[int]:
    """Return the pids with a flock on the file at `path`, from /proc/locks, which any user may read.

    The pid is 0 or negative where the process is in another pid namespace.
    """
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as file:
        # Compare the inode only: on some file systems the device differs from that of stat.
        inode = f":{os.stat(path).st_ino}"
        rows = (line.split() for line in file)
        return [int(row[4]) for row in rows if row[1] == "FLOCK" and row[-3].endswith(inode)]
    return []


def _release(descriptor: int) -> None:
    """Release the lock at once: a child shares the descriptor until it runs its program, also after it is closed."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _try_flock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
