"""The decisions of a plan, with their reasons: which desired servers get a line, and what happens to present lines.

`decide_server` has every reason why a node gets no line at a marker. `decide_line` has every reason why a present line
is kept, replaced or removed. `explain_no_server` has the reasons why a node is not desired at any marker.
`Conflicts` has the names and endpoints that are in use in a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple, Self

from lbagent.haproxy.config import Document, ManagedLine, OperatorServer, Proxy
from lbagent.haproxy.server_line import drain_line, format_paused_line, undrain_line
from lbagent.membership.model import LEFT, LOST, UNKNOWN, Member
from lbagent.names import NAME, role_names
from lbagent.planning.desired import UNKNOWN_TAGS, DesiredServer, DesiredServers, MarkerServers
from lbagent.planning.lines import ProxyLines, replace_address
from lbagent.roles.model import Pair, Roles

_REASONS_OF_ABSENCE = {
    LEFT: "the node has left",
    LOST: "Serf does not list the node any more",
    UNKNOWN: "Serf has not reported the node",
}


class Note(str):
    """A sentence for the operator about one node; `why` is its end, for a reader who knows the node."""

    __slots__ = ("at", "node", "why")

    node: str
    why: str
    at: int | None
    """Line of haproxy.cfg that the note is about; None where it is about the node."""

    def __new__(cls, node: str, sentence: str, why: str, at: int | None = None) -> Self:
        """Make the note; `sentence` is the whole one, which ends with `why`."""
        note = super().__new__(cls, sentence)
        note.node, note.why, note.at = node, why, at
        return note


class OperatorLineNote(Note):
    """A note that an operator's line has the name or address of the node: a pause does not affect that line."""

    __slots__ = ()


class MissingMarkerNote(Note):
    """A note that a managed line has no marker."""

    __slots__ = ()


class Refusal(NamedTuple):
    """Why a node gets no line at a marker."""

    head: str
    """What the node lacks: the start of the sentence, up to `reason`."""
    reason: str
    note: type[Note] | None = Note
    """The kind of the plan's note; None where the refusal is as configured, or reported elsewhere."""
    at: int | None = None
    """The operator's line that has the name or address."""
    is_conflict: bool = False
    """Whether another server in the proxy has its name or address."""


class Action(Enum):
    """What happens to a present line."""

    KEEP = auto()
    """Its node has it as its line."""
    KEEP_UNDESIRED = auto()
    """It is kept, though its node has no desired server for it."""
    REPLACE = auto()
    """Its node gets another line, or none is needed."""
    REMOVE = auto()
    REMOVE_IF_ALLOWED = auto()
    """It is removed, unless the safety guard blocks it."""


class LineDecision(NamedTuple):
    """What happens to one present line, and why."""

    action: Action
    reason: str = ""
    text: str = ""
    """The line as it is kept."""
    head: str = ""
    """Start of the sentence, up to `reason`."""
    note: type[Note] | None = None
    """The kind of the plan's note; None where the operator need not know."""


class Decisions:
    """The decisions on the servers and lines of one proxy. They change nothing."""

    def __init__(
        self,
        proxy: Proxy,
        lines: ProxyLines,
        conflicts: Conflicts,
        desired: DesiredServers,
        kept: Collection[str],
    ) -> None:
        """`lines` are the present ones; `conflicts` are the names and endpoints in use at the time of a decision.

        `kept` are the nodes whose lines stay unchanged: quarantined nodes, and nodes that a trial leaves out.
        """
        self._proxy, self._lines, self._conflicts, self._desired, self._kept = proxy, lines, conflicts, desired, kept
        self._roles, self._members, self._refused_addresses = desired.roles, desired.members, desired.refused_addresses
        self._superseded = desired.superseded
        self.wanted: list[MarkerServers] = []
        """The desired servers, by marker."""
        self.served: list[Mapping[str, DesiredServer]] = []
        """The nodes that get a line, by marker, with their desired servers."""
        self.refusals: dict[str, Refusal] = {}
        """The nodes that get no line at a marker; a conflict comes before other reasons."""

    def decide_server(self, server: DesiredServer, name: str, number: int) -> Refusal | None:
        """Return why a node gets no line at a marker; None where it gets one. `name` is that of its server there."""
        return self.explain_exclusion(server, number) or self._explain_conflict(server, name, number)

    def explain_exclusion(self, server: DesiredServer, number: int) -> Refusal | None:  # noqa: PLR0911  # a reason each
        """Return why a node may have no line at a marker, whatever else is in the proxy; None where it may."""
        node, role, wanted = server.node, server.role, self.wanted[number]
        if node in self._kept:
            quarantine = self._members[node].quarantine
            return Refusal("", quarantine.reason if quarantine else "this trial leaves it out", None)
        if node in self._superseded:
            why = f"it has failed, and {self._superseded[node]} has its address {server.advertised} now"
            return Refusal("no line: ", why)
        if node in self._refused_addresses[role.name]:
            return Refusal(f"no line for role {role.name}: ", self._refused_addresses[role.name][node])
        service = wanted.service
        if node in wanted.over_limit:
            return Refusal("no line for ", f"{service}: role {role.name} has reached its maximum of {role.max}")
        if node in wanted.removed_as_failed:
            return Refusal("no line for ", f"{service}: it has failed, and `on_failed` is `remove`", None)
        if server.missing_tag and self._lines.map_nodes(number).get(node) is None:
            return Refusal("no line for ", f"{service}: {server.missing_tag}")
        return None

    def _explain_conflict(self, server: DesiredServer, name: str, number: int) -> Refusal | None:
        """Return which other server in the proxy has the name or endpoint of this one; None where none has."""
        at, endpoint = self._proxy.markers[number].at, server.endpoint
        if (
            self._conflicts.has_operator_lines
            and (line := self._find_operator_line(server, name, at, number)) is not None
        ):
            why = f"in {self._proxy}: an operator's line has its name or address, pauses do not affect it"
            return Refusal("no managed line ", why, OperatorLineNote, line, is_conflict=True)
        holder = self._conflicts.find_holder(endpoint, at)
        if holder is not None:
            return Refusal("no line ", f"in {self._proxy}: {holder} has {endpoint}", is_conflict=True)
        return None

    def _find_operator_line(self, server: DesiredServer, name: str, at: int, number: int) -> int | None:
        line = self._conflicts.find_operator_name(name, at)
        # A present line stays beside an operator's line with the same endpoint: `--adopt` may leave both.
        if line is None and not self._has_or_adopts_line(server.node, number):
            line = self._conflicts.find_operator_endpoint(server.endpoint, at)
        return line

    def _has_or_adopts_line(self, node: str, number: int) -> bool:
        return node in self._lines.map_nodes(number) or node in self._conflicts.adopted.values()

    def decide_line(self, line: ManagedLine, node: str, number: int | None) -> LineDecision:  # noqa: C901, PLR0911  # a reason each
        """Return what happens to a present line of `node` that is not one of the planned lines.

        `number` is that of its marker; None for a line without a marker.
        """
        if node in self._kept:
            return LineDecision(Action.KEEP, text=line.text)
        if number is None:
            if any(node in here for here in self.served):
                return LineDecision(Action.REMOVE, "it has its line at another marker of the proxy")
            if self._conflicts.is_replaced(line):
                return LineDecision(Action.REMOVE, "another server has its name or endpoint")
            if self._is_present(node):
                return self._keep_without_marker(line, node)
            return LineDecision(Action.REMOVE_IF_ALLOWED, self._explain_removal(line, node))
        server = self.served[number].get(node)
        if server is not None and server.missing_tag and not line.is_comment:
            return self._keep_with_missing_tag(line, server)
        if server is None and (why := self._explain_invalid_role(line, node)):
            return self._keep_with_invalid_role(line, node, why)
        if self._has_lost_marker(line, node):
            return self._keep_without_marker(line, node)
        if server is not None:
            return LineDecision(Action.REPLACE)
        if self._conflicts.is_replaced(line):
            return LineDecision(Action.REMOVE, "another server has its name or endpoint")
        return LineDecision(Action.REMOVE_IF_ALLOWED, self._explain_removal(line, node))

    def _keep_with_missing_tag(self, line: ManagedLine, server: DesiredServer) -> LineDecision:
        # The address follows the node.
        text = replace_address(line, server.address or line.address)
        text = drain_line(text) if server.paused else undrain_line(text)
        note = None if server.missing_tag == UNKNOWN_TAGS else Note
        return LineDecision(Action.KEEP, f"in {self._proxy}: {server.missing_tag}", text, "keeps its line ", note)

    def _explain_invalid_role(self, line: ManagedLine, node: str) -> str:
        """Return why a node keeps a line whose role it no longer has; empty where it does not.

        A role tag that is a valid name but unknown to roles.yml is a decision. A role tag that is not a valid name is
        an accident.
        """
        member = self._members.get(node)
        if member is None or not member.present or not member.role or any(map(NAME.fullmatch, role_names(member.role))):
            return ""
        role = self._roles.roles.get(line.role)
        if line.address != member.address and (role is None or role.address is None):
            return ""
        return f"its role {member.role[:40]!r} is not {NAME.pattern}"

    def _keep_with_invalid_role(self, line: ManagedLine, node: str, why: str) -> LineDecision:
        paused = node in self._desired.paused
        if line.is_comment and not paused:
            return LineDecision(Action.REMOVE, f"it is resumed, and {why}")
        text = undrain_line(line.text)
        if paused and not line.is_comment:
            address = self._members[node].address
            drains = self._drains(line.role)
            text = drain_line(text) if drains else format_paused_line(node, address, line.role)
        return LineDecision(Action.KEEP_UNDESIRED, f"in {self._proxy}: {why}", text, "keeps its line ", Note)

    def _has_lost_marker(self, line: ManagedLine, node: str) -> bool:
        """Return whether the marker of the line is gone from this proxy while its node is present."""
        if not self._is_present(node):
            return False
        paused = node in self._desired.paused
        if line.is_comment or (paused and not self._drains(line.role)):
            # A comment does not name its service. It is outdated where its node has a line here or another role.
            ours = line.role in role_names(self._members[node].role)
            refusal = self.refusals.get(node)
            served = any(node in here for here in self.served) or (refusal is not None and refusal.is_conflict)
            return ours and paused and not served
        return node != line.name and line.name.rpartition(".")[2] not in self._lines.services_here

    def _keep_without_marker(self, line: ManagedLine, node: str) -> LineDecision:
        # The line gets the new address of its node only where the role allows it.
        address = self._desired.find_allowed_address(node, line.role) or line.address
        if node in self._desired.paused:
            text = format_paused_line(node, address, line.role)
            if self._drains(line.role) and not line.is_comment:
                text = drain_line(replace_address(line, address))
            why = f"the marker of the paused node {node} is missing"
            return LineDecision(Action.KEEP_UNDESIRED, why, text, note=MissingMarkerNote)
        if line.is_comment:
            why = f"{node} is resumed, but gets no line: the marker is missing"
            return LineDecision(Action.REMOVE, why, note=MissingMarkerNote)
        text = undrain_line(replace_address(line, address))
        why = f"the marker of server {line.name} is missing"
        return LineDecision(Action.KEEP_UNDESIRED, why, text, note=MissingMarkerNote)

    def _drains(self, role: str) -> bool:
        return role in self._roles.roles and self._roles.roles[role].drain

    def _is_present(self, node: str) -> bool:
        member = self._members.get(node)
        return member is not None and member.present and bool(member.address) and node not in self._superseded

    def _explain_removal(self, line: ManagedLine, node: str) -> str:
        """Return why a node has no desired server for its line."""
        member = self._members.get(node)
        if member is None or not member.present:
            return _REASONS_OF_ABSENCE[member.status if member else UNKNOWN]
        if node in self.refusals:
            return self.refusals[node].reason
        if line.role not in role_names(member.role):
            return f"its role is {member.role!r} now" if member.role else "it has no role now"
        return "roles.yml has no server for it at this marker"


def explain_no_server(member: Member, roles: Roles, middles: Container[str]) -> str:
    """Return why a node is not desired at any marker; empty where it is. `middles` are the middles of all markers."""
    found = roles.find_roles(member.role)
    if not found:
        return f"roles.yml has no role {member.role}" if member.role else "it has no role"
    sections = [(section, names) for role in found for section, names in role.sections.items()]
    pairs = [Pair(section, service) for section, names in sections for service in names]
    if not pairs:
        return "its role has no service"
    return "" if any(pair.middle in middles for pair in pairs) else "haproxy.cfg has no marker of its role"


class Conflicts:
    """The names and endpoints in use in one proxy.

    Two lines of which HAProxy never reads both, as in `.if` and `.else`, do not compete.
    """

    def __init__(self, document: Document, proxy: Proxy) -> None:
        """At first only operator's lines have names and endpoints."""
        self._document, self._proxy = document, proxy
        self._operator_names: dict[str, list[OperatorServer]] = {}
        """Operator's lines by name in lower case."""
        self._operator_endpoints: dict[str, list[OperatorServer]] = {}
        for line in proxy.operator_servers:
            self._operator_names.setdefault(line.name.lower(), []).append(line)
            self._operator_endpoints.setdefault(line.endpoint, []).append(line)
        self.has_operator_lines = bool(proxy.operator_servers or proxy.templates)
        self._endpoints: dict[str, list[tuple[str, int]]] = {}
        """Managed servers by endpoint, each with a line number that shows its branch of `.if`."""
        self._names: dict[str, list[int]] = {}
        """Line numbers of the managed servers, by name; without those of quarantined nodes."""
        self.adopted: dict[int, str] = {}
        """The nodes of operator's lines that become managed, by line number."""

    def adopt_lines(
        self,
        desired: Sequence[Sequence[DesiredServer]],
        name_server: Callable[[str, int], str],
        is_excluded: Callable[[str, int], bool],
    ) -> None:
        """Make operator's lines above a marker managed where they have the name or endpoint of a desired server.

        Each node gets one line. A line with its name comes before a line with its endpoint only. `name_server` returns
        the name of a node's server at a marker; `is_excluded` returns whether the node needs no line there.
        """
        for number, servers in enumerate(desired):
            above = [line for line in self._proxy.operator_servers if line.marker == number]
            for server in servers if above else ():
                if is_excluded(server.node, number):
                    continue
                names = (server.node.lower(), name_server(server.node, number).lower())
                left = [line for line in above if line.at not in self.adopted]
                alike = [line for line in left if line.name.lower() in names]
                alike += [line for line in left if line.endpoint == server.endpoint and line not in alike]
                if alike:
                    self.adopted[alike[0].at] = server.node

    def merge_adopted(self, present: Sequence[ManagedLine], number: int) -> Sequence[ManagedLine | OperatorServer]:
        """Return the managed lines of a marker and its adopted lines, in the order of the text."""
        adopted = [line for line in self._proxy.operator_servers if line.at in self.adopted and line.marker == number]
        return sorted([*present, *adopted], key=lambda line: line.at) if adopted else present

    def assign(self, name: str, endpoint: str, at: int) -> None:
        """Assign name and endpoint to a managed server in the branch of the line `at`."""
        self._endpoints.setdefault(endpoint, []).append((name, at))
        self._names.setdefault(name, []).append(at)

    def reserve(self, lines: Iterable[ManagedLine]) -> None:
        """Assign the endpoints of lines that stay unchanged whatever else is planned."""
        for line in lines:
            self._endpoints.setdefault(line.endpoint, []).append((line.name, line.at))

    def find_holder(self, endpoint: str, at: int) -> str | None:
        """Return the managed server that has this endpoint, seen from the line `at`; None where none has."""
        holders = self._endpoints.get(endpoint)
        if holders is None:
            return None
        return next((name for name, other in holders if not self._document.are_exclusive(at, other)), None)

    def find_operator_name(self, name: str, at: int) -> int | None:
        """Return the operator's line that has this name (in any case), seen from the line `at`; None where none has."""
        lines = self._operator_names.get(name.lower(), ())
        templates = (one for one in self._proxy.templates if one.names(name))
        return next((line.at for line in (*lines, *templates) if self._competes(line.at, at)), None)

    def find_operator_endpoint(self, endpoint: str, at: int) -> int | None:
        """Return the operator's line that has this endpoint, seen from the line `at`; None where none has."""
        lines = self._operator_endpoints.get(endpoint, ())
        templates = (one for one in self._proxy.templates if one.endpoint == endpoint)
        return next((line.at for line in (*lines, *templates) if self._competes(line.at, at)), None)

    def is_free(self, endpoint: str, at: int) -> bool:
        """Return whether no other server has this endpoint, seen from the line `at`."""
        operators = self._operator_endpoints.get(endpoint, ())
        return self.find_holder(endpoint, at) is None and not any(self._competes(line.at, at) for line in operators)

    def is_replaced(self, line: ManagedLine) -> bool:
        """Return whether another server has the name or endpoint of the line now: its removal loses nothing."""
        if self.find_operator_name(line.name, line.at) is not None:
            return True
        if any(not self._document.are_exclusive(line.at, at) for at in self._names.get(line.name, ())):
            return True
        return bool(line.endpoint) and not self.is_free(line.endpoint, line.at)

    def _competes(self, operator_line: int, at: int) -> bool:
        """Return whether an operator's line is not adopted, and HAProxy may read it together with the line `at`."""
        return operator_line not in self.adopted and not self._document.are_exclusive(at, operator_line)
