"""Restoring: managed lines of an earlier text put into the present one, and membership rebuilt from managed lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lbagent.haproxy.config import Document, Edit, Proxy
from lbagent.membership.model import ALIVE, PAUSED_BY_CONFIG, Member, Membership, Pause
from lbagent.names import NAME, canonical_address, role_names
from lbagent.planning.proxy import MarkerBlock, ProxyPlanner
from lbagent.roles.model import Roles


def restore_managed_lines(document: Document, previous: Document) -> tuple[str, ...]:
    """Return the texts of `document` with the managed lines that `previous` has at the same markers."""
    there = {key: _list_lines(proxy, number) for key, proxy, number in _list_markers(previous)}
    edits: list[Edit] = []
    for key, proxy, number in _list_markers(document):
        before = [line for line in proxy.managed if line.marker == number]
        after = there.get(key, _list_lines(proxy, number))
        if [line.text for line in before] != after:
            edits += MarkerBlock(number, before, after, {}, ()).make_edits(document, proxy)
    return document.apply_edits(edits)


def _list_markers(document: Document) -> Iterator[tuple[tuple[str, str, int], Proxy, int]]:
    """Yield every marker: its key (the same in any text), its proxy, and its number in the proxy."""
    seen: Counter[tuple[str, str]] = Counter()
    for proxy in document.proxies:
        for number, marker in enumerate(proxy.markers):
            key = (str(proxy), marker.middle)
            yield (*key, seen[key]), proxy, number  # branches of one `.if` may repeat a marker
            seen[key] += 1


def rebuild_membership(document: Document, roles: Roles, now: int) -> Membership:
    """Return the membership that the managed lines show, with pauses and without tags, at `now` (epoch seconds)."""
    members: dict[str, Member] = {}
    for proxy in document.proxies:
        planner = ProxyPlanner(document, proxy, roles, roles.list_pairs(), {})
        for line in proxy.managed:
            node, address = planner.find_node(line), line.address
            if NAME.fullmatch(node) and canonical_address(address) == address:
                pause = Pause(now, PAUSED_BY_CONFIG) if line.paused else None
                known = members.setdefault(node, Member(node, address, line.role, None, ALIVE, now, pause))
                if line.role not in role_names(known.role):
                    members[node] = known._replace(role=f"{known.role},{line.role}")
    return Membership(members)


def _list_lines(proxy: Proxy, number: int) -> list[str]:
    return [line.text for line in proxy.managed if line.marker == number]
