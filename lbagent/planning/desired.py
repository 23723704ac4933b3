"""The desired servers: what roles.yml and membership ask for at one marker, before haproxy.cfg is considered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Self

from lbagent.haproxy.server_line import Server, drain_line, format_endpoint, format_paused_line, format_tail
from lbagent.membership.model import FAILED, PRESENT, Member, Membership, as_table, find_paused, find_superseded
from lbagent.names import NAME, are_plainly_allowed, explain_refused_address, natural_key, role_names, sort_names
from lbagent.roles.model import MissingTag, Pair, Role, Roles, Service, Template

UNKNOWN_TAGS = "its tags are unknown until Serf tells them"
"""The reason after membership was rebuilt from haproxy.cfg, which holds no tags."""


class Note(str):
    """A sentence for the operator about one node; `why` is its end."""

    __slots__ = ("node", "why")

    node: str
    why: str

    def __new__(cls, node: str, head: str, why: str) -> Self:
        """Make the sentence `head` + `why` about `node`."""
        note = super().__new__(cls, head + why)
        note.node, note.why = node, why
        return note


class OperatorLineNote(Note):
    """A note that an operator's line has the name or address of the node: a pause does not affect that line."""

    __slots__ = ()


class DesiredServer(NamedTuple):
    """The server that one node should have at one marker."""

    member: Member
    role: Role
    endpoint: str
    """ADDRESS:PORT."""
    address: str
    """Address of the server; empty where the tags of the node give none."""
    port: int
    options: str
    paused: bool
    obstacle: str = ""
    """Why the tags of the node make no line; a line that the node has stays."""

    @property
    def keeps_line(self) -> bool:
        """Whether the present line of the node stays as it is."""
        return bool(self.obstacle)

    def format_line(self, name: str, number: int | None) -> str:
        """Return the managed line with the name and the id that the server has in its proxy."""
        member = self.member
        if self.paused and not self.role.drain:
            return format_paused_line(member.name, member.address, self.role.name)
        line = Server(name, self.address, self.port, self.options, self.role.name, number).line
        return drain_line(line) if self.paused else line


class UniformServers(NamedTuple):
    """The servers of one role at one marker, where the lines differ only by name and address."""

    names: Sequence[str]
    """Names of the nodes, in natural order."""
    addresses: Sequence[str]
    endpoints: Sequence[str]
    """ADDRESS:PORT of each."""
    role: str
    port: int
    options: str

    def format_lines(self) -> list[str]:
        """Return the line of each server, unvalidated: to compare with present lines, not to be written."""
        end = format_tail(self.options, self.role)
        return [f"server {name} {where}{end}" for name, where in zip(self.names, self.endpoints, strict=True)]

    def make_server(self, at: int) -> Server:
        """Return the server at index `at`, validated and safe to be written."""
        return Server(self.names[at], self.addresses[at], self.port, self.options, self.role)


class DesiredServers:
    """The desired servers of a whole membership, marker by marker."""

    def __init__(self, roles: Roles, membership: Membership) -> None:
        """Collect the nodes of each role in `roles` that may have lines."""
        self._roles, self._members = roles, as_table(membership.members)
        self._serving = roles.map_pairs_to_roles()
        self.paused = find_paused(membership)
        self.notes: dict[str, None] = {}
        """Notes on nodes that cannot have their line, each once."""
        self.superseded = find_superseded(membership)
        """Failed nodes whose address an alive node has now: the address belongs to another host."""
        columns = self._members.columns
        there: dict[str, dict[str, str]] = {name: {} for name in roles.roles}
        self._nodes_with_several_roles: set[str] = set()
        """The nodes with several roles."""
        for name, address, role, status in zip(*columns[:4], strict=True):
            if role in there and status in PRESENT:
                there[role][name] = address
            elif "," in role and status in PRESENT:
                self._nodes_with_several_roles.add(name)
                for one in roles.find_roles(role):
                    there[one.name][name] = address
        for name, other in self.superseded.items():
            if [nodes for nodes in there.values() if nodes.pop(name, None) is not None]:
                why = f"{other} has its address {self._members[name].address} now"
                self.notes[Note(name, f"node {name} has failed and has no line: ", why)] = None
        self._addresses = {
            name: self._drop_refused_addresses(roles.roles[name], nodes) for name, nodes in there.items()
        }
        """By role: the address of every node that may have lines, in natural order; empty where it is unknown."""

    def find_uniform(self, pair: Pair) -> UniformServers | None:
        """Return the servers for the marker of `pair` where their lines differ only by name and address; else None."""
        roles, service = self._serving[pair], self._roles.services[pair.service]
        if len(roles) != 1:
            return None
        role, options, nodes = roles[0], roles[0].options or service.options, self._addresses[roles[0].name]
        alike = options.same_for_role and service.port.same_for_role and role.address is None
        if not alike or role.remove_failed or len(nodes) > role.max or not self.paused.isdisjoint(nodes):
            return None
        port, text = self._fill_for_role(role, service, options)
        # The same as endpoint(), which takes three times as long when called for each server.
        endpoints = [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in nodes.values()]
        return UniformServers(list(nodes), list(nodes.values()), endpoints, role.name, port, text)

    def find_allowed_address(self, node: str, role: str) -> str | None:
        """Return the address of a node for a role; None where it lacks the role or the address is not allowed."""
        return self._addresses.get(role, {}).get(node) or None

    def explain_kept_line(self, node: str, role: str, address: str) -> str:
        """Return why a node keeps a line whose role it no longer has; empty where it does not.

        `role` and `address` are those of the line. A role tag that is a valid name but unknown to roles.yml is a
        decision. A role tag that is not a valid name is an accident.
        """
        member = self._members.get(node)
        if member is None or not member.present or not member.role or any(map(NAME.fullmatch, role_names(member.role))):
            return ""
        by_tag = role in self._roles.roles and self._roles.roles[role].address is not None
        if address != member.address and not by_tag:
            return ""
        return f"its role {member.role[:40]!r} is not {NAME.pattern}"

    def list_servers(
        self, pair: Pair, known: Callable[[], Collection[str]], name_server: Callable[[str], str] = str
    ) -> list[DesiredServer]:
        """Return the desired servers for the marker of `pair`, in the order of names.

        `known` returns the nodes with lines at the marker. `name_server` returns the name of a node's server in that
        proxy.
        """
        roles = self._serving[pair]
        service = self._roles.services[pair.service]
        by_role = {role.name: self._list_for_role(role, service, name_server) for role in roles}
        if len(roles) > 1 and self._nodes_with_several_roles:
            by_role = self._drop_repeated_nodes(by_role)
        found = [desired for role in roles for desired in self._limit_to_max(role, service, by_role[role.name], known)]
        if any(role.remove_failed for role in roles):
            found = _drop_failed(found)
        return found if len(roles) == 1 else sorted(found, key=lambda desired: natural_key(desired.member.name))

    def _drop_repeated_nodes(self, by_role: dict[str, list[DesiredServer]]) -> dict[str, list[DesiredServer]]:
        """Return the servers with each node once: from the first role of its tag that makes a line."""
        first: dict[str, tuple[bool, int, str]] = {}
        for name, servers in by_role.items():
            for desired in (desired for desired in servers if desired.member.name in self._nodes_with_several_roles):
                place = role_names(desired.member.role).index(name)
                rank = (desired.keeps_line, place, name)
                first[desired.member.name] = min(first.get(desired.member.name, rank), rank)
        return {
            name: [one for one in servers if first.get(one.member.name, (False, 0, name))[2] == name]
            for name, servers in by_role.items()
        }

    def _drop_refused_addresses(self, role: Role, nodes: dict[str, str]) -> dict[str, str]:
        if role.address is not None:
            nodes = {name: self._find_tagged_address(role, self._members[name]) for name in nodes}
        if not role.networks and are_plainly_allowed(nodes.values()):
            return {name: nodes[name] for name in sort_names(nodes)}
        refused = {
            name: why for name, at in nodes.items() if at and (why := explain_refused_address(at, role.networks))
        }
        for name, why in refused.items():
            self.notes[Note(name, f"node {name} of role {role.name} has no line: ", why)] = None
        return {name: nodes[name] for name in sort_names(nodes) if name not in refused}

    @staticmethod
    def _find_tagged_address(role: Role, member: Member) -> str:
        try:
            return role.find_address(member.name, member.address, member.tags or {})
        except MissingTag:
            return ""  # the desired server says why

    def _fill_for_role(self, role: Role, service: Service, options: Template) -> tuple[int, str]:
        values = role.build_values("")  # neither template has a placeholder for a name
        return service.find_port(values, {}), options.fill(values, {})

    def _list_for_role(self, role: Role, service: Service, name_server: Callable[[str], str]) -> list[DesiredServer]:
        return [
            self._make_server(self._members[name], role, service, name_server(name))
            for name in self._addresses[role.name]
        ]

    def _make_server(self, member: Member, role: Role, service: Service, server: str) -> DesiredServer:
        options, paused = role.options or service.options, member.name in self.paused
        values, tags = role.build_values(member.name, server), member.tags or {}
        by_tags = options.needs_tags or service.port.needs_tags or role.address is not None
        if member.tags is None and by_tags:
            return self._make_unmade(member, role, service, UNKNOWN_TAGS)
        try:
            address = role.find_address(member.name, member.address, tags)
            port, text = service.find_port(values, tags), options.fill(values, tags)
        except MissingTag as error:
            return self._make_unmade(member, role, service, str(error))
        return DesiredServer(member, role, format_endpoint(address, port), address, port, text, paused)

    def _make_unmade(self, member: Member, role: Role, service: Service, why: str) -> DesiredServer:
        """Return the desired server of a node whose tags make no line.

        The comment of a paused node needs no tags: it holds only name and address.
        """
        paused, address = member.name in self.paused, self._addresses[role.name][member.name]
        nowhere = f"{member.name} {service.name}"  # an endpoint that no other server has
        return DesiredServer(member, role, nowhere, address, 1, "", paused, "" if paused and not role.drain else why)

    def _limit_to_max(
        self, role: Role, service: Service, servers: list[DesiredServer], there: Callable[[], Collection[str]]
    ) -> list[DesiredServer]:
        if len(servers) <= role.max:
            return servers
        known = there()
        room = role.max - sum(desired.member.name in known for desired in servers)
        allowed = []
        for desired in servers:
            room -= (new := desired.member.name not in known)
            if new and room < 0:
                name = desired.member.name
                why = f"{service.name}: role {role.name} has its {role.max}"
                self.notes[Note(name, f"node {name} has no line for ", why)] = None
            else:
                allowed.append(desired)
        return allowed


def list_serving_ports(roles: Roles, member: Member) -> frozenset[int]:
    """Return the ports on which the services of a node listen, as far as its tags give them."""
    ports = set()
    for role in roles.find_roles(member.role):
        for name in {name for names in role.sections.values() for name in names}:
            with contextlib.suppress(MissingTag):
                ports.add(roles.services[name].find_port(role.build_values(member.name), member.tags or {}))
    return frozenset(ports)


def _drop_failed(servers: list[DesiredServer]) -> list[DesiredServer]:
    # Failed servers are dropped only while at least half are alive: an isolated load balancer keeps all.
    serving = [desired for desired in servers if not desired.paused]
    alive = sum(desired.member.status != FAILED for desired in serving)
    if 2 * alive < len(serving):
        return servers
    return [
        desired
        for desired in servers
        if desired.paused or not (desired.role.remove_failed and desired.member.status == FAILED)
    ]
