"""Servers by section, service and state, counted from managed lines and from Serf's statuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lbagent.haproxy.config import Document, ManagedLine
from lbagent.haproxy.server_line import PAUSED_OURS
from lbagent.membership.model import ALIVE, FAILED, Membership, Table, as_table, find_paused
from lbagent.names import explain_refused_address, role_names
from lbagent.roles.model import Pair, Role, Roles

STATES = ("in", "paused", "failed", "quarantined")

LinesByMarker = Mapping[str, Sequence[str]]
"""The managed lines above every present marker, by the middle of the marker."""


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
    odd = _list_exceptional_nodes(as_table(membership.members))
    found = {}
    for pair, serving in roles.map_pairs_to_roles().items():
        texts = lines.get(pair.middle, ())
        found[pair] = counts = dict.fromkeys(STATES, 0)
        # A comment sorts before every `server` line. Where the smallest text is not a comment, none is.
        comments = [text[0] for text in texts].count("#") if texts and min(texts)[0] == "#" else 0
        counts["paused"] = comments + "\n".join(texts).count(PAUSED_OURS)
        counts["in"] = len(texts) - counts["paused"]
        if odd and pair.middle in lines:
            here = {
                name: (state, _has_no_line(state, at, role))
                for role in serving
                for name, state, at in odd.get(role.name, ())
            }
            if here:
                _count_exceptional(counts, here, [ManagedLine(0, 0, text) for text in texts], f".{pair.service}")
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


def _list_exceptional_nodes(table: Table) -> dict[str, list[tuple[str, str, str]]]:
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


def _count_exceptional(
    counts: dict[str, int], odd: Mapping[str, tuple[str, bool]], lines: Sequence[ManagedLine], suffix: str
) -> None:
    """Count the nodes in `odd` by their own state, also those without a line.

    `suffix` is `.SERVICE`: a server may be called NODE or NODE.SERVICE.
    """

    def node(line: ManagedLine) -> str:
        return line.name if line.name in odd else line.name.removesuffix(suffix)

    paused = {node(line) for line in lines if line.paused}
    there = Counter(node(line) for line in lines if not line.paused)
    for name, (state, out) in odd.items():
        counts["in"] -= there[name]
        counts[state] += there[name] or (out and name not in paused)
