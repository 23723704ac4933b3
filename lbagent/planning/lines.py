"""The managed lines of haproxy.cfg: the node of each, membership rebuilt from them, and the services that they serve.

Servers are counted by state; a service without a serving server is found before the last one is paused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.haproxy.runtime.state import NO_STATS, ServerStats, Stats
from lbagent.haproxy.server_line import PAUSED_ROLE_COMMENT, Server
from lbagent.membership.model import (
    ALIVE,
    FAILED,
    PAUSED_BY_CONFIG,
    Member,
    Members,
    Membership,
    Pause,
    Table,
    as_table,
    find_paused,
)
from lbagent.names import NAME, canonical_address, explain_refused_address, role_names, sort_names
from lbagent.roles.model import Pair, Role, Roles

_Item = TypeVar("_Item")

STATES = ("in", "paused", "failed", "quarantined")
"""The states by which servers are counted; `in` is in balancing."""

LinesByMarker = Mapping[str, Sequence[str]]
"""The managed lines above every present marker, by the middle of the marker."""

LAST_SERVER_WARNING = "no other server of "
"""First words of the note that a pause took the last server of a service."""

_STATES_WITHOUT_TRAFFIC = ("DOWN", "MAINT", "DRAIN", "NOLB")
"""Prefixes of HAProxy's server states in which a server gets no new requests."""


def list_managed_lines(document: Document) -> LinesByMarker:
    """Return the managed lines of a text, in the form of `Plan.managed_lines`."""
    found: dict[str, list[str]] = {}
    for proxy in document.proxies:
        middles = [*(marker.middle for marker in proxy.markers), ""]
        for middle in middles:
            found.setdefault(middle, [])
        for line in proxy.managed:
            found[middles[line.marker]].append(line.text)
    return found


def count_servers(lines: LinesByMarker, roles: Roles, membership: Membership) -> dict[Pair, dict[str, int]]:
    """Return the number of servers by state, for every pair of roles.yml; each server has one state.

    A paused line, a comment or a drained server, is `paused`. The line of a quarantined or failed node counts as that,
    and every other line as `in`. A node without a line counts only where its state is the reason: it is allowed, and
    its marker is present.
    """
    other_states = _list_nodes_in_other_states(as_table(membership.members))
    found = {}
    for pair, serving in roles.map_pairs_to_roles().items():
        texts = lines.get(pair.middle, ())
        found[pair] = counts = dict.fromkeys(STATES, 0)
        # A comment sorts before every `server` line. Where the smallest text is not a comment, none is.
        comments = [text[0] for text in texts].count("#") if texts and min(texts)[0] == "#" else 0
        counts["paused"] = comments + "\n".join(texts).count(PAUSED_ROLE_COMMENT)
        counts["in"] = len(texts) - counts["paused"]
        if other_states and pair.middle in lines:
            here = {
                name: (state, _has_no_line(state, at, role))
                for role in serving
                for name, state, at in other_states.get(role.name, ())
            }
            if here:
                _count_other_states(counts, here, [ManagedLine(0, 0, text) for text in texts], f".{pair.service}")
    return found


def _list_nodes_in_other_states(table: Table) -> dict[str, list[tuple[str, str, str]]]:
    """Return name, state and address of the failed and quarantined nodes, by role."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    if FAILED in table.columns.statuses:
        for name, address, role, status, _ in zip(*table.columns, strict=True):
            for one in role_names(role) if status == FAILED else ():
                found.setdefault(one, []).append((name, "failed", address))
    for member in table.special.values():
        for one in role_names(member.role) if member.quarantine and member.present else ():
            found.setdefault(one, []).append((member.name, "quarantined", member.address))
    return found


def _has_no_line(state: str, address: str, role: Role) -> bool:
    """Return whether a node in this state has no line because of the state."""
    return (state == "quarantined" or role.remove_failed) and explain_refused_address(address, role.networks) is None


def _count_other_states(
    counts: dict[str, int], other_states: Mapping[str, tuple[str, bool]], lines: Sequence[ManagedLine], suffix: str
) -> None:
    """Count the nodes in `other_states` by their own state, also those without a line.

    `suffix` is `.SERVICE`: a server may be called NODE or NODE.SERVICE.
    """

    def node(line: ManagedLine) -> str:
        return line.name if line.name in other_states else line.name.removesuffix(suffix)

    paused = {node(line) for line in lines if line.is_paused}
    serving = Counter(node(line) for line in lines if not line.is_paused)
    for name, (state, lacks_line) in other_states.items():
        counts["in"] -= serving[name]
        counts[state] += serving[name] or (lacks_line and name not in paused)


class ServingServers(NamedTuple):
    """haproxy.cfg, and the states of its servers in HAProxy."""

    document: Document
    states: Stats
    """Empty where HAProxy gives none: then Serf's statuses decide."""


def find_unserved(
    now: ServingServers, roles: Roles, membership: Membership, nodes: Collection[str], *, if_paused: bool = False
) -> list[str]:
    """Return the services of `nodes` that no other server serves, in any of their proxies.

    With `if_paused`, only services that one of `nodes` still serves: pausing them would leave no server.
    """
    view = _ServiceView(now, roles, membership)
    found: dict[str, None] = {}
    for proxy in (one for one in now.document.proxies if one.managed and one.markers and view.is_in_haproxy(one)):
        found.update(dict.fromkeys(view.list_unserved(proxy, nodes, if_paused=if_paused)))
    return list(found)


def format_last_server(services: Sequence[str]) -> str:
    """Return the note about a pause of the last server: `no other server of a, b and c serves`."""
    *others, last = services
    return f"{LAST_SERVER_WARNING}{', '.join(others)}{' and ' if others else ''}{last} serves"


class _ServiceView:
    def __init__(self, now: ServingServers, roles: Roles, membership: Membership) -> None:
        self._now, self._roles, self._members = now, roles, membership.members
        self._pairs, self._paused = roles.list_pairs(), find_paused(membership)

    def is_in_haproxy(self, proxy: Proxy) -> bool:
        """Return whether HAProxy has this proxy, or may have it where its states are unknown."""
        document = self._now.document
        if not document.is_conditional:
            return True
        has = document.find_server(proxy.start)[1]
        if has is None and self._now.states:
            return any(found == document.find_name(proxy) for found, _ in self._now.states)
        return has is not False

    def list_unserved(self, proxy: Proxy, nodes: Collection[str], *, if_paused: bool) -> Iterable[str]:
        """Yield the services in this proxy that only `nodes` have."""
        managed = ProxyLines(proxy, self._roles, self._pairs, self._members)
        has_operator_server = any(
            self._operator_line_serves(proxy, line) for line in self._list_operator_servers(proxy)
        )
        for number, marker in enumerate(proxy.markers):
            pair = self._pairs.get(marker.middle)
            lines = [
                (managed.find_node(line), line)
                for line in proxy.managed
                if line.marker == number and not self._is_never_read(line.at)
            ]
            mine = [
                line for node, line in lines if node in nodes and (not if_paused or self._serves(proxy, node, line))
            ]
            others = (self._serves(proxy, node, line) for node, line in lines if node not in nodes)
            if pair and mine and not has_operator_server and not any(others):
                yield pair.service

    def _list_operator_servers(self, proxy: Proxy) -> Iterable[OperatorServer]:
        templates = (server for template in proxy.templates for server in template.servers())
        return (one for one in (*proxy.operator_servers, *templates) if not self._is_never_read(one.at))

    def _is_never_read(self, line: int) -> bool:
        return self._now.document.is_conditional and self._now.document.find_server(line)[1] is False

    def _serves(self, proxy: Proxy, node: str, line: ManagedLine) -> bool:
        member = self._members.get(node)
        # A check of HAProxy that passes shows more than Serf, whose agent alone may have ended.
        checked = (self._find_state(proxy, line.name).state or "").startswith("UP")
        alive = member is None or member.status == ALIVE or checked
        return alive and not line.is_paused and node not in self._paused and self._is_up(proxy, line.name)

    def _operator_line_serves(self, proxy: Proxy, line: OperatorServer) -> bool:
        words = line.text.partition("#")[0].split()
        return not {"backup", "disabled"} & set(words) and self._is_up(proxy, line.name)

    def _is_up(self, proxy: Proxy, server: str) -> bool:
        if not self._now.states:
            return True
        found = self._find_state(proxy, server)
        return found.state is not None and not found.state.startswith(_STATES_WITHOUT_TRAFFIC) and found.weight != 0

    def _find_state(self, proxy: Proxy, server: str) -> ServerStats:
        return self._now.states.get((self._now.document.find_name(proxy), server), NO_STATS)


class ProxyLines:
    """The managed lines of one proxy by marker, and the rules for the names of its servers."""

    def __init__(self, proxy: Proxy, roles: Roles, pairs: Mapping[str, Pair], members: Members) -> None:
        """`pairs` maps the middle of a marker to its section and service, for all markers that roles.yml knows."""
        self._services, self._members = roles.services, members
        self.pairs = [pairs.get(marker.middle) for marker in proxy.markers]
        """Section and service of each marker; None where roles.yml does not know it."""
        self.services_here = {pair.service for pair in self.pairs if pair}
        # In a proxy with several services the name of a node alone would be used twice.
        self._has_several_services = len(self.services_here) > 1
        self._suffixes = [f".{pair.service}" if self._has_several_services and pair else "" for pair in self.pairs]
        self._nodes: dict[int, Mapping[str, ManagedLine | None]] = {}
        self.by_marker: list[Sequence[ManagedLine]] = [[] for _ in self.pairs]
        """The managed lines above each marker."""
        self.without_marker: Sequence[ManagedLine] = ()
        if proxy.managed and proxy.managed[-1].marker == 0 and self.pairs:  # usually all are above the first marker
            self.by_marker[0] = proxy.managed
        else:
            numbers = range(len(self.pairs))
            self.by_marker = [[line for line in proxy.managed if line.marker == number] for number in numbers]
            self.without_marker = [line for line in proxy.managed if line.marker == len(self.pairs)]

    def name_server(self, node: str, number: int) -> str:
        """Return the name of a node's server at a marker: NODE, or NODE.SERVICE in a proxy with several services."""
        return node + self._suffixes[number]

    def find_node(self, line: ManagedLine) -> str:
        """Return the node of a line: the name of its server, or NODE of NODE.SERVICE."""
        name = line.name
        node, dot, service = name.rpartition(".")
        if not dot or line.is_comment or service not in self._services:
            return name
        return node if self._has_several_services or (node in self._members and name not in self._members) else name

    def map_nodes(self, number: int) -> Mapping[str, ManagedLine | None]:
        """Return the nodes with lines at a marker, each with its `server` line; None where it has only a comment."""
        if number not in self._nodes:
            comments = {self.find_node(line): None for line in self.by_marker[number] if line.is_comment}
            servers = {self.find_node(line): line for line in self.by_marker[number] if not line.is_comment}
            self._nodes[number] = {**comments, **servers}
        return self._nodes[number]


def sort_by_name(items: Iterable[_Item], get_name: Callable[[_Item], str]) -> list[_Item]:
    """Return the items sorted by their names in natural order: web2 before web10."""
    found = [*items]
    names = [get_name(item) for item in found]
    order = sort_names(dict.fromkeys(names))
    if names == order:
        return found
    # A natural key for each of ten thousand items would take ten times longer.
    rank = dict(zip(order, range(len(order)), strict=True))
    return sorted(found, key=lambda item: rank[get_name(item)])


def replace_address(line: ManagedLine, address: str) -> str:
    """Return the text of a line with the address of its server replaced; the port stays."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    there = Server(line.name, address, int(port), "", line.role).endpoint
    return line.text.replace(line.endpoint, there, 1)


def rebuild_membership(document: Document, roles: Roles, now: int) -> Membership:
    """Return the membership that the managed lines show, with pauses and without tags, at `now` (epoch seconds)."""
    members: dict[str, Member] = {}
    pairs = roles.list_pairs()
    for proxy in document.proxies:
        lines = ProxyLines(proxy, roles, pairs, {})
        for line in proxy.managed:
            node, address = lines.find_node(line), line.address
            if NAME.fullmatch(node) and canonical_address(address) == address:
                pause = Pause(now, PAUSED_BY_CONFIG) if line.is_paused else None
                known = members.setdefault(node, Member(node, address, line.role, None, ALIVE, now, pause))
                if line.role not in role_names(known.role):
                    members[node] = known._replace(role=f"{known.role},{line.role}")
    return Membership(members)
