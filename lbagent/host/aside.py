"""The folder `bad/` of a spool: what could not be an event, the newest of it, for a person to look at.

Whoever may write the spool may make anything there, links and bottomless folders too, and we may be root. So nothing
here is reached by a path that he could bend: only by an open folder, and by a name in it that is never followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

KEPT = 100
"""Of what was set aside, the newest so many stay."""

_BAD = "bad"

_KEPT_NAME = 100
"""Bytes of a foreign name that are kept."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """The folder at `path`, which is no link, as a descriptor; an OSError from within has the whole path in it."""
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    except OSError as error:
        if isinstance(error.filename, str | bytes):
            error.filename = os.path.join(path, os.fsdecode(error.filename))
        else:  # the number of the open folder, or nothing
            error.filename = path
        raise
    finally:
        os.close(descriptor)


def set_aside(spool: int, name: str) -> str:
    """Move what `name` is in the open folder `spool` into its `bad/`; returns the path below it. Raises OSError."""
    kept = f"{time.time_ns()}-{os.fsdecode(os.fsencode(name)[:_KEPT_NAME])}"
    bad = _bad(spool)
    try:
        os.rename(name, kept, src_dir_fd=spool, dst_dir_fd=bad)
        for one in sorted(os.listdir(bad))[:-KEPT]:
            _erase(bad, one)
    finally:
        os.close(bad)
    return os.path.join(_BAD, kept)


def _bad(spool: int) -> int:
    """The open folder `bad/`, made where it is missing; what stands in its place and is not ours goes into it."""
    found = _ours(spool)
    if found is not None:
        return found
    away = f".{_BAD}-{time.time_ns()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(_BAD, away, src_dir_fd=spool, dst_dir_fd=spool)
    os.mkdir(_BAD, 0o750, dir_fd=spool)
    made = _ours(spool)
    if made is None:  # exchanged, between these two lines
        raise PermissionError(errno.EPERM, "is somebody else's", _BAD)
    with contextlib.suppress(OSError):
        os.rename(away, f"{time.time_ns()}-{_BAD}", src_dir_fd=spool, dst_dir_fd=made)
    return made


def _ours(spool: int) -> int | None:
    """The open folder `bad/`, if that is a folder which nobody else can write, but root."""
    try:
        descriptor = os.open(_BAD, _FOLDER, dir_fd=spool)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022:
        return descriptor
    os.close(descriptor)
    return None


def _erase(bad: int, name: str) -> None:
    """Remove a file, or a folder with all that is in it, however deep; what cannot be removed stays."""
    left = [name]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            if not _is_folder(bad, one):
                os.unlink(one, dir_fd=bad)
                continue
            left += _emptied(bad, one)
            os.rmdir(one, dir_fd=bad)


def _emptied(bad: int, folder: str) -> list[str]:
    """Empty a folder: its files go, its folders come up beside it, under the names that are returned."""
    up: list[str] = []
    inside = os.open(folder, _FOLDER, dir_fd=bad)
    try:
        for name in os.listdir(inside):
            with contextlib.suppress(OSError):
                if not _is_folder(inside, name):
                    os.unlink(name, dir_fd=inside)
                    continue
                # Older than all others: who is killed here leaves what goes first the next time.
                raised = f"0-{time.time_ns()}-{len(up)}"
                os.rename(name, raised, src_dir_fd=inside, dst_dir_fd=bad)
                up.append(raised)
    finally:
        os.close(inside)
    return up


def _is_folder(inside: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode)
