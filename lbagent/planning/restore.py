"""The way back: managed lines of another text put into this one, and membership read off the managed lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lbagent.haproxy.config import Document, Edit, Proxy
from lbagent.membership.model import ALIVE, REBUILT, Member, Membership, Pause
from lbagent.names import NAME, canonical_address, role_names
from lbagent.planning.proxy import MarkerBlock, ProxyPlanner
from lbagent.roles.model import Roles


def restore_managed_lines(document: Document, previous: Document) -> tuple[str, ...]:
    """The texts of `document` with the managed lines that `previous` has at the same markers."""
    there = {key: _standing(proxy, number) for key, proxy, number in _markers(previous)}
    edits: list[Edit] = []
    for key, proxy, number in _markers(document):
        before = [line for line in proxy.managed if line.marker == number]
        after = there.get(key, _standing(proxy, number))
        if [line.text for line in before] != after:
            edits += MarkerBlock(number, before, after, {}, ()).edits(document, proxy)
    return document.apply_edits(edits)


def _markers(document: Document) -> Iterator[tuple[tuple[str, str, int], Proxy, int]]:
    """Every marker: what it is known by in another text, its proxy and its number there."""
    seen: Counter[tuple[str, str]] = Counter()
    for proxy in document.proxies:
        for number, marker in enumerate(proxy.markers):
            key = (str(proxy), marker.middle)
            yield (*key, seen[key]), proxy, number  # in branches of `.if` one may be there several times
            seen[key] += 1


def rebuild_membership(document: Document, roles: Roles, now: int) -> Membership:
    """The membership that the managed lines of haproxy.cfg tell of, pauses included; tags they do not tell."""
    members: dict[str, Member] = {}
    for proxy in document.proxies:
        place = ProxyPlanner(document, proxy, roles, roles.list_pairs(), {})
        for line in proxy.managed:
            node, address = place.node(line), line.address
            if NAME.fullmatch(node) and canonical_address(address) == address:
                pause = Pause(now, REBUILT) if line.paused else None
                known = members.setdefault(node, Member(node, address, line.role, None, ALIVE, now, pause))
                if line.role not in role_names(known.role):
                    members[node] = known._replace(role=f"{known.role},{line.role}")
    return Membership(members)


def _standing(proxy: Proxy, number: int) -> list[str]:
    return [line.text for line in proxy.managed if line.marker == number]
