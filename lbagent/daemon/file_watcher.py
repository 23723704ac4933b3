"""Whether an operator has saved roles.yml or haproxy.cfg: in place, by rename, or by a link that flips."""

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
from lbagent.haproxy import config_files
from lbagent.roles.model import HaproxySettings, Roles
from lbagent.system import untrusted_files

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, inode, time and size of each file that is there."""


class ConfigEdits:
    """The files an operator edits, and how they looked last."""

    def __init__(self, roles_path: str, roles: Callable[[], Roles]) -> None:
        """`roles` reads roles.yml; while it is refused, its last good one tells where haproxy.cfg is."""
        self._roles_path, self._roles = roles_path, roles
        self._haproxy = HaproxySettings()
        self._stamp: Stamp = ()
        self._contents: dict[str, int] = {}
        """A checksum of each file, by path: whose times alone have changed was not edited."""

    def folders(self) -> Iterator[str]:
        """The folders in which a change may mean an edit."""
        for path in self._paths():
            yield path if os.path.isdir(path) else os.path.dirname(path)
            yield os.path.dirname(os.path.realpath(path))

    def seen(self) -> None:
        """Take the files as they are now for known."""
        with contextlib.suppress(LbagentError, OSError):
            self._haproxy = self._roles().haproxy
        self._stamp = self.stamp()
        self._contents = _contents(self._stamp)

    def ours(self, texts: tuple[str, ...]) -> None:
        """Take haproxy.cfg for known where these texts stand in it: we have written them."""
        with contextlib.suppress(OSError):
            found = config_files.read_config(self._haproxy)
            if found.texts == texts:
                self._contents |= {target.given: zlib.crc32(target.content) for target in found.targets}

    @property
    def made(self) -> bool:
        """Whether a file is not what was `seen`."""
        stamp = self.stamp()
        if stamp != self._stamp and _contents(stamp) == self._contents:
            self._stamp = stamp
        return stamp != self._stamp

    def stamp(self) -> Stamp:
        """How the files look now."""
        return tuple(_stamps(path for given in self._paths() for path in _files(given)))

    def _paths(self) -> tuple[str, ...]:
        return (self._roles_path, *self._haproxy.config)


def _files(path: str) -> list[str]:
    with contextlib.suppress(OSError):  # a folder that vanishes at this moment, say
        return config_files.list_files(path)
    return [path]


def _stamps(paths: Iterator[str]) -> Iterator[tuple[str, int, int, int]]:
    for path in paths:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            yield path, found.st_ino, found.st_mtime_ns, found.st_size


def _contents(stamp: Stamp) -> dict[str, int]:
    found = {}
    for path, *_ in stamp:
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
"""All that is no mere reading: we read those folders ourselves."""

# Older than 4 (Debian 12 has 2.2), it cannot be told which.
_ONLY_CHANGES: dict[str, Any] = (
    {"event_filter": _CHANGES} if "event_filter" in BaseObserver.schedule.__code__.co_varnames else {}
)

Folder = tuple[str, int, int]
"""Path, device and inode: a folder made anew under the same name is another."""


class FileWatcher:
    """Waits until something happens in the folders it is given, or somebody calls."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self._ear, self._voice = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: BaseObserver | None = None
        # The kernel gives a user few of them; without, who waits looks each second.
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
        os.close(self._ear)
        os.close(self._voice)

    def call(self) -> None:
        """Have whoever waits look up; safe in a signal handler and from another thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._voice, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for something to happen; returns whether it did."""
        happened = bool(select.select([self._ear], [], [], max(seconds, 0))[0])
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._ear, 4096)) == 4096:  # noqa: PLR2004  # as much as is asked for: there may be more
                pass
        return happened

    def watch(self, folders: Iterable[str]) -> None:
        """Watch these folders from now on, and no others; of one that is missing, the nearest above it that is not."""
        if self._observer is None:
            return
        wanted = {folder for path in folders if (folder := _nearest(path))}
        for gone in self._watched.keys() - wanted:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched[gone])
            del self._watched[gone]
        for new in wanted - self._watched.keys():
            # One that vanishes meanwhile is found anew at the next look.
            with contextlib.suppress(OSError):
                self._watched[new] = self._observer.schedule(_Caller(self), new[0], **_ONLY_CHANGES)


class _Caller(events.FileSystemEventHandler):
    def __init__(self, attention: FileWatcher) -> None:
        self._attention = attention

    def on_any_event(self, event: events.FileSystemEvent) -> None:
        if isinstance(event, tuple(_CHANGES)):
            self._attention.call()


def _nearest(path: str) -> Folder | None:
    path = os.path.abspath(path)
    while True:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            if os.path.isdir(path):
                return path, found.st_dev, found.st_ino
        if path == "/":
            return None
        path = os.path.dirname(path)
