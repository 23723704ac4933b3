"""Files that somebody else may have made: looked at without waiting for a pipe, or reading without an end."""

from __future__ import annotations

import errno
import os
import stat

from lbagent.tuples import NamedTuple


class Foreign(NamedTuple):
    """The beginning of a file."""

    content: bytes
    mode: int
    whole: bool
    """Whether that is all of it."""


def read(path: str, most: int) -> Foreign:
    """At most that many bytes of a file. Raises OSError, also where it is no regular one; a link is followed."""
    content, mode = _read(path, most + 1)
    return Foreign(content[:most], mode, len(content) <= most)


def content(path: str) -> bytes:
    """All bytes of a file. Raises OSError, also where it is not a regular one; a link is followed."""
    return _read(path, -1)[0]


def _read(path: str, most: int) -> tuple[bytes, int]:
    """At most that many bytes of a file (all: -1), and its mode."""
    # A FIFO must not make us wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most), mode
    finally:
        os.close(descriptor)
