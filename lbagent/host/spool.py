"""The spool: events on disk, in order, until they have been folded into membership.

A record is named by its number. It is written under a hidden name, created exclusively, synced and
renamed, so that what has a number is whole. Whatever else lies there is foreign and set aside in `bad/`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable
from typing import NamedTuple

BAD_KEPT = 100
_HIDDEN_FOR_GOOD = 300
"""Seconds after which a hidden name belongs to a writer that died."""

_LARGEST = 10**17

_KEPT_NAME = 100
"""Bytes of a foreign name that are kept in `bad/`."""

Mark = tuple[str, int, int]
"""Name, inode and time of a file: an emptied spool numbers from 1 again, so a name alone is not enough."""


class Record(NamedTuple):
    """One spool file that could be read."""

    name: str
    content: bytes


class Spool:
    """The folder `spool/` of a state directory."""

    def __init__(self, folder: str, limit: int) -> None:
        """A spool in `folder` whose records hold at most `limit` bytes."""
        self.folder = folder
        self.limit = limit

    def put(self, content: bytes) -> str:
        """Store one record durably and return its name. Raises OSError."""
        names = os.listdir(self.folder)
        number = max((number for name in names if (number := _number(name.strip("."))) is not None), default=0)
        while True:
            # A forged name may hold the largest number there is.
            number = number % (_LARGEST - 1) + 1
            # Who holds `.N` exclusively is the only one who may make `N`; a drained N may be used again.
            try:
                descriptor = os.open(self._path(f".{number}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                continue
            if self._publish(descriptor, number, content):
                return str(number)

    def _publish(self, descriptor: int, number: int, content: bytes) -> bool:
        hidden, final = self._path(f".{number}"), self._path(str(number))
        try:
            with open(descriptor, "wb") as file:
                if os.path.lexists(final):
                    os.unlink(hidden)
                    return False
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(hidden, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        self._sync()
        return True

    def names(self) -> list[str]:
        """The records, oldest first; foreign names come last."""
        try:
            found = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        shown = [name for name in found if not name.startswith(".") and name != "bad"]
        return sorted(shown, key=lambda name: (_number(name) is None, _number(name) or 0, name))

    def marks(self) -> frozenset[Mark]:
        """What tells every file here from all others."""
        found = set()
        for name in self.names():
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(self._path(name))
                found.add((name, status.st_ino, status.st_mtime_ns))
        return frozenset(found)

    def read(self) -> tuple[list[Record], list[str]]:
        """Every readable record in order, and a sentence for each file that was set aside."""
        records, said = [], []
        self._forget_the_dead()
        for name in self.names():
            content = self._content(name)
            if isinstance(content, bytes):
                records.append(Record(name, content))
            else:
                said.append(self.set_aside(name, content))
        return records, said

    def peek(self) -> list[Record]:
        """Every readable record in order; nothing is moved."""
        found = ((name, self._content(name)) for name in self.names())
        return [Record(name, content) for name, content in found if isinstance(content, bytes)]

    def set_aside(self, name: str, why: str) -> str:
        """Move a file that cannot be folded to `bad/`, of which the newest are kept; returns what to report."""
        bad = self._path("bad")
        kept = f"{time.time_ns()}-{os.fsdecode(os.fsencode(name)[:_KEPT_NAME])}"
        try:
            self._make(bad)
            os.rename(self._path(name), os.path.join(bad, kept))
        except OSError as error:
            return f"{self._path(name)!r} {why}, and cannot be set aside: {error.strerror}"
        _keep_newest(bad)
        return f"{self._path(name)!r} {why}: set aside as {os.path.join(bad, kept)!r}"

    def remove(self, names: Iterable[str]) -> None:
        """Forget records that have been folded. Raises OSError."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def oldest(self) -> float | None:
        """When the oldest record was written, in seconds since the epoch; None when there is none."""
        for name in self.names():
            with contextlib.suppress(OSError):
                return os.lstat(self._path(name)).st_mtime
        return None

    def _content(self, name: str) -> bytes | str:
        if _number(name) is None:
            return "is not named like a record"
        try:
            # A FIFO must not make us wait, a link must not lead us elsewhere.
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                return "is no regular file"
            if found.st_size > self.limit:
                return f"holds {found.st_size} bytes, more than {self.limit}"
            return os.read(descriptor, self.limit)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        finally:
            os.close(descriptor)

    def _make(self, bad: str) -> None:
        if os.path.lexists(bad) and not os.path.isdir(bad):
            aside = self._path(f".bad-{time.time_ns()}")
            os.rename(bad, aside)
            os.mkdir(bad, mode=0o750)
            os.rename(aside, os.path.join(bad, f"{time.time_ns()}-bad"))
        os.makedirs(bad, mode=0o750, exist_ok=True)

    def _forget_the_dead(self) -> None:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                    if entry.name.startswith(".") and age > _HIDDEN_FOR_GOOD:
                        os.unlink(entry.path)

    def _sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _number(name: str) -> int | None:
    if name.isascii() and name.isdigit() and name[0] != "0" and int(name[:19]) < _LARGEST and len(name) <= 18:  # noqa: PLR2004
        return int(name)
    return None


def _keep_newest(bad: str) -> None:
    for name in sorted(os.listdir(bad))[:-BAD_KEPT]:
        path = os.path.join(bad, name)
        if os.path.isdir(path) and not os.path.islink(path):
            import shutil  # noqa: PLC0415  # a folder in the spool is somebody's attempt, not our daily work

            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
