"""Whether an operator has saved roles.yml or haproxy.cfg: in place, by rename, or by a link that flips."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from lbagent import scene
from lbagent.errors import LbagentError
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

    def ours(self, texts: tuple[str, ...]) -> None:
        """Take haproxy.cfg for known where these texts stand in it: we have written them."""
        stamp = self.stamp()
        with contextlib.suppress(OSError):
            if scene.look(self._haproxy).texts == texts:
                self._stamp = stamp

    @property
    def made(self) -> bool:
        """Whether a file is not what was `seen`."""
        return self.stamp() != self._stamp

    def stamp(self) -> Stamp:
        """How the files look now."""
        return tuple(_stamps(path for given in self._paths() for path in _files(given)))

    def _paths(self) -> tuple[str, ...]:
        return (self._roles_path, *self._haproxy.config)


def _files(path: str) -> list[str]:
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):  # a folder that vanishes at this moment
        return scene.expanded(path)
    return [path]


def _stamps(paths: Iterator[str]) -> Iterator[tuple[str, int, int, int]]:
    for path in paths:
        with contextlib.suppress(OSError):
            found = os.stat(path)
            yield path, found.st_ino, found.st_mtime_ns, found.st_size
