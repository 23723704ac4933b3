"""Who may write what lbagent reads: it acts as root on the word of these files."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from lbagent.doctor.finding import Finding, Kind, error, ok, warning
from lbagent.names import counted
from lbagent.tuples import NamedTuple

LEAST_FREE = 16 * 1024 * 1024
"""Bytes below which a disk counts as full: haproxy.cfg is written beside itself before it is swapped."""

NONE_FREE = 1024 * 1024
"""Bytes below which nothing can be relied on to be stored."""


class Owned(NamedTuple):
    """A file or folder, and whose it is."""

    path: str
    mode: int
    uid: int
    gid: int


def judge(found: Sequence[Owned], user: int) -> Iterator[Finding]:
    """Which of them others than root and `user` may write."""
    wrong = [one for owned in found for one in _of(owned, user)]
    yield from wrong
    if found and not wrong:
        yield ok(Kind.PERMISSIONS, "", f"only root writes what lbagent believes ({counted(len(found), 'path')})")


def disk(path: str, free: int) -> Finding | None:
    """Whether there is room on the disk of `path`, given its free bytes; None where there is."""
    if free >= LEAST_FREE:
        return None
    made = error if free < NONE_FREE else warning
    return made(Kind.DISK, path, f"{free // 1024} KiB are free", "make room: what cannot be stored is lost")


def _of(owned: Owned, user: int) -> Iterator[Finding]:
    mode = f"mode {owned.mode & 0o7777:04o}"
    if owned.mode & 0o002:
        what = f"every user of this host can write it ({mode})"
        yield error(Kind.PERMISSIONS, owned.path, what, "chmod o-w")
    # To a sticky folder, as the spool may be, a group can add; it replaces nothing there.
    if owned.mode & 0o020 and owned.gid and not (stat.S_ISDIR(owned.mode) and owned.mode & stat.S_ISVTX):
        yield warning(Kind.PERMISSIONS, owned.path, f"group {owned.gid} can write it ({mode})", "chmod g-w")
    if owned.uid not in (0, user):
        yield warning(Kind.PERMISSIONS, owned.path, f"belongs to user {owned.uid}", "chown root")
