"""Read files that other users may control: without blocking on a FIFO, and with a size limit."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO, NamedTuple


class UntrustedFile(NamedTuple):
    """The first bytes of a file."""

    content: bytes
    mode: int
    whole: bool
    """Whether `content` is the whole file."""


LARGEST = 256 * 1024 * 1024
"""Maximum bytes of a configuration file."""


def read_whole_file(path: str) -> bytes:
    """Read a whole configuration file.

    Raises OSError, also if it is not a regular file or larger than LARGEST.
    """
    found = read_untrusted_file(path, LARGEST)
    if not found.whole:
        raise OSError(errno.EFBIG, f"more than {LARGEST >> 20} MiB", path)
    return found.content


def read_untrusted_file(path: str, most: int) -> UntrustedFile:
    """Read at most `most` bytes of a file; a symbolic link is followed.

    Raises OSError, also if it is not a regular file.
    """
    with open_regular_file(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        content = file.read(most + 1)
    return UntrustedFile(content[:most], mode, len(content) <= most)


def open_regular_file(path: str) -> BinaryIO:
    """Open a file for reading; a symbolic link is followed. Raises OSError, also if it is not a regular file."""
    _check_regular(path, os.stat(path).st_mode)  # a device must not be opened
    # Do not block on a FIFO that has no writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
