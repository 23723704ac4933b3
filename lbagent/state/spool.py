"""The spool: events on disk, in order, until they are applied to membership.

A record is named by its number. It is written under a hidden name, created exclusively, synced and renamed, so that a
file with a number is complete. Any other file is foreign and moved to `bad/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import namedtuple
from collections.abc import Iterable, Iterator

KEPT = 100
"""Number of files kept in `bad/`, the newest ones."""

_BAD = "bad"
_KEPT_NAME = 100
"""Bytes kept of the name of a foreign file."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


AT_ONCE, BYTES_AT_ONCE = 10_000, 64 * 1024 * 1024
"""Maximum number of records, and of bytes, that one run processes. The next run continues."""

_HIDDEN_FOR_GOOD = 300
"""Age in seconds after which a hidden file belongs to a writer that died."""

_LARGEST = 10**17

_PASSING = frozenset((errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors of a disk or of a limit: the file may be a valid record, and the next run may be able to read it."""

Mark = tuple[str, int, int]
"""Name, inode and mtime (ns) of a file. A name alone is not enough: an emptied spool starts at number 1 again."""


_Fields = namedtuple("_Fields", "name content foreign", defaults=[False])  # noqa: PYI024  # `typing` takes longer to import than an event to store


class Record(_Fields):
    """One readable record."""

    name: str
    content: bytes
    foreign: bool
    """Whether neither root nor this user has written it."""

    __slots__ = ()


class Spool:
    """The folder `spool/` of a state directory; a symbolic link in its place is never followed."""

    def __init__(self, folder: str, limit: int) -> None:
        """Use the spool in `folder`; its records have at most `limit` bytes."""
        self.folder = folder
        self.limit = limit

    def store(self, content: bytes) -> str:
        """Store one record durably and return its name. Raises OSError."""
        with open_folder(self.folder) as here:
            names = os.listdir(here)
            number = max(
                (number for name in names if (number := _parse_number(name.strip("."))) is not None), default=0
            )
            while True:
                # A forged name may hold the largest number there is.
                number = number % (_LARGEST - 1) + 1
                # Only the process that created `.N` exclusively may create `N`. The number of a drained N is reused.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                try:
                    descriptor = os.open(f".{number}", flags, 0o640, dir_fd=here)
                except FileExistsError:
                    continue
                if _write_record(here, descriptor, str(number), content):
                    return str(number)

    def list_names(self) -> list[str]:
        """Return the names of the records, oldest first; foreign names come last."""
        try:
            with open_folder(self.folder) as here:
                return _list_visible(here)
        except FileNotFoundError:
            return []

    def list_marks(self) -> frozenset[Mark]:
        """Return the marks of the files that the next run would process."""
        try:
            with open_folder(self.folder) as here:
                return frozenset((name, status.st_ino, status.st_mtime_ns) for name, status in self._list_next(here))
        except FileNotFoundError:
            return frozenset()

    def read(self) -> tuple[list[Record], list[str]]:
        """Return every record in order, and a warning for each file moved to `bad/`. Raises OSError."""
        records, warnings = [], []
        with contextlib.suppress(FileNotFoundError), open_folder(self.folder) as here:
            _remove_abandoned(here)
            for name, _ in self._list_next(here):
                record = self._read_record(here, name)
                if isinstance(record, Record):
                    records.append(record)
                else:
                    warnings.append(self.set_aside(name, record))
        return records, warnings

    def peek(self, *, partly: bool = False) -> list[Record]:
        """Return every record in order, without moving any file. Raises OSError if one cannot be read now.

        With `partly`, such a record is left out.
        """
        found = []
        with contextlib.suppress(FileNotFoundError), open_folder(self.folder) as here:
            for name, _ in self._list_next(here):
                try:
                    found.append(self._read_record(here, name))
                except OSError:
                    if not partly:
                        raise
        return [record for record in found if isinstance(record, Record)]

    def set_aside(self, name: str, why: str) -> str:
        """Move an unusable file to `bad/` and return the sentence that reports it."""
        path = os.path.join(self.folder, name)
        try:
            with open_folder(self.folder) as here:
                kept = set_aside(here, name)
        except OSError as error:
            return f"{path!r} {why}; it cannot be moved to bad/: {error.strerror}"
        return f"{path!r} {why}; moved to {os.path.join(self.folder, kept)!r}"

    def remove(self, names: Iterable[str]) -> None:
        """Delete records that are applied to membership. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), open_folder(self.folder) as here:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)

    def find_oldest_time(self) -> float | None:
        """Return when the oldest record was written, in epoch seconds; None if there is none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), open_folder(self.folder) as here:
            for name in _list_visible(here):
                with contextlib.suppress(FileNotFoundError):
                    return os.lstat(name, dir_fd=here).st_mtime
        return None

    def _list_next(self, here: int) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the records that one run processes: all of them, unless the spool was flooded."""
        room = BYTES_AT_ONCE
        for name in _list_visible(here)[:AT_ONCE]:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(name, dir_fd=here)
                yield name, status
                room -= min(status.st_size, self.limit)
            if room <= 0:
                return

    def _read_record(self, here: int, name: str) -> Record | str:
        """Return the record, or why the file is not one. Raises OSError where that is unknown."""
        if _parse_number(name) is None:
            return "is not named like a record"
        # Do not block on a FIFO, follow a symbolic link or acquire a terminal.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=here)
        except OSError as error:
            return _judge_error(error)
        try:
            found = os.fstat(descriptor)
            if wrong := self._find_defect(found):
                return wrong
            return Record(name, os.read(descriptor, self.limit), found.st_uid not in (0, os.geteuid()))
        except OSError as error:
            return _judge_error(error)
        finally:
            os.close(descriptor)

    def _find_defect(self, found: os.stat_result) -> str | None:
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if found.st_nlink > 1:
            return "has another hard link"
        return f"holds {found.st_size} bytes, more than {self.limit}" if found.st_size > self.limit else None


def _judge_error(error: OSError) -> str:
    """Return why a file that gives this error is not a record. Raises the error if its cause may pass."""
    if error.errno in _PASSING:
        raise error
    return f"cannot be read ({error.strerror})"


def _write_record(here: int, descriptor: int, name: str, content: bytes) -> bool:
    hidden = f".{name}"
    file = open(descriptor, "wb")  # noqa: SIM115  # closed after the rename
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(name, dir_fd=here)
            os.unlink(hidden, dir_fd=here)
            return False
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.rename(hidden, name, src_dir_fd=here, dst_dir_fd=here)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(hidden, dir_fd=here)
        raise
    finally:
        # The close wakes `watch`, when the record has its name: watchdog reports a rename half a second later.
        with contextlib.suppress(OSError):
            file.close()  # all is on the disk
    os.fsync(here)
    return True


def _list_visible(here: int) -> list[str]:
    shown = [name for name in os.listdir(here) if not name.startswith(".") and name != "bad"]
    return sorted(shown, key=lambda name: (_parse_number(name) is None, _parse_number(name) or 0, name))


def _remove_abandoned(here: int) -> None:
    for name in os.listdir(here):
        with contextlib.suppress(OSError):
            if name.startswith(".") and time.time() - os.lstat(name, dir_fd=here).st_mtime > _HIDDEN_FOR_GOOD:
                os.unlink(name, dir_fd=here)


def _parse_number(name: str) -> int | None:
    if name.isascii() and name.isdigit() and name[0] != "0" and int(name[:19]) < _LARGEST and len(name) <= 18:  # noqa: PLR2004
        return int(name)
    return None


@contextlib.contextmanager
def open_folder(path: str) -> Iterator[int]:
    """Open the directory at `path`, which may not be a symbolic link, and yield its descriptor.

    An OSError raised inside gets the full path as its filename.
    """
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    except OSError as error:
        if isinstance(error.filename, str | bytes):
            error.filename = os.path.join(path, os.fsdecode(error.filename))
        else:  # a descriptor number, or None
            error.filename = path
        raise
    finally:
        os.close(descriptor)


def set_aside(spool: int, name: str) -> str:
    """Move `name` from the open directory `spool` to its `bad/`; return the path below `spool`. Raises OSError."""
    kept = f"{time.time_ns()}-{os.fsdecode(os.fsencode(name)[:_KEPT_NAME])}"
    bad = _open_bad(spool)
    try:
        os.rename(name, kept, src_dir_fd=spool, dst_dir_fd=bad)
        for old in sorted(os.listdir(bad))[:-KEPT]:
            _remove_tree(bad, old)
    finally:
        os.close(bad)
    return os.path.join(_BAD, kept)


def _open_bad(spool: int) -> int:
    """Return a descriptor of `bad/`, creating it if missing.

    A foreign file or directory in its place is moved into it.
    """
    found = _open_own_bad(spool)
    if found is not None:
        return found
    away = f".{_BAD}-{time.time_ns()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(_BAD, away, src_dir_fd=spool, dst_dir_fd=spool)
    os.mkdir(_BAD, 0o750, dir_fd=spool)
    made = _open_own_bad(spool)
    if made is None:  # replaced by another process between the two calls
        raise PermissionError(errno.EPERM, "belongs to another user", _BAD)
    with contextlib.suppress(OSError):
        os.rename(away, f"{time.time_ns()}-{_BAD}", src_dir_fd=spool, dst_dir_fd=made)
    return made


def _open_own_bad(spool: int) -> int | None:
    """Return a descriptor of `bad/` if it is a directory that only this user and root can write, else None."""
    try:
        descriptor = os.open(_BAD, _FOLDER, dir_fd=spool)
    except OSError:
        return None
    status = os.fstat(descriptor)
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022:
        return descriptor
    os.close(descriptor)
    return None


def _remove_tree(bad: int, name: str) -> None:
    """Remove a file, or a directory with all its contents; what cannot be removed stays."""
    names = [name]
    while names:
        current = names.pop()
        with contextlib.suppress(OSError):
            if not _is_folder(bad, current):
                os.unlink(current, dir_fd=bad)
                continue
            names += _empty_folder(bad, current)
            os.rmdir(current, dir_fd=bad)


def _empty_folder(bad: int, folder: str) -> list[str]:
    """Empty a directory: delete its files, and move its subdirectories up into `bad`; return their new names."""
    moved: list[str] = []
    inside = os.open(folder, _FOLDER, dir_fd=bad)
    try:
        for name in os.listdir(inside):
            with contextlib.suppress(OSError):
                if not _is_folder(inside, name):
                    os.unlink(name, dir_fd=inside)
                    continue
                # The prefix sorts first: if this process is killed here, these are removed first the next time.
                moved_name = f"0-{time.time_ns()}-{len(moved)}"
                os.rename(name, moved_name, src_dir_fd=inside, dst_dir_fd=bad)
                moved.append(moved_name)
    finally:
        os.close(inside)
    return moved


def _is_folder(inside: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode)
