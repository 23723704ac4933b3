"""Every node there is something to say of, and all that is known of it."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer
from lbagent.haproxy.runtime.state import NO_STATS, ServerStats, Stats
from lbagent.haproxy.server_line import format_endpoint
from lbagent.membership.model import (
    FAILED,
    PAUSED_BY_CONFIG,
    PRESENT,
    UNKNOWN,
    Member,
    Members,
    Membership,
    Pause,
    Quarantine,
    as_table,
    find_paused,
)
from lbagent.names import sort_names
from lbagent.planning.decisions import explain_no_server
from lbagent.planning.lines import ProxyLines
from lbagent.planning.plan import Change, Preview
from lbagent.roles.model import MissingTag, Pair, Role, Roles

MANAGED, PAUSED, DRAINED, BY_HAND = "managed", "paused", "drained", "by hand"


class ServerState(NamedTuple):
    """A line that belongs to a node."""

    proxy: str
    server: str | None
    """Its name in HAProxy; None where a pause stands in its place, and HAProxy has no such server left."""
    address: str
    """ADDRESS:PORT; the address alone where a pause stands."""
    line: str
    """What kind of line it is: `managed`, `paused` (a comment), `drained` (a paused node's `server`) or `by hand`."""
    state: str | None
    """What HAProxy says of the server, in its words; None where it says nothing."""
    sessions: int | None

    @property
    def host(self) -> str:
        """The address without port and brackets."""
        return self.address if self.line == PAUSED else self.address.rpartition(":")[0].strip("[]")


Standings = Mapping[str, list[ServerState]]
"""By node, each in the order of the text."""


def list_server_states(document: Document, roles: Roles, members: Members, stats: Stats) -> Standings:
    """Every managed line of `document` and the lines by hand that stand in a member's place, with their nodes."""
    pairs = roles.list_pairs()
    known = _Known(roles, members)
    found: dict[str, list[ServerState]] = {}
    for proxy in document.proxies:
        name = document.find_name(proxy)
        here = [pair for marker in proxy.markers if (pair := pairs.get(marker.middle))]
        if proxy.managed:
            place = ProxyLines(proxy, roles, pairs, members)
            for line in proxy.managed:
                node = place.find_node(line)
                found.setdefault(node, []).extend(_managed(name, node, here, line, stats))
        templates = (hand for one in proxy.templates for hand in one.servers())
        for hand in (*proxy.operator_servers, *templates) if here else ():
            for node in known.meant(hand, here):
                said = stats.get((name, hand.name), NO_STATS)
                there = ServerState(name, hand.name, hand.endpoint, BY_HAND, said.state, said.sessions)
                found.setdefault(node, []).append(there)
    return found


def _managed(proxy: str, node: str, here: list[Pair], line: ManagedLine, stats: Stats) -> list[ServerState]:
    if not line.is_comment:
        said = stats.get((proxy, line.name), NO_STATS)
        kind = DRAINED if line.is_paused else MANAGED
        return [ServerState(proxy, line.name, line.endpoint, kind, said.state, said.sessions)]
    # Its server may still be there, in maintenance, until the next reload.
    names = [name for name in (node, *(f"{node}.{pair.service}" for pair in here)) if (proxy, name) in stats]
    there: list[tuple[str | None, ServerStats]] = [(name, stats[proxy, name]) for name in names]
    there = there or [(None, NO_STATS)]
    return [ServerState(proxy, name, line.address, PAUSED, said.state, said.sessions) for name, said in there]


class _Known:
    """The members as a line by hand may name them."""

    def __init__(self, roles: Roles, members: Members) -> None:
        self._roles, self._members = roles, members
        self._keys: dict[str, list[str]] | None = None

    def meant(self, line: OperatorServer, here: list[Pair]) -> Iterator[str]:
        """The members in whose place `line` stands, in a proxy with markers of these pairs."""
        host = line.endpoint.rpartition(":")[0].strip("[]")
        name = line.name.lower()
        alike = (self._index().get(key, ()) for key in (name, name.rpartition(".")[0], host))
        for node in dict.fromkeys(node for nodes in alike for node in nodes):
            if any(self._same(line, self._members[node], pair) for pair in here):
                yield node

    def _index(self) -> dict[str, list[str]]:
        if self._keys is None:
            self._keys = {}
            for member in self._members.values():
                if member.present:
                    for key in {member.name.lower(), member.address}:
                        self._keys.setdefault(key, []).append(member.name)
        return self._keys

    def _same(self, line: OperatorServer, member: Member, pair: Pair) -> bool:
        roles = [
            one for one in self._roles.find_roles(member.role) if pair.service in one.sections.get(pair.section, ())
        ]
        if not roles:
            return False
        if line.name.lower() in (member.name.lower(), f"{member.name}.{pair.service}".lower()):
            return True
        return any(line.endpoint == self._endpoint(member, role, pair.service) for role in roles)

    def _endpoint(self, member: Member, role: Role, service: str) -> str:
        tags = member.tags or {}
        try:
            port = self._roles.services[service].find_port(role.build_values(member.name), tags)
            return format_endpoint(role.find_address(member.name, member.address, tags), port)
        except MissingTag:
            return ""


class State(StrEnum):
    """How it is with a node. Of several that hold the first one here is told."""

    HELD = "held"
    QUARANTINED = "quarantined"
    PENDING = "pending"
    UNKNOWN = "unknown"
    LEFT = "left"
    BALANCER = "load balancer"
    UNKNOWN_ROLE = "unknown role"
    BY_HAND = "by hand"
    PAUSED = "paused"
    FAILED = "failed"
    IN = "in"
    NO_LINE = "no line"


class Facts(NamedTuple):
    """What is known of one node."""

    name: str
    member: Member | None
    """None where only a line of haproxy.cfg tells of it."""
    roles: Sequence[Role]
    """Those that it has in roles.yml."""
    servers: Sequence[ServerState]
    change: Change
    """What the next run does to its lines."""
    reasons: Sequence[str]
    """Why the plan gives it no line at a marker, or keeps a line of it."""
    no_server: str
    """Why it is not desired at any marker; empty where it is."""
    pauser: Member | None
    """The member whose pause or tag holds it out: itself, or another one at its address."""
    held: bool
    quarantined: bool
    balancer: bool
    """Whether it is another load balancer."""
    hindrance: str
    """Why nobody knows what would be done to its lines; nothing where that is known."""


def state(facts: Facts) -> State:
    """The state of a node."""
    member = facts.member
    absent = member is not None and not member.present
    holds = {
        State.HELD: facts.held,
        State.QUARANTINED: facts.quarantined,
        State.PENDING: bool(facts.change.added or facts.change.removed),
        State.UNKNOWN: member is not None and member.status == UNKNOWN,
        State.LEFT: absent,
        State.BALANCER: facts.balancer,
        State.UNKNOWN_ROLE: member is not None and not facts.roles,
        State.BY_HAND: bool(facts.servers) and all(one.line == BY_HAND for one in facts.servers),
        State.PAUSED: facts.pauser is not None,
        State.FAILED: member is not None and member.status == FAILED,
        State.IN: bool(facts.servers),
        State.NO_LINE: True,
    }
    return next(one for one in State if holds[one])


def since(found: State, facts: Facts) -> int | None:
    """Since when, in epoch seconds; None where that is not known."""
    member, pauser = facts.member, facts.pauser
    if found is State.QUARANTINED and member and member.quarantine:
        return member.quarantine.since
    if pauser is not None:
        # Of a tag, and of a pause that was read off haproxy.cfg, nobody knows when it began.
        return pauser.pause.since if pauser.pause and pauser.pause.by != PAUSED_BY_CONFIG else None
    return member.changed if member and member.tags is not None else None


def why(found: State, facts: Facts) -> str:
    """Why it is so; nothing where nothing is to be said."""
    reasons = dict.fromkeys([*_because(found, facts), *_paused(found, facts), *facts.reasons])
    if not reasons and not facts.servers and found is not State.BALANCER:
        return facts.hindrance or facts.no_server
    return "; ".join(reasons)


def _because(found: State, facts: Facts) -> Iterator[str]:
    member = facts.member
    if found is State.HELD:
        yield "its removal was not asked for"
    elif found is State.QUARANTINED and member and member.quarantine:
        yield member.quarantine.reason
    elif found is State.PENDING:
        yield _to_come(facts.change)
        yield from facts.change.reasons
    elif found is State.UNKNOWN_ROLE:
        yield facts.no_server
    elif found is State.FAILED and facts.servers:
        yield "its line stays"


def _to_come(change: Change) -> str:
    if change.added and change.removed:
        return "its lines are to change"
    return "its lines are to come" if change.added else "its lines are to go"


def _paused(found: State, facts: Facts) -> Iterator[str]:
    pauser = facts.pauser
    if pauser is None:
        return
    paused = "" if found is State.PAUSED else "paused "
    whose = "" if pauser.name == facts.name else f"as {pauser.name}, "
    if pauser.paused_by_tag:
        yield f"{paused}{whose}by its tag lbagent=paused"
    if pause := pauser.pause:
        yield f"{paused}{whose}by {pause.by}" + (f": {pause.reason}" if pause.reason else "")


class Node(NamedTuple):
    """All that is known of one node."""

    name: str
    address: str | None
    role: str | None
    status: str | None
    """As Serf had it last; None where only a line of haproxy.cfg tells of the node."""
    state: State
    since: int | None
    """Epoch seconds."""
    why: str
    pause: Pause | None
    """The one that holds it out, its own or that of another node at its address; a tag does so beside it."""
    paused_by_tag: bool
    quarantine: Quarantine | None
    tags: Mapping[str, str] | None
    change: Change
    servers: Sequence[ServerState]


def nodes(
    roles: Roles,
    membership: Membership,
    standings: Standings,
    prospect: Preview,
    middles: Container[str],
    balancers: Collection[str] = (),
) -> list[Node]:
    """Every node that is present, paused, or has or had a line here, in natural order.

    `middles` are the middles of all markers; `balancers` are the other load balancers.
    """
    register = _Register(roles, membership, standings, prospect, middles, balancers)
    return [_node(register.facts(name)) for name in sort_names(register.names())]


class _Register:
    """What is known of all nodes, to be looked up node by node."""

    def __init__(
        self,
        roles: Roles,
        membership: Membership,
        standings: Standings,
        prospect: Preview,
        middles: Container[str],
        balancers: Collection[str],
    ) -> None:
        self._balancers = balancers
        self._roles, self._standings, self._prospect = roles, standings, prospect
        self._members = as_table(membership.members)
        self._paused = find_paused(membership)
        pausing = (one for one in self._members.special.values() if one.pause or one.paused_by_tag)
        self._pausing = {one.address: one for one in pausing}
        self._middles = middles

    def names(self) -> set[str]:
        """Who is present, paused, or has a line."""
        columns = self._members.columns
        there = {name for name, status in zip(columns.names, columns.statuses, strict=True) if status in PRESENT}
        waiting = {name for name, member in self._members.special.items() if member.pause}
        changing = self._prospect.plan.changes if self._prospect.plan else {}
        return {*there, *waiting, *self._standings, *changing}

    def facts(self, name: str) -> Facts:
        """What is known of one node."""
        member, prospect = self._members.get(name), self._prospect
        return Facts(
            name,
            member,
            self._roles.find_roles(member.role) if member else (),
            self._standings.get(name, ()),
            prospect.change(name),
            prospect.plan.reasons.get(name, ()) if prospect.plan else (),
            explain_no_server(member, self._roles, self._middles) if member and member.present else "",
            self._pauser(member) if member and name in self._paused else None,
            name in prospect.blocked,
            name in prospect.quarantined,
            name in self._balancers,
            prospect.obstacle,
        )

    def _pauser(self, member: Member) -> Member:
        return member if member.pause or member.paused_by_tag else self._pausing[member.address]


def _node(facts: Facts) -> Node:
    member, pauser, current = facts.member, facts.pauser, state(facts)
    return Node(
        facts.name,
        (member.address if member else next((one.host for one in facts.servers), "")) or None,
        (member.role or None) if member else None,
        member.status if member else None,
        current,
        since(current, facts),
        why(current, facts),
        pauser.pause if pauser else None,
        pauser is not None and pauser.paused_by_tag,
        member.quarantine if member else None,
        member.tags if member else None,
        facts.change,
        facts.servers,
    )
