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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
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
    except OSError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
