"""How many servers each section and service has, and in what state: by the lines that stand and by what Serf says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lbagent.haproxy.lines import Line
from lbagent.haproxy.text import PAUSED, Document
from lbagent.membership import FAILED, Membership
from lbagent.roles import Pair, Roles
from lbagent.table import Table, tabled

STATES = ("in", "paused", "failed", "quarantined")

Standing = Mapping[str, Sequence[str]]
"""The managed lines by the middle of the marker that they stand above."""


def standing(document: Document) -> Standing:
    """The managed lines of a text, as `Plan.standing` has those of a plan."""
    found: dict[str, list[str]] = {}
    for proxy in document.proxies:
        middles = [*(marker.middle for marker in proxy.markers), ""]
        for line in proxy.managed:
            found.setdefault(middles[line.marker], []).append(line.text)
    return found


def servers(lines: Standing, roles: Roles, membership: Membership, *, pauses: bool) -> dict[Pair, dict[str, int]]:
    """Servers by state, for every pair of roles.yml; each stands in one state only.

    A paused line is `paused`; `pauses` tells whether there is any. A node in quarantine or failed counts as that,
    whether it has a line or none; what has a line beside these is `in`.
    """
    odd = _odd(tabled(membership.members))
    found = {}
    for pair, serving in roles.serving().items():
        texts = lines.get(pair.middle, ())
        paused = [text[0] for text in texts].count("#") if pauses else 0
        found[pair] = {"in": len(texts) - paused, "paused": paused, "failed": 0, "quarantined": 0}
        if odd and (here := {name: state for role in serving for name, state in odd.get(role.name, {}).items()}):
            _move(found[pair], here, [Line(0, 0, text) for text in texts], f".{pair.service}")
    return found


def pauses(texts: Iterable[str]) -> bool:
    """Whether any line may stand for a paused node; seen sooner in whole texts than line by line."""
    return any(PAUSED in text for text in texts)


def statuses(membership: Membership) -> dict[str, int]:
    """Members by what Serf says of them."""
    return dict(Counter(tabled(membership.members).columns.statuses))


def quarantined(membership: Membership) -> int:
    """Nodes whose lines HAProxy refuses."""
    return sum(member.quarantine is not None for member in tabled(membership.members).special.values())


def _odd(table: Table) -> dict[str, dict[str, str]]:
    """By role: the nodes of which more is to be told than that they are in."""
    found: dict[str, dict[str, str]] = {}
    if FAILED in table.columns.statuses:
        names, _, roles, states, _ = table.columns
        for name, role, state in zip(names, roles, states, strict=True):
            if state == FAILED:
                found.setdefault(role, {})[name] = "failed"
    for member in table.special.values():
        if member.quarantine and member.present:
            found.setdefault(member.role, {})[member.name] = "quarantined"
    return found


def _move(counts: dict[str, int], odd: Mapping[str, str], lines: Sequence[Line], suffix: str) -> None:
    """Count the `odd` nodes for what they are; a server may be called NODE or NODE.SERVICE."""

    def node(line: Line) -> str:
        return line.name if line.name in odd else line.name.removesuffix(suffix)

    out = {node(line) for line in lines if line.pauses}
    there = Counter(node(line) for line in lines if not line.pauses)
    for name, state in odd.items():
        counts["in"] -= there[name]
        counts[state] += there[name] or (name not in out)
