"""What the account of the Serf agent may read and write, by owner, group and mode, without becoming that account."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence

from lbagent.doctor.finding import Finding, Kind, error, ok
from lbagent.host.paths import Paths
from lbagent.host.processes import Process
from lbagent.tuples import NamedTuple


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


def judge(account: Account, paths: Paths, read: Sequence[str]) -> Iterator[Finding]:
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
