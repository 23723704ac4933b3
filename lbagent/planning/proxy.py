"""The plan of one proxy: the present lines at its markers, the desired servers, and the lines that result.

The names of servers are made unique here. Operator's lines have priority. Lines whose marker is gone are kept. A
present line that equals the desired one is not examined further: ten thousand of them are normal, and few differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from lbagent.haproxy.config import Document, Edit, ManagedLine, OperatorServer, Proxy, find_endpoint, find_indentation
from lbagent.haproxy.server_line import Server, assign_stable_ids, drain_line, format_paused_line, undrain_line
from lbagent.membership.model import Members
from lbagent.names import natural_key, role_names
from lbagent.planning.conflicts import Conflicts
from lbagent.planning.desired import UNKNOWN_TAGS, DesiredServer, DesiredServers, Note, UniformServers
from lbagent.planning.guard import Guard
from lbagent.roles.model import Pair, Roles

Changes = dict[str, tuple[list[str], list[str]]]
"""Lines added and lines removed, by node."""

KEEP = "keep"

KEEP_UNMADE = "keep, with the address of its node"

KEEP_BAD_ROLE = "keep, as long as the role tag is invalid"

KEEP_ORPHAN = "keep, without a marker"

REPLACE = "replace"

REMOVE = "remove"

REMOVE_IF_ALLOWED = "remove, unless the safety guard blocks it"


class PlanContext(NamedTuple):
    """The inputs of a plan that all proxies share."""

    desired: DesiredServers
    guard: Guard
    kept: frozenset[str] = frozenset()
    """Nodes whose lines stay unchanged: quarantined nodes, and nodes that a trial leaves out."""
    adopt: bool = False
    """Whether operator's lines above a marker become managed where they name a desired node."""


class PlannedLine(NamedTuple):
    """One line that the plan writes."""

    node: str
    name: str
    """Name of the server."""
    text: str


class LineDecision(NamedTuple):
    """What happens to one present line, and why."""

    action: str
    reason: str


class MarkerBlock(NamedTuple):
    """The lines above one marker, before and after the plan; or one line without a marker."""

    marker: int | None
    """Number of the marker in the proxy; None where the marker is gone."""
    before: Sequence[ManagedLine | OperatorServer]
    after: Sequence[str]
    added: Mapping[str, str]
    """The lines in `after` that are new, each with its node."""
    removed: Sequence[ManagedLine | OperatorServer]
    """The lines in `before` that are not in `after`."""

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

    def record_changes(
        self, proxy: Proxy, node: Callable[[ManagedLine | OperatorServer], str], changes: Changes
    ) -> None:
        """Add the differences to `changes`; `node` returns the node of a line."""
        for line in self.removed:
            changes.setdefault(node(line), ([], []))[1].append(f"{proxy}: {line.text}")
        for text, owner in self.added.items():
            changes.setdefault(owner, ([], []))[0].append(f"{proxy}: {text}")


class ProxyPlanner:
    """Plans one proxy."""

    def __init__(
        self, document: Document, proxy: Proxy, roles: Roles, pairs: Mapping[str, Pair], members: Members
    ) -> None:
        """`pairs` maps the middle of a marker to its section and service, for all markers that roles.yml knows."""
        self._document, self._proxy, self._members = document, proxy, members
        self._pairs = [pairs.get(marker.middle) for marker in proxy.markers]
        self._services = roles.services
        self._draining = {name for name, role in roles.roles.items() if role.drain}
        self._services_here = {pair.service for pair in self._pairs if pair}
        # In a proxy with several services the name of a node alone would be used twice.
        self._has_several_services = len(self._services_here) > 1
        self._conflicts = Conflicts(document, proxy, self._name_server, self._has_line)
        self._nodes_with_lines: set[tuple[str, int]] | None = None
        self._served: set[str] = set()
        """Nodes that have their desired server somewhere in this proxy."""
        self._present_lines: list[list[ManagedLine]] = [[] for _ in [*proxy.markers, None]]
        if proxy.managed and proxy.managed[-1].marker == 0:  # usually all are above the first marker
            self._present_lines[0] = proxy.managed
        else:
            for line in proxy.managed:
                self._present_lines[line.marker].append(line)
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

    def find_node(self, line: ManagedLine | OperatorServer) -> str:
        """Return the node of a line: the name of its server, or NODE of NODE.SERVICE."""
        name = line.name
        node, dot, service = name.rpartition(".")
        if isinstance(line, OperatorServer):
            return self._conflicts.adopted.get(line.at, name)
        if not dot or line.pauses or service not in self._services:
            return name
        return node if self._has_several_services or (node in self._members and name not in self._members) else name

    def plan_blocks(self, context: PlanContext) -> Iterator[MarkerBlock]:
        """Yield the block of each marker, then the lines without a marker."""
        uniform = self._find_uniform_servers(context)
        yield from (
            self._plan_each_server(context) if uniform is None else [self._plan_uniform_servers(uniform, context)]
        )
        yield from self._plan_without_marker(context)

    def _plan_each_server(self, context: PlanContext) -> Iterator[MarkerBlock]:
        desired = [
            self._keep_unmade_endpoints(
                number,
                context.desired.list_servers(
                    pair, partial(self._list_nodes, number), partial(self._name_server_at, number)
                ),
            )
            if pair
            else []
            for number, pair in enumerate(self._pairs)
        ]
        if context.adopt:
            self._conflicts.adopt(desired, context.kept)
        if context.kept:
            self._conflicts.reserve_kept(line for line in self._proxy.managed if self.find_node(line) in context.kept)
        accepted = self._conflicts.grant_servers(desired, context.kept)
        self.notes += self._conflicts.notes
        self._served = {server.member.name for here in accepted.values() for server in here}
        # Lines that stay come first: their ids are not available to new lines.
        stays = {
            number: self._list_staying_lines(number, {server.member.name: server for server in here}, set(), context)
            for number, here in accepted.items()
        }
        ids = self._assign_ids(accepted, stays)
        for number, here in accepted.items():
            after = sort_lines([*self._make_lines(number, here, ids), *stays[number]])
            yield diff_block(number, self._conflicts.merge_adopted(self._present_lines[number], number), after)

    def _find_uniform_servers(self, context: PlanContext) -> UniformServers | None:
        """Return the desired servers where proxy and servers have nothing special; None otherwise."""
        proxy = self._proxy
        special = context.kept or proxy.hashes or proxy.operator_servers or proxy.templates
        if special or len(self._pairs) != 1 or self._pairs[0] is None:
            return None
        uniform = context.desired.find_uniform(self._pairs[0])
        return uniform if uniform and len(set(uniform.endpoints)) == len(uniform.endpoints) else None

    def _plan_uniform_servers(self, uniform: UniformServers, context: PlanContext) -> MarkerBlock:
        """Plan servers whose lines differ only by name and address, without examining each."""
        self._served = set(uniform.names)
        self._conflicts.reserve(uniform.names, uniform.endpoints, self._proxy.markers[0].at)
        texts = uniform.format_lines()
        present = {line.text for line in self._present_lines[0]}
        # A present line was validated when it was written. A new line is validated here.
        added = {
            uniform.make_server(at).line: uniform.names[at] for at, text in enumerate(texts) if text not in present
        }
        if len(present) == len(self._present_lines[0]) == len(texts) - len(added):
            return MarkerBlock(0, self._present_lines[0], texts, added, ())
        stay = self._list_staying_lines(0, dict.fromkeys(uniform.names), set(texts), context)
        planned = [*map(PlannedLine, uniform.names, uniform.names, texts)]
        return diff_block(0, self._present_lines[0], sort_lines([*planned, *stay]))

    def _has_line(self, node: str, number: int) -> bool:
        """Return whether a node has a server line, or the comment of a pause, at a marker."""
        if self._nodes_with_lines is None:
            lines = self._present_lines[:-1]
            self._nodes_with_lines = {(self.find_node(line), at) for at, there in enumerate(lines) for line in there}
        return (node, number) in self._nodes_with_lines

    def _list_nodes(self, number: int) -> set[str]:
        return {self.find_node(line) for line in self._present_lines[number]}

    def _name_server(self, node: str, number: int) -> str:
        pair = self._pairs[number]
        return f"{node}.{pair.service}" if self._has_several_services and pair else node

    def _make_lines(self, number: int, servers: Sequence[DesiredServer], ids: Mapping[str, int]) -> list[PlannedLine]:
        planned = []
        for server in (server for server in servers if not server.keeps_line):
            name = self._name_server(server.member.name, number)
            planned.append(PlannedLine(server.member.name, name, server.format_line(name, ids.get(name))))
        return planned

    def _name_server_at(self, number: int, node: str) -> str:
        return self._name_server(node, number)

    def _keep_unmade_endpoints(self, number: int, servers: list[DesiredServer]) -> list[DesiredServer]:
        """Return the servers that can have a line; one whose tags make no line keeps the endpoint that it has."""
        if not any(server.keeps_line for server in servers):
            return servers
        lines = {self.find_node(line): line for line in self._present_lines[number] if not line.pauses}
        found = []
        for server in servers:
            line = lines.get(server.member.name)
            if not server.keeps_line:
                found.append(server)
            elif line is None:
                self._note_missing_line(number, server)
            else:
                found.append(
                    server._replace(endpoint=find_endpoint(replace_address(line, server.address or line.address)))
                )
        return found

    def _note_missing_line(self, number: int, server: DesiredServer) -> None:
        pair, node = self._pairs[number], server.member.name
        if server.obstacle == UNKNOWN_TAGS or pair is None:
            self.notes.append(Note(node, f"{node} has no line ", f"in {self._proxy}: {server.obstacle}"))
        else:
            self.notes.append(Note(node, f"node {node} has no line for ", f"{pair.service}: {server.obstacle}"))

    def _list_staying_lines(
        self, number: int, served: Mapping[str, DesiredServer | None], planned: set[str], context: PlanContext
    ) -> list[PlannedLine]:
        """Return the present lines that stay though they are not `planned`.

        They are kept, stale, without a marker of their own, or blocked by the safety guard. `served` maps the nodes
        that have a line here to their desired servers.
        """
        present = self._present_lines[number]
        stay: list[PlannedLine] = []
        going: dict[ManagedLine, str] = {}
        for line in (line for line in present if line.text not in planned):
            node = self.find_node(line)
            action, reason = self._decide(line, node, served, context)
            if action == KEEP:
                stay.append(PlannedLine(node, line.name, line.text))
            elif action == KEEP_UNMADE and (server := served[node]):
                stay.append(PlannedLine(node, line.name, self._update_kept_line(line, server)))
            elif action == KEEP_BAD_ROLE:
                stay += self._keep_line_of_bad_role(line, node, context, reason)
            elif action == KEEP_ORPHAN:
                stay += self._keep_orphan(line, node, context.desired)
            elif action == REMOVE_IF_ALLOWED:
                going[line] = node
        where = f"at '# additional-{self._proxy.markers[number].middle}-server' in {self._proxy}"
        blocked = context.guard.block_removals(going, {*served, *(line.node for line in stay)}, where)
        return stay + [PlannedLine(going[line], line.name, line.text) for line in blocked]

    def _decide(
        self, line: ManagedLine, node: str, served: Mapping[str, DesiredServer | None] | None, context: PlanContext
    ) -> LineDecision:
        """Decide what happens to a present line of `node`. Changes nothing.

        `served` maps the nodes that have a line at the same marker to their desired servers. It is None for a line
        without a marker.
        """
        if node in context.kept:
            return LineDecision(KEEP, "the node is quarantined, or a trial leaves it out")
        if served is None:
            return self._decide_without_marker(line, node, context)
        return self._decide_at_marker(line, node, served, context)

    def _decide_at_marker(
        self, line: ManagedLine, node: str, served: Mapping[str, DesiredServer | None], context: PlanContext
    ) -> LineDecision:
        server = served.get(node)
        if server and server.keeps_line and not line.pauses:
            return LineDecision(KEEP_UNMADE, server.obstacle)
        if node not in served and (why := context.desired.explain_kept_line(node, line.role, line.address)):
            return LineDecision(KEEP_BAD_ROLE, why)
        if self._is_orphan(line, node, context):
            return LineDecision(KEEP_ORPHAN, "the marker of its service is gone from this proxy")
        if node in served:
            return LineDecision(REPLACE, "the node has another line at this marker")
        if self._conflicts.is_replaced(line):
            return LineDecision(REMOVE, "another server has its name or endpoint")
        return LineDecision(REMOVE_IF_ALLOWED, "the node has no desired server at this marker")

    def _decide_without_marker(self, line: ManagedLine, node: str, context: PlanContext) -> LineDecision:
        if node in self._served:
            return LineDecision(REMOVE, "the node has its line elsewhere in this proxy")
        if self._conflicts.is_replaced(line):
            return LineDecision(REMOVE, "another server has its name or endpoint")
        if not self._find_present_address(node) or node in context.desired.superseded:
            return LineDecision(REMOVE_IF_ALLOWED, "the node is gone")
        return LineDecision(KEEP_ORPHAN, "the marker is gone, and the node is present")

    def _update_kept_line(self, line: ManagedLine, server: DesiredServer) -> str:
        """Return the line that a node keeps because its tags make no new one; the address follows the node."""
        if server.obstacle != UNKNOWN_TAGS:
            node = server.member.name
            self.notes.append(Note(node, f"{line.name} keeps its line ", f"in {self._proxy}: {server.obstacle}"))
        text = replace_address(line, server.address or line.address)
        return drain_line(text) if server.paused else undrain_line(text)

    def _keep_line_of_bad_role(self, line: ManagedLine, node: str, context: PlanContext, why: str) -> list[PlannedLine]:
        """Return the line to keep for a node whose role tag is not a valid role name; empty where none stays."""
        paused = node in context.desired.paused
        if line.pauses and not paused:
            return []
        self.notes.append(Note(node, f"{line.name} keeps its line ", f"in {self._proxy}: {why}"))
        self._conflicts.reserve([line.name], [line.endpoint], line.at)
        address = self._find_present_address(node)
        if line.pauses or not paused:
            return [PlannedLine(node, line.name, undrain_line(line.text))]
        if line.role in self._draining:
            return [PlannedLine(node, line.name, drain_line(line.text))]
        return [PlannedLine(node, node, format_paused_line(node, address, line.role))]

    def _is_orphan(self, line: ManagedLine, node: str, context: PlanContext) -> bool:
        """Return whether the marker of the line is gone from this proxy while its node is present."""
        if not self._find_present_address(node) or node in context.desired.superseded:
            return False
        if line.pauses or (node in context.desired.paused and line.role not in self._draining):
            # A comment does not name its service. It is outdated where its node has a line here or another role.
            ours = line.role in role_names(self._members[node].role)
            served = node in self._served or node in self._conflicts.refused
            return ours and node in context.desired.paused and not served
        return node != line.name and line.name.rpartition(".")[2] not in self._services_here

    def _find_present_address(self, node: str) -> str:
        member = self._members.get(node)
        return member.address if member is not None and member.present else ""

    def _keep_orphan(self, line: ManagedLine, node: str, servers: DesiredServers) -> list[PlannedLine]:
        # The line gets the new address of its node only where the role allows it and no other server has it.
        there = servers.find_allowed_address(node, line.role) or line.address
        paused, drain = node in servers.paused, line.role in self._draining
        text, note = rewrite_orphan_line(line, node, there, paused=paused, drain=drain)
        self.notes.append(Note(node, f"{self._document.locate(line.at)}: ", note))
        if (where := find_endpoint(text)) and where != line.endpoint and not self._conflicts.is_free(where, line.at):
            text = line.text
        self._conflicts.reserve([line.name], [find_endpoint(text)], line.at)
        return [PlannedLine(node, line.name, text)] if text else []

    def _plan_without_marker(self, context: PlanContext) -> Iterator[MarkerBlock]:
        orphans = {line: self.find_node(line) for line in self._present_lines[-1]}
        # Decide on all lines before any is kept: a kept line reserves its name and endpoint.
        actions = {line: self._decide(line, node, None, context).action for line, node in orphans.items()}
        going = {line: node for line, node in orphans.items() if actions[line] == REMOVE_IF_ALLOWED}
        others = {node for line, node in orphans.items() if line not in going}
        blocked = context.guard.block_removals(going, others, f"without a marker in {self._proxy}")
        for line, node in orphans.items():
            after: list[PlannedLine] = []
            if actions[line] == KEEP or line in blocked:
                after = [PlannedLine(node, line.name, line.text)]
            elif actions[line] == KEEP_ORPHAN:
                after = self._keep_orphan(line, node, context.desired)
            yield diff_block(None, [line], after)

    def _assign_ids(
        self, accepted: Mapping[int, Sequence[DesiredServer]], stays: Mapping[int, Sequence[PlannedLine]]
    ) -> Mapping[str, int]:
        if not self._proxy.hashes:
            return {}
        names = {
            self._name_server(server.member.name, number) for number, servers in accepted.items() for server in servers
        }
        names.update(line.name for lines in stays.values() for line in lines)
        return assign_stable_ids(names, (line.id for line in self._proxy.operator_servers if line.id))


def diff_block(
    marker: int | None, before: Sequence[ManagedLine | OperatorServer], after: Sequence[PlannedLine]
) -> MarkerBlock:
    """Return the block of a marker with the differences between its lines `before` and `after`."""
    old = {line.text for line in before if not isinstance(line, OperatorServer)}
    new = {line.text for line in after}
    added = {line.text: line.node for line in after if line.text not in old}
    removed = [line for line in before if line.text not in new or isinstance(line, OperatorServer)]
    return MarkerBlock(marker, before, [line.text for line in after], added, removed)


def sort_lines(lines: Iterable[PlannedLine]) -> list[PlannedLine]:
    """Return the lines sorted by the names of their servers, in natural order."""
    return sorted(lines, key=lambda line: natural_key(line.name))


def rewrite_orphan_line(line: ManagedLine, node: str, address: str, *, paused: bool, drain: bool) -> tuple[str, str]:
    """Return the new text of a line whose marker is gone (empty to remove it), and a note for the operator.

    `address` is the address that the role of the node allows. With `drain` the line of a paused node stays, with weight
    0.
    """
    if paused and drain and not line.pauses:
        return drain_line(replace_address(line, address)), f"{line.name} is paused without its marker"
    if paused:
        return format_paused_line(node, address, line.role), f"{line.name} is paused without its marker"
    if line.pauses:
        return "", f"{node} cannot be put back, its marker is gone"
    return undrain_line(replace_address(line, address)), f"{line.name} stands without its marker"


def replace_address(line: ManagedLine, address: str) -> str:
    """Return the text of a line with the address of its server replaced; the port stays."""
    port = line.endpoint.rpartition(":")[2]
    if not port.isdigit():
        return line.text
    there = Server(line.name, address, int(port), "", line.role).endpoint
    return line.text.replace(line.endpoint, there, 1)
