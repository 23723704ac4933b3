"""The status of this load balancer as one value: every node, what is served, what waits, what is amiss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lbagent.errors import Refused
from lbagent.haproxy.stats import Stats
from lbagent.haproxy.text import Document
from lbagent.membership import Membership
from lbagent.nodes import Node, nodes
from lbagent.outcome import Run
from lbagent.prospect import Prospect, prospect
from lbagent.roles import Roles
from lbagent.standing import standings
from lbagent.tuples import NamedTuple
from lbagent.wishes import Note

VERSION = 1
"""Of the JSON object: it grows by keys; what a key means changes only with this number."""


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


class Sources(NamedTuple):
    """What the report is made of, but for haproxy.cfg, roles.yml and membership."""

    at: int
    """Epoch seconds."""
    stats: Stats
    stats_socket: StatsSocket
    served: Served | None
    """None where that cannot be read."""
    events: Events
    last_run: Run | None
    old_workers: int | None
    """HAProxy's of before a reload, that go on; None where no HAProxy is seen."""
    problems: Sequence[str]
    """What is missing or damaged, a sentence each."""


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

    @property
    def confirmed(self) -> bool | None:
        """Whether HAProxy has confirmed what stands there; None where nobody knows, or nothing was ever managed."""
        served = self.sources.served
        if served is None or (not self.serves and served.digest is None):
            return None
        return served.alive and served.digest == self.digest

    def as_json(self) -> dict[str, Any]:
        """The object that `status --json` prints; docs/status.md has every key."""
        sources = self.sources
        run, served = sources.last_run, sources.served
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
            "nodes": [_node(node) for node in self.nodes],
        }


def report(sources: Sources, roles: Roles, membership: Membership, document: Document | None) -> Report:
    """The status; without a `document` haproxy.cfg cannot be read."""
    problems, found = [*sources.problems], Prospect(hindrance="haproxy.cfg cannot be read")
    try:
        if document:
            found = prospect(document, roles, membership)
    except Refused as error:
        problems.append(str(error))
        found = Prospect(hindrance="what is to come of haproxy.cfg cannot be planned")
    there = standings(document, roles, membership.members, sources.stats) if document else {}
    digest, serves = (document.digest(), document.serves) if document else (None, False)
    notes = [note for note in found.notes if not isinstance(note, Note)]
    held = [str(one) for one in found.plan.held] if found.plan else []
    return Report(sources, nodes(roles, membership, there, found), digest, serves, held, notes, problems)


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
