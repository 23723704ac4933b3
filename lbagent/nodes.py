"""Every node there is something to say of, and all that is known of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lbagent import states
from lbagent.membership import PRESENT, Member, Membership, Pause, Quarantine
from lbagent.names import in_order
from lbagent.plan import Change
from lbagent.prospect import Prospect
from lbagent.roles import Roles
from lbagent.roll import paused
from lbagent.standing import Standing, Standings
from lbagent.states import Facts, State
from lbagent.table import tabled
from lbagent.tuples import NamedTuple
from lbagent.wishes import Note


class Node(NamedTuple):
    """All that is known of one node."""

    name: str
    address: str | None
    role: str | None
    status: str | None
    """As Serf had it last; None where only a line of haproxy.cfg tells of the node."""
    state: State
    since: int | None
    """Epoch seconds."""
    why: str
    pause: Pause | None
    """The one that holds it out, its own or that of another node at its address; a tag does so beside it."""
    paused_by_tag: bool
    quarantine: Quarantine | None
    tags: Mapping[str, str] | None
    change: Change
    servers: Sequence[Standing]


def nodes(
    roles: Roles,
    membership: Membership,
    standings: Standings,
    prospect: Prospect,
    balancers: Collection[str] = (),
) -> list[Node]:
    """Every node that is present, paused, or has or had a line here, in natural order.

    `balancers` are the other load balancers.
    """
    register = _Register(roles, membership, standings, prospect, balancers)
    return [_node(register.facts(name)) for name in in_order(register.names())]


class _Register:
    """What is known of all nodes, to be looked up node by node."""

    def __init__(
        self,
        roles: Roles,
        membership: Membership,
        standings: Standings,
        prospect: Prospect,
        balancers: Collection[str],
    ) -> None:
        self._balancers = balancers
        self._roles, self._standings, self._prospect = roles, standings, prospect
        self._members = tabled(membership.members)
        self._paused = paused(membership)
        pausing = (one for one in self._members.special.values() if one.pause or one.paused_by_tag)
        self._pausing = {one.address: one for one in pausing}
        self._notes: dict[str, list[str]] = {}
        for note in prospect.notes:
            if isinstance(note, Note):
                self._notes.setdefault(note.node, []).append(note.why)

    def names(self) -> set[str]:
        """Who is present, paused, or has a line."""
        columns = self._members.columns
        there = {name for name, status in zip(columns.names, columns.statuses, strict=True) if status in PRESENT}
        waiting = {name for name, member in self._members.special.items() if member.pause}
        changing = self._prospect.plan.changes if self._prospect.plan else {}
        return {*there, *waiting, *self._standings, *changing}

    def facts(self, name: str) -> Facts:
        """What is known of one node."""
        member, prospect = self._members.get(name), self._prospect
        return Facts(
            name,
            member,
            self._roles.of(member.role) if member else (),
            self._standings.get(name, ()),
            prospect.change(name),
            self._notes.get(name, ()),
            self._pauser(member) if member and name in self._paused else None,
            name in prospect.held,
            name in prospect.quarantined,
            name in self._balancers,
            prospect.hindrance,
        )

    def _pauser(self, member: Member) -> Member:
        return member if member.pause or member.paused_by_tag else self._pausing[member.address]


def _node(facts: Facts) -> Node:
    member, pauser, state = facts.member, facts.pauser, states.state(facts)
    return Node(
        facts.name,
        (member.address if member else next((one.host for one in facts.servers), "")) or None,
        (member.role or None) if member else None,
        member.status if member else None,
        state,
        states.since(state, facts),
        states.why(state, facts),
        pauser.pause if pauser else None,
        pauser is not None and pauser.paused_by_tag,
        member.quarantine if member else None,
        member.tags if member else None,
        facts.change,
        facts.servers,
    )
