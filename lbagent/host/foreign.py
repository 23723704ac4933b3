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
    # A FIFO must not make us wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    return Foreign(content[:most], mode, len(content) <= most)
