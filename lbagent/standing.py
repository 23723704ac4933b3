"""Where nodes stand in haproxy.cfg: managed lines, pauses, lines by hand, and what HAProxy says of their servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lbagent.haproxy.lines import HandWritten, Line
from lbagent.haproxy.server import endpoint
from lbagent.haproxy.stats import NOTHING, Stats
from lbagent.haproxy.text import Document, Proxy
from lbagent.membership import Member, Members
from lbagent.place import Place
from lbagent.roles import Missing, Pair, Role, Roles
from lbagent.tuples import NamedTuple

MANAGED, PAUSED, DRAINED, BY_HAND = "managed", "paused", "drained", "by hand"


class Standing(NamedTuple):
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


Standings = Mapping[str, list[Standing]]
"""By node, each in the order of the text."""


def standings(document: Document, roles: Roles, members: Members, stats: Stats) -> Standings:
    """Every managed line of `document` and the lines by hand that stand in a member's place, with their nodes."""
    pairs = roles.pairs()
    known = _Known(roles, members)
    found: dict[str, list[Standing]] = {}
    for proxy in document.proxies:
        here = [pair for marker in proxy.markers if (pair := pairs.get(marker.middle))]
        if proxy.managed:
            place = Place(document, proxy, roles, pairs, members)
            for line in proxy.managed:
                node = place.node(line)
                found.setdefault(node, []).extend(_managed(proxy, node, here, line, stats))
        templates = (hand for one in proxy.templates for hand in one.servers())
        for hand in (*proxy.hand_written, *templates) if here else ():
            for node in known.meant(hand, here):
                said = stats.get((proxy.name, hand.name), NOTHING)
                found.setdefault(node, []).append(Standing(proxy.name, hand.name, hand.endpoint, BY_HAND, *said))
    return found


def _managed(proxy: Proxy, node: str, here: list[Pair], line: Line, stats: Stats) -> list[Standing]:
    if not line.pauses:
        said = stats.get((proxy.name, line.name), NOTHING)
        kind = DRAINED if line.paused else MANAGED
        return [Standing(proxy.name, line.name, line.endpoint, kind, *said)]
    # Its server may still be there, in maintenance, until the next reload.
    names = [name for name in (node, *(f"{node}.{pair.service}" for pair in here)) if (proxy.name, name) in stats]
    there = [Standing(proxy.name, name, line.address, PAUSED, *stats[proxy.name, name]) for name in names]
    return there or [Standing(proxy.name, None, line.address, PAUSED, *NOTHING)]


class _Known:
    """The members as a line by hand may name them."""

    def __init__(self, roles: Roles, members: Members) -> None:
        self._roles, self._members = roles, members
        self._keys: dict[str, list[str]] | None = None

    def meant(self, line: HandWritten, here: list[Pair]) -> Iterator[str]:
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

    def _same(self, line: HandWritten, member: Member, pair: Pair) -> bool:
        roles = [one for one in self._roles.of(member.role) if pair.service in one.sections.get(pair.section, ())]
        if not roles:
            return False
        if line.name.lower() in (member.name.lower(), f"{member.name}.{pair.service}".lower()):
            return True
        return any(line.endpoint == self._endpoint(member, role, pair.service) for role in roles)

    def _endpoint(self, member: Member, role: Role, service: str) -> str:
        tags = member.tags or {}
        try:
            port = self._roles.services[service].port_of(role.values(member.name), tags)
            return endpoint(role.address_of(member.name, member.address, tags), port)
        except Missing:
            return ""
