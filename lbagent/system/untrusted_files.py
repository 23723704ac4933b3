"""Files of others: read without waiting for a pipe's writer, and without an end for a device."""

from __future__ import annotations

import errno
import os
import stat

from lbagent.system.tuples import NamedTuple


class UntrustedFile(NamedTuple):
    """The beginning of a file."""

    content: bytes
    mode: int
    whole: bool
    """Whether that is all of it."""


LARGEST = 256 * 1024 * 1024
"""Bytes of a configuration file that are read."""


def read_whole_file(path: str) -> bytes:
    """A whole configuration file. Raises OSError, also where it is not a regular file, or larger than any can be."""
    found = read_untrusted_file(path, LARGEST)
    if not found.whole:
        raise OSError(errno.EFBIG, f"more than {LARGEST >> 20} MiB", path)
    return found.content


def read_untrusted_file(path: str, most: int) -> UntrustedFile:
    """At most that many bytes of a file. Raises OSError, also where it is not a regular one; a link is followed."""
    _regular(path, os.stat(path).st_mode)  # a device is not even opened, a socket cannot be
    # A FIFO must not make us wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        _regular(path, mode)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    return UntrustedFile(content[:most], mode, len(content) <= most)


def _regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
