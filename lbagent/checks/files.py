"""The files and folders lbagent lives on, as they lie on this machine."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lbagent.checks.finding import AS_SERF, Finding, Kind, error, ok, unseen, warning
from lbagent.membership.storage import Damaged
from lbagent.names import format_count
from lbagent.state import files
from lbagent.state.paths import Paths
from lbagent.state.store import Store
from lbagent.system.processes import Process

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
        yield ok(Kind.PERMISSIONS, "", f"only root writes what lbagent believes ({format_count(len(found), 'path')})")


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


def owned(paths: Sequence[str]) -> Iterator[Finding]:
    """Who may write these files and folders; one that is not there is another finding's business."""
    found = []
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        except OSError as refused:
            what = f"cannot be looked at: {refused.strerror}"
            yield unseen(Kind.PERMISSIONS, path, what, AS_SERF)
        else:
            found.append(Owned(path, status.st_mode, status.st_uid, status.st_gid))
    yield from judge(found, os.geteuid())


def writable(folders: Sequence[str]) -> Iterator[Finding]:
    """Folders in which nothing can be written, and disks that are nearly full."""
    full = []
    for folder in dict.fromkeys(folders):
        if not os.path.isdir(folder):
            continue
        if not os.access(folder, os.W_OK | os.X_OK):
            yield _unwritable(folder)
        status = os.statvfs(folder)
        full += [one for one in [disk(folder, status.f_bavail * status.f_frsize)] if one]
    yield from full
    if not full:
        yield ok(Kind.DISK, "", "there is room to write")


def replaceable(paths: Sequence[str]) -> Iterator[Finding]:
    """The files that lbagent replaces, and cannot: something is mounted on the very file."""
    for path in dict.fromkeys(paths):
        if files.is_mount_point(path):
            what = "the file is a mount point of its own, so it cannot be replaced"
            yield error(Kind.HAPROXY_CFG, path, what, "mount its folder instead")


def _unwritable(folder: str) -> Finding:
    if os.geteuid():
        return unseen(Kind.STATE, folder, "this user cannot write there", AS_SERF)
    return error(Kind.STATE, folder, "not even root can write there", "mount its file system read-write")


def state(paths: Paths) -> Iterator[Finding]:
    """The state directory: there, sound, and with nothing in it that waits for a person."""
    try:
        names = os.listdir(paths.folder)
    except FileNotFoundError:
        what = "is not there yet: no event has been heard"
        yield warning(Kind.STATE, paths.folder, what, "start Serf with its handler, or `lbagent apply` makes it")
        return
    except OSError as refused:
        what = f"cannot be looked at: {refused.strerror}"
        yield unseen(Kind.STATE, paths.folder, what, AS_SERF)
        return
    yield from _members(paths)
    for name in sorted(name for name in names if name.startswith("members.json.damaged-")):
        what = "a members.json that was damaged, kept aside"
        yield warning(Kind.DAMAGED, os.path.join(paths.folder, name), what, "look why (a full disk?), and remove it")
    yield from _bad(os.path.join(paths.spool, "bad"))


def _members(paths: Paths) -> Iterator[Finding]:
    try:
        known = Store(paths).load_membership()
    except Damaged as damaged:
        what = f"{damaged}; the next event rebuilds it from the managed lines"
        yield warning(Kind.DAMAGED, paths.members, what, "`lbagent apply`, and see what damaged it")
    except OSError as refused:
        what = f"cannot be looked at: {refused.strerror}"
        yield unseen(Kind.STATE, paths.members, what, AS_SERF)
    else:
        yield ok(Kind.STATE, paths.folder, f"{format_count(len(known.members) if known else 0, 'member')} remembered")


def _bad(folder: str) -> Iterator[Finding]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    if names:
        what = f"{format_count(len(names), 'file')} set aside that no event could be made of"
        yield warning(Kind.BAD_RECORDS, folder, what, "see who put them into the spool, and remove them")


def old_roles(roles_path: str) -> Iterator[Finding]:
    """A role.yml where roles.yml should be."""
    old = os.path.join(os.path.dirname(roles_path), "role.yml")
    if os.path.exists(old):
        what = "the file of the classic handler.rb is here, and is not read"
        yield error(Kind.MIGRATION, old, what, f"copy it to {roles_path}, and add a `services:` block")


class Account(NamedTuple):
    """A user with all groups of a process."""

    user: int
    groups: frozenset[int]


def account_of(process: Process) -> Account | None:
    """The account a process runs as; None where it has ended."""
    user, groups = None, set[int]()
    try:
        with open(f"/proc/{process.pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key == "Uid":
                    user = int(value.split()[1])
                elif key == "Gid":
                    groups.add(int(value.split()[1]))
                elif key == "Groups":
                    groups |= {int(one) for one in value.split()}
    except OSError:
        return None
    return None if user is None else Account(user, frozenset(groups))


def may(account: Account, path: str, want: int) -> bool:
    """Whether the account may reach `path` and has the rights `want` (os.R_OK, W_OK, X_OK) there. Raises OSError.

    By mode bits alone: access control lists and mount options are not looked at.
    """
    if account.user == 0:
        return True
    whole = os.path.realpath(path)
    parents = [whole]
    while parents[-1] != "/":
        parents.append(os.path.dirname(parents[-1]))
    return all(_has(account, one, os.X_OK) for one in parents[1:]) and _has(account, whole, want)


def _has(account: Account, path: str, want: int) -> bool:
    found = os.stat(path)
    if found.st_uid == account.user:
        bits = stat.S_IMODE(found.st_mode) >> 6
    elif found.st_gid in account.groups:
        bits = stat.S_IMODE(found.st_mode) >> 3
    else:
        bits = stat.S_IMODE(found.st_mode)
    return bits & want == want


def access_judge(account: Account, paths: Paths, read: Sequence[str]) -> Iterator[Finding]:
    """What the handler may not do as this account: store events, run lbagent, or read the files `read`."""
    user = f"user {account.user}, who runs Serf's handlers"
    wanted = [(paths.spool, os.W_OK | os.X_OK, "add an event to it")]
    if program := shutil.which("lbagent"):
        wanted.append((program, os.R_OK | os.X_OK, "run it"))
    wanted += [(path, os.R_OK, "read it: queries are answered with an error") for path in (*read, paths.members)]
    found = []
    for path, want, what in wanted:
        try:
            allowed = may(account, path, want)
        except OSError:
            continue  # not there (yet), or not for us to see: another finding
        if not allowed:
            found.append(error(Kind.ACCESS, path, f"{user}, may not {what}", _FIX))
    yield from found
    if not found:
        yield ok(Kind.ACCESS, "", f"{user}, may store events and read what queries need")


_FIX = "give it the group `lbagent` and the modes that /usr/lib/tmpfiles.d/lbagent.conf has"
