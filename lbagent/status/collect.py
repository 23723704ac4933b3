"""A look at the whole load balancer: what is on disk, and what HAProxy says. Takes no lock, writes nothing.

What is missing or cannot be read is told in the report; there is one all the same.
"""

from __future__ import annotations

import contextlib
import os
import time

from lbagent.checks import daemon
from lbagent.errors import TryAgain
from lbagent.haproxy import config_files, process
from lbagent.haproxy.config import Document
from lbagent.haproxy.process import Worker
from lbagent.haproxy.runtime import socket as runtime_socket
from lbagent.haproxy.runtime import state
from lbagent.haproxy.runtime.state import Stats
from lbagent.membership.model import Membership
from lbagent.membership.storage import Damaged
from lbagent.outcome import PastRun
from lbagent.planning.lines import rebuild_membership
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.state import history, store
from lbagent.state.lock import is_locked
from lbagent.status.report import NO_SOCKET, Events, Failed, Report, Served, Sources, StatsSocket, report
from lbagent.system import processes
from lbagent.system.log import format_error

_PATIENCE = 2.0
"""Seconds that HAProxy may be silent on its stats socket."""


def collect_status(engine: Engine) -> Report:
    """The status as it is now. Raises RolesRefused."""
    roles = engine.load_roles()
    return _Survey(engine, roles).report()


class _Survey:
    def __init__(self, engine: Engine, roles: Roles) -> None:
        self._engine, self._roles = engine, roles
        self._at = int(time.time())
        self._problems: dict[str, None] = {}

    def report(self) -> Report:
        # The file first: a run that goes on meanwhile changes membership before it.
        document = self._document()
        membership = self._membership(document)
        said, socket = _asked(document)
        served, events, run, old = self._served(), self._events(), self._last_run(), self._old_workers(document)
        sources = Sources(self._at, said, socket, served, events, run, old, tuple(self._problems))
        sources = sources._replace(
            last=self._engine.store.load_last(),
            peers=self._engine.store.load_peers(),
            haproxy_down=self._down(document),
        )
        sources = self._with_daemon(sources)
        return report(sources, self._roles, membership, document)

    def _document(self) -> Document | None:
        try:
            return config_files.read_config(self._roles.haproxy).document
        except OSError as error:
            self._problem(format_error(error))
            return None

    def _membership(self, document: Document | None) -> Membership:
        path = self._engine.paths.members
        try:
            if self._engine.store.load_membership() is None:
                self._problem(f"{path} is missing: what is shown was read off haproxy.cfg and the waiting events")
            return self._engine.preview_membership(self._roles)
        except Damaged as error:
            self._problem(f"{path} {error}: what is shown was read off haproxy.cfg, as the next event will do")
        except OSError as error:
            self._problem(format_error(error))
        with contextlib.suppress(OSError):
            return self._engine.preview_membership(self._roles)
        return rebuild_membership(document, self._roles, self._at) if document else Membership()

    def _events(self) -> Events:
        spool = self._engine.spool
        try:
            pending, oldest = len(spool.list_names()), spool.find_oldest_time()
        except OSError as error:
            self._problem(format_error(error))
            return Events(None, None)
        return Events(pending, None if oldest is None else int(oldest))

    def _last_run(self) -> PastRun | None:
        try:
            return history.read_last_run(self._engine.paths.history)
        except OSError as error:
            self._problem(format_error(error))
            return None

    def _served(self) -> Served | None:
        path, found = self._engine.paths.served, self._engine.store.load_served()
        if found._replace(is_complete=True) == store.Served():
            # Never written, or not to be understood?
            try:
                os.stat(path)
            except FileNotFoundError:
                return Served(None, None, alive=False, failure=None)
            except OSError as error:
                self._problem(format_error(error))
                return None
            self._problem(f"{path} is damaged, or may not be read: the next run that changes anything writes it anew")
            return None
        failure = found.failure and Failed(found.failure.at, found.failure.times, found.failure.words)
        pid = found.worker[0] if found.worker else None
        return Served(found.digest or None, pid, found.worker is not None and Worker(*found.worker).alive, failure)

    def _old_workers(self, document: Document | None) -> int | None:
        try:
            running = document and process.find_haproxy(self._roles.haproxy.config, document.settings)
        except TryAgain as error:
            self._problem(format_error(error))
            return None
        return running.old if running else None

    def _down(self, document: Document | None) -> bool:
        """Whether HAProxy is shown not to run."""
        if document is None or not processes.can_read_processes():
            return False
        try:
            running = process.find_haproxy(self._roles.haproxy.config, document.settings)
            return running is None and process.is_shown_not_to_run(self._roles.haproxy.config, document.settings)
        except TryAgain:
            return False

    def _with_daemon(self, sources: Sources) -> Sources:
        paths = self._engine.paths
        try:
            os.listdir(paths.folder)
        except OSError:
            return sources
        return sources._replace(
            daemon=is_locked(paths.watch_lock),
            daemon_needed=daemon.handler_only_stores(paths, None),
            daemon_known=os.path.exists(paths.watch_lock),
        )

    def _problem(self, words: str) -> None:
        self._problems[words] = None


def _asked(document: Document | None) -> tuple[Stats, StatsSocket]:
    """What the first stats socket that answers says; nothing, and why, where none does."""
    if document is None:
        return {}, StatsSocket(None, "haproxy.cfg, which declares the stats socket, cannot be read")
    errors = []
    for address in runtime_socket.list_stats_sockets(document.settings):
        try:
            return state.parse_stats(runtime_socket.ask(address, state.COMMAND, _PATIENCE)), StatsSocket(address, None)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else error
            errors.append(f"stats socket {address}: {words}")
    return {}, StatsSocket(None, "; ".join(errors) or NO_SOCKET)
