"""Check whether events are applied: the daemon and its syncs, the lock, the last run, and settings that differ."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator, Mapping, Sequence

from lbagent.checks.files import Account, may_access
from lbagent.checks.finding import Finding, Kind, error, ok, unreadable, warning
from lbagent.metrics import Last
from lbagent.settings import Paths, Settings, load_settings
from lbagent.state.lock import is_locked, list_holders
from lbagent.state.store import Store
from lbagent.system import processes
from lbagent.system.processes import Process

SYNC_LATE = 300
"""Seconds after which the daemon, which syncs every minute, must have synced."""

_START = "run `systemctl enable --now lbagent`"
_FAILED_STATUSES = (1, 5, 6)
"""Exit statuses of a run that could not do its work, where no other check finds the cause."""


def handler_only_stores(paths: Paths, account: Account | None) -> bool:
    """Return whether `lbagent handle`, run by Serf's user (`account`), can only store events for the daemon.

    If the account is unknown, the modes of the spool decide: those of the package are sticky, with a group.
    """
    if account is not None:
        target = paths.lock if os.path.exists(paths.lock) else paths.folder
        return not may_access(account, target, os.W_OK)
    try:
        found = os.stat(paths.spool)
    except OSError:
        return False
    return bool(found.st_mode & stat.S_ISVTX and found.st_mode & stat.S_IWGRP and found.st_gid)


def find_lock_holder(path: str) -> Process | None:
    """Return the process that holds the flock on `path`; None where there is none, or in another pid namespace."""
    pids = (pid for pid in list_holders(path) if pid > 0)
    return next((one for pid in pids if (one := processes.read_process(pid))), None)


def check_daemon(paths: Paths, account: Account | None) -> Iterator[Finding]:
    """Check the daemon, its syncs, the lock and the last run. `account` is Serf's user, where it is known."""
    try:
        os.listdir(paths.folder)
    except (FileNotFoundError, NotADirectoryError):
        return  # `check_state_directory` finds it
    except PermissionError:
        yield unreadable(Kind.DAEMON, paths.folder)
        return
    running, last = is_locked(paths.watch_lock), Store(paths).load_last()
    yield _check_watch(paths, account, running=running)
    yield from _check_sync(last, running=running)
    yield from _check_lock(paths)
    if last.status in _FAILED_STATUSES:
        text = f"the last run failed with exit status {last.status}: {last.words}"
        yield error(Kind.LAST_RUN, "", text, "run `lbagent apply` to retry")


def _check_watch(paths: Paths, account: Account | None, *, running: bool) -> Finding:
    if running:
        holder = find_lock_holder(paths.watch_lock)
        if holder and is_stopped(holder):
            text = f"`lbagent watch` (pid {holder.pid}) is stopped by a signal; no event takes effect"
            return error(Kind.DAEMON, "", text, f"run `kill -CONT {holder.pid}`, or `systemctl restart lbagent`")
        return ok(Kind.DAEMON, "", "`lbagent watch` runs")
    if handler_only_stores(paths, account):
        text = "`lbagent watch` does not run; events are stored and have no effect"
        return error(Kind.DAEMON, "", text, _START)
    if os.path.exists(paths.watch_lock):
        text = "`lbagent watch` has stopped; there is no sync, timed pauses do not end, edits are not applied"
        return warning(Kind.DAEMON, "", text, _START)
    return ok(Kind.DAEMON, "", "`lbagent handle` applies events itself (no `lbagent watch`)")


def _check_sync(last: Last, *, running: bool) -> Iterator[Finding]:
    now = int(time.time())
    if last.sync_failing is not None:
        text = f"syncs have failed for {_format_duration(now - last.sync_failing)}: {last.sync_words}"
        severity = error if running else warning
        if is_token_refused(last.sync_words):
            # The daemon's token may differ from that of this command, which the Serf checks use.
            fix = "set SERF_RPC_AUTH for `lbagent watch` (in serf.env) to the `rpc_auth` of the agent"
        else:
            fix = "fix the cause, then run `lbagent sync`"
        yield severity(Kind.SYNC, "", text, fix)
    elif running and last.sync is not None and now - last.sync > SYNC_LATE:
        text = f"`lbagent watch` has not synced for {_format_duration(now - last.sync)}"
        yield error(Kind.SYNC, "", text, "run `systemctl restart lbagent`")
    elif last.sync is not None:
        yield ok(Kind.SYNC, "", "the last sync succeeded")


def is_token_refused(message: str) -> bool:
    """Return whether a message of `serf` means that the agent requires a token, or another one."""
    return "uthenticat" in message or "invalid auth token" in message.lower()


def _check_lock(paths: Paths) -> Iterator[Finding]:
    holder = find_lock_holder(paths.lock)
    if holder and is_stopped(holder):
        text = f"pid {holder.pid} ({holder.program}) holds it and is stopped by a signal; no event takes effect"
        yield error(Kind.LOCK, paths.lock, text, f"run `kill -CONT {holder.pid}`, or end that process")


def is_stopped(process: Process) -> bool:
    """Return whether a signal such as SIGSTOP, or a debugger, has stopped the process."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in b"Tt"
    except OSError:
        return False


def _format_duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"  # noqa: PLR2004  # two minutes


def check_settings(
    settings: Settings, handlers: Sequence[str], agent: Process | None, daemon: Process | None
) -> Iterator[Finding]:
    """Check that Serf's handlers and the daemon use the roles.yml and state directory of this command.

    `handlers` are the handler commands that call lbagent, `agent` is the process whose environment they inherit.
    With `--roles CANDIDATE` this command's roles.yml is not compared.
    """
    own = load_settings(os.environ, None, None, verbose=False)
    roles = os.path.realpath(settings.roles) if settings.roles == own.roles else None
    users = [
        (f"handler {command!r}", found)
        for command in handlers
        if agent and (found := _find_handler_settings(command, agent))
    ]
    if daemon and daemon.argv and daemon.environ_readable:
        # The daemon holds the lock in the state directory, so that one is the same.
        found = _parse_settings(daemon.argv[1:], daemon.environ)
        users.append((f"`lbagent watch` (pid {daemon.pid})", found._replace(state_dir=settings.state_dir)))
    different = []
    for where, used in users:
        if os.path.realpath(used.state_dir) != os.path.realpath(settings.state_dir):
            text = f"uses the state directory {used.state_dir}, this command uses {settings.state_dir}"
            fix = "use one `--state-dir` or LBAGENT_STATE_DIR for Serf's agent, `lbagent watch` and this command"
            different.append(error(Kind.SETTINGS, where, text, fix))
        if roles and os.path.realpath(used.roles) != roles:
            text = f"reads {used.roles}, this command reads {settings.roles}"
            fix = "use one `--roles` or LBAGENT_ROLES for Serf's agent, `lbagent watch` and this command"
            different.append(error(Kind.SETTINGS, where, text, fix))
    yield from different
    if users and not different:
        yield ok(Kind.SETTINGS, "", "Serf's handler and `lbagent watch` use the same files")


def _find_handler_settings(command: str, agent: Process) -> Settings | None:
    """Return the settings of a handler command; None where the agent's environment is not readable."""
    if not agent.environ_readable:
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    environ = dict(agent.environ)
    while words and "=" in words[0].split("/")[0]:
        key, _, value = words.pop(0).partition("=")
        environ[key] = value
    found = _parse_settings(words[1:], environ)
    base = agent.cwd or "/"
    return found._replace(roles=os.path.join(base, found.roles), state_dir=os.path.join(base, found.state_dir))


def _parse_settings(words: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings of a command line of lbagent: global options may be before and after the verb."""
    given: dict[str, str] = {}
    parts = iter([part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])])
    for part in parts:
        if part in ("--roles", "--state-dir"):
            given[part] = next(parts, "")
    return load_settings(environ, given.get("--roles"), given.get("--state-dir"), verbose=False)
