"""The managed lines of a proxy, with the node of each; and membership rebuilt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from lbagent.haproxy.config import Document, ManagedLine, Proxy
from lbagent.haproxy.server_line import Server
from lbagent.membership.model import ALIVE, PAUSED_BY_CONFIG, Member, Members, Membership, Pause
from lbagent.names import NAME, canonical_address, role_names, sort_names
from lbagent.roles.model import Pair, Roles

_Item = TypeVar("_Item")


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
