"""Files replaced whole: staged beside the target, synced, swapped, the folder synced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator

from lbagent.state import lock
from lbagent.system import untrusted_files
from lbagent.system.tuples import NamedTuple

_WRITING = 0.1
"""Seconds given to somebody who is writing the file, before it is looked at again."""

_SIGURG = 23


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


def read_target(given: str) -> Target:
    """The file that `given` leads to. Raises OSError."""
    path = os.path.realpath(given)
    return Target(given, path, _content(path))


def is_unchanged(target: Target) -> bool:
    """Whether `given` still leads to the very bytes that were read."""
    try:
        return read_target(target.given) == target
    except OSError:
        return False


@contextlib.contextmanager
def stage_text(target: Target, content: bytes) -> Iterator[str]:
    """A synced file with `content` beside `target`, its owner, mode and xattrs; gone again at the end."""
    path = target.beside("staged")
    _forget(path)
    try:
        _write_like(target.path, path, content)
        yield path
    finally:
        _forget(path)


def swap_files(path: str, target: Target, *, keep: bool) -> bool:
    """Put the staged file in the target's place; the old one stays as `previous` where `keep` says so.

    False, and all is as it was, when somebody saved the target since it was read, or has it open for writing.
    Raises OSError, and lock.Lost where another process may write by now.
    """
    old = target.beside("old" if keep else "replaced")
    _forget(old)
    with _nobody_writes(target.path) as nobody:
        if not nobody():
            time.sleep(_WRITING)
            return False
        lock.insist_on_all()
        _link(target.path, old)
        try:
            _rename(path, target.path)
            # An editor may have saved between the last look and the rename: then `old` is his text, not what we read.
            quiet = _content(old) == target.content and nobody()
            if not quiet:
                os.rename(old, target.path)
            elif keep:
                os.rename(old, target.beside("previous"))
        finally:
            _forget(old)
    sync_folder(target.folder)
    return quiet and os.path.realpath(target.given) == target.path


def remove_stale_stages(target: Target) -> None:
    """Clear up after a run that was killed: staged text goes, the one that it had swapped out becomes `previous`."""
    old = target.beside("old")
    with contextlib.suppress(OSError):
        if not os.path.samefile(old, target.path):
            os.rename(old, target.beside("previous"))
    for suffix in ("staged", "old", "replaced"):
        with contextlib.suppress(OSError):
            os.unlink(target.beside(suffix))


def replace_file(path: str, content: bytes, mode: int = 0o640, *, durable: bool = True) -> None:
    """Write a file of our own whole, and as a rule durably. Raises OSError, lock.Lost; the old one stays then."""
    fresh = f"{path}.new"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with _named(fresh), open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if mode & 0o004:  # for others to read, whatever the umask
                os.fchmod(file.fileno(), mode)
        lock.insist_on_all()
        os.rename(fresh, path)
    except (OSError, lock.Lost):
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    if durable:
        sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Make renames in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Have an OSError say which file it is about: those of write and fsync do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


@contextlib.contextmanager
def _nobody_writes(path: str) -> Iterator[Callable[[], bool]]:
    """What tells whether nobody has opened the file for writing, until the end of the block; a guess where it cannot.

    A read lease is refused while a writer has the file open, and asked back when one comes; he waits until we are out.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            # Asked back by SIGIO, it would end us; SIGURG is ignored by who does not expect it.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, _SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            yield lambda: False
        except OSError:
            # Not its owner, or a file system without leases.
            yield lambda: True
        else:
            yield lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    finally:
        os.close(descriptor)


def is_mount_point(path: str) -> bool:
    """Whether something is mounted on this very file or folder, a single file of a container's host for example."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        wanted = os.fsencode(os.path.realpath(path))
        return any(_unescape(line.split()[4]) == wanted for line in file)
    return False


def _unescape(field: bytes) -> bytes:
    """A path of mountinfo, in which blanks and the like are octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


MOUNTED = "is a mount point of its own; mount its folder instead"
"""Why a file cannot be replaced, and what to do."""


def _link(path: str, to: str) -> None:
    try:
        os.link(path, to)
    except OSError as error:
        if error.errno == errno.EXDEV and is_mount_point(path):
            raise OSError(errno.EBUSY, MOUNTED, path) from error
        raise


def _rename(path: str, to: str) -> None:
    try:
        os.rename(path, to)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(errno.EBUSY, MOUNTED, to) from error
        raise


def _forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _content(path: str) -> bytes:
    with _named(path):
        return untrusted_files.content(path)


def _write_like(original: str, path: str, content: bytes) -> None:
    found = os.stat(original)
    # 0600 until owner and mode are the operator's: haproxy.cfg may hold passwords.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with _named(path), open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, found.st_mode & 0o7777)
        for name in os.listxattr(original):
            os.setxattr(descriptor, name, os.getxattr(original, name))
        os.fsync(descriptor)
