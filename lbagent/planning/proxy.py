"""The plan of one proxy: the present lines at its markers, the desired servers, and the lines that result.

A present line that equals the planned one is not examined further: ten thousand of them are normal, and few differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from lbagent.haproxy.config import Document, Edit, ManagedLine, OperatorServer, Proxy, find_endpoint, find_indentation
from lbagent.haproxy.server_line import assign_stable_ids
from lbagent.planning.decisions import Action, Conflicts, Decisions, LineDecision, MissingMarkerNote, Refusal
from lbagent.planning.desired import DesiredServer, DesiredServers, MarkerServers
from lbagent.planning.guard import Guard
from lbagent.planning.lines import ProxyLines, replace_address, sort_by_name
from lbagent.roles.model import Pair


class PlanContext(NamedTuple):
    """The inputs of a plan that all proxies share."""

    pairs: Mapping[str, Pair]
    """Section and service by the middle of their marker."""
    desired: DesiredServers
    guard: Guard
    kept: frozenset[str]
    """Nodes whose lines stay unchanged: quarantined nodes, and nodes that a trial leaves out."""
    adopt: bool
    """Whether operator's lines above a marker become managed where they name a desired node."""


class PlannedLine(NamedTuple):
    """One line that the plan writes."""

    node: str
    name: str
    """Name of the server."""
    text: str


class RemovedLine(NamedTuple):
    """One line that the plan removes."""

    node: str
    text: str
    reason: str
    """Empty where the node gets another line instead."""


class MarkerBlock(NamedTuple):
    """The lines above one marker, before and after the plan; or one line without a marker."""

    marker: int | None
    """Number of the marker in the proxy; None where the marker is gone."""
    before: Sequence[ManagedLine | OperatorServer]
    after: Sequence[str]
    added: Sequence[PlannedLine] = ()
    removed: Sequence[RemovedLine] = ()

    def find_middle(self, proxy: Proxy) -> str:
        """Return the middle of the marker; empty where the marker is gone."""
        return "" if self.marker is None else proxy.markers[self.marker].middle

    def make_edits(self, document: Document, proxy: Proxy) -> Iterator[Edit]:
        """Yield the edits that turn `before` into `after`."""
        if self.marker is None:
            # Without a marker a line can only be replaced in place, or removed.
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
        # Operator's lines are between managed lines: they stay, and the managed lines move together.
        yield from (Edit(line.at, line.at + 1, ()) for line in self.before)
        yield Edit(marker.at, marker.at, wanted)


class ProxyPlanner:
    """Plans one proxy."""

    def __init__(self, document: Document, proxy: Proxy, context: PlanContext) -> None:
        """Nothing is decided yet."""
        self._document, self._proxy, self._context = document, proxy, context
        self._lines = ProxyLines(proxy, context.desired.roles, context.pairs, context.desired.members)
        self._conflicts = Conflicts(document, proxy)
        self._decisions = Decisions(proxy, self._lines, self._conflicts, context.desired, context.kept)
        self._reasons: dict[ManagedLine, str] = {}
        """The reasons of lines to be removed."""
        self.notes: list[str] = [*_note_unknown_markers(document, proxy, self._lines.pairs)]
        self.reasons: list[tuple[str, str]] = []
        """Pairs of a node and a reason: why it gets no line, or why a line of it is kept."""

    def plan_blocks(self) -> Iterator[MarkerBlock]:
        """Yield the block of each marker, then the lines without a marker."""
        accepted = self._accept_servers()
        numbers = range(len(accepted))
        if self._proxy.hashes:
            # Lines that stay come first: their ids are not available to new lines.
            stays = [self._list_staying_lines(number, ()) for number in numbers]
            ids = self._assign_ids(accepted, stays)
            drafts = [self._draft_lines(number, accepted[number], ids) for number in numbers]
        else:
            drafts = [self._draft_lines(number, accepted[number], {}) for number in numbers]
            stays = [self._list_staying_lines(number, drafts[number]) for number in numbers]
        for number, draft in enumerate(drafts):
            before = self._conflicts.merge_adopted(self._lines.by_marker[number], number)
            yield self._make_block(number, before, sort_by_name([*draft, *stays[number]], attrgetter("name")))
        yield from self._plan_without_marker()

    def _accept_servers(self) -> list[list[DesiredServer]]:
        """Return the servers that get a line, by marker; note why a server gets none."""
        decisions, context = self._decisions, self._context
        decisions.wanted = [self._list_desired(number, pair) for number, pair in enumerate(self._lines.pairs)]
        if context.adopt:
            self._adopt_lines()
        if context.kept:
            kept = (line for line in self._proxy.managed if self._lines.find_node(line) in context.kept)
            self._conflicts.reserve(kept)
        accepted: list[list[DesiredServer]] = [[] for _ in decisions.wanted]
        # Bound once, as ten thousand servers are normal.
        decide, assign, name_server = decisions.decide_server, self._conflicts.assign, self._lines.name_server
        places = [marker.at for marker in self._proxy.markers]
        for number, server in self._list_in_order():
            name = name_server(server.node, number)
            refusal = decide(server, name, number)
            if refusal is None:
                assign(name, server.endpoint, places[number])
                accepted[number].append(server)
                continue
            if refusal.is_conflict or server.node not in decisions.refusals:
                decisions.refusals[server.node] = refusal
            self._add_note(server.node, refusal, refusal.at)
        decisions.served = [{server.node: server for server in servers} for servers in accepted]
        return accepted

    def _list_desired(self, number: int, pair: Pair | None) -> MarkerServers:
        if pair is None:
            return MarkerServers()
        lines, desired = self._lines, self._context.desired
        found = desired.list_servers(
            pair, partial(lines.map_nodes, number), lambda node: lines.name_server(node, number)
        )
        if not any(server.missing_tag for server in found.servers):
            return found
        return found._replace(servers=[self._use_present_endpoint(number, server) for server in found.servers])

    def _use_present_endpoint(self, number: int, server: DesiredServer) -> DesiredServer:
        """Return a server whose tags make no line with the endpoint of the line that its node has."""
        line = self._lines.map_nodes(number).get(server.node)
        if not server.missing_tag or line is None:
            return server
        return server._replace(endpoint=find_endpoint(replace_address(line, server.address or line.address)))

    def _list_in_order(self) -> Iterable[tuple[int, DesiredServer]]:
        """Return the desired servers of all markers in the order of their claims: alive nodes, then failed ones."""
        order = [(number, server) for number, here in enumerate(self._decisions.wanted) for server in here.servers]
        if sum(bool(here.servers) for here in self._decisions.wanted) > 1:
            order = sort_by_name(order, lambda one: one[1].node)
        if any(server.failed for _, server in order):
            order.sort(key=lambda one: one[1].failed)
        return order

    def _adopt_lines(self) -> None:
        desired = [
            [server for server in here.servers if self._decisions.explain_exclusion(server, number) is None]
            for number, here in enumerate(self._decisions.wanted)
        ]
        self._conflicts.adopt_lines(
            desired, self._lines.name_server, lambda node, number: node in self._lines.map_nodes(number)
        )

    def _draft_lines(self, number: int, servers: Sequence[DesiredServer], ids: Mapping[str, int]) -> list[PlannedLine]:
        present = {line.text for line in self._lines.by_marker[number]}
        drafts = []
        for server in servers:
            if not server.missing_tag:
                name = self._lines.name_server(server.node, number)
                drafts.append(PlannedLine(server.node, name, server.format_line(name, ids.get(name), present)))
        return drafts

    def _list_staying_lines(self, number: int, draft: Sequence[PlannedLine]) -> list[PlannedLine]:
        """Return the present lines that stay at a marker beside the planned ones, after the safety guard's decision."""
        planned = {line.text for line in draft}
        stay: list[PlannedLine] = []
        going: dict[ManagedLine, str] = {}
        for line in self._lines.by_marker[number]:
            if line.text not in planned:
                node = self._lines.find_node(line)
                stay += self._apply_decision(line, node, self._decisions.decide_line(line, node, number), going)
        where = f"at '# additional-{self._proxy.markers[number].middle}-server' in {self._proxy}"
        others = {*self._decisions.served[number], *(line.node for line in stay)} if going else set()
        blocked = self._context.guard.block_removals(going, others, where)
        return stay + [PlannedLine(going[line], line.name, line.text) for line in blocked]

    def _plan_without_marker(self) -> Iterator[MarkerBlock]:
        nodes = {line: self._lines.find_node(line) for line in self._lines.without_marker}
        # Decide on all lines before any is kept: a kept line takes its name and endpoint.
        decisions = {line: self._decisions.decide_line(line, node, None) for line, node in nodes.items()}
        going: dict[ManagedLine, str] = {}
        stay = {line: self._apply_decision(line, node, decisions[line], going) for line, node in nodes.items()}
        others = {node for line, node in nodes.items() if line not in going}
        blocked = self._context.guard.block_removals(going, others, f"without a marker in {self._proxy}")
        for line, node in nodes.items():
            after = [PlannedLine(node, line.name, line.text)] if line in blocked else stay[line]
            yield self._make_block(None, [line], after)

    def _apply_decision(
        self, line: ManagedLine, node: str, decision: LineDecision, going: dict[ManagedLine, str]
    ) -> list[PlannedLine]:
        """Return the line as it stays, if it does; add it to `going` where the safety guard has to decide."""
        if decision.reason:
            self._reasons[line] = decision.reason
            self._add_note(node, decision, line.at)
        if decision.action is Action.REMOVE_IF_ALLOWED:
            going[line] = node
        if decision.action not in (Action.KEEP, Action.KEEP_UNDESIRED):
            return []
        text = decision.text
        if decision.action is Action.KEEP_UNDESIRED:
            endpoint = find_endpoint(text)
            if endpoint and endpoint != line.endpoint and not self._conflicts.is_free(endpoint, line.at):
                text = replace_address(line._replace(text=text), line.address)
            self._conflicts.assign(line.name, find_endpoint(text), line.at)
        return [PlannedLine(node, line.name, text)]

    def _add_note(self, node: str, decision: Refusal | LineDecision, at: int | None) -> None:
        self.reasons.append((node, decision.reason))
        if decision.note is not None:
            where = self._document.locate(at) if at is not None and decision.note is MissingMarkerNote else node
            self.notes.append(decision.note(node, f"{where}: {decision.head}{decision.reason}", decision.reason, at))

    def _make_block(
        self, number: int | None, before: Sequence[ManagedLine | OperatorServer], after: Sequence[PlannedLine]
    ) -> MarkerBlock:
        texts = [line.text for line in after]
        old = [line.text for line in before]
        if texts == old:
            return MarkerBlock(number, before, texts)
        there, stays = set(old), set(texts)
        added = [*{line.text: line for line in after if line.text not in there}.values()]
        replaced = {line.node for line in added}
        removed = []
        for line in before:
            if line.text not in stays:
                node = self._find_node(line)
                removed.append(RemovedLine(node, line.text, "" if node in replaced else self._find_reason(line)))
        return MarkerBlock(number, before, texts, added, removed)

    def _find_node(self, line: ManagedLine | OperatorServer) -> str:
        if isinstance(line, OperatorServer):
            return self._conflicts.adopted.get(line.at, line.name)
        return self._lines.find_node(line)

    def _find_reason(self, line: ManagedLine | OperatorServer) -> str:
        return "" if isinstance(line, OperatorServer) else self._reasons.get(line, "")

    def _assign_ids(
        self, accepted: Sequence[Sequence[DesiredServer]], stays: Sequence[Sequence[PlannedLine]]
    ) -> Mapping[str, int]:
        names = {
            self._lines.name_server(server.node, number) for number, here in enumerate(accepted) for server in here
        }
        names.update(line.name for lines in stays for line in lines)
        return assign_stable_ids(names, (line.id for line in self._proxy.operator_servers if line.id))


def _note_unknown_markers(document: Document, proxy: Proxy, pairs: Sequence[Pair | None]) -> Iterator[str]:
    for marker, pair in zip(proxy.markers, pairs, strict=True):
        if pair is None:
            text = document.lines[marker.at].strip()
            where = document.locate(marker.at)
            yield f"{where}: unknown marker {text!r}: no role of roles.yml has its section and service"
    # A marker may be in each branch of an `.if`: HAProxy reads one of them, and nothing is wrong.
    read = {marker.middle for marker in proxy.markers if not document.is_never_read(marker.at)}
    for marker in proxy.markers:
        if marker.middle not in read:
            yield f"{document.locate(marker.at)}: HAProxy does not read the lines at this marker (`.if`, or `disabled`)"


def restore_managed_lines(document: Document, previous: Document) -> tuple[str, ...]:
    """Return the texts of `document` with the managed lines that `previous` has at the same markers."""
    there = {key: _list_lines(proxy, number) for key, proxy, number in _list_markers(previous)}
    edits: list[Edit] = []
    for key, proxy, number in _list_markers(document):
        before = [line for line in proxy.managed if line.marker == number]
        after = there.get(key, _list_lines(proxy, number))
        if [line.text for line in before] != after:
            edits += MarkerBlock(number, before, after).make_edits(document, proxy)
    return document.apply_edits(edits)


def _list_markers(document: Document) -> Iterator[tuple[tuple[str, str, int], Proxy, int]]:
    """Yield every marker: its key (the same in any text), its proxy, and its number in the proxy."""
    seen: Counter[tuple[str, str]] = Counter()
    for proxy in document.proxies:
        for number, marker in enumerate(proxy.markers):
            key = (str(proxy), marker.middle)
            yield (*key, seen[key]), proxy, number  # branches of one `.if` may repeat a marker
            seen[key] += 1


def _list_lines(proxy: Proxy, number: int) -> list[str]:
    return [line.text for line in proxy.managed if line.marker == number]
