"""Whether events are applied: the daemon, its syncs, and how the last run ended."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from lbagent.checks.files import Account, may
from lbagent.checks.finding import AS_SERF, Finding, Kind, error, ok, unseen, warning
from lbagent.metrics import Last
from lbagent.state.lock import is_locked
from lbagent.state.paths import Paths
from lbagent.state.store import Store

SYNC_LATE = 300
"""Seconds after which a daemon that syncs every minute must have synced."""

_START = "`systemctl start lbagent`, and `systemctl enable lbagent`"
_FAILED_RUN = (1, 5, 6)


def only_stores(paths: Paths, handler: Account | None) -> bool:
    """Whether `lbagent handle`, run by the account of the Serf agent, can only store events for the daemon."""
    if handler is not None:
        target = paths.lock if os.path.exists(paths.lock) else paths.folder
        return not may(handler, target, os.W_OK)
    try:
        found = os.stat(paths.spool)
    except OSError:
        return False
    # As packaged: root's, its group is that of the agent's user, who may only add to it.
    return bool(found.st_mode & stat.S_ISVTX and found.st_mode & stat.S_IWGRP and found.st_gid)


def judge(paths: Paths, handler: Account | None) -> Iterator[Finding]:
    """What there is to say of the daemon; `handler` is the account that runs `lbagent handle`, where it is known."""
    try:
        os.listdir(paths.folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing has run here yet, which is another finding
    except PermissionError:
        yield unseen(Kind.DAEMON, paths.folder, "cannot be looked at", AS_SERF)
        return
    running, last = is_locked(paths.watch_lock), Store(paths).load_last()
    if running:
        yield ok(Kind.DAEMON, "", "`lbagent watch` runs")
    elif only_stores(paths, handler):
        what = "`lbagent watch` does not run: events are stored, and none takes effect"
        yield error(Kind.DAEMON, paths.watch_lock, what, _START)
    elif os.path.exists(paths.watch_lock):
        what = "`lbagent watch` does not run any more: nothing is synced, no pause ends by itself, no edit is applied"
        yield warning(Kind.DAEMON, paths.watch_lock, what, _START)
    else:
        yield ok(Kind.DAEMON, "", "no `lbagent watch`: `lbagent handle` applies events itself")
    yield from _sync(last, running=running)
    if last.status in _FAILED_RUN:
        what = f"the last run ended with {last.status}: {last.words}"
        yield warning(Kind.LAST_RUN, "", what, "`lbagent apply` tries it again")


def _sync(last: Last, *, running: bool) -> Iterator[Finding]:
    now = int(time.time())
    if last.sync_failing is not None:
        what = f"syncs have failed for {_minutes(now - last.sync_failing)}: {last.sync_words}"
        if running:
            yield error(Kind.SYNC, "", what, "see what is said of Serf below")
        else:
            yield warning(Kind.SYNC, "", what, "`lbagent sync` tries it again")
    elif running and last.sync is not None and now - last.sync > SYNC_LATE:
        what = f"the daemon has not synced for {_minutes(now - last.sync)}"
        yield error(Kind.SYNC, "", what, "`systemctl restart lbagent`")
    elif last.sync is not None:
        yield ok(Kind.SYNC, "", "the last sync could ask Serf")


def _minutes(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"  # noqa: PLR2004  # two minutes
