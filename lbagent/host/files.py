"""Files replaced whole: staged beside the target, synced, swapped, the folder synced."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple


class Target(NamedTuple):
    """A file as it was read: what it takes to see that nobody has touched it since."""

    given: str
    """The path as the operator wrote it, symbolic links and all."""
    path: str
    """Where the links led when it was read."""
    content: bytes

    @property
    def folder(self) -> str:
        """Where the file lies; the staged and the previous one stand beside it."""
        return os.path.dirname(self.path)

    def beside(self, suffix: str) -> str:
        """The hidden name beside the target: HAProxy reads no hidden files from a folder."""
        return os.path.join(self.folder, f".{os.path.basename(self.path)}.lbagent-{suffix}")


def read(given: str) -> Target:
    """The file that `given` leads to. Raises OSError."""
    path = os.path.realpath(given)
    return Target(given, path, _content(path))


def untouched(target: Target) -> bool:
    """Whether `given` still leads to the very bytes that were read."""
    try:
        return read(target.given) == target
    except OSError:
        return False


@contextlib.contextmanager
def staged(target: Target, content: bytes) -> Iterator[str]:
    """A synced file with `content` beside `target`, its owner, mode and xattrs; gone again at the end."""
    path = target.beside("staged")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    try:
        _write_like(target.path, path, content)
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def swap(path: str, target: Target, *, keep: bool) -> bool:
    """Put the staged file in the target's place; the old one stays as `previous` where `keep` says so.

    False, and all is as it was, when somebody saved the target since it was read. Raises OSError.
    """
    old = target.beside("old")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(old)
    os.link(target.path, old)
    try:
        _rename(path, target.path)
        # An editor may have saved between the last look and the rename: then `old` is his text, not what we read.
        quiet = _content(old) == target.content
        if not quiet:
            os.rename(old, target.path)
        elif keep:
            os.rename(old, target.beside("previous"))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)
    sync_folder(target.folder)
    return quiet and os.path.realpath(target.given) == target.path


def replace(path: str, content: bytes, mode: int = 0o640) -> None:
    """Write a file of our own whole and durably. Raises OSError; the old one stays then."""
    fresh = f"{path}.new"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Make renames in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(path: str, to: str) -> None:
    try:
        os.rename(path, to)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(errno.EBUSY, "is a mount point of its own; mount its folder instead", to) from error
        raise


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write_like(original: str, path: str, content: bytes) -> None:
    found = os.stat(original)
    # 0600 until owner and mode are the operator's: haproxy.cfg may hold passwords.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, found.st_mode & 0o7777)
        for name in os.listxattr(original):
            os.setxattr(descriptor, name, os.getxattr(original, name))
        os.fsync(descriptor)
