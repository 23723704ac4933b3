"""One proxy of haproxy.cfg: what stands at its markers, what is wished for there, and what comes of both.

Here names are made unique, lines by hand win, and lines whose marker is gone stay. A line that stands as it
is wished for is not looked at any closer: ten thousand of them are the rule, a few that differ the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from lbagent.haproxy.config import Document, Edit, ManagedLine, OperatorServer, Proxy, find_endpoint, find_indentation
from lbagent.haproxy.server_line import Server, assign_stable_ids, drain_line, format_paused_line, undrain_line
from lbagent.membership.model import Members
from lbagent.names import natural_key, role_names
from lbagent.planning.conflicts import Conflicts
from lbagent.planning.desired import UNKNOWN_TAGS, Crowd, DesiredServer, DesiredServers, Note
from lbagent.planning.guard import Guard
from lbagent.roles.model import Pair, Roles
from lbagent.system.tuples import NamedTuple

# --- homeless --------------------------------------------------------------------------------------------


def remaining(line: ManagedLine, node: str, address: str, *, paused: bool, drain: bool) -> tuple[str, str]:
    """The text that stands in the line's place from now on (or nothing), and what an operator should know of it.

    `address` is where the node may be reached now: what its role does not allow is none of them. With `drain` the
    line of a paused node stays, with weight 0.
    """
    if paused and drain and not line.pauses:
        return drain_line(moved(line, address)), f"{line.name} is paused without its marker"
    if paused:
        return format_paused_line(node, address, line.role), f"{line.name} is paused without its marker"
    if line.pauses:
        return "", f"{node} cannot be put back, its marker is gone"
    return undrain_line(moved(line, address)), f"{line.name} stands without its marker"


def moved(line: ManagedLine, address: str) -> str:
    """The text of a line, its server at another address."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    there = Server(line.name, address, int(port), "", line.role).endpoint
    return line.text.replace(line.endpoint, there, 1)


# --- proxy ----------


# --- turn ------------------------------------------------------------------------------------------------


class PlanContext(NamedTuple):
    """What a whole plan is made with, proxy after proxy."""

    wishes: DesiredServers
    guard: Guard
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay as they are: quarantined ones, and those on trial."""
    adopt: bool = False
    """Turn hand-written namesakes above a marker into managed lines."""


# --- proxy ----------


# --- spot ------------------------------------------------------------------------------------------------

Changes = dict[str, tuple[list[str], list[str]]]
"""Lines added and removed, by node."""


class PlannedLine(NamedTuple):
    """A line that is to stand."""

    node: str
    name: str
    """Of the server."""
    text: str


class MarkerBlock(NamedTuple):
    """The lines above one marker (its number in the proxy), or one that has none."""

    marker: int | None
    before: Sequence[ManagedLine | OperatorServer]
    after: Sequence[str]
    added: Mapping[str, str]
    """The lines in `after` that do not stand there yet, with their nodes."""
    removed: Sequence[ManagedLine | OperatorServer]
    """The lines in `before` that do not stand there any more."""

    def middle(self, proxy: Proxy) -> str:
        """The middle of its marker; nothing where that is gone."""
        return "" if self.marker is None else proxy.markers[self.marker].middle

    def edits(self, document: Document, proxy: Proxy) -> Iterator[Edit]:
        """What turns `before` into `after`."""
        if self.marker is None:
            # Without a marker a line can only be replaced where it stands, or go.
            for line in self.before if self.added or self.removed else ():
                old = document.lines[line.at]
                ending = "\r" if old.endswith("\r") else ""
                yield Edit(line.at, line.at + 1, [f"{find_indentation(old)}{text}{ending}" for text in self.after])
            return
        marker = proxy.markers[self.marker]
        wanted = [f"{marker.indent}{text}{marker.ending}" for text in self.after]
        first = marker.at - len(self.before)
        if not self.before or self.before[0].at == first:
            if document.lines[first : marker.at] != wanted:
                yield Edit(first, marker.at, wanted)
            return
        # The operator's lines stand among ours: his stay, ours move together.
        yield from (Edit(line.at, line.at + 1, ()) for line in self.before)
        yield Edit(marker.at, marker.at, wanted)

    def enter(self, proxy: Proxy, node: Callable[[ManagedLine | OperatorServer], str], changes: Changes) -> None:
        """Enter into `changes` what differs, by node."""
        for line in self.removed:
            changes.setdefault(node(line), ([], []))[1].append(f"{proxy}: {line.text}")
        for text, owner in self.added.items():
            changes.setdefault(owner, ([], []))[0].append(f"{proxy}: {text}")


def in_order(lines: Iterable[PlannedLine]) -> list[PlannedLine]:
    """The lines as they are to stand: by the names of their servers, in natural order."""
    return sorted(lines, key=lambda line: natural_key(line.name))


def diff_block(
    marker: int | None, before: Sequence[ManagedLine | OperatorServer], after: Sequence[PlannedLine]
) -> MarkerBlock:
    """A spot, its differences found."""
    old = {line.text for line in before if not isinstance(line, OperatorServer)}
    new = {line.text for line in after}
    added = {line.text: line.node for line in after if line.text not in old}
    removed = [line for line in before if line.text not in new or isinstance(line, OperatorServer)]
    return MarkerBlock(marker, before, [line.text for line in after], added, removed)


# --- proxy ----------


class ProxyPlanner:
    """One proxy while it is planned."""

    def __init__(
        self, document: Document, proxy: Proxy, roles: Roles, pairs: Mapping[str, Pair], members: Members
    ) -> None:
        """A place whose markers name `pairs` of `roles`, or something that roles.yml does not know."""
        self._document, self._proxy, self._members = document, proxy, members
        self._pairs = [pairs.get(marker.middle) for marker in proxy.markers]
        self._services = roles.services
        self._draining = {name for name, role in roles.roles.items() if role.drain}
        self._here = {pair.service for pair in self._pairs if pair}
        # Where one proxy holds several services, a node's name alone would stand there twice.
        self._plural = len(self._here) > 1
        self._claims = Conflicts(document, proxy, self._name, self._stands)
        self._nodes: set[tuple[str, int]] | None = None
        self._served: set[str] = set()
        """The nodes that have what they should, somewhere in this proxy."""
        self._standing: list[list[ManagedLine]] = [[] for _ in [*proxy.markers, None]]
        if proxy.managed and proxy.managed[-1].marker == 0:  # all of them above the first marker, as a rule
            self._standing[0] = proxy.managed
        else:
            for line in proxy.managed:
                self._standing[line.marker].append(line)
        self.notes = [
            f"{document.locate(marker.at)}: no role of roles.yml has a section and service for this marker"
            for marker, pair in zip(proxy.markers, self._pairs, strict=True)
            if pair is None
        ]
        # A marker may be in each branch of an `.if`: HAProxy reads one of them, and nothing is wrong.
        read = {marker.middle for marker in proxy.markers if not document.is_never_read(marker.at)}
        self.notes += [
            f"{document.locate(marker.at)}: HAProxy does not read what is at this marker (`.if`, or `disabled`)"
            for marker in proxy.markers
            if marker.middle not in read
        ]

    def node(self, line: ManagedLine | OperatorServer) -> str:
        """The node whose line it is: its name, or NODE of NODE.SERVICE."""
        name = line.name
        node, dot, service = name.rpartition(".")
        if isinstance(line, OperatorServer):
            return self._claims.adopted.get(line.at, name)
        if not dot or line.pauses or service not in self._services:
            return name
        return node if self._plural or (node in self._members and name not in self._members) else name

    def spots(self, turn: PlanContext) -> Iterator[MarkerBlock]:
        """What stands and what is to stand, marker by marker, lines without a marker last."""
        crowd = self._crowd(turn)
        yield from self._one_by_one(turn) if crowd is None else [self._crowded(crowd, turn)]
        yield from self._without_marker(turn)

    def _one_by_one(self, turn: PlanContext) -> Iterator[MarkerBlock]:
        wished = [
            self._makeable(number, turn.wishes.at(pair, partial(self._known, number), partial(self._named, number)))
            if pair
            else []
            for number, pair in enumerate(self._pairs)
        ]
        if turn.adopt:
            self._claims.adopt(wished, turn.kept)
        if turn.kept:
            self._claims.keep(line for line in self._proxy.managed if self.node(line) in turn.kept)
        granted = self._claims.grant(wished, turn.kept)
        self.notes += self._claims.notes
        self._served = {wish.member.name for here in granted.values() for wish in here}
        # The lines that stay come first: their ids are taken.
        stays = {
            number: self._stay(number, {wish.member.name: wish for wish in here}, set(), turn)
            for number, here in granted.items()
        }
        ids = self._ids(granted, stays)
        for number, here in granted.items():
            after = in_order([*self._planned(number, here, ids), *stays[number]])
            yield diff_block(number, self._claims.with_adopted(self._standing[number], number), after)

    def _crowd(self, turn: PlanContext) -> Crowd | None:
        """The wishes of the whole proxy, where nothing is special about it or any of them."""
        proxy = self._proxy
        special = turn.kept or proxy.hashes or proxy.operator_servers or proxy.templates
        if special or len(self._pairs) != 1 or self._pairs[0] is None:
            return None
        crowd = turn.wishes.crowd(self._pairs[0])
        return crowd if crowd and len(set(crowd.endpoints)) == len(crowd.endpoints) else None

    def _crowded(self, crowd: Crowd, turn: PlanContext) -> MarkerBlock:
        self._served = set(crowd.names)
        self._claims.take(crowd.names, crowd.endpoints, self._proxy.markers[0].at)
        texts = crowd.lines()
        standing = {line.text for line in self._standing[0]}
        # What stands there already has been a Server once; what is new becomes one now.
        added = {crowd.server(at).line: crowd.names[at] for at, text in enumerate(texts) if text not in standing}
        if len(standing) == len(self._standing[0]) == len(texts) - len(added):
            return MarkerBlock(0, self._standing[0], texts, added, ())
        stay = self._stay(0, dict.fromkeys(crowd.names), set(texts), turn)
        planned = [*map(PlannedLine, crowd.names, crowd.names, texts)]
        return diff_block(0, self._standing[0], in_order([*planned, *stay]))

    def _stands(self, node: str, number: int) -> bool:
        """Whether a node has a line, or the comment of a pause, at a marker."""
        if self._nodes is None:
            lines = self._standing[:-1]
            self._nodes = {(self.node(line), at) for at, there in enumerate(lines) for line in there}
        return (node, number) in self._nodes

    def _known(self, number: int) -> set[str]:
        return {self.node(line) for line in self._standing[number]}

    def _name(self, node: str, number: int) -> str:
        pair = self._pairs[number]
        return f"{node}.{pair.service}" if self._plural and pair else node

    def _planned(self, number: int, wishes: Sequence[DesiredServer], ids: Mapping[str, int]) -> list[PlannedLine]:
        planned = []
        for wish in (wish for wish in wishes if not wish.verbatim):
            name = self._name(wish.member.name, number)
            planned.append(PlannedLine(wish.member.name, name, wish.line(name, ids.get(name))))
        return planned

    def _named(self, number: int, node: str) -> str:
        return self._name(node, number)

    def _makeable(self, number: int, wishes: list[DesiredServer]) -> list[DesiredServer]:
        """The wishes that can come true: one whose tags don't make a line has that which the node has already."""
        if not any(wish.verbatim for wish in wishes):
            return wishes
        lines = {self.node(line): line for line in self._standing[number] if not line.pauses}
        found = []
        for wish in wishes:
            line = lines.get(wish.member.name)
            if not wish.verbatim:
                found.append(wish)
            elif line is None:
                self._tell_without_line(number, wish)
            else:
                found.append(wish._replace(endpoint=find_endpoint(moved(line, wish.address or line.address))))
        return found

    def _tell_without_line(self, number: int, wish: DesiredServer) -> None:
        pair, node = self._pairs[number], wish.member.name
        if wish.unknown == UNKNOWN_TAGS or pair is None:
            self.notes.append(Note(node, f"{node} has no line ", f"in {self._proxy}: {wish.unknown}"))
        else:
            self.notes.append(Note(node, f"node {node} has no line for ", f"{pair.service}: {wish.unknown}"))

    def _stay(
        self, number: int, served: Mapping[str, DesiredServer | None], planned: set[str], turn: PlanContext
    ) -> list[PlannedLine]:
        """The standing lines that stay though they are not `planned`: kept, without a marker, or blocked.

        `served` holds the nodes that have a line here, and their wishes.
        """
        standing = self._standing[number]
        stay: list[PlannedLine] = []
        going: dict[ManagedLine, str] = {}
        for line in (line for line in standing if line.text not in planned):
            node = self.node(line)
            wish = served.get(node)
            if node in turn.kept:
                stay.append(PlannedLine(node, line.name, line.text))
            elif wish and wish.verbatim and not line.pauses:
                stay.append(PlannedLine(node, line.name, self._kept(line, wish)))
            elif node not in served and (why := turn.wishes.keeps(node, line.role, line.address)):
                stay += self._stale(line, node, turn, why)
            elif self._homeless(line, node, turn):
                stay += self._remaining(line, node, turn.wishes)
            elif node not in served and not self._claims.replaced(line):
                going[line] = node
        where = f"at '# additional-{self._proxy.markers[number].middle}-server' in {self._proxy}"
        held = turn.guard.block_removals(going, {*served, *(line.node for line in stay)}, where)
        return stay + [PlannedLine(going[line], line.name, line.text) for line in held]

    def _kept(self, line: ManagedLine, wish: DesiredServer) -> str:
        """The line that a node keeps because its tags make no new one; it follows the node's address."""
        if wish.unknown != UNKNOWN_TAGS:
            node = wish.member.name
            self.notes.append(Note(node, f"{line.name} keeps its line ", f"in {self._proxy}: {wish.unknown}"))
        text = moved(line, wish.address or line.address)
        return drain_line(text) if wish.paused else undrain_line(text)

    def _stale(self, line: ManagedLine, node: str, turn: PlanContext, why: str) -> list[PlannedLine]:
        """What stays of the line of a node whose role tag can't be a role's name."""
        paused = node in turn.wishes.paused
        if line.pauses and not paused:
            return []
        self.notes.append(Note(node, f"{line.name} keeps its line ", f"in {self._proxy}: {why}"))
        self._claims.take([line.name], [line.endpoint], line.at)
        address = self._present(node)
        if line.pauses or not paused:
            return [PlannedLine(node, line.name, undrain_line(line.text))]
        if line.role in self._draining:
            return [PlannedLine(node, line.name, drain_line(line.text))]
        return [PlannedLine(node, node, format_paused_line(node, address, line.role))]

    def _homeless(self, line: ManagedLine, node: str, turn: PlanContext) -> bool:
        """Whether its own marker is gone from this proxy, while its node is still there."""
        if not self._present(node) or node in turn.wishes.superseded:
            return False
        if line.pauses or (node in turn.wishes.paused and line.role not in self._draining):
            # A comment does not tell the service; where its node is wished for, or of another role, it is an old one.
            ours = line.role in role_names(self._members[node].role)
            served = node in self._served or node in self._claims.refused
            return ours and node in turn.wishes.paused and not served
        return node != line.name and line.name.rpartition(".")[2] not in self._here

    def _present(self, node: str) -> str:
        member = self._members.get(node)
        return member.address if member is not None and member.present else ""

    def _remaining(self, line: ManagedLine, node: str, wishes: DesiredServers) -> list[PlannedLine]:
        # It follows its node only to where the node's role may be, and where nobody else is.
        there = wishes.allowed(node, line.role) or line.address
        paused, drain = node in wishes.paused, line.role in self._draining
        text, note = remaining(line, node, there, paused=paused, drain=drain)
        self.notes.append(Note(node, f"{self._document.locate(line.at)}: ", note))
        if (where := find_endpoint(text)) and where != line.endpoint and not self._claims.free(where, line.at):
            text = line.text
        self._claims.take([line.name], [find_endpoint(text)], line.at)
        return [PlannedLine(node, line.name, text)] if text else []

    def _without_marker(self, turn: PlanContext) -> Iterator[MarkerBlock]:
        orphans = {line: self.node(line) for line in self._standing[-1]}
        kept = [line for line, node in orphans.items() if node in turn.kept]
        gone = [one for one, node in orphans.items() if node in self._served or self._claims.replaced(one)]
        superseded = turn.wishes.superseded
        leaving = (line for line, node in orphans.items() if not self._present(node) or node in superseded)
        going = {line: orphans[line] for line in leaving if line not in kept and line not in gone}
        others = {node for line, node in orphans.items() if line not in going}
        held = turn.guard.block_removals(going, others, f"without a marker in {self._proxy}")
        for line, node in orphans.items():
            after: list[PlannedLine] = []
            if line in kept or line in held:
                after = [PlannedLine(node, line.name, line.text)]
            elif line not in gone and line not in going:
                after = self._remaining(line, node, turn.wishes)
            yield diff_block(None, [line], after)

    def _ids(
        self, granted: Mapping[int, Sequence[DesiredServer]], stays: Mapping[int, Sequence[PlannedLine]]
    ) -> Mapping[str, int]:
        if not self._proxy.hashes:
            return {}
        names = {self._name(wish.member.name, number) for number, wishes in granted.items() for wish in wishes}
        names.update(line.name for lines in stays.values() for line in lines)
        return assign_stable_ids(names, (line.id for line in self._proxy.operator_servers if line.id))
