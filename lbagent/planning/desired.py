"""What roles.yml and membership wish for at one marker, before haproxy.cfg has its say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from lbagent.haproxy.server_line import Server, drain_line, format_endpoint, format_paused_line, format_tail
from lbagent.membership.lookup import find_paused, superseded
from lbagent.membership.model import FAILED, PRESENT, Member, Membership, as_table
from lbagent.names import NAME, are_plainly_allowed, explain_refused_address, natural_key, role_names, sort_names
from lbagent.roles.model import MissingTag, Pair, Role, Roles, Service, Template
from lbagent.system.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

UNKNOWN_TAGS = "its tags are unknown until Serf tells them"
"""After membership was rebuilt from haproxy.cfg, which does not hold them."""


class Note(str):
    """A sentence for the operator about one node: who and what, then `why`."""

    __slots__ = ("node", "why")

    node: str
    why: str

    def __new__(cls, node: str, head: str, why: str) -> Self:
        """The sentence that begins with `head` and ends with `why`."""
        note = super().__new__(cls, head + why)
        note.node, note.why = node, why
        return note


class OperatorLineNote(Note):
    """One that says that a line by hand stands in the node's place: no pause takes traffic from that."""

    __slots__ = ()


class DesiredServer(NamedTuple):
    """What one node should have at one marker."""

    member: Member
    role: Role
    endpoint: str
    """ADDRESS:PORT."""
    address: str
    """Where the node is reached; nothing where its tags don't tell."""
    port: int
    options: str
    paused: bool
    unknown: str = ""
    """Why its line can't be made of its tags: the line that it has, if any, stays."""

    @property
    def verbatim(self) -> bool:
        """Whether the line that the node has stays as it is."""
        return bool(self.unknown)

    def line(self, name: str, number: int | None) -> str:
        """The managed line under the name, and with the id, that the server has in its proxy."""
        member = self.member
        if self.paused and not self.role.drain:
            return format_paused_line(member.name, member.address, self.role.name)
        line = Server(name, self.address, self.port, self.options, self.role.name, number).line
        return drain_line(line) if self.paused else line


class Crowd(NamedTuple):
    """The nodes of one role at one marker, where all of them want the same line but for name and address."""

    names: Sequence[str]
    """In natural order."""
    addresses: Sequence[str]
    endpoints: Sequence[str]
    """ADDRESS:PORT of each."""
    role: str
    port: int
    options: str

    def lines(self) -> list[str]:
        """What the line of each would be: to compare with what stands, not to be written."""
        end = format_tail(self.options, self.role)
        return [f"server {name} {where}{end}" for name, where in zip(self.names, self.endpoints, strict=True)]

    def server(self, at: int) -> Server:
        """One of them, safe to be written."""
        return Server(self.names[at], self.addresses[at], self.port, self.options, self.role)


class DesiredServers:
    """The wishes of a whole membership, marker by marker."""

    def __init__(self, roles: Roles, membership: Membership) -> None:
        """The wishes that `roles` has for the members that are there."""
        self._roles, self._members = roles, as_table(membership.members)
        self._serving = roles.map_pairs_to_roles()
        self.paused = find_paused(membership)
        self.notes: dict[str, None] = {}
        """Nodes that cannot have the line they should, and why; said once each."""
        self.superseded = superseded(membership)
        """Failed nodes whose address a living node has now: whatever answers there is another host."""
        columns = self._members.columns
        there: dict[str, dict[str, str]] = {name: {} for name in roles.roles}
        self._several: set[str] = set()
        """The nodes with several roles."""
        for name, address, role, status in zip(*columns[:4], strict=True):
            if role in there and status in PRESENT:
                there[role][name] = address
            elif "," in role and status in PRESENT:
                self._several.add(name)
                for one in roles.find_roles(role):
                    there[one.name][name] = address
        for name, other in self.superseded.items():
            if [nodes for nodes in there.values() if nodes.pop(name, None) is not None]:
                why = f"{other} has its address {self._members[name].address} now"
                self.notes[Note(name, f"node {name} has failed and has no line: ", why)] = None
        self._there = {name: self._allowed(roles.roles[name], nodes) for name, nodes in there.items()}
        """The address of every node that may have lines, in natural order, by role; nothing where it is not known."""

    def crowd(self, pair: Pair) -> Crowd | None:
        """The wishes for the marker of `pair` where nothing is special about any of them."""
        roles, service = self._serving[pair], self._roles.services[pair.service]
        if len(roles) != 1:
            return None
        role, options, nodes = roles[0], roles[0].options or service.options, self._there[roles[0].name]
        alike = options.same_for_role and service.port.same_for_role and role.address is None
        if not alike or role.remove_failed or len(nodes) > role.max or not self.paused.isdisjoint(nodes):
            return None
        port, text = self._same(role, service, options)
        # As endpoint() has it; called for each, that would cost three times as much.
        endpoints = [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in nodes.values()]
        return Crowd(list(nodes), list(nodes.values()), endpoints, role.name, port, text)

    def allowed(self, node: str, role: str) -> str | None:
        """Where a node of that role may be reached; None where it has another role, or may not be where it is."""
        return self._there.get(role, {}).get(node) or None

    def keeps(self, node: str, role: str, address: str) -> str:
        """Why a node keeps its line for `role` at `address` although its role tag names none; nothing where it doesn't.

        A tag with a name that roles.yml does not have is a decision, one that can't be a name is an accident.
        """
        member = self._members.get(node)
        if member is None or not member.present or not member.role or any(map(NAME.fullmatch, role_names(member.role))):
            return ""
        by_tag = role in self._roles.roles and self._roles.roles[role].address is not None
        if address != member.address and not by_tag:
            return ""
        return f"its role {member.role[:40]!r} is not {NAME.pattern}"

    def at(
        self, pair: Pair, known: Callable[[], Collection[str]], server: Callable[[str], str] = str
    ) -> list[DesiredServer]:
        """The wishes for the marker of `pair`, in the order of names.

        `known` returns the nodes with lines there, `server` the name of a node's server in that proxy.
        """
        roles = self._serving[pair]
        service = self._roles.services[pair.service]
        by_role = {role.name: self._of(role, service, server) for role in roles}
        if len(roles) > 1 and self._several:
            by_role = self._once(by_role)
        found = [wish for role in roles for wish in self._at_most(role, service, by_role[role.name], known)]
        if any(role.remove_failed for role in roles):
            found = _without_failed(found)
        return found if len(roles) == 1 else sorted(found, key=lambda wish: natural_key(wish.member.name))

    def _once(self, by_role: dict[str, list[DesiredServer]]) -> dict[str, list[DesiredServer]]:
        """The same wishes, each node once: from the first role of its tag that can give it a line."""
        first: dict[str, tuple[bool, int, str]] = {}
        for name, wishes in by_role.items():
            for wish in (wish for wish in wishes if wish.member.name in self._several):
                place = role_names(wish.member.role).index(name)
                rank = (wish.verbatim, place, name)
                first[wish.member.name] = min(first.get(wish.member.name, rank), rank)
        return {
            name: [one for one in wishes if first.get(one.member.name, (False, 0, name))[2] == name]
            for name, wishes in by_role.items()
        }

    def _allowed(self, role: Role, nodes: dict[str, str]) -> dict[str, str]:
        if role.address is not None:
            nodes = {name: self._by_tag(role, self._members[name]) for name in nodes}
        if not role.networks and are_plainly_allowed(nodes.values()):
            return {name: nodes[name] for name in sort_names(nodes)}
        refused = {
            name: why for name, at in nodes.items() if at and (why := explain_refused_address(at, role.networks))
        }
        for name, why in refused.items():
            self.notes[Note(name, f"node {name} of role {role.name} has no line: ", why)] = None
        return {name: nodes[name] for name in sort_names(nodes) if name not in refused}

    @staticmethod
    def _by_tag(role: Role, member: Member) -> str:
        try:
            return role.find_address(member.name, member.address, member.tags or {})
        except MissingTag:
            return ""  # the wish says why

    def _same(self, role: Role, service: Service, options: Template) -> tuple[int, str]:
        values = role.build_values("")  # neither has a place for a name
        return service.find_port(values, {}), options.fill(values, {})

    def _of(self, role: Role, service: Service, server: Callable[[str], str]) -> list[DesiredServer]:
        return [self._wish(self._members[name], role, service, server(name)) for name in self._there[role.name]]

    def _wish(self, member: Member, role: Role, service: Service, server: str) -> DesiredServer:
        options, paused = role.options or service.options, member.name in self.paused
        values, tags = role.build_values(member.name, server), member.tags or {}
        by_tags = options.needs_tags or service.port.needs_tags or role.address is not None
        if member.tags is None and by_tags:
            return self._unmade(member, role, service, UNKNOWN_TAGS)
        try:
            address = role.find_address(member.name, member.address, tags)
            port, text = service.find_port(values, tags), options.fill(values, tags)
        except MissingTag as error:
            return self._unmade(member, role, service, str(error))
        return DesiredServer(member, role, format_endpoint(address, port), address, port, text, paused)

    def _unmade(self, member: Member, role: Role, service: Service, why: str) -> DesiredServer:
        """The wish of a node whose tags make no line. A comment needs none: only name and address are written."""
        paused, address = member.name in self.paused, self._there[role.name][member.name]
        nowhere = f"{member.name} {service.name}"  # an endpoint that nobody else has
        return DesiredServer(member, role, nowhere, address, 1, "", paused, "" if paused and not role.drain else why)

    def _at_most(
        self, role: Role, service: Service, wishes: list[DesiredServer], there: Callable[[], Collection[str]]
    ) -> list[DesiredServer]:
        if len(wishes) <= role.max:
            return wishes
        known = there()
        room = role.max - sum(wish.member.name in known for wish in wishes)
        allowed = []
        for wish in wishes:
            room -= (new := wish.member.name not in known)
            if new and room < 0:
                name = wish.member.name
                why = f"{service.name}: role {role.name} has its {role.max}"
                self.notes[Note(name, f"node {name} has no line for ", why)] = None
            else:
                allowed.append(wish)
        return allowed


def list_serving_ports(roles: Roles, member: Member) -> frozenset[int]:
    """The ports at which a node of its roles serves, as far as its tags tell."""
    ports = set()
    for role in roles.find_roles(member.role):
        for name in {name for names in role.sections.values() for name in names}:
            with contextlib.suppress(MissingTag):
                ports.add(roles.services[name].find_port(role.build_values(member.name), member.tags or {}))
    return frozenset(ports)


def _without_failed(wishes: list[DesiredServer]) -> list[DesiredServer]:
    # Only while at least half of those that should serve do: a load balancer cut off from all keeps all.
    serving = [wish for wish in wishes if not wish.paused]
    alive = sum(wish.member.status != FAILED for wish in serving)
    if 2 * alive < len(serving):
        return wishes
    return [wish for wish in wishes if wish.paused or not (wish.role.remove_failed and wish.member.status == FAILED)]
