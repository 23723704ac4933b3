"""The desired servers: what roles.yml and membership ask for at one marker, before haproxy.cfg is considered.

`decisions` decides which of them get a line, and has the reasons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container, Sequence
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from lbagent.haproxy.server_line import (
    Server,
    drain_line,
    format_endpoint,
    format_paused_line,
    format_server_line,
)
from lbagent.membership.model import FAILED, PRESENT, Member, Membership, as_table, find_paused, find_superseded
from lbagent.names import are_plainly_allowed, explain_refused_address, role_names, sort_names
from lbagent.planning.lines import sort_by_name
from lbagent.roles.model import MissingTag, Pair, Role, Roles, Service

UNKNOWN_TAGS = "its tags are unknown until Serf reports them"
"""The reason after membership was rebuilt from haproxy.cfg, which holds no tags."""


class DesiredServer(NamedTuple):
    """The server that one node should have at one marker."""

    node: str
    role: Role
    address: str
    """Address of the server; empty where the tags of the node give none."""
    endpoint: str
    """ADDRESS:PORT; unique to the node where its tags give none."""
    port: int
    options: str
    paused: bool
    failed: bool
    advertised: str
    """Address of the node that Serf advertises; the comment of a pause holds it."""
    missing_tag: str = ""
    """Why the tags of the node make no line; a line that the node has is kept."""

    def format_line(self, name: str, number: int | None, present: Container[str]) -> str:
        """Return the managed line with the name and the id that the server has in its proxy.

        Its fields are validated, unless the line is in `present`: lines of haproxy.cfg were validated when it was read.
        """
        if self.paused and not self.role.drain:
            return format_paused_line(self.node, self.advertised, self.role.name)
        line = format_server_line(name, self.endpoint, self.options, self.role.name, number)
        if line not in present:
            line = Server(name, self.address, self.port, self.options, self.role.name, number).line
        return drain_line(line) if self.paused else line


_make: Callable[[tuple[str, Role, str, str, int, str, bool, bool, str, str]], DesiredServer]
_make = partial(tuple.__new__, DesiredServer)
"""Constructor of DesiredServer at half the cost: ten thousand of them are normal."""


class MarkerServers(NamedTuple):
    """The desired servers at one marker, and those that the limits of the marker exclude."""

    service: str = ""
    servers: Sequence[DesiredServer] = ()
    """In natural order of the nodes. A node is there twice only where one of its roles does not allow its address."""
    over_limit: frozenset[str] = frozenset()
    """New nodes beyond `max` of their role."""
    removed_as_failed: frozenset[str] = frozenset()
    """Failed nodes that `on_failed: remove` removes."""


class DesiredServers:
    """The desired servers of a whole membership, marker by marker."""

    def __init__(self, roles: Roles, membership: Membership) -> None:
        """Collect the nodes of each role in `roles` that are present."""
        self.roles, self.members = roles, as_table(membership.members)
        self._roles_at = roles.map_pairs_to_roles()
        self.paused = find_paused(membership)
        self.superseded = find_superseded(membership)
        """Failed nodes whose address an alive node has now: the address belongs to another host."""
        columns = self.members.columns
        there: dict[str, dict[str, str]] = {name: {} for name in roles.roles}
        self._nodes_with_several_roles: set[str] = set()
        for name, address, role, status in zip(*columns[:4], strict=True):
            if role in there and status in PRESENT:
                there[role][name] = address
            elif "," in role and status in PRESENT:
                self._nodes_with_several_roles.add(name)
                for one in roles.find_roles(role):
                    there[one.name][name] = address
        states = zip(columns.names, columns.statuses, strict=True)
        self._failed = {name for name, status in states if status == FAILED} if FAILED in columns.statuses else set()
        self._addresses = {name: self._find_addresses(roles.roles[name], nodes) for name, nodes in there.items()}
        """By role: the address of every present node, in natural order; empty where its tags give none."""
        self.refused_addresses = {
            name: _explain_refused_addresses(roles.roles[name], nodes) for name, nodes in self._addresses.items()
        }
        """By role: the nodes whose address the role does not allow, each with the reason."""

    def find_allowed_address(self, node: str, role: str) -> str | None:
        """Return the address of a node for a role; None where it lacks the role or the address is not allowed."""
        if node in self.superseded or node in self.refused_addresses.get(role, ()):
            return None
        return self._addresses.get(role, {}).get(node) or None

    def list_servers(
        self, pair: Pair, list_nodes: Callable[[], Collection[str]], name_server: Callable[[str], str] = str
    ) -> MarkerServers:
        """Return the desired servers for the marker of `pair`.

        `list_nodes` returns the nodes with lines at the marker. `name_server` returns the name of a node's server in
        that proxy.
        """
        roles, service = self._roles_at[pair], self.roles.services[pair.service]
        by_role = {role.name: self._list_for_role(role, service, name_server) for role in roles}
        if len(roles) > 1 and self._nodes_with_several_roles:
            by_role = self._drop_repeated_nodes(by_role)
        over_limit: set[str] = set()
        allowed: list[DesiredServer] = []
        for role in roles:
            servers = by_role[role.name]
            if self.superseded or self.refused_addresses[role.name]:
                servers = [server for server in servers if self._is_allowed(server)]
            over_limit |= _find_over_limit(role, servers, list_nodes)
            allowed += servers
        failed: set[str] = set()
        if any(role.remove_failed for role in roles):
            failed = _find_failed_to_remove([one for one in allowed if one.node not in over_limit])
        found = [server for servers in by_role.values() for server in servers]
        if len(roles) > 1:
            found = sort_by_name(found, attrgetter("node"))
        return MarkerServers(service.name, found, frozenset(over_limit), frozenset(failed))

    def _is_allowed(self, server: DesiredServer) -> bool:
        return server.node not in self.superseded and server.node not in self.refused_addresses[server.role.name]

    def _drop_repeated_nodes(self, by_role: dict[str, list[DesiredServer]]) -> dict[str, list[DesiredServer]]:
        """Return the allowed servers with each node once: from the first role of its tag that makes a line."""
        first: dict[str, tuple[bool, int, str]] = {}
        for name, servers in by_role.items():
            several = (one for one in servers if one.node in self._nodes_with_several_roles and self._is_allowed(one))
            for server in several:
                place = role_names(self.members[server.node].role).index(name)
                rank = (bool(server.missing_tag), place, name)
                first[server.node] = min(first.get(server.node, rank), rank)
        return {
            name: [one for one in servers if first.get(one.node, (name,))[-1] == name or not self._is_allowed(one)]
            for name, servers in by_role.items()
        }

    def _find_addresses(self, role: Role, nodes: dict[str, str]) -> dict[str, str]:
        if role.address is not None:
            nodes = {name: _find_tagged_address(role, self.members[name]) for name in nodes}
        return {name: nodes[name] for name in sort_names(nodes)}

    def _list_for_role(self, role: Role, service: Service, name_server: Callable[[str], str]) -> list[DesiredServer]:
        addresses, options = self._addresses[role.name], role.options or service.options
        if not (options.same_for_role and service.port.same_for_role and role.address is None):
            return [self._make_server(self.members[name], role, service, name_server(name)) for name in addresses]
        values = role.build_values("")  # neither template has a placeholder for a name
        port, text, paused, failed = service.find_port(values, {}), options.fill(values, {}), self.paused, self._failed
        return [
            _make((name, role, at, format_endpoint(at, port), port, text, name in paused, name in failed, at, ""))
            for name, at in addresses.items()
        ]

    def _make_server(self, member: Member, role: Role, service: Service, server: str) -> DesiredServer:
        options, paused = role.options or service.options, member.name in self.paused
        values, tags = role.build_values(member.name, server), member.tags or {}
        failed, by_tags = member.status == FAILED, options.needs_tags or service.port.needs_tags or role.address
        try:
            if member.tags is None and by_tags:
                raise MissingTag(UNKNOWN_TAGS)  # noqa: TRY301  # the same as a tag that is not set
            address = role.find_address(member.name, member.address, tags)
            port, text = service.find_port(values, tags), options.fill(values, tags)
        except MissingTag as error:
            address, nowhere = self._addresses[role.name][member.name], f"{member.name} {service.name}"
            # The comment of a paused node needs no tags: it holds only name and address.
            missing = "" if paused and not role.drain else str(error)
            return DesiredServer(member.name, role, address, nowhere, 1, "", paused, failed, member.address, missing)
        endpoint = format_endpoint(address, port)
        return DesiredServer(member.name, role, address, endpoint, port, text, paused, failed, member.address)


def _find_tagged_address(role: Role, member: Member) -> str:
    try:
        return role.find_address(member.name, member.address, member.tags or {})
    except MissingTag:
        return ""  # the desired server has the reason


def _explain_refused_addresses(role: Role, addresses: dict[str, str]) -> dict[str, str]:
    if not role.networks and are_plainly_allowed(addresses.values()):
        return {}
    found = ((name, at and explain_refused_address(at, role.networks)) for name, at in addresses.items())
    return {name: why for name, why in found if why}


def _find_over_limit(
    role: Role, servers: Sequence[DesiredServer], list_nodes: Callable[[], Collection[str]]
) -> set[str]:
    """Return the nodes beyond `max` of the role. Nodes that have a line stay, and new ones fill the rest."""
    if len(servers) <= role.max:
        return set()
    known = list_nodes()
    new = [server.node for server in servers if server.node not in known]
    return {*new[max(role.max - (len(servers) - len(new)), 0) :]}


def _find_failed_to_remove(servers: Sequence[DesiredServer]) -> set[str]:
    """Return the nodes that `on_failed: remove` removes: none where most have failed, as an isolated load balancer."""
    found = {one.node for one in servers if one.failed and one.role.remove_failed and not one.paused}
    if not found:
        return found
    failures = [server.failed for server in servers if not server.paused]
    return found if 2 * failures.count(False) >= len(failures) else set()


def list_serving_ports(roles: Roles, member: Member) -> frozenset[int]:
    """Return the ports on which the services of a node listen, as far as its tags give them."""
    ports = set()
    for role in roles.find_roles(member.role):
        for name in {name for names in role.sections.values() for name in names}:
            with contextlib.suppress(MissingTag):
                ports.add(roles.services[name].find_port(role.build_values(member.name), member.tags or {}))
    return frozenset(ports)
