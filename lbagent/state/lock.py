"""One writer at a time: flock on a file that lbagent never unlinks, and that somebody else may.

A lock belongs to an open file, not to its path. If the file was deleted, replaced or moved away with its folder, the
next process makes a new one and acquires that: two writers. So path and descriptor are compared when the lock has been
acquired, and again before anything is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from lbagent.errors import Busy

_STEP = 0.02
"""Seconds between two tries: short beside a reload (60 ms), long beside a system call."""

_ACQUIRED: dict[str, int] = {}
"""The descriptors of the locks that this process has, by path."""

_WRITING: set[str] = set()
"""Those of them under which files are written."""


class Lost(Busy):
    """The lock file was replaced while this process had the lock: another process may have acquired the new one."""


@contextlib.contextmanager
def acquire_lock(
    path: str, wait: float = 0.0, unless: Callable[[], bool] = lambda: False, *, writes: bool = True
) -> Iterator[bool]:
    """Hold the lock at `path`, trying for `wait` seconds `unless` told not to; yields whether it was acquired.

    `writes` says that files are written under it, for `insist_on_all`. Raises OSError.
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
        os.close(_ACQUIRED.pop(path))


def insist(path: str) -> None:
    """Raise Lost if this process acquired the lock at `path` and the file there is another one now.

    Of a process that has not acquired it nothing is asked.
    """
    descriptor = _ACQUIRED.get(path)
    if descriptor is not None and not _same(path, descriptor):
        raise Lost(f"{path}: the lock file was removed or replaced during a run; another run goes on")


def insist_on_all() -> None:
    """The same for every lock under which this process writes."""
    for path in _WRITING:
        insist(path)


def acquire_again(path: str, wait: float) -> bool:
    """Acquire the lock that is at `path` now in place of a lost one, trying for `wait` seconds. Raises OSError."""
    descriptor = _acquire(path, wait, lambda: False)
    if descriptor is None:
        return False
    os.close(_ACQUIRED[path])
    _ACQUIRED[path] = descriptor
    return True


def is_locked(path: str) -> bool:
    """Whether somebody holds the lock at `path` now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return _listed(path)
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def may_lock(path: str) -> bool:
    """Whether this user may take the lock at `path`; of one that nobody has made yet, whether he may make it."""
    if os.geteuid() == 0:
        return True  # a disk that is read-only is another failure, and said as that
    folder = os.path.dirname(path)
    return os.access(path if os.path.exists(path) else folder, os.W_OK) or not os.path.exists(folder)


def _acquire(path: str, wait: float, unless: Callable[[], bool]) -> int | None:
    """A descriptor with the lock on the file that is at `path`; None where another process has it all the time."""
    deadline = time.monotonic() + wait
    while True:
        # For its owner alone: whoever can open a file can lock it, and keep all others waiting.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            acquired = _try(descriptor)
            if acquired and _same(path, descriptor):
                kept, descriptor = descriptor, -1
                return kept
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        # The file was replaced between open and flock: at once again.
        if not acquired:
            if time.monotonic() >= deadline or unless():
                return None
            time.sleep(_STEP)


def _same(path: str, descriptor: int) -> bool:
    """Whether the file at `path` is the one that is open."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    opened = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


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
