"""The status of this load balancer: its nodes, what HAProxy has confirmed, pending events, and the current faults.

Collected from the disk, the process table and HAProxy, without a lock; nothing is written. A file that is missing or
cannot be read becomes a problem in the report.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lbagent.checks import daemon
from lbagent.errors import Refused, TryAgain
from lbagent.haproxy import config_files, process
from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.state import Stats
from lbagent.membership import peers
from lbagent.membership.model import Membership
from lbagent.membership.peers import Peer, Peers
from lbagent.metrics import Last
from lbagent.names import format_count
from lbagent.outcome import PastRun
from lbagent.planning.decisions import Note
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import Preview, make_preview
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.settings import Paths
from lbagent.state import store
from lbagent.state.lock import is_locked
from lbagent.state.store import Damaged
from lbagent.status.nodes import NOT_MANAGED, Node, State, list_nodes, list_server_states
from lbagent.system import processes
from lbagent.system.log import format_error

_SOCKET_TIMEOUT = 2.0
"""Seconds to wait for an answer on a stats socket."""

VERSION = 1
"""Of the JSON object: it grows by keys; what a key means changes only with this number."""


NO_SOCKET = "haproxy.cfg has no stats socket; add `stats socket /run/haproxy/admin.sock mode 600 level admin` in global"
"""Why server states are unknown if haproxy.cfg has no stats socket."""

EVENT_LATE = 30
"""Seconds after which an event in the spool counts as stuck."""

SYNC_LATE = 300
"""Seconds after which the daemon, which syncs every minute, must have synced."""

_SERVING = ("UP", "no check")
"""First words of the states in which a server takes new requests."""

_WEIGHTLESS = "with weight 0"
"""In place of the state of a server that would take new requests, if it had a weight."""

_RETRY_LIMIT = 30
"""Maximum minutes between two tries of a failing reload."""

_NODES_LIMIT = 10
"""Nodes in quarantine that get a fault each."""


_BLOCKED = 3
"""Exit status of a run in which the safety guard blocked removals. These are a fault of their own."""

_START = "run `systemctl enable --now lbagent`"


class Fault(NamedTuple):
    """One thing that is wrong now."""

    kind: str
    what: str
    since: int | None = None
    """Start in epoch seconds; None if unknown."""


class FailedReload(NamedTuple):
    """A reload that failed and waits for its next try."""

    at: int
    """Epoch seconds of the last try."""
    times: int
    words: str


class Served(NamedTuple):
    """What HAProxy last confirmed."""

    digest: str | None
    """Digest of the managed lines; None if it never has."""
    worker: int | None
    """Pid of the worker that confirmed it; None if HAProxy did not run."""
    alive: bool
    """Whether that worker still runs."""
    failure: FailedReload | None


class SpoolState(NamedTuple):
    """The events in the spool; None if it cannot be read."""

    pending: int | None
    oldest: int | None
    """Arrival of the oldest event in epoch seconds."""


class StatsSocket(NamedTuple):
    """The stats socket that the server states are from."""

    address: str | None
    """As in haproxy.cfg; None if none answered."""
    error: str | None
    """Why none answered."""

    @property
    def missing(self) -> bool:
        """Whether haproxy.cfg has none. That is not a fault, but server states are unknown."""
        return self.error == NO_SOCKET


class Sources(NamedTuple):
    """What the report is built from, besides haproxy.cfg, roles.yml and membership."""

    at: int
    """Time of the report in epoch seconds."""
    stats: Stats
    stats_socket: StatsSocket
    served: Served | None
    """None if it cannot be read."""
    events: SpoolState
    last_run: PastRun | None
    old_workers: int | None
    """Number of HAProxy's old workers; None if no HAProxy is found."""
    problems: Sequence[str]
    """Files that are missing, damaged or not readable, a sentence each."""
    last: Last = Last()
    """Times and results of the last run and sync."""
    peers: Peers | None = None
    """The other load balancers in the last sync; None if there was no sync."""
    daemon: bool | None = None
    """Whether `lbagent watch` runs; None if unknown."""
    stopped: str = ""
    """The process that a signal has stopped while it holds a lock, as `` `lbagent watch` (pid 4711)``; else empty."""
    daemon_needed: bool = False
    """Whether events take effect only while it runs."""
    daemon_known: bool = False
    """Whether it has run on this load balancer."""
    haproxy_down: bool = False
    """Whether HAProxy certainly does not run."""


class Report(NamedTuple):
    """The status of a load balancer."""

    sources: Sources
    nodes: Sequence[Node]
    digest: str | None
    """Digest of the managed lines in haproxy.cfg; None if it cannot be read."""
    has_managed_lines: bool
    blocked: Sequence[str]
    """Removals that the safety guard blocks, a sentence per marker."""
    notes: Sequence[str]
    """Notes of the plan about haproxy.cfg and roles.yml."""
    problems: Sequence[str]
    """Files that are missing, damaged or not readable, a sentence each."""
    peers: Sequence[Peer] = ()
    """The other load balancers."""

    @property
    def faults(self) -> list[Fault]:
        """What is wrong now, most important first."""
        return _find_faults(self)

    @property
    def next_retry(self) -> int | None:
        """Time of the next try of a failed reload in epoch seconds; None if none is planned."""
        return _find_next_retry(self)

    @property
    def confirmed(self) -> bool | None:
        """Whether HAProxy runs the managed lines in haproxy.cfg; None if unknown, or if there never were any."""
        served = self.sources.served
        if served is None or (not self.has_managed_lines and served.digest is None):
            return None
        return served.alive and served.digest == self.digest

    def as_json(self) -> dict[str, Any]:
        """Return the object that `status --json` prints. docs/reference/status.md has every key."""
        sources = self.sources
        run, served, last = sources.last_run, sources.served, sources.last
        return {
            "version": VERSION,
            "at": sources.at,
            "digest": self.digest,
            "confirmed": self.confirmed,
            "served": served and {**served._asdict(), "failure": served.failure and served.failure._asdict()},
            "stats_socket": sources.stats_socket._asdict(),
            "old_workers": sources.old_workers,
            "events": sources.events._asdict(),
            "last_run": run and run._asdict(),
            "blocked": list(self.blocked),
            "notes": list(self.notes),
            "problems": list(self.problems),
            "wrong": [one._asdict() for one in self.faults],
            "run": None if last.run is None else {"at": last.run, "status": last.status, "words": last.words},
            "last_success": last.success,
            "next_retry": self.next_retry,
            "sync": {"at": last.sync, "failing": last.sync_failing, "words": last.sync_words},
            "daemon": {"running": sources.daemon, "needed": sources.daemon_needed},
            "peers": [peer._asdict() for peer in self.peers],
            "nodes": [_serialize_node(node) for node in self.nodes],
        }


def build_report(sources: Sources, roles: Roles, membership: Membership, document: Document | None) -> Report:
    """Return the status; `document` is None if haproxy.cfg cannot be read."""
    problems, preview = [*sources.problems], Preview(obstacle="haproxy.cfg cannot be read")
    try:
        if document:
            preview = make_preview(document, roles, membership)
    except Refused as error:
        problems.append(str(error))
        preview = Preview(obstacle="there is no plan, see above")
    servers = list_server_states(document, roles, membership.members, sources.stats) if document else {}
    digest, has_managed_lines = (document.compute_digest(), document.has_managed_lines) if document else (None, False)
    notes = [note for note in preview.notes if not isinstance(note, Note)]
    blocked = [str(one) for one in preview.plan.blocked] if preview.plan else []
    others = peers.list_current_peers(sources.peers, membership.members, [*roles.roles])
    middles = {marker.middle for proxy in document.proxies for marker in proxy.markers} if document else set[str]()
    rows = list_nodes(roles, membership, servers, preview, middles, {peer.name for peer in others})
    return Report(sources, rows, digest, has_managed_lines, blocked, notes, problems, others)


def _serialize_node(node: Node) -> dict[str, Any]:
    pause, quarantine = node.pause, node.quarantine
    return {
        **node._asdict(),
        "pause": pause and pause._asdict(),
        "quarantine": quarantine and {"since": quarantine.since, "reason": quarantine.reason},
        "tags": node.tags if node.tags is None else dict(node.tags),
        "change": {"added": list(node.change.added), "removed": list(node.change.removed)},
        "servers": [one._asdict() for one in node.servers],
    }


def _find_faults(report: Report) -> list[Fault]:
    found = [
        *_find_daemon_faults(report),
        *_find_haproxy_faults(report),
        *_find_reload_faults(report),
        *_find_service_faults(report),
        *_find_run_faults(report),
        *_find_node_faults(report),
        *(Fault("blocked", f"{text}; `lbagent apply --force` applies these removals") for text in report.blocked),
        *_find_peer_faults(report),
        *(Fault("problem", text) for text in report.problems),
    ]
    return list(dict.fromkeys(found))


def _find_next_retry(report: Report) -> int | None:
    served = report.sources.served
    if served is None or served.failure is None:
        return None
    minutes = min(1 << (served.failure.times - 1), _RETRY_LIMIT)
    return served.failure.at + 60 * minutes


def _find_daemon_faults(report: Report) -> Iterator[Fault]:
    sources = report.sources
    at, last, events = sources.at, sources.last, sources.events
    if sources.stopped:
        yield Fault("daemon", f"{sources.stopped} is stopped by a signal; no event takes effect; continue or end it")
    if sources.daemon is False and sources.daemon_needed:
        yield Fault("daemon", f"`lbagent watch` does not run; events are stored and have no effect; {_START}")
    elif sources.daemon is False and sources.daemon_known:
        yield Fault("daemon", f"`lbagent watch` has stopped; there is no sync, timed pauses do not end; {_START}")
    if events.pending and events.oldest is not None and at - events.oldest > EVENT_LATE:
        text = f"{format_count(events.pending, 'event')} in the spool; nothing applies them; run `lbagent apply`"
        yield Fault("waiting", text, events.oldest)
    if last.sync_failing is not None:
        yield Fault("sync", f"syncs fail: {last.sync_words}", last.sync_failing)
    elif sources.daemon and last.sync is not None and at - last.sync > SYNC_LATE:
        yield Fault("sync", "`lbagent watch` has stopped syncing; run `systemctl restart lbagent`", last.sync)


def _find_haproxy_faults(report: Report) -> Iterator[Fault]:
    sources = report.sources
    if sources.haproxy_down:
        yield Fault("haproxy", "HAProxy does not run; start it")
    elif sources.stats_socket.error and not sources.stats_socket.missing:
        yield Fault("haproxy", sources.stats_socket.error)


def _find_reload_faults(report: Report) -> Iterator[Fault]:
    if (served := report.sources.served) and (failure := served.failure):
        times = "once" if failure.times == 1 else f"{failure.times} times"
        yield Fault("reload", f"the reload failed {times}: {failure.words}", failure.at)


def _find_service_faults(report: Report) -> Iterator[Fault]:
    """Find proxies with managed lines in which no server takes requests."""
    managed = dict.fromkeys(one.proxy for node in report.nodes for one in node.servers if one.line != NOT_MANAGED)
    states: dict[str, list[str]] = {}
    for (proxy, _), stats in report.sources.stats.items():
        weightless = stats.weight == 0 and (stats.state or "").startswith(_SERVING)
        states.setdefault(proxy, []).append(_WEIGHTLESS if weightless else stats.state or "")
    for proxy in managed:
        servers = states.get(proxy, [])
        if servers and not any(state.startswith(_SERVING) for state in servers):
            yield Fault("service", f"{proxy}: no server takes new requests ({_count_states(servers)})")


def _count_states(states: Sequence[str]) -> str:
    counts = Counter(_WEIGHTLESS if state == _WEIGHTLESS else state.split(" ", maxsplit=1)[0] for state in states)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _find_run_faults(report: Report) -> Iterator[Fault]:
    last, served = report.sources.last, report.sources.served
    explained = (served and served.failure) or last.sync_failing is not None
    if last.status == Refused.exit_status:
        explained = explained or any(node.state is State.QUARANTINED for node in report.nodes)
    if last.run is not None and last.status not in (0, _BLOCKED) and not explained:
        yield Fault("last run", last.words or f"exit status {last.status}")


def _find_node_faults(report: Report) -> Iterator[Fault]:
    quarantined = [node for node in report.nodes if node.state is State.QUARANTINED]
    for node in quarantined[:_NODES_LIMIT]:
        yield Fault("quarantine", f"{node.name}: {node.why}", node.since)
    if more := len(quarantined[_NODES_LIMIT:]):
        yield Fault("quarantine", f"{more} more nodes")


def _find_peer_faults(report: Report) -> Iterator[Fault]:
    for peer in report.peers:
        if peer.status == "failed":
            yield Fault("peer", f"{peer.name}: failed in Serf; start its agent", peer.seen)
        elif peer.seen is not None and not peer.answers:
            yield Fault("peer", f"{peer.name}: no answer to the last sync; check its lbagent", peer.seen)
        elif peer.equal is False:
            yield Fault("peer", f"{peer.name}: its managed lines differ from ours; compare `lbagent plan` on both")


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
        last = self._read_last()
        old_workers, is_down = self._look_at_haproxy(document)
        paths = self._engine.paths
        sees_daemon = os.access(paths.folder, os.R_OK)
        sources = Sources(
            self._at,
            stats,
            socket,
            served,
            spool,
            run,
            old_workers,
            tuple(self._problems),
            last=last,
            peers=self._engine.store.load_peers(),
            daemon=is_locked(paths.watch_lock) if sees_daemon else None,
            stopped=_find_stopped(paths) if sees_daemon else "",
            daemon_needed=sees_daemon and daemon.handler_only_stores(paths, None),
            daemon_known=sees_daemon and os.path.exists(paths.watch_lock),
            haproxy_down=is_down,
        )
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

    def _read_last(self) -> Last:
        path, found = self._engine.paths.last, self._engine.store.load_last()
        if found == Last() and os.path.exists(path):
            self._add_problem(f"{path}: damaged or not readable; the next run writes it again")
        return found

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
        if found.worker is None:
            return Served(found.digest or None, None, alive=False, failure=failure)
        pid = found.worker[0]
        try:
            worker = processes.find_process(pid)
        except OSError as error:
            self._add_problem(f"HAProxy worker {pid}: cannot be read: {error.strerror}")
            return None
        is_alive = worker is not None and worker.alive and worker.identity == found.worker
        return Served(found.digest or None, pid, is_alive, failure)

    def _look_at_haproxy(self, document: Document | None) -> tuple[int | None, bool]:
        """Return the number of old workers, None if no HAProxy is found; and whether HAProxy certainly does not run."""
        if document is None:
            return None, False
        config = self._roles.haproxy.config
        try:
            running = process.find_haproxy(config, document.settings)
        except TryAgain as error:
            self._add_problem(format_error(error))
            return None, False
        if running:
            return running.old, False
        return None, process.is_shown_not_to_run(config, document.settings)

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
