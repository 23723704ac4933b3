"""Collect the status from the disk, the process table and HAProxy. Takes no lock and writes nothing.

A file that is missing or cannot be read becomes a problem in the report.
"""

from __future__ import annotations

import contextlib
import os
import time

from lbagent.checks import daemon
from lbagent.errors import TryAgain
from lbagent.haproxy import config_files, process
from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.session import Worker
from lbagent.haproxy.runtime.state import Stats
from lbagent.membership.model import Membership
from lbagent.membership.storage import Damaged
from lbagent.outcome import PastRun
from lbagent.planning.lines import rebuild_membership
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.state import store
from lbagent.state.lock import is_locked
from lbagent.state.paths import Paths
from lbagent.status.report import (
    NO_SOCKET,
    FailedReload,
    Report,
    Served,
    Sources,
    SpoolState,
    StatsSocket,
    build_report,
)
from lbagent.system import processes
from lbagent.system.log import format_error

_SOCKET_TIMEOUT = 2.0
"""Seconds to wait for an answer on a stats socket."""


def collect_status(engine: Engine) -> Report:
    """Return the current status. Raises RolesRefused."""
    roles = engine.load_roles()
    return _Collector(engine, roles).collect()


class _Collector:
    """Reads each source once; what cannot be read is a problem."""

    def __init__(self, engine: Engine, roles: Roles) -> None:
        self._engine, self._roles = engine, roles
        self._at = int(time.time())
        self._problems: dict[str, None] = {}

    def collect(self) -> Report:
        # haproxy.cfg first: a concurrent run changes membership before it.
        document = self._read_config()
        membership = self._read_membership(document)
        stats, socket = _fetch_stats(document)
        served, spool, run = self._read_served(), self._read_spool(), self._read_last_change()
        old = self._count_old_workers(document)
        sources = Sources(self._at, stats, socket, served, spool, run, old, tuple(self._problems))
        sources = sources._replace(
            last=self._engine.store.load_last(),
            peers=self._engine.store.load_peers(),
            haproxy_down=self._is_haproxy_down(document),
        )
        sources = self._add_daemon(sources)
        return build_report(sources, self._roles, membership, document)

    def _read_config(self) -> Document | None:
        try:
            return config_files.read_config(self._roles.haproxy).document
        except OSError as error:
            self._add_problem(format_error(error))
            return None

    def _read_membership(self, document: Document | None) -> Membership:
        path = self._engine.paths.members
        try:
            if self._engine.store.load_membership() is None:
                self._add_problem(f"{path}: missing; nodes are shown as in haproxy.cfg and in pending events")
            return self._engine.preview_membership(self._roles)
        except Damaged as error:
            self._add_problem(f"{path}: {error}; nodes are shown as in haproxy.cfg; the next event rebuilds it")
        except OSError as error:
            self._add_problem(format_error(error))
        with contextlib.suppress(OSError):
            return self._engine.preview_membership(self._roles)
        return rebuild_membership(document, self._roles, self._at) if document else Membership()

    def _read_spool(self) -> SpoolState:
        spool = self._engine.spool
        try:
            pending, oldest = len(spool.list_names()), spool.find_oldest_time()
        except OSError as error:
            self._add_problem(format_error(error))
            return SpoolState(None, None)
        return SpoolState(pending, None if oldest is None else int(oldest))

    def _read_last_change(self) -> PastRun | None:
        try:
            return store.read_last_run(self._engine.paths.history)
        except OSError as error:
            self._add_problem(format_error(error))
            return None

    def _read_served(self) -> Served | None:
        path, found = self._engine.paths.served, self._engine.store.load_served()
        if found._replace(is_complete=True) == store.Served():
            # Either it was never written, or it is damaged.
            try:
                os.stat(path)
            except FileNotFoundError:
                return Served(None, None, alive=False, failure=None)
            except OSError as error:
                self._add_problem(format_error(error))
                return None
            self._add_problem(f"{path}: damaged or not readable; the next change writes it again")
            return None
        failure = found.failure and FailedReload(found.failure.at, found.failure.times, found.failure.words)
        pid = found.worker[0] if found.worker else None
        return Served(found.digest or None, pid, found.worker is not None and Worker(*found.worker).alive, failure)

    def _count_old_workers(self, document: Document | None) -> int | None:
        try:
            running = document and process.find_haproxy(self._roles.haproxy.config, document.settings)
        except TryAgain as error:
            self._add_problem(format_error(error))
            return None
        return running.old if running else None

    def _is_haproxy_down(self, document: Document | None) -> bool:
        """Return whether HAProxy certainly does not run."""
        if document is None or not processes.can_read_processes():
            return False
        try:
            running = process.find_haproxy(self._roles.haproxy.config, document.settings)
            return running is None and process.is_shown_not_to_run(self._roles.haproxy.config, document.settings)
        except TryAgain:
            return False

    def _add_daemon(self, sources: Sources) -> Sources:
        paths = self._engine.paths
        try:
            os.listdir(paths.folder)
        except OSError:
            return sources
        return sources._replace(
            daemon=is_locked(paths.watch_lock),
            stopped=_find_stopped(paths),
            daemon_needed=daemon.handler_only_stores(paths, None),
            daemon_known=os.path.exists(paths.watch_lock),
        )

    def _add_problem(self, text: str) -> None:
        self._problems[text] = None


def _find_stopped(paths: Paths) -> str:
    """Return the process that holds a lock and is stopped by a signal; empty if there is none."""
    for path, name in ((paths.watch_lock, "`lbagent watch`"), (paths.lock, "the process that holds the lock")):
        if (holder := daemon.find_lock_holder(path)) and daemon.is_stopped(holder):
            return f"{name} (pid {holder.pid})"
    return ""


def _fetch_stats(document: Document | None) -> tuple[Stats, StatsSocket]:
    """Return the server states of the first stats socket that answers; if none does, the reason."""
    if document is None:
        return {}, StatsSocket(None, "haproxy.cfg cannot be read")
    errors = []
    for address in session.list_stats_sockets(document.settings):
        try:
            return state.parse_stats(session.ask(address, state.STATS_COMMAND, _SOCKET_TIMEOUT)), StatsSocket(
                address, None
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            errors.append(f"stats socket {address}: no answer: {reason}")
    return {}, StatsSocket(None, "; ".join(errors) or NO_SOCKET)
