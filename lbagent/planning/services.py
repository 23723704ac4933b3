"""The services of haproxy.cfg: the number of their servers by state, and those without a serving server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.haproxy.runtime.state import NO_STATS, ServerStats, Stats
from lbagent.haproxy.server_line import PAUSED_ROLE_COMMENT
from lbagent.membership.model import ALIVE, FAILED, Membership, Table, as_table, find_paused
from lbagent.names import explain_refused_address, role_names
from lbagent.planning.desired import DesiredServers
from lbagent.planning.lines import ProxyLines
from lbagent.roles.model import Pair, Role, Roles

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


def count_statuses(membership: Membership) -> dict[str, int]:
    """Return the number of members by Serf status."""
    column = as_table(membership.members).columns.statuses
    alive = column.count(ALIVE)
    # Usually all are alive, and counting one status is three times faster than counting each.
    return {ALIVE: alive} if alive == len(column) else dict(Counter(column))


def count_quarantined(membership: Membership) -> int:
    """Return the number of nodes whose lines HAProxy refuses."""
    return sum(member.quarantine is not None for member in as_table(membership.members).special.values())


def count_paused(membership: Membership) -> int:
    """Return the number of present members that are paused."""
    return sum(membership.members[name].present for name in find_paused(membership))


def find_pause_starts(membership: Membership) -> dict[str, int]:
    """Return when each pause of a present member began, in epoch seconds; a pause by the tag has no start."""
    special = as_table(membership.members).special.values()
    return {member.name: member.pause.since for member in special if member.pause and member.present}


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


def find_operator_server(now: ServingServers, roles: Roles, membership: Membership, nodes: Collection[str]) -> str:
    """Return where HAProxy has an operator's server with the address of a node, as a phrase; empty if it has none.

    The text alone does not show the address of a line with a variable or a host name. Servers in maintenance or drain
    do not count.
    """
    members = {name: membership.members[name] for name in nodes if name in membership.members}
    desired, pairs = DesiredServers(roles, membership._replace(members=members)), roles.list_pairs()
    for proxy in now.document.proxies:
        here = [pairs[marker.middle] for marker in proxy.markers if marker.middle in pairs]
        endpoints = {server.endpoint for pair in here for server in desired.list_servers(pair, tuple).servers}
        found = _list_operator_endpoints(now, proxy) if endpoints else {}
        if name := next((name for name, endpoint in found.items() if endpoint in endpoints), ""):
            return f"in {proxy}: HAProxy's server {name} has its address"
    return ""


def _list_operator_endpoints(now: ServingServers, proxy: Proxy) -> Mapping[str, str | None]:
    """Return ADDRESS:PORT of the operator's servers of a proxy that may get traffic, by name."""
    if not now.states:
        lines = (now.document.resolve_operator_server(line) for line in proxy.operator_servers)
        return {line.name: line.endpoint for line in lines}
    managed, here = {line.name for line in proxy.managed}, now.document.find_name(proxy)
    return {
        server: found.endpoint
        for (name, server), found in now.states.items()
        if name == here and server not in managed and not (found.state or "").startswith(("MAINT", "DRAIN"))
    }


def join_services(services: Iterable[str]) -> str:
    """Return the services as a phrase: `iis`, `iis and mongo`, `a, b and c`."""
    *others, last = services
    return f"{', '.join(others)} and {last}" if others else last


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
