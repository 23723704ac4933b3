"""What roles.yml and membership wish for at one marker, before haproxy.cfg has its say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from lbagent.haproxy.server import Server, drain_line, endpoint, paused_line, tail
from lbagent.membership import FAILED, PRESENT, Member, Membership
from lbagent.names import certainly_allowed, in_order, natural, refusal
from lbagent.roles import Missing, Pair, Role, Roles, Service, Template
from lbagent.roll import paused
from lbagent.table import tabled
from lbagent.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self


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


class ByHand(Note):
    """One that says that a line by hand stands in the node's place: no pause takes traffic from that."""

    __slots__ = ()


class Wish(NamedTuple):
    """What one node should have at one marker."""

    member: Member
    role: Role
    endpoint: str
    """ADDRESS:PORT."""
    port: int
    options: str
    paused: bool
    verbatim: bool = False
    """Its tags are not known since membership was rebuilt: the line that stands there is the best knowledge."""

    def line(self, name: str, number: int | None) -> str:
        """The managed line under the name, and with the id, that the server has in its proxy."""
        member = self.member
        if self.paused and not self.role.drain:
            return paused_line(member.name, member.address, self.role.name)
        line = Server(name, member.address, self.port, self.options, self.role.name, number).line
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
        end = tail(self.options, self.role)
        return [f"server {name} {where}{end}" for name, where in zip(self.names, self.endpoints, strict=True)]

    def server(self, at: int) -> Server:
        """One of them, safe to be written."""
        return Server(self.names[at], self.addresses[at], self.port, self.options, self.role)


class Wishes:
    """The wishes of a whole membership, marker by marker."""

    def __init__(self, roles: Roles, membership: Membership) -> None:
        """The wishes that `roles` has for the members that are there."""
        self._roles, self._members = roles, tabled(membership.members)
        self._serving = roles.serving()
        self.paused = paused(membership)
        self.notes: dict[str, None] = {}
        """Nodes that cannot have the line they should, and why; said once each."""
        columns = self._members.columns
        there: dict[str, dict[str, str]] = {name: {} for name in roles.roles}
        for name, address, role, status in zip(*columns[:4], strict=True):
            if role in there and status in PRESENT:
                there[role][name] = address
        self._there = {name: self._allowed(roles.roles[name], nodes) for name, nodes in there.items()}
        """The address of every node that may have lines, in natural order, by role."""

    def crowd(self, pair: Pair) -> Crowd | None:
        """The wishes for the marker of `pair` where nothing is special about any of them."""
        roles, service = self._serving[pair], self._roles.services[pair.service]
        if len(roles) != 1:
            return None
        role, options, nodes = roles[0], roles[0].options or service.options, self._there[roles[0].name]
        alike = options.same_for_role and service.port.same_for_role
        if not alike or role.remove_failed or len(nodes) > role.max or not self.paused.isdisjoint(nodes):
            return None
        port, text = self._same(role, service, options)
        # As endpoint() has it; called for each, that would cost three times as much.
        endpoints = [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in nodes.values()]
        return Crowd(list(nodes), list(nodes.values()), endpoints, role.name, port, text)

    def allowed(self, node: str, role: str) -> str | None:
        """Where a node of that role may be reached; None where it has another role, or may not be where it is."""
        return self._there.get(role, {}).get(node)

    def at(self, pair: Pair, known: Callable[[], Collection[str]]) -> list[Wish]:
        """The wishes for the marker of `pair`, in the order of names; `known` tells the nodes with lines there."""
        roles = self._serving[pair]
        service = self._roles.services[pair.service]
        found = [wish for role in roles for wish in self._of(role, service, known)]
        if any(role.remove_failed for role in roles):
            found = _without_failed(found)
        return found if len(roles) == 1 else sorted(found, key=lambda wish: natural(wish.member.name))

    def _allowed(self, role: Role, nodes: dict[str, str]) -> dict[str, str]:
        if not role.networks and certainly_allowed(nodes.values()):
            return {name: nodes[name] for name in in_order(nodes)}
        refused = {name: why for name, address in nodes.items() if (why := refusal(address, role.networks))}
        for name, why in refused.items():
            self.notes[Note(name, f"node {name} of role {role.name} has no line: ", why)] = None
        return {name: nodes[name] for name in in_order(nodes) if name not in refused}

    def _same(self, role: Role, service: Service, options: Template) -> tuple[int, str]:
        values = role.values("")  # neither has a place for a name
        return service.port_of(values, {}), options.fill(values, {})

    def _of(self, role: Role, service: Service, known: Callable[[], Collection[str]]) -> list[Wish]:
        found = (self._wish(self._members[name], role, service) for name in self._there[role.name])
        wishes = [wish for wish in found if wish is not None]
        return wishes if len(wishes) <= role.max else self._at_most(role, service, wishes, known())

    def _wish(self, member: Member, role: Role, service: Service) -> Wish | None:
        options, paused = role.options or service.options, member.name in self.paused
        if member.tags is None and (options.needs_tags or service.port.needs_tags):
            # The comment of a paused one needs no tags: only its name and address are written.
            verbatim = not paused or role.drain
            return Wish(member, role, f"{member.name} {service.name}", 1, "", paused, verbatim=verbatim)
        values = role.values(member.name)
        try:
            port = service.port_of(values, member.tags or {})
            text = options.fill(values, member.tags or {})
        except Missing as error:
            self.notes[Note(member.name, f"node {member.name} has no line for ", f"{service.name}: {error}")] = None
            return None
        return Wish(member, role, endpoint(member.address, port), port, text, paused)

    def _at_most(self, role: Role, service: Service, wishes: list[Wish], known: Collection[str]) -> list[Wish]:
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


def serving_ports(roles: Roles, member: Member) -> frozenset[int]:
    """The ports at which a node of its role serves, as far as its tags tell."""
    role = roles.roles.get(member.role)
    if role is None:
        return frozenset()
    ports, values = set(), role.values(member.name)
    for name in {name for names in role.sections.values() for name in names}:
        with contextlib.suppress(Missing):
            ports.add(roles.services[name].port_of(values, member.tags or {}))
    return frozenset(ports)


def _without_failed(wishes: list[Wish]) -> list[Wish]:
    # Only while at least half of those that should serve do: a load balancer cut off from all keeps all.
    serving = [wish for wish in wishes if not wish.paused]
    alive = sum(wish.member.status != FAILED for wish in serving)
    if 2 * alive < len(serving):
        return wishes
    return [wish for wish in wishes if wish.paused or not (wish.role.remove_failed and wish.member.status == FAILED)]
