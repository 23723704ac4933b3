"""The files and folders lbagent lives on, as they lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from lbagent.doctor import permissions
from lbagent.doctor.finding import AS_SERF, Finding, Kind, error, ok, unseen, warning
from lbagent.doctor.permissions import Owned
from lbagent.host import files
from lbagent.host.paths import Paths
from lbagent.host.store import Store
from lbagent.memory import Damaged
from lbagent.names import counted


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
    yield from permissions.judge(found, os.geteuid())


def writable(folders: Sequence[str]) -> Iterator[Finding]:
    """Folders in which nothing can be written, and disks that are nearly full."""
    full = []
    for folder in dict.fromkeys(folders):
        if not os.path.isdir(folder):
            continue
        if not os.access(folder, os.W_OK | os.X_OK):
            yield _unwritable(folder)
        status = os.statvfs(folder)
        full += [one for one in [permissions.disk(folder, status.f_bavail * status.f_frsize)] if one]
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
        known = Store(paths).membership()
    except Damaged as damaged:
        what = f"{damaged}; the next event rebuilds it from the managed lines"
        yield warning(Kind.DAMAGED, paths.members, what, "`lbagent apply`, and see what damaged it")
    except OSError as refused:
        what = f"cannot be looked at: {refused.strerror}"
        yield unseen(Kind.STATE, paths.members, what, AS_SERF)
    else:
        yield ok(Kind.STATE, paths.folder, f"{counted(len(known.members) if known else 0, 'member')} remembered")


def _bad(folder: str) -> Iterator[Finding]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    if names:
        what = f"{counted(len(names), 'file')} set aside that no event could be made of"
        yield warning(Kind.BAD_RECORDS, folder, what, "see who put them into the spool, and remove them")


def old_roles(roles_path: str) -> Iterator[Finding]:
    """A role.yml where roles.yml should be."""
    old = os.path.join(os.path.dirname(roles_path), "role.yml")
    if os.path.exists(old):
        what = "the file of the classic handler.rb is here, and is not read"
        yield error(Kind.MIGRATION, old, what, f"copy it to {roles_path}, and add a `services:` block")
