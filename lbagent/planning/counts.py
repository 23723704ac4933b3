"""How many servers each section and service has, and in what state: by the lines that stand and by what Serf says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lbagent.haproxy.config import Document, ManagedLine
from lbagent.haproxy.server_line import PAUSED_OURS
from lbagent.membership.model import ALIVE, FAILED, Membership, Table, as_table
from lbagent.names import explain_refused_address, role_names
from lbagent.roles.model import Pair, Role, Roles

STATES = ("in", "paused", "failed", "quarantined")

Standing = Mapping[str, Sequence[str]]
"""By the middle of every marker that stands the managed lines above it."""


def list_managed_lines(document: Document) -> Standing:
    """The managed lines of a text, as `Plan.standing` has those of a plan."""
    found: dict[str, list[str]] = {}
    for proxy in document.proxies:
        middles = [*(marker.middle for marker in proxy.markers), ""]
        for middle in middles:
            found.setdefault(middle, [])
        for line in proxy.managed:
            found[middles[line.marker]].append(line.text)
    return found


def count_servers(lines: Standing, roles: Roles, membership: Membership) -> dict[Pair, dict[str, int]]:
    """Servers by state, for every pair of roles.yml; each stands in one state only.

    A paused line, a comment or one that drains, is `paused`. The line of a node in quarantine or failed counts
    as that, every other one is `in`. No line counts only where it is one of these that keeps it out: of a node that
    may have one, at a marker that stands.
    """
    odd = _odd(as_table(membership.members))
    found = {}
    for pair, serving in roles.map_pairs_to_roles().items():
        texts = lines.get(pair.middle, ())
        found[pair] = counts = dict.fromkeys(STATES, 0)
        # A comment comes before every `server` line: where the first is none, none is, which is found fastest.
        comments = [text[0] for text in texts].count("#") if texts and min(texts)[0] == "#" else 0
        counts["paused"] = comments + "\n".join(texts).count(PAUSED_OURS)
        counts["in"] = len(texts) - counts["paused"]
        if odd and pair.middle in lines:
            here = {
                name: (state, _out(state, at, role)) for role in serving for name, state, at in odd.get(role.name, ())
            }
            if here:
                _move(counts, here, [ManagedLine(0, 0, text) for text in texts], f".{pair.service}")
    return found


def count_statuses(membership: Membership) -> dict[str, int]:
    """Members by what Serf says of them."""
    column = as_table(membership.members).columns.statuses
    alive = column.count(ALIVE)
    # As a rule all of them are, and counting one is three times as fast as counting each.
    return {ALIVE: alive} if alive == len(column) else dict(Counter(column))


def count_quarantined(membership: Membership) -> int:
    """Nodes whose lines HAProxy refuses."""
    return sum(member.quarantine is not None for member in as_table(membership.members).special.values())


def _odd(table: Table) -> dict[str, list[tuple[str, str, str]]]:
    """By role: name, state and address of the nodes of which more is to be told than that they are in."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    if FAILED in table.columns.statuses:
        for name, address, role, status, _ in zip(*table.columns, strict=True):
            for one in role_names(role) if status == FAILED else ():
                found.setdefault(one, []).append((name, "failed", address))
    for member in table.special.values():
        for one in role_names(member.role) if member.quarantine and member.present else ():
            found.setdefault(one, []).append((member.name, "quarantined", member.address))
    return found


def _out(state: str, address: str, role: Role) -> bool:
    """Whether a node in this state is to have no line because of it."""
    return (state == "quarantined" or role.remove_failed) and explain_refused_address(address, role.networks) is None


def _move(
    counts: dict[str, int], odd: Mapping[str, tuple[str, bool]], lines: Sequence[ManagedLine], suffix: str
) -> None:
    """Count the `odd` nodes for what they are, also who is out; a server may be called NODE or NODE.SERVICE."""

    def node(line: ManagedLine) -> str:
        return line.name if line.name in odd else line.name.removesuffix(suffix)

    paused = {node(line) for line in lines if line.paused}
    there = Counter(node(line) for line in lines if not line.paused)
    for name, (state, out) in odd.items():
        counts["in"] -= there[name]
        counts[state] += there[name] or (out and name not in paused)
