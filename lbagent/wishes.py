"""What roles.yml and membership wish for at one marker, before haproxy.cfg has its say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lbagent.haproxy.server import endpoint
from lbagent.membership import FAILED, Member, Membership
from lbagent.names import natural, refusal
from lbagent.roles import Missing, Pair, Role, Roles, Service


class Wish(NamedTuple):
    """What one node should have at one marker."""

    member: Member
    role: Role
    port: int
    options: str
    paused: bool
    verbatim: bool = False
    """Its tags are not known since membership was rebuilt: the line that stands there is the best knowledge."""

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT."""
        return endpoint(self.member.address, self.port)


class Wishes:
    """The wishes of a whole membership, marker by marker."""

    def __init__(self, roles: Roles, membership: Membership) -> None:
        self._roles = roles
        self.paused = membership.paused()
        self._of_role: dict[str, list[Member]] = {}
        for member in membership.members.values():
            if member.present and member.role in roles.roles:
                self._of_role.setdefault(member.role, []).append(member)
        for members in self._of_role.values():
            members.sort(key=lambda member: natural(member.name))
        self._refused: dict[tuple[str, str], str | None] = {}
        self.notes: dict[str, None] = {}
        """Nodes that cannot have the line they should, and why; said once each."""

    def at(self, pair: Pair, known: Collection[str]) -> list[Wish]:
        """The wishes for the marker of `pair`, in the order of names; `known` nodes have lines there already."""
        roles = self._roles.serving(pair)
        service = self._roles.services[pair.service]
        found = [wish for role in roles for wish in self._of(role, service, known)]
        if any(role.remove_failed for role in roles):
            found = _without_failed(found)
        return found if len(roles) == 1 else sorted(found, key=lambda wish: natural(wish.member.name))

    def _of(self, role: Role, service: Service, known: Collection[str]) -> Iterable[Wish]:
        options = role.options or service.options
        wishes = [
            wish
            for member in self._of_role.get(role.name, ())
            if (wish := self._wish(member, role, service, options.needs_tags or service.port.needs_tags)) is not None
        ]
        return wishes if len(wishes) <= role.max else self._at_most(role, service, wishes, known)

    def _wish(self, member: Member, role: Role, service: Service, needs_tags: bool) -> Wish | None:  # noqa: FBT001
        key = (role.name, member.address)
        if key not in self._refused:
            self._refused[key] = refusal(member.address, role.networks)
        paused = member.name in self.paused
        if why := self._refused[key]:
            self.notes[f"node {member.name} of role {role.name} has no line: {why}"] = None
            return None
        if needs_tags and member.tags is None and paused:
            return Wish(member, role, 0, "", paused)
        if needs_tags and member.tags is None:
            return Wish(member, role, 0, "", paused, verbatim=True)
        options = role.options or service.options
        values: Mapping[str, str] = {"name": member.name, "role": role.name, "interval": role.interval}
        try:
            port = service.port_of(values, member.tags or {})
            return Wish(member, role, port, options.fill(values, member.tags or {}), paused)
        except Missing as error:
            self.notes[f"node {member.name} has no line for {service.name}: {error}"] = None
            return None

    def _at_most(self, role: Role, service: Service, wishes: list[Wish], known: Collection[str]) -> list[Wish]:
        kept = [wish for wish in wishes if wish.member.name in known]
        room = max(0, role.max - len(kept))
        newcomers = [wish for wish in wishes if wish.member.name not in known]
        for wish in newcomers[room:]:
            self.notes[f"node {wish.member.name} has no line for {service.name}: role {role.name} has {role.max}"] = None
        allowed = {wish.member.name for wish in kept + newcomers[:room]}
        return [wish for wish in wishes if wish.member.name in allowed]


def _without_failed(wishes: list[Wish]) -> list[Wish]:
    # Only while at least half of those that should serve do: a load balancer cut off from all keeps all.
    serving = [wish for wish in wishes if not wish.paused]
    alive = sum(wish.member.status != FAILED for wish in serving)
    if 2 * alive < len(serving):
        return wishes
    return [wish for wish in wishes if not (wish.role.remove_failed and wish.member.status == FAILED)]
