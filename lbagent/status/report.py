"""The status of this load balancer as one value: every node, what is served, what waits, what is amiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lbagent.errors import Refused
from lbagent.haproxy.config import Document
from lbagent.haproxy.runtime.state import Stats
from lbagent.membership import peers
from lbagent.membership.model import Membership
from lbagent.membership.peers import Peer, Peers
from lbagent.metrics import Last
from lbagent.outcome import PastRun
from lbagent.planning.decisions import Note
from lbagent.planning.plan import Preview, make_preview
from lbagent.roles.model import Roles
from lbagent.status.nodes import BY_HAND, Node, State, list_server_states, nodes

VERSION = 1
"""Of the JSON object: it grows by keys; what a key means changes only with this number."""


NO_SOCKET = (
    "haproxy.cfg declares no stats socket: `stats socket /run/haproxy/admin.sock mode 600 level admin` in global"
)
"""Why nobody tells the states of the servers where no stats socket is declared."""

EVENT_LATE = 30
"""Seconds after which an event that waits is one that nothing applies."""

SYNC_LATE = 300
"""Seconds after which a daemon that syncs every minute must have synced."""

_SERVES = ("UP", "no check")
"""How the state of a server begins that takes new requests."""

_WEIGHTLESS = "with weight 0"
"""In place of the state of a server that would take new requests, if it had a weight."""

_LONGEST = 30
"""Minutes between two tries of a reload that fails."""

_NAMED = 10


class Wrong(NamedTuple):
    """One thing that keeps this load balancer from being what it should be."""

    kind: str
    what: str
    since: int | None = None
    """Epoch seconds; None where that is not known."""


class Failed(NamedTuple):
    """A reload that failed, and is not tried again yet."""

    at: int
    """Epoch seconds of the last try."""
    times: int
    words: str


class Served(NamedTuple):
    """What HAProxy last confirmed."""

    digest: str | None
    """Of the managed lines; None where it never has."""
    worker: int | None
    """The pid of the worker that did; None where HAProxy did not run."""
    alive: bool
    """Whether that worker still runs."""
    failure: Failed | None


class Events(NamedTuple):
    """What waits in the spool."""

    pending: int | None
    oldest: int | None
    """Epoch seconds."""


class StatsSocket(NamedTuple):
    """Who told the states of the servers."""

    address: str | None
    """As haproxy.cfg declares it; None where nobody told."""
    error: str | None
    """Why nobody did."""

    @property
    def missing(self) -> bool:
        """Whether haproxy.cfg declares none: nothing is wrong then, and nothing can be asked."""
        return self.error == NO_SOCKET


class Sources(NamedTuple):
    """What the report is made of, but for haproxy.cfg, roles.yml and membership."""

    at: int
    """Epoch seconds."""
    stats: Stats
    stats_socket: StatsSocket
    served: Served | None
    """None where that cannot be read."""
    events: Events
    last_run: PastRun | None
    old_workers: int | None
    """HAProxy's of before a reload, that go on; None where no HAProxy is seen."""
    problems: Sequence[str]
    """What is missing or damaged, a sentence each."""
    last: Last = Last()
    """When what last happened."""
    peers: Peers | None = None
    """The other load balancers as the last sync saw them; None where there was none."""
    daemon: bool | None = None
    """Whether `lbagent watch` runs; None where that is not known."""
    daemon_needed: bool = False
    """Whether events take effect only with it."""
    daemon_known: bool = False
    """Whether it has run here."""
    haproxy_down: bool = False
    """Whether HAProxy is shown not to run."""


class Report(NamedTuple):
    """The status of a load balancer."""

    sources: Sources
    nodes: Sequence[Node]
    digest: str | None
    """Of the managed lines as they stand; None where haproxy.cfg cannot be read."""
    serves: bool
    """Whether there are any."""
    held: Sequence[str]
    """What the guard holds, a sentence per marker."""
    notes: Sequence[str]
    """What the plan says of haproxy.cfg and roles.yml."""
    problems: Sequence[str]
    peers: Sequence[Peer] = ()
    """The other load balancers."""

    @property
    def wrong(self) -> list[Wrong]:
        """What is wrong now, most important first."""
        return _wrong(self)

    @property
    def next_retry(self) -> int | None:
        """When what failed is tried again, in epoch seconds; None where nothing waits for a time."""
        return _next_retry(self)

    @property
    def confirmed(self) -> bool | None:
        """Whether HAProxy has confirmed what stands there; None where nobody knows, or nothing was ever managed."""
        served = self.sources.served
        if served is None or (not self.serves and served.digest is None):
            return None
        return served.alive and served.digest == self.digest

    def as_json(self) -> dict[str, Any]:
        """The object that `status --json` prints; docs/reference/status.md has every key."""
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
            "held": list(self.held),
            "notes": list(self.notes),
            "problems": list(self.problems),
            "wrong": [one._asdict() for one in self.wrong],
            "run": None if last.run is None else {"at": last.run, "status": last.status, "words": last.words},
            "last_success": last.success,
            "next_retry": self.next_retry,
            "sync": {"at": last.sync, "failing": last.sync_failing, "words": last.sync_words},
            "daemon": {"running": sources.daemon, "needed": sources.daemon_needed},
            "peers": [peer._asdict() for peer in self.peers],
            "nodes": [_node(node) for node in self.nodes],
        }


def report(sources: Sources, roles: Roles, membership: Membership, document: Document | None) -> Report:
    """The status; without a `document` haproxy.cfg cannot be read."""
    problems, found = [*sources.problems], Preview(obstacle="haproxy.cfg cannot be read")
    try:
        if document:
            found = make_preview(document, roles, membership)
    except Refused as error:
        problems.append(str(error))
        found = Preview(obstacle="what is to come of haproxy.cfg cannot be planned")
    there = list_server_states(document, roles, membership.members, sources.stats) if document else {}
    digest, serves = (document.compute_digest(), document.has_managed_lines) if document else (None, False)
    notes = [note for note in found.notes if not isinstance(note, Note)]
    held = [str(one) for one in found.plan.blocked] if found.plan else []
    others = peers.list_current_peers(sources.peers, membership.members, [*roles.roles])
    middles = {marker.middle for proxy in document.proxies for marker in proxy.markers} if document else set[str]()
    rows = nodes(roles, membership, there, found, middles, {peer.name for peer in others})
    return Report(sources, rows, digest, serves, held, notes, problems, others)


def _node(node: Node) -> dict[str, Any]:
    pause, quarantine = node.pause, node.quarantine
    return {
        **node._asdict(),
        "pause": pause and pause._asdict(),
        "quarantine": quarantine and {"since": quarantine.since, "reason": quarantine.reason},
        "tags": node.tags if node.tags is None else dict(node.tags),
        "change": {"added": list(node.change.added), "removed": list(node.change.removed)},
        "servers": [one._asdict() for one in node.servers],
    }


def _wrong(report: Report) -> list[Wrong]:
    """Everything that is wrong now."""
    found = [
        *_wrong_daemon(report),
        *_wrong_haproxy(report),
        *_wrong_reload(report),
        *_wrong_services(report),
        *_wrong_last_run(report),
        *_wrong_nodes(report),
        *(Wrong("held back", f"{words}; `lbagent apply --force` lets them go") for words in report.held),
        *_wrong_peers(report),
        *(Wrong("problem", words) for words in report.problems),
    ]
    return list(dict.fromkeys(found))


def _next_retry(report: Report) -> int | None:
    """When a reload that failed is tried again, in epoch seconds; None where none waits."""
    served = report.sources.served
    if served is None or served.failure is None:
        return None
    minutes = min(1 << (served.failure.times - 1), _LONGEST)
    return served.failure.at + 60 * minutes


def _wrong_daemon(report: Report) -> Iterator[Wrong]:
    sources = report.sources
    at, last, events = sources.at, sources.last, sources.events
    if sources.daemon is False and sources.daemon_needed:
        yield Wrong("daemon", "`lbagent watch` does not run: events are stored, and none takes effect; start it")
    elif sources.daemon is False and sources.daemon_known:
        yield Wrong("daemon", "`lbagent watch` does not run any more: no sync, no pause ends by itself; start it")
    if events.pending and events.oldest is not None and at - events.oldest > EVENT_LATE:
        yield Wrong("waiting", "events are stored, and nothing applies them", events.oldest)
    if last.sync_failing is not None:
        yield Wrong("sync", f"fails: {last.sync_words}", last.sync_failing)
    elif sources.daemon and last.sync is not None and at - last.sync > SYNC_LATE:
        yield Wrong("sync", "the daemon does not sync any more; restart it", last.sync)


def _wrong_haproxy(report: Report) -> Iterator[Wrong]:
    sources = report.sources
    if sources.haproxy_down:
        yield Wrong("haproxy", "does not run; start it")
    elif sources.stats_socket.error and not sources.stats_socket.missing:
        yield Wrong("haproxy", sources.stats_socket.error)


def _wrong_reload(report: Report) -> Iterator[Wrong]:
    if (served := report.sources.served) and (failure := served.failure):
        times = "once" if failure.times == 1 else f"{failure.times} times"
        yield Wrong("reload", f"failed {times}: {failure.words}", failure.at)


def _wrong_services(report: Report) -> Iterator[Wrong]:
    """The proxies with managed lines of which HAProxy has no server that takes requests."""
    managed = dict.fromkeys(one.proxy for node in report.nodes for one in node.servers if one.line != BY_HAND)
    states: dict[str, list[str]] = {}
    for (proxy, _), said in report.sources.stats.items():
        serves_nothing = said.weight == 0 and (said.state or "").startswith(_SERVES)
        states.setdefault(proxy, []).append(_WEIGHTLESS if serves_nothing else said.state or "")
    for proxy in managed:
        there = states.get(proxy, [])
        if there and not any(state.startswith(_SERVES) for state in there):
            yield Wrong("service", f"{proxy}: no server takes new requests ({_counted_states(there)})")


def _counted_states(states: Sequence[str]) -> str:
    counts = Counter(_WEIGHTLESS if state == _WEIGHTLESS else state.split(" ", maxsplit=1)[0] for state in states)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _wrong_last_run(report: Report) -> Iterator[Wrong]:
    last, served = report.sources.last, report.sources.served
    told = (served and served.failure) or last.sync_failing is not None
    told = told or (last.status == 4 and any(node.state is State.QUARANTINED for node in report.nodes))  # noqa: PLR2004  # refused
    if last.run is not None and last.status not in (0, 3) and not told:
        yield Wrong("last run", last.words or f"ended with {last.status}")


def _wrong_nodes(report: Report) -> Iterator[Wrong]:
    out = [node for node in report.nodes if node.state is State.QUARANTINED]
    for node in out[:_NAMED]:
        yield Wrong("quarantine", f"{node.name}: {node.why}", node.since)
    if more := len(out[_NAMED:]):
        yield Wrong("quarantine", f"{more} more nodes")


def _wrong_peers(report: Report) -> Iterator[Wrong]:
    for peer in report.peers:
        if peer.status == "failed":
            yield Wrong("peer", f"{peer.name} failed, says Serf", peer.seen)
        elif peer.seen is not None and not peer.answers:
            yield Wrong("peer", f"{peer.name} does not answer", peer.seen)
        elif peer.equal is False:
            yield Wrong("peer", f"{peer.name} has other managed lines: compare `lbagent plan` on both")
