"""The nodes of the status: the state of each, the reason, its lines in haproxy.cfg and its servers in HAProxy."""

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

MANAGED, PAUSED, DRAINED, NOT_MANAGED = "managed", "paused", "drained", "not managed"


class ServerState(NamedTuple):
    """A line of haproxy.cfg that belongs to a node, and its server in HAProxy."""

    proxy: str
    server: str | None
    """Its name in HAProxy; None for the comment of a paused node whose server HAProxy no longer has."""
    address: str
    """ADDRESS:PORT; the address alone for the comment of a paused node."""
    line: str
    """`managed`, `paused` (a comment), `drained` (a paused node's `server` line) or `not managed` (operator's line)."""
    state: str | None
    """State in `show stat`; None where HAProxy does not list the server."""
    sessions: int | None

    @property
    def host(self) -> str:
        """The address without port and brackets."""
        return self.address if self.line == PAUSED else self.address.rpartition(":")[0].strip("[]")


ServerStates = Mapping[str, list[ServerState]]
"""By node, in the order of haproxy.cfg."""


def list_server_states(document: Document, roles: Roles, members: Members, stats: Stats) -> ServerStates:
    """Return the managed lines of `document`, and the operator's lines in place of managed ones, by node."""
    pairs = roles.list_pairs()
    operators = _OperatorLines(roles, members)
    found: dict[str, list[ServerState]] = {}
    for proxy in document.proxies:
        name = document.find_name(proxy)
        here = [pair for marker in proxy.markers if (pair := pairs.get(marker.middle))]
        if proxy.managed:
            planner = ProxyLines(proxy, roles, pairs, members)
            for line in proxy.managed:
                node = planner.find_node(line)
                found.setdefault(node, []).extend(_describe_managed(name, node, here, line, stats))
        templates = (server for template in proxy.templates for server in template.servers())
        for own in (*proxy.operator_servers, *templates) if here else ():
            for node in operators.find_nodes(own, here):
                stat = stats.get((name, own.name), NO_STATS)
                state = ServerState(name, own.name, own.endpoint, NOT_MANAGED, stat.state, stat.sessions)
                found.setdefault(node, []).append(state)
    return found


def _describe_managed(proxy: str, node: str, here: list[Pair], line: ManagedLine, stats: Stats) -> list[ServerState]:
    if not line.is_comment:
        kind, stat = DRAINED if line.is_paused else MANAGED, stats.get((proxy, line.name), NO_STATS)
        return [ServerState(proxy, line.name, line.endpoint, kind, stat.state, stat.sessions)]
    # HAProxy may still have its server, in maintenance, until the next reload.
    names = [name for name in (node, *(f"{node}.{pair.service}" for pair in here)) if (proxy, name) in stats]
    found: list[tuple[str | None, ServerStats]] = [(name, stats[proxy, name]) for name in names]
    found = found or [(None, NO_STATS)]
    return [ServerState(proxy, name, line.address, PAUSED, stat.state, stat.sessions) for name, stat in found]


class _OperatorLines:
    """Finds the members in whose place an operator's line is."""

    def __init__(self, roles: Roles, members: Members) -> None:
        self._roles, self._members = roles, members
        self._keys: dict[str, list[str]] | None = None

    def find_nodes(self, line: OperatorServer, here: list[Pair]) -> Iterator[str]:
        """Yield the members whose name or endpoint `line` has, in a proxy with markers of these pairs."""
        host = line.endpoint.rpartition(":")[0].strip("[]")
        name = line.name.lower()
        candidates = (self._build_index().get(key, ()) for key in (name, name.rpartition(".")[0], host))
        for node in dict.fromkeys(node for nodes in candidates for node in nodes):
            if any(self._matches(line, self._members[node], pair) for pair in here):
                yield node

    def _build_index(self) -> dict[str, list[str]]:
        if self._keys is None:
            self._keys = {}
            for member in self._members.values():
                if member.present:
                    for key in {member.name.lower(), member.address}:
                        self._keys.setdefault(key, []).append(member.name)
        return self._keys

    def _matches(self, line: OperatorServer, member: Member, pair: Pair) -> bool:
        roles = [
            one for one in self._roles.find_roles(member.role) if pair.service in one.sections.get(pair.section, ())
        ]
        if not roles:
            return False
        if line.name.lower() in (member.name.lower(), f"{member.name}.{pair.service}".lower()):
            return True
        return any(line.endpoint == self._format_endpoint(member, role, pair.service) for role in roles)

    def _format_endpoint(self, member: Member, role: Role, service: str) -> str:
        tags = member.tags or {}
        try:
            port = self._roles.services[service].find_port(role.build_values(member.name), tags)
            return format_endpoint(role.find_address(member.name, member.address, tags), port)
        except MissingTag:
            return ""


class State(StrEnum):
    """State of a node. If several apply, the first in this order is shown."""

    BLOCKED = "blocked"
    QUARANTINED = "quarantined"
    PENDING = "pending"
    UNKNOWN = "unknown"
    LEFT = "left"
    LOAD_BALANCER = "load balancer"
    UNKNOWN_ROLE = "unknown role"
    NOT_MANAGED = "not managed"
    PAUSED = "paused"
    FAILED = "failed"
    IN = "in"
    NO_LINE = "no line"


class Facts(NamedTuple):
    """Everything that the state of a node depends on."""

    name: str
    member: Member | None
    """None if only a line of haproxy.cfg names the node."""
    roles: Sequence[Role]
    """Its roles in roles.yml."""
    servers: Sequence[ServerState]
    change: Change
    """What the next run would do to its lines."""
    reasons: Sequence[str]
    """Why the plan gives it no line at a marker, or keeps a line of it."""
    no_server: str
    """Why it is not desired at any marker; empty where it is."""
    pauser: Member | None
    """The member whose pause or tag applies to it: itself, or another one at its address."""
    blocked: bool
    quarantined: bool
    is_load_balancer: bool
    obstacle: str
    """Why there is no preview of its lines; empty if there is one."""


def find_state(facts: Facts) -> State:
    """Return the state of a node."""
    member = facts.member
    absent = member is not None and not member.present
    applies = {
        State.BLOCKED: facts.blocked,
        State.QUARANTINED: facts.quarantined,
        State.PENDING: bool(facts.change.added or facts.change.removed),
        State.UNKNOWN: member is not None and member.status == UNKNOWN,
        State.LEFT: absent,
        State.LOAD_BALANCER: facts.is_load_balancer,
        State.UNKNOWN_ROLE: member is not None and not facts.roles,
        State.NOT_MANAGED: bool(facts.servers) and all(one.line == NOT_MANAGED for one in facts.servers),
        State.PAUSED: facts.pauser is not None,
        State.FAILED: member is not None and member.status == FAILED,
        State.IN: bool(facts.servers),
        State.NO_LINE: True,
    }
    return next(one for one in State if applies[one])


def find_since(state: State, facts: Facts) -> int | None:
    """Return the start of the state in epoch seconds; None if unknown."""
    member, pauser = facts.member, facts.pauser
    if state is State.QUARANTINED and member and member.quarantine:
        return member.quarantine.since
    if pauser is not None:
        # The start of a pause by tag, and of one known from haproxy.cfg only, is unknown.
        return pauser.pause.since if pauser.pause and pauser.pause.by != PAUSED_BY_CONFIG else None
    return member.changed if member and member.tags is not None else None


def explain(state: State, facts: Facts) -> str:
    """Return the reason for the state; empty if it needs none."""
    reasons = dict.fromkeys([*_explain_state(state, facts), *_explain_pause(state, facts), *facts.reasons])
    if not reasons and not facts.servers and state is not State.LOAD_BALANCER:
        return facts.obstacle or facts.no_server
    return "; ".join(reasons)


def _explain_state(state: State, facts: Facts) -> Iterator[str]:
    member = facts.member
    if state is State.BLOCKED:
        yield "the safety guard blocks its removal"
    elif state is State.QUARANTINED and member and member.quarantine:
        yield member.quarantine.reason
    elif state is State.PENDING:
        yield _explain_change(facts.change)
        yield from facts.change.reasons
    elif state is State.UNKNOWN_ROLE:
        yield facts.no_server
    elif state is State.FAILED and facts.servers:
        yield "its line is kept"


def _explain_change(change: Change) -> str:
    if change.added and change.removed:
        return "its lines will be changed"
    return "its lines will be added" if change.added else "its lines will be removed"


def _explain_pause(state: State, facts: Facts) -> Iterator[str]:
    pauser = facts.pauser
    if pauser is None:
        return
    paused = "" if state is State.PAUSED else "paused "
    whose = "" if pauser.name == facts.name else f"as {pauser.name} at the same address, "
    if pauser.paused_by_tag:
        yield f"{paused}{whose}by its tag lbagent=paused"
    if pause := pauser.pause:
        yield f"{paused}{whose}by {pause.by}" + (f": {pause.reason}" if pause.reason else "")


class Node(NamedTuple):
    """One node of the status. The fields are the keys of `status --json`."""

    name: str
    address: str | None
    role: str | None
    status: str | None
    """Last known status in Serf; None if only a line of haproxy.cfg names the node."""
    state: State
    since: int | None
    """Epoch seconds."""
    why: str
    pause: Pause | None
    """Its own pause or that of another node at its address; a pause by tag is `paused_by_tag`."""
    paused_by_tag: bool
    quarantine: Quarantine | None
    tags: Mapping[str, str] | None
    change: Change
    servers: Sequence[ServerState]


def list_nodes(
    roles: Roles,
    membership: Membership,
    servers: ServerStates,
    preview: Preview,
    middles: Container[str],
    load_balancers: Collection[str] = (),
) -> list[Node]:
    """Return every node that is present, paused, or has a line, in natural order of the names.

    `middles` are the middles of all markers; `load_balancers` are the names of the other load balancers.
    """
    members, paused, plan = as_table(membership.members), find_paused(membership), preview.plan
    pausing = {one.address: one for one in members.special.values() if one.pause or one.paused_by_tag}

    def find_facts(name: str) -> Facts:
        member = members.get(name)
        pauser = member if member and (member.pause or member.paused_by_tag) else None
        return Facts(
            name,
            member,
            roles.find_roles(member.role) if member else (),
            servers.get(name, ()),
            preview.change(name),
            plan.reasons.get(name, ()) if plan else (),
            explain_no_server(member, roles, middles) if member and member.present else "",
            (pauser or pausing[member.address]) if member and name in paused else None,
            name in preview.blocked,
            name in preview.quarantined,
            name in load_balancers,
            preview.obstacle,
        )

    there = (
        name for name, status in zip(members.columns.names, members.columns.statuses, strict=True) if status in PRESENT
    )
    waiting = (name for name, member in members.special.items() if member.pause)
    names = {*there, *waiting, *servers, *(plan.changes if plan else ())}
    return [_make_node(find_facts(name)) for name in sort_names(names)]


def _make_node(facts: Facts) -> Node:
    member, pauser, state = facts.member, facts.pauser, find_state(facts)
    return Node(
        facts.name,
        (member.address if member else next((one.host for one in facts.servers), "")) or None,
        (member.role or None) if member else None,
        member.status if member else None,
        state,
        find_since(state, facts),
        explain(state, facts),
        pauser.pause if pauser else None,
        pauser is not None and pauser.paused_by_tag,
        member.quarantine if member else None,
        member.tags if member else None,
        facts.change,
        facts.servers,
    )
