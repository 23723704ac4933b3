"""Whether an operator has saved roles.yml or haproxy.cfg: in place, by rename, or by a link that flips."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator

from lbagent import scene
from lbagent.errors import LbagentError
from lbagent.host import foreign
from lbagent.roles import HaproxySettings, Roles

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, inode, time and size of each file that is there."""


class Edits:
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
            found = scene.look(self._haproxy)
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
        return scene.expanded(path)
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
            found[path] = zlib.crc32(foreign.content(path))
    return found
