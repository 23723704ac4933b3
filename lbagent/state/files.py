"""Atomic replacement of files: write a staged file beside the target, fsync, rename, fsync the directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lbagent.state import lock
from lbagent.system import untrusted_files

_WRITING = 0.1
"""Seconds to wait for a process that has the file open for writing."""

_SIGURG = 23

MOUNTED = "is a mount point of its own; mount its folder instead"
"""Error text for a file that is a mount point."""


class Target(NamedTuple):
    """A file as it was read, with what is needed to detect a change since."""

    given: str
    """The path as the operator wrote it; may contain symbolic links."""
    path: str
    """The real path when it was read."""
    content: bytes

    @property
    def folder(self) -> str:
        """The directory of the real file; the staged and the previous version are written there."""
        return os.path.dirname(self.path)

    def hidden_path(self, suffix: str) -> str:
        """Return the hidden path beside the file, such as `.haproxy.cfg.lbagent-SUFFIX`.

        HAProxy does not load hidden files from a directory.
        """
        return os.path.join(self.folder, f".{os.path.basename(self.path)}.lbagent-{suffix}")


def read_target(given: str) -> Target:
    """Read the file at `given`, following symbolic links. Raises OSError."""
    path = os.path.realpath(given)
    return Target(given, path, _read_content(path))


def is_unchanged(target: Target) -> bool:
    """Return whether the file still has the bytes, and the real path, that were read."""
    try:
        return read_target(target.given) == target
    except OSError:
        return False


@contextlib.contextmanager
def stage_text(target: Target, content: bytes) -> Iterator[str]:
    """Write `content` to a staged file beside `target`, with its owner, mode and xattrs.

    Yields the path of the staged file and removes it at the end. Raises OSError, or lock.LockLost if another process
    may write by now: the staged file there may be the one of that process.
    """
    path = target.hidden_path("staged")
    # Mode 0600 until owner and mode are set: haproxy.cfg may contain passwords.
    with _create_file(path, 0o600):
        _write_staged(target.path, path, content)
        yield path


def swap_files(path: str, target: Target, *, keep: bool) -> bool:
    """Replace the target by the staged file; with `keep`, the old version is kept as `previous`.

    Returns False, with the target unchanged, if it was saved since it was read or is open for writing. Raises OSError,
    or lock.LockLost if another process may write by now.
    """
    old = target.hidden_path("old" if keep else "replaced")
    _remove_if_present(old)
    with _watch_writers(target.path) as has_no_writer:
        if not has_no_writer():
            time.sleep(_WRITING)
            return False
        lock.check_all_locks()
        _link_file(target.path, old)
        try:
            _rename(path, target.path)
            # An editor may have saved between the check and the rename: then `old` has its text.
            is_own = _read_content(old) == target.content and has_no_writer()
            if not is_own:
                os.rename(old, target.path)
            elif keep:
                os.rename(old, target.hidden_path("previous"))
        finally:
            _remove_if_present(old)
    sync_folder(target.folder)
    return is_own and os.path.realpath(target.given) == target.path


def remove_stale_stages(target: Target) -> None:
    """Clean up after a run that was killed: remove staged files, keep a replaced original as `previous`.

    Raises lock.LockLost if another process may write by now.
    """
    lock.check_all_locks()
    old = target.hidden_path("old")
    with contextlib.suppress(OSError):
        if not os.path.samefile(old, target.path):
            os.rename(old, target.hidden_path("previous"))
    for suffix in ("staged", "old", "replaced"):
        with contextlib.suppress(OSError):
            os.unlink(target.hidden_path(suffix))


def replace_file(path: str, content: bytes, mode: int = 0o640, *, durable: bool = True) -> None:
    """Replace a file of lbagent's own atomically, with fsync if `durable`.

    Raises OSError or lock.LockLost; the old file stays then.
    """
    fresh = f"{path}.new"
    with _create_file(fresh, mode):
        with _name_file_in_errors(fresh), open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if mode & 0o004:  # readable by others, whatever the umask
                os.fchmod(file.fileno(), mode)
        lock.check_all_locks()
        try:
            os.rename(fresh, path)
        except IsADirectoryError as error:
            raise IsADirectoryError(error.errno, error.strerror, path) from None
    if durable:
        sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Sync `folder`, so that renames in it survive a power failure. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _name_file_in_errors(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _name_file_in_errors(path: str) -> Iterator[None]:
    """Add the path to an OSError that has none, as those of write and fsync."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


@contextlib.contextmanager
def _watch_writers(path: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether no process has the file open for writing; True where that is unknown.

    Uses a read lease (fcntl(2), F_SETLEASE). The kernel refuses it while a writer has the file open, and breaks it when
    one opens the file; the writer waits until the descriptor is closed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            # The kernel breaks a lease with SIGIO, which would kill us. SIGURG is ignored by default.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, _SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            yield lambda: False
        except OSError:
            # Not the owner of the file, or a file system without leases.
            yield lambda: True
        else:
            yield lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    finally:
        os.close(descriptor)


def read_stamp(path: str) -> tuple[int, int, int] | None:
    """Return what differs after each change: inode, mtime in nanoseconds, size; None without a file. Raises OSError."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_mount_point(path: str) -> bool:
    """Return whether `path` is a mount point itself, such as a single file mounted into a container."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
        wanted = os.fsencode(os.path.realpath(path))
        return any(_unescape_path(line.split()[4]) == wanted for line in file)
    return False


def _unescape_path(field: bytes) -> bytes:
    """Decode a path of /proc/self/mountinfo, where blanks and the like are octal escapes."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def _link_file(path: str, to: str) -> None:
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


def _remove_if_present(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _read_content(path: str) -> bytes:
    with _name_file_in_errors(path):
        return untrusted_files.read_whole_file(path)


@contextlib.contextmanager
def _create_file(path: str, mode: int) -> Iterator[None]:
    """Create an empty file, in place of a stale one, and remove it at the end if it is still at `path`.

    A process that has acquired a lost lock may have its own file there by then. Raises OSError or lock.LockLost.
    """
    lock.check_all_locks()
    _remove_if_present(path)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode))
    own = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # an open file keeps its inode number
    try:
        yield
    finally:
        try:
            if lock.is_same_file(path, own):
                _remove_if_present(path)
        finally:
            os.close(own)


def _write_staged(original: str, path: str, content: bytes) -> None:
    found = os.stat(original)
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with _name_file_in_errors(path), open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, found.st_mode & 0o7777)
        for name in os.listxattr(original):
            os.setxattr(descriptor, name, os.getxattr(original, name))
        os.fsync(descriptor)
