"""Check the files and directories that lbagent reads and writes: permissions, free space, the state directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lbagent.checks.finding import Finding, Kind, error, ok, unreadable, warning
from lbagent.names import format_count
from lbagent.settings import Paths
from lbagent.state import files
from lbagent.state.store import Damaged, Store
from lbagent.system.processes import Process

FREE_LOW = 16 * 1024 * 1024
"""Free bytes below which a disk is nearly full: haproxy.cfg is written beside itself before it is swapped."""

FREE_NONE = 1024 * 1024
"""Free bytes below which a write can fail at any time."""

_FIX_ACCESS = "set the group `lbagent` and the modes of /usr/lib/tmpfiles.d/lbagent.conf"


class FileOwner(NamedTuple):
    """A file or directory with its mode and owner."""

    path: str
    mode: int
    uid: int
    gid: int


class Account(NamedTuple):
    """User and groups of a process."""

    user: int
    groups: frozenset[int]


def check_permissions(paths: Sequence[str]) -> Iterator[Finding]:
    """Check that only root and this user can write these files and directories; missing ones are skipped."""
    found = []
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        except OSError as refused:
            yield unreadable(Kind.PERMISSIONS, path, f"cannot be inspected: {refused.strerror}")
        else:
            found.append(FileOwner(path, status.st_mode, status.st_uid, status.st_gid))
    yield from check_owners(found, os.geteuid())


def check_owners(owners: Sequence[FileOwner], user: int) -> Iterator[Finding]:
    """Find the files and directories that accounts other than root and `user` can write."""
    writable = [finding for owner in owners for finding in _check_owner(owner, user)]
    yield from writable
    if owners and not writable:
        yield ok(Kind.PERMISSIONS, "", f"only root can write lbagent's files ({format_count(len(owners), 'path')})")


def _check_owner(owner: FileOwner, user: int) -> Iterator[Finding]:
    path, mode = owner.path, f"mode {owner.mode & 0o7777:04o}"
    if owner.mode & 0o002:
        yield error(Kind.PERMISSIONS, path, f"every user of this host can write it ({mode})", f"run `chmod o-w {path}`")
    # In a sticky directory, as the spool may be, members of the group can add files but replace none.
    if owner.mode & 0o020 and owner.gid and not (stat.S_ISDIR(owner.mode) and owner.mode & stat.S_ISVTX):
        text = f"group {owner.gid} can write it ({mode})"
        yield warning(Kind.PERMISSIONS, path, text, f"run `chmod g-w {path}`")
    if owner.uid not in (0, user):
        yield warning(Kind.PERMISSIONS, path, f"belongs to user {owner.uid}", f"run `chown root {path}`")


def check_writable(folders: Sequence[str], daemon: Process | None = None) -> Iterator[Finding]:
    """Check that directories can be written, by this user and by the `daemon`, and have free space."""
    full: list[Finding] = []
    for folder in dict.fromkeys(folders):
        if not os.path.isdir(folder):
            continue
        if not os.access(folder, os.W_OK | os.X_OK):
            if os.geteuid():
                yield unreadable(Kind.STATE, folder, "not writable for this user")
            else:
                yield error(Kind.STATE, folder, "not writable, even for root", "mount its file system read-write")
        elif daemon and _is_read_only(daemon, folder):
            text = f"not writable for `lbagent watch` (pid {daemon.pid})"
            fix = "add it to `ReadWritePaths=` of lbagent.service: `systemctl edit lbagent`"
            yield error(Kind.STATE, folder, text, fix)
        full += _check_space(folder, os.statvfs(folder))
    yield from full
    if not full:
        yield ok(Kind.DISK, "", "the disks have free space")


def _is_read_only(process: Process, folder: str) -> bool:
    """Return whether the directory is on a file system that is mounted read-only for the process, as by systemd."""
    try:
        return bool(os.statvfs(f"/proc/{process.pid}/root{os.path.realpath(folder)}").f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _check_space(folder: str, status: os.statvfs_result) -> Iterator[Finding]:
    yield from check_free_bytes(folder, status.f_bavail * status.f_frsize)
    if status.f_files and not status.f_favail:
        yield error(Kind.DISK, folder, "no free inodes; events cannot be stored", "delete files on this disk")


def check_free_bytes(folder: str, free: int) -> Iterator[Finding]:
    """Check the free bytes on the disk of a directory."""
    if free < FREE_NONE:
        text = f"{free // 1024} KiB are free; events cannot be stored"
        yield error(Kind.DISK, folder, text, "free disk space, then run `lbagent sync`")
    elif free < FREE_LOW:
        yield warning(Kind.DISK, folder, f"only {free // 1024} KiB are free", "free disk space")


def check_replaceable(paths: Sequence[str]) -> Iterator[Finding]:
    """Find files that cannot be replaced because each is a mount point itself."""
    for path in dict.fromkeys(paths):
        if files.is_mount_point(path):
            text = "cannot be replaced: the file is a mount point"
            yield error(Kind.HAPROXY_CFG, path, text, "mount its directory instead")


def check_state_directory(paths: Paths) -> Iterator[Finding]:
    """Check that the state directory exists, that membership is valid, and that nothing was set aside in it."""
    try:
        names = os.listdir(paths.folder)
    except FileNotFoundError:
        text = "does not exist; no event has arrived yet"
        yield warning(Kind.STATE, paths.folder, text, "start Serf with its event handler, or run `lbagent apply`")
        return
    except PermissionError as refused:
        yield unreadable(Kind.STATE, paths.folder, f"cannot be read: {refused.strerror}")
        return
    except OSError as refused:
        text = f"cannot be read: {refused.strerror}; events cannot be stored"
        yield error(Kind.STATE, paths.folder, text, "make it a directory of root")
        return
    yield from _check_kind(paths)
    yield from _check_membership(paths)
    for name in sorted(name for name in names if name.startswith("members.json.damaged-")):
        fix = "find the cause, for example a full disk, then delete the copy"
        yield warning(Kind.DAMAGED, os.path.join(paths.folder, name), "a copy of a damaged members.json", fix)
    yield from _check_bad_events(paths.bad)


def _check_kind(paths: Paths) -> Iterator[Finding]:
    """Find a spool that is not a directory, and a lock that is not a file: then no event takes effect."""
    for path, is_right, kind in ((paths.spool, os.path.isdir, "directory"), (paths.lock, os.path.isfile, "file")):
        if os.path.lexists(path) and not is_right(path):
            yield error(
                Kind.STATE, path, f"not a {kind}; no event takes effect", "move it away; lbagent makes another one"
            )


def _check_membership(paths: Paths) -> Iterator[Finding]:
    try:
        known = Store(paths).load_membership()
    except Damaged as damaged:
        text = f"{damaged}; the next event rebuilds it from the managed lines"
        yield warning(Kind.DAMAGED, paths.members, text, "run `lbagent apply`, and find what damaged it")
    except PermissionError as refused:
        yield unreadable(Kind.STATE, paths.members, f"cannot be read: {refused.strerror}")
    except OSError as refused:
        text = f"cannot be read: {refused.strerror}; no event takes effect"
        yield error(Kind.STATE, paths.members, text, "move it away, then run `lbagent apply`")
    else:
        yield ok(Kind.STATE, paths.folder, f"{format_count(len(known.members) if known else 0, 'member')} known")


def _check_bad_events(folder: str) -> Iterator[Finding]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as refused:
        yield unreadable(Kind.BAD_EVENTS, folder, f"cannot be read: {refused.strerror}")
        return
    if names:
        text = f"{format_count(len(names), 'file')} set aside because they are not valid events"
        yield warning(Kind.BAD_EVENTS, folder, text, "find which program writes into the spool, and delete them")


def find_account(process: Process) -> Account | None:
    """Return user and groups of a process; None where it has ended."""
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


def may_access(account: Account, path: str, rights: int) -> bool:
    """Return whether the account has the rights (os.R_OK, W_OK, X_OK) at `path` and can reach it. Raises OSError.

    Only mode bits count: access control lists and mount options are not read.
    """
    if account.user == 0:
        return True
    whole = os.path.realpath(path)
    parents = [whole]
    while parents[-1] != "/":
        parents.append(os.path.dirname(parents[-1]))
    return all(_has_rights(account, one, os.X_OK) for one in parents[1:]) and _has_rights(account, whole, rights)


def _has_rights(account: Account, path: str, rights: int) -> bool:
    found = os.stat(path)
    if found.st_uid == account.user:
        bits = stat.S_IMODE(found.st_mode) >> 6
    elif found.st_gid in account.groups:
        bits = stat.S_IMODE(found.st_mode) >> 3
    else:
        bits = stat.S_IMODE(found.st_mode)
    return bits & rights == rights


def check_access(account: Account, paths: Paths, program: str | None, read: Sequence[str]) -> Iterator[Finding]:
    """Check that Serf's user (`account`) can store events, run the handler's `program`, and read the files `read`."""
    user = f"user {account.user}, which runs Serf's event handlers,"
    # A handler creates a missing spool, and with it the state directory.
    folder = next((one for one in (paths.spool, paths.folder) if os.path.exists(one)), os.path.dirname(paths.folder))
    wanted = [(folder, os.W_OK | os.X_OK, "cannot write it; no event is stored")]
    if program:
        wanted.append((program, os.R_OK | os.X_OK, "cannot run it; no event is stored"))
    wanted += [(path, os.R_OK, "cannot read it; queries are answered with an error") for path in (*read, paths.members)]
    found = []
    for path, rights, effect in wanted:
        try:
            allowed = may_access(account, path, rights)
        except OSError:
            continue  # missing, which is another finding, or not visible for this user
        if not allowed:
            found.append(error(Kind.ACCESS, path, f"{user} {effect}", _FIX_ACCESS))
    yield from found
    if not found:
        yield ok(Kind.ACCESS, "", f"{user} can store events and answer queries")
