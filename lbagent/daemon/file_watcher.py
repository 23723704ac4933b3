"""Edits of roles.yml and haproxy.cfg, however they are saved: in place, by rename, or by a changed symbolic link."""

from __future__ import annotations

import contextlib
import os
import select
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from watchdog import events
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from lbagent.errors import LbagentError
from lbagent.haproxy import config_files, process
from lbagent.roles.model import HaproxySettings, Roles
from lbagent.state.files import read_stamp
from lbagent.system import untrusted_files

FileStamps = tuple[tuple[str, int, int, int], ...]
"""Path, inode, mtime in nanoseconds and size of each file that exists."""


class ConfigEdits:
    """The files that an operator edits, and their state when they were last marked as seen."""

    def __init__(self, roles_path: str, load_roles: Callable[[], Roles]) -> None:
        """While `load_roles` raises an error, the paths of haproxy.cfg are those of the last valid roles.yml."""
        self._roles_path, self._load_roles = roles_path, load_roles
        self._haproxy = HaproxySettings()
        self._stamps: FileStamps = ()
        self._checksums: dict[str, int] = {}
        """A checksum of each file, by path: a file of which only the times have changed was not edited."""

    def list_folders(self) -> Iterator[str]:
        """Yield the directories in which a change may mean an edit."""
        for path in self._paths:
            yield path if os.path.isdir(path) else os.path.dirname(path)
            yield os.path.dirname(os.path.realpath(path))

    def mark_seen(self) -> None:
        """Mark the files as seen in their present state."""
        with contextlib.suppress(LbagentError, OSError):
            self._haproxy = self._load_roles().haproxy
        self._stamps = self.read_stamps()
        self._checksums = _compute_checksums(self._stamps)

    def mark_own_texts(self, texts: tuple[str, ...]) -> None:
        """Mark haproxy.cfg as seen if it has these texts, which lbagent has written."""
        with contextlib.suppress(OSError):
            found = config_files.read_config(self._haproxy)
            if found.texts == texts:
                self._checksums |= {target.given: zlib.crc32(target.content) for target in found.targets}

    @property
    def are_new(self) -> bool:
        """Whether a file differs from what was marked as seen."""
        stamps = self.read_stamps()
        if stamps != self._stamps and _compute_checksums(stamps) == self._checksums:
            self._stamps = stamps
        return stamps != self._stamps

    def read_stamps(self) -> FileStamps:
        """Return the present stamps of the files."""
        found = []
        for path in (path for given in self._paths for path in _list_files(given)):
            with contextlib.suppress(OSError):
                if stamp := read_stamp(path):
                    found.append((path, *stamp))
        return tuple(found)

    @property
    def _paths(self) -> tuple[str, ...]:
        return (self._roles_path, *self._haproxy.config)


def _list_files(path: str) -> list[str]:
    with contextlib.suppress(OSError):  # for example a directory that vanishes at this moment
        return process.list_files(path)
    return [path]


def _compute_checksums(stamps: FileStamps) -> dict[str, int]:
    found = {}
    for path, *_ in stamps:
        with contextlib.suppress(OSError):
            found[path] = zlib.crc32(untrusted_files.read_whole_file(path))
    return found


_CHANGES: list[type[events.FileSystemEvent]] = [
    events.DirCreatedEvent,
    events.DirDeletedEvent,
    events.DirMovedEvent,
    events.FileClosedEvent,
    events.FileCreatedEvent,
    events.FileDeletedEvent,
    events.FileModifiedEvent,
    events.FileMovedEvent,
]
"""All events except those of reading: lbagent reads these directories itself."""

_STORED: list[type[events.FileSystemEvent]] = [events.FileClosedEvent, events.FileModifiedEvent]
"""Events of the spool, whose records are renamed before they are closed.

watchdog waits half a second for the second part of a rename, and reports later events after it.
"""

_HAS_FILTER = "event_filter" in BaseObserver.schedule.__code__.co_varnames
"""Whether watchdog has an event filter: version 4 and later; Debian 12 has 2.2."""

Folder = tuple[str, int, int]
"""Path, device and inode: a directory that was removed and created again has another inode."""


class FileWatcher:
    """Waits until something changes in the watched directories, or until it is woken."""

    def __init__(self) -> None:
        """Watch no directory yet."""
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: BaseObserver | None = None
        # The kernel limits inotify instances per user. Without one, callers poll every second.
        with contextlib.suppress(OSError):
            self._observer = Observer()
        self._watched: dict[Folder, ObservedWatch] = {}

    def __enter__(self) -> Self:
        if self._observer:
            self._observer.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._observer:
            self._observer.stop()
            self._observer.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def wake(self) -> None:
        """End the present or the next `wait`; safe in a signal handler and from another thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait for a change or a `wake`, at most `seconds`; return whether there was one."""
        woken = bool(select.select([self._wake_reader], [], [], max(seconds, 0))[0])
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._wake_reader, 4096)) == 4096:  # noqa: PLR2004  # a full read: there may be more
                pass
        return woken

    def watch_folders(self, folders: Iterable[str], spool: str = "") -> None:
        """Watch these directories and no others; for one that is missing, its nearest parent that exists.

        In `spool`, only records that are complete count.
        """
        if self._observer is None:
            return
        wanted = {folder: _CHANGES for path in folders if (folder := _find_existing_folder(path))}
        if spool and (folder := _find_existing_folder(spool)):
            wanted.setdefault(folder, _STORED if folder[0] == os.path.abspath(spool) else _CHANGES)
        for gone in self._watched.keys() - wanted:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched[gone])
            del self._watched[gone]
        for new in wanted.keys() - self._watched.keys():
            options: dict[str, Any] = {"event_filter": wanted[new]} if _HAS_FILTER else {}
            # A directory that vanishes meanwhile is looked up again by the next call.
            with contextlib.suppress(OSError):
                self._watched[new] = self._observer.schedule(_WakeOnChange(self), new[0], **options)


class _WakeOnChange(events.FileSystemEventHandler):
    def __init__(self, watcher: FileWatcher) -> None:
        self._watcher = watcher

    def on_any_event(self, event: events.FileSystemEvent) -> None:
        if isinstance(event, tuple(_CHANGES)):
            self._watcher.wake()


def _find_existing_folder(path: str) -> Folder | None:
    path = os.path.abspath(path)
    while True:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if os.path.isdir(path):
                return path, found.st_dev, found.st_ino
        if path == "/":
            return None
        path = os.path.dirname(path)
