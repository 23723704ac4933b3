"""One proxy of haproxy.cfg: what stands at its markers, what is wished for there, and what comes of both.

Here names are made unique, lines by hand win, and lines whose marker is gone stay. A line that stands as it
is wished for is not looked at any closer: ten thousand of them are the rule, a few that differ the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.claims import Claims
from lbagent.guard import Guard
from lbagent.haproxy.lines import HandWritten, Line
from lbagent.haproxy.server import Server, Unsafe, paused_line, stable_ids, tail
from lbagent.haproxy.text import Document, Proxy
from lbagent.homeless import remaining
from lbagent.membership import Membership
from lbagent.names import natural
from lbagent.roles import Pair
from lbagent.spot import Planned, Spot, spot
from lbagent.wishes import Crowd, Wish, Wishes


class Turn(NamedTuple):
    """What a whole plan is made with, proxy after proxy."""

    wishes: Wishes
    guard: Guard
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay as they are: quarantined ones, and those on trial."""
    adopt: bool = False
    """Turn hand-written namesakes above a marker into managed lines."""


class Place:
    """One proxy while it is planned."""

    def __init__(self, document: Document, proxy: Proxy, pairs: Mapping[str, Pair], membership: Membership) -> None:
        """A place whose markers name `pairs`, or something that roles.yml does not know."""
        self._document, self._proxy, self._members = document, proxy, membership.members
        self._pairs = [pairs.get(marker.middle) for marker in proxy.markers]
        self._services = {pair.service for pair in pairs.values()}
        self._here = {pair.service for pair in self._pairs if pair}
        self._claims = Claims(proxy, self._name)
        self._served: set[str] = set()
        """The nodes that have what they should, somewhere in this proxy."""
        self._standing: list[list[Line]] = [[] for _ in [*proxy.markers, None]]
        for line in proxy.managed:
            self._standing[line.marker].append(line)
        self.notes = [
            f"{document.where(marker.at)}: no role of roles.yml has a section and service for this marker"
            for marker, pair in zip(proxy.markers, self._pairs, strict=True)
            if pair is None
        ]

    def node(self, line: Line | HandWritten) -> str:
        """The node whose line it is: its name, or NODE of NODE.SERVICE."""
        name = line.name
        node, dot, service = name.rpartition(".")
        if isinstance(line, HandWritten):
            return self._claims.adopted.get(line.at, name)
        if not dot or line.pauses or service not in self._services:
            return name
        return node if self._plural or (node in self._members and name not in self._members) else name

    def spots(self, turn: Turn) -> Iterator[Spot]:
        """What stands and what is to stand, marker by marker, lines without a marker last."""
        if (crowd := self._crowd(turn)) is not None:
            self._served = set(crowd.names)
            yield self._crowded(crowd, turn)
            yield from self._without_marker(turn)
            return
        wished = [turn.wishes.at(pair, self._known(number)) if pair else [] for number, pair in enumerate(self._pairs)]
        if turn.adopt:
            self._claims.adopt(wished, turn.kept)
        if turn.kept:
            self._claims.keep(line for line in self._proxy.managed if self.node(line) in turn.kept)
        granted = self._claims.grant(wished, turn.kept)
        self.notes += self._claims.notes
        self._served = {wish.member.name for here in granted.values() for wish in here}
        stays: dict[int, list[Planned]] = {}
        ids: Mapping[str, int] = {}
        if self._proxy.hashes:
            # Here the lines that stay come first: their ids are taken.
            stays = {
                number: self._stay(number, {wish.member.name: wish.verbatim for wish in here}, set(), turn)
                for number, here in granted.items()
            }
            ids = self._ids(granted, stays)
        for number, here in granted.items():
            standing = self._standing[number]
            planned = self._planned(number, here, {line.text for line in standing}, ids)
            texts = {line.text for line in planned}
            stay = (
                stays[number]
                if stays
                else self._stay(number, {wish.member.name: wish.verbatim for wish in here}, texts, turn)
            )
            after = self._ordered(planned, stay)
            yield spot(number, self._before(number), after)
        yield from self._without_marker(turn)

    def _crowd(self, turn: Turn) -> Crowd | None:
        """The wishes of the whole proxy, where nothing is special about it or any of them."""
        proxy = self._proxy
        if turn.kept or proxy.hashes or proxy.hand_written or len(self._pairs) != 1 or self._pairs[0] is None:
            return None
        crowd = turn.wishes.crowd(self._pairs[0])
        return crowd if crowd and len(set(crowd.endpoints)) == len(crowd.endpoints) else None

    def _crowded(self, crowd: Crowd, turn: Turn) -> Spot:
        end = tail(crowd.options, crowd.role)
        texts = [f"server {name} {where}{end}" for name, where in zip(crowd.names, crowd.endpoints, strict=True)]
        standing = {line.text for line in self._standing[0]}
        new = {text: at for at, text in enumerate(texts) if text not in standing}
        # What stands there already has been a Server once; what is new becomes one now, or raises Unsafe.
        for at in new.values():
            Server(
                crowd.names[at],
                crowd.endpoints[at].rpartition(":")[0].strip("[]"),
                crowd.port,
                crowd.options,
                crowd.role,
            )
        added = {text: crowd.names[at] for text, at in new.items()}
        if len(standing) == len(self._standing[0]) == len(texts) - len(new):
            return Spot(0, self._standing[0], texts, added, ())
        self._claims.take(crowd.endpoints)
        stay = self._stay(0, dict.fromkeys(crowd.names, False), set(texts), turn)
        planned = [*map(Planned, crowd.names, crowd.names, texts)]
        return spot(0, self._standing[0], self._ordered(planned, stay))

    @property
    def _plural(self) -> bool:
        """Whether it holds several services: then a node's name alone would stand there twice."""
        return len(self._here) > 1

    def _known(self, number: int) -> Callable[[], set[str]]:
        return lambda: {self.node(line) for line in self._standing[number]}

    def _name(self, node: str, number: int) -> str:
        pair = self._pairs[number]
        return f"{node}.{pair.service}" if self._plural and pair else node

    def _before(self, number: int) -> Sequence[Line | HandWritten]:
        standing = self._standing[number]
        if not self._claims.adopted:
            return standing
        ours = self._claims.adopted
        adopted = [line for line in self._proxy.hand_written if line.at in ours and line.marker == number]
        return sorted([*standing, *adopted], key=lambda line: line.at)

    def _planned(
        self, number: int, wishes: Sequence[Wish], standing: set[str], ids: Mapping[str, int]
    ) -> list[Planned]:
        planned, options, role, end = [], None, None, ""
        suffix = self._name("", number)
        for wish in wishes:
            node = wish.member.name
            name = node + suffix
            if wish.options is not options or wish.role is not role or ids:
                options, role = wish.options, wish.role
                end = tail(options, role.name, ids.get(name))
            text = f"server {name} {wish.endpoint}{end}"
            # What stands there already has been a Server once; what is new becomes one now, or nothing.
            if wish.paused or (text not in standing and not wish.verbatim):
                text = self._made(wish, name, ids.get(name))
            if text and not wish.verbatim:
                planned.append(Planned(node, name, text))
        return planned

    def _made(self, wish: Wish, name: str, number: int | None) -> str:
        member = wish.member
        try:
            if wish.paused:
                return paused_line(member.name, member.address, wish.role.name)
            return Server(name, member.address, wish.port, wish.options, wish.role.name, number).line
        except Unsafe as error:
            self.notes.append(f"{member.name!r} has no line in {self._proxy}: {error}")
            return ""

    def _stay(self, number: int, served: Mapping[str, bool], planned: set[str], turn: Turn) -> list[Planned]:
        """The standing lines that stay though they are not `planned`: kept, unknowable, homeless or held back.

        `served` holds the nodes that have a line here, and whether they are unknowable.
        """
        standing = self._standing[number]
        differing = [line for line in standing if line.text not in planned]
        stay: list[Planned] = []
        going: dict[Line, str] = {}
        for line in differing:
            node = self.node(line)
            if node in turn.kept or (served.get(node) and not line.pauses):
                stay.append(Planned(node, line.name, line.text))
            elif self._homeless(line, node, turn):
                stay += self._remaining(line, node, turn.wishes.paused)
            elif node not in served and not self._claims.replaced(line):
                going[line] = node
        self._tell_unknowable(served, stay)
        where = f"at '# additional-{self._proxy.markers[number].middle}-server' in {self._proxy}"
        held = turn.guard.hold(going, len(served) + len(stay), where)
        return stay + [Planned(going[line], line.name, line.text) for line in held]

    def _tell_unknowable(self, served: Mapping[str, bool], stay: Sequence[Planned]) -> None:
        for node in {node for node, unknowable in served.items() if unknowable} - {line.node for line in stay}:
            self.notes.append(f"{node} has no line in {self._proxy}: its tags are unknown until Serf tells them")

    def _homeless(self, line: Line, node: str, turn: Turn) -> bool:
        """Whether its own marker is gone from this proxy, while its node is still there."""
        if not self._present(node):
            return False
        if line.pauses:
            # Its text does not tell the service; where the node is wished for here, that line is another one.
            ours = self._members[node].role == line.role
            return ours and node in turn.wishes.paused and node not in self._served
        return node != line.name and line.name.rpartition(".")[2] not in self._here

    def _present(self, node: str) -> str:
        member = self._members.get(node)
        return member.address if member is not None and member.present else ""

    def _remaining(self, line: Line, node: str, paused: frozenset[str]) -> list[Planned]:
        text, note = remaining(line, node, self._present(node), paused=node in paused)
        self.notes.append(f"{self._document.where(line.at)}: {note}")
        return [Planned(node, line.name, text)] if text else []

    def _without_marker(self, turn: Turn) -> Iterator[Spot]:
        orphans = {line: self.node(line) for line in self._standing[-1]}
        kept = [line for line, node in orphans.items() if node in turn.kept]
        gone = [one for one, node in orphans.items() if node in self._served or self._claims.replaced(one)]
        going = {
            line: node
            for line, node in orphans.items()
            if line not in kept and line not in gone and not self._present(node)
        }
        held = turn.guard.hold(going, len(orphans) - len(going), f"without a marker in {self._proxy}")
        for line, node in orphans.items():
            after: list[Planned] = []
            if line in kept or line in held:
                after = [Planned(node, line.name, line.text)]
            elif line not in gone and line not in going:
                after = self._remaining(line, node, turn.wishes.paused)
            yield spot(None, [line], after)

    def _ids(self, granted: Mapping[int, Sequence[Wish]], stays: Mapping[int, Sequence[Planned]]) -> Mapping[str, int]:
        names = {self._name(wish.member.name, number) for number, wishes in granted.items() for wish in wishes}
        names.update(line.name for lines in stays.values() for line in lines)
        return stable_ids(names, (line.id for line in self._proxy.hand_written if line.id))

    def _ordered(self, planned: list[Planned], stay: list[Planned]) -> list[Planned]:
        if stay or self._plural:
            return sorted([*stay, *planned], key=lambda line: natural(line.name))
        return planned
