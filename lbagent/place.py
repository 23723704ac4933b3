"""One proxy of haproxy.cfg: what stands at its markers, what is wished for there, and what comes of both.

Here names are made unique, lines by hand win, and lines whose marker is gone stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lbagent.guard import Guard, Line
from lbagent.haproxy.server import Server, paused_line, stable_ids
from lbagent.haproxy.text import Document, Entry, Proxy
from lbagent.membership import FAILED, Membership
from lbagent.names import natural
from lbagent.roles import Pair
from lbagent.wishes import Wish, Wishes

BY_HAND = "by hand"


class Spot(NamedTuple):
    """Lines that belong together: those of one marker (its number in the proxy), or those without any."""

    marker: int | None
    before: list[Line]
    after: list[Line]


class Place:
    """One proxy while it is planned."""

    def __init__(self, document: Document, proxy: Proxy, pairs: Mapping[str, Pair], membership: Membership) -> None:
        """A place whose markers name `pairs`, or something that roles.yml does not know."""
        self._document, self._proxy, self._members = document, proxy, membership.members
        self._pairs = [pairs.get(marker.middle) for marker in proxy.markers]
        self._services = {pair.service for pair in pairs.values()}
        # Where one proxy holds several services, a node's name alone would stand there twice.
        self._plural = len({pair.service for pair in self._pairs if pair}) > 1
        self._by_hand = {line.name.lower() for line in proxy.hand_written}
        self._taken = {line.endpoint: BY_HAND for line in proxy.hand_written}
        """Who has an ADDRESS:PORT of this proxy: a server's name, or BY_HAND."""
        self._standing: dict[int | None, list[Line]] = {number: [] for number in [*range(len(self._pairs)), None]}
        for entry in proxy.entries:
            number, line = self._attributed(entry)
            self._standing[number].append(line)
        self.notes: list[str] = [
            f"{document.where(marker.at)}: no role of roles.yml has a section and service for this marker"
            for marker, pair in zip(proxy.markers, self._pairs, strict=True)
            if pair is None
        ]

    @property
    def standing(self) -> list[Line]:
        """Every managed line of the proxy."""
        return [line for lines in self._standing.values() for line in lines]

    def spots(self, wishes: Wishes, kept: frozenset[str], guard: Guard, *, adopt: bool) -> list[Spot]:
        """What stands and what is to stand, marker by marker, lines without a marker last."""
        wished = [
            wishes.at(pair, {line.node for line in self._standing[number]}) if pair else []
            for number, pair in enumerate(self._pairs)
        ]
        adopted = self._adopt(wished) if adopt else {}
        granted = self._grant(wished, kept)
        stay = {number: self._stay(number, granted[number], kept, guard) for number in granted}
        ids = self._ids(granted, stay)
        spots = [
            Spot(number, self._before(number, adopted), self._after(number, granted[number], stay[number], ids))
            for number in granted
        ]
        if orphans := self._standing[None]:
            spots.append(Spot(None, orphans, self._without_marker(orphans, wishes.paused, kept, guard)))
        return spots

    def _attributed(self, entry: Entry) -> tuple[int | None, Line]:
        """A managed line with its node, and the marker it belongs to: the next one below, unless its name objects."""
        base, _, service = entry.name.rpartition(".")
        number: int | None = entry.marker if entry.marker < len(self._pairs) else None
        pair = self._pairs[number] if number is not None else None
        node = entry.name
        renamed = base in self._members and entry.name not in self._members
        if not entry.paused and service in self._services and (self._plural or renamed):
            node = base
            if pair and service != pair.service:
                number = None
        return number, Line(node, entry.name, self._document.lines[entry.at].strip(" \t\r"), entry.at, entry.role)

    def _adopt(self, wished: list[list[Wish]]) -> dict[int, list[Line]]:
        """Hand-written lines above a marker that name a node wished for there, or have its address:port."""
        adopted: dict[int, list[Line]] = {}
        for line in self._proxy.hand_written:
            for wish in wished[line.marker] if line.marker < len(wished) else ():
                name = self._name(wish.member.name, line.marker)
                if line.name.lower() in (name.lower(), wish.member.name.lower()) or line.endpoint == wish.endpoint:
                    text = self._document.lines[line.at].strip(" \t\r")
                    adopted.setdefault(line.marker, []).append(Line(wish.member.name, line.name, text, line.at))
                    self._by_hand.discard(line.name.lower())
                    self._taken.pop(line.endpoint, None)
                    break
        return adopted

    def _grant(self, wished: list[list[Wish]], kept: frozenset[str]) -> dict[int, list[Wish]]:
        """The wishes that come true: no line by hand in their way, each address:port once in the proxy."""
        staying = (line for lines in self._standing.values() for line in lines if line.node in kept and not line.pauses)
        self._taken.update((line.endpoint, line.name) for line in staying)
        order = [(number, wish) for number, wishes in enumerate(wished) for wish in wishes]
        order.sort(key=lambda one: one[1].member.status == FAILED)  # stable: alive first, else the order of names
        granted: dict[int, list[Wish]] = {number: [] for number in range(len(wished))}
        for number, wish in order:
            if wish.member.name not in kept and self._may(number, wish):
                granted[number].append(wish)
        return granted

    def _may(self, number: int, wish: Wish) -> bool:
        name = self._name(wish.member.name, number)
        if name.lower() in self._by_hand or self._taken.get(wish.endpoint) == BY_HAND:
            self.notes.append(f"{name} stands in {self._proxy} by hand: none is written beside it")
            return False
        if wish.verbatim:
            return True
        holder = self._taken.setdefault(wish.endpoint, f"{number} {name}")
        if holder != f"{number} {name}":
            self.notes.append(f"{name} has no line in {self._proxy}: {holder.split()[-1]} has {wish.endpoint}")
        return holder == f"{number} {name}"

    def _name(self, node: str, number: int) -> str:
        pair = self._pairs[number]
        return f"{node}.{pair.service}" if self._plural and pair else node

    def _stay(self, number: int, granted: list[Wish], kept: frozenset[str], guard: Guard) -> list[Line]:
        """The standing lines that stay as they are: kept ones, unknowable ones, and what the guard holds."""
        standing = self._standing[number]
        unknowable = {wish.member.name for wish in granted if wish.verbatim}
        stay = {
            line.node: line
            for line in standing
            if line.node in kept or (line.node in unknowable and not line.pauses)
        }
        served = {wish.member.name for wish in granted}
        going = [line for line in standing if line.node not in served and line.node not in stay]
        going = [line for line in going if not self._replaced(line)]
        where = f"at '# additional-{self._proxy.markers[number].middle}-server' in {self._proxy}"
        return [*stay.values(), *guard.hold(going, len(standing), where)]

    def _replaced(self, line: Line) -> bool:
        return line.name.lower() in self._by_hand or bool(line.endpoint and line.endpoint in self._taken)

    def _ids(self, granted: Mapping[int, list[Wish]], stay: Mapping[int, list[Line]]) -> Mapping[str, int]:
        if not self._proxy.hashes:
            return {}
        names = {self._name(wish.member.name, number) for number, wishes in granted.items() for wish in wishes}
        names.update(line.name for lines in stay.values() for line in lines)
        return stable_ids(names, (line.id for line in self._proxy.hand_written if line.id))

    def _before(self, number: int, adopted: Mapping[int, list[Line]]) -> list[Line]:
        if number not in adopted:
            return self._standing[number]
        return sorted(self._standing[number] + adopted[number], key=lambda line: line.at)

    def _after(self, number: int, granted: list[Wish], stay: list[Line], ids: Mapping[str, int]) -> list[Line]:
        wanted = [self._line(wish, self._name(wish.member.name, number), ids) for wish in granted if not wish.verbatim]
        if stay or self._plural or any(wish.member.status == FAILED for wish in granted):
            wanted = sorted([*stay, *wanted], key=lambda line: natural(line.name))
        return wanted

    def _line(self, wish: Wish, name: str, ids: Mapping[str, int]) -> Line:
        member = wish.member
        if wish.paused:
            return Line(member.name, name, paused_line(member.name, member.address, wish.role.name))
        server = Server(name, member.address, wish.port, wish.options, wish.role.name, ids.get(name))
        return Line(member.name, name, server.line)

    def _without_marker(
        self, orphans: list[Line], paused: frozenset[str], kept: frozenset[str], guard: Guard
    ) -> list[Line]:
        """Lines whose marker is gone stay while their node stays; none is added."""
        self.notes += [f"{self._document.where(line.at)}: {line.name} stands without its marker" for line in orphans]
        after, going = [], []
        for line in orphans:
            member = self._members.get(line.node)
            if line.node in kept:
                after.append(line)
            elif member is None or not member.present:
                going.append(line)
            elif line.node in paused:
                after.append(line._replace(text=paused_line(line.node, member.address, line.role)))
            elif line.pauses:
                self.notes.append(f"{self._document.where(line.at)}: {line.node} cannot be put back without its marker")
            else:
                after.append(line._replace(text=_moved(line, member.address)))
        return after + guard.hold(going, len(orphans), f"without a marker in {self._proxy}")


def _moved(line: Line, address: str) -> str:
    """The line with its node's present address."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    there = Server(line.name, address, int(port), "", line.role).endpoint
    return line.text.replace(line.endpoint, there, 1) if line.endpoint != there else line.text
