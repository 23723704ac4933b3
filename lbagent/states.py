"""The state of each node, in one word, and why: what membership, the plan and haproxy.cfg say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from lbagent import quarantine
from lbagent.haproxy.text import Document
from lbagent.membership import FAILED, PRESENT, REBUILT, UNKNOWN, Member, Membership, Pause, Quarantine
from lbagent.names import in_order
from lbagent.plan import Change, Plan, Rules, plan
from lbagent.roles import Roles
from lbagent.roll import paused
from lbagent.standing import BY_HAND, Standing, Standings
from lbagent.table import tabled
from lbagent.wishes import Note


class State(StrEnum):
    """How it is with a node. Where several hold, the first in this order is told."""

    HELD = "held"
    QUARANTINED = "quarantined"
    PENDING = "pending"
    UNKNOWN = "unknown"
    LEFT = "left"
    UNKNOWN_ROLE = "unknown role"
    BY_HAND = "by hand"
    PAUSED = "paused"
    FAILED = "failed"
    IN = "in"
    NO_LINE = "no line"


_NONE = Change((), ())


class Prospect(NamedTuple):
    """What the next run would do."""

    plan: Plan
    held: frozenset[str]
    """Nodes of which the guard holds lines."""
    quarantined: frozenset[str]


def foreseen(document: Document, roles: Roles, membership: Membership) -> Prospect:
    """What the next run would do with `document`. Raises Refused where a marker stands twice in one proxy."""
    kept = quarantine.holding(membership, lambda: quarantine.surroundings(document, roles))
    wanted = plan(document, roles, membership, Rules(kept=kept))
    if not wanted.held:
        return Prospect(wanted, frozenset(), kept)
    forced = plan(document, roles, membership, Rules(force=True, kept=kept))
    held = {node for node, change in forced.changes.items() if set(change.removed) - set(_change(wanted, node).removed)}
    return Prospect(wanted, frozenset(held), kept)


class Node(NamedTuple):
    """All that is known of one node."""

    name: str
    address: str | None
    role: str | None
    status: str | None
    """As Serf had it last: alive, failed, left, lost or unknown; None where only a line tells of the node."""
    state: State
    since: int | None
    """Epoch seconds."""
    why: str
    pause: Pause | None
    """What holds it out, be it told of another node at its address; a tag holds it out beside this."""
    paused_by_tag: bool
    quarantine: Quarantine | None
    tags: Mapping[str, str] | None
    change: Change
    servers: Sequence[Standing]


class States:
    """The states of all nodes at one moment."""

    def __init__(self, roles: Roles, membership: Membership, standings: Standings, prospect: Prospect | None) -> None:
        """Without a `prospect` nobody knows what is to change."""
        self._roles, self._standings, self._prospect = roles, standings, prospect
        self._members = tabled(membership.members)
        self._pausing = {one.address: one for one in self._members.special.values() if one.pause or one.paused_by_tag}
        self._paused = paused(membership)
        self._notes: dict[str, list[str]] = {}
        for note in prospect.plan.notes if prospect else ():
            if isinstance(note, Note):
                self._notes.setdefault(note.node, []).append(note.why)

    def nodes(self) -> list[Node]:
        """Every node there is something to say of, in natural order: present, paused, or with a line."""
        columns = self._members.columns
        there = {name for name, status in zip(columns.names, columns.statuses, strict=True) if status in PRESENT}
        waiting = {name for name, member in self._members.special.items() if member.pause}
        changing = self._prospect.plan.changes.keys() if self._prospect else ()
        return [self._node(name) for name in in_order(there | waiting | self._standings.keys() | {*changing})]

    def _node(self, name: str) -> Node:
        member, servers = self._members.get(name), self._standings.get(name, ())
        state = self._state(name, member, servers)
        pauser = self._pauser(name)
        pause, by_tag = (pauser.pause, pauser.paused_by_tag) if pauser else (None, False)
        quarantine = member.quarantine if member and state is State.QUARANTINED else None
        return Node(
            name,
            member.address or None if member else next((one.address for one in servers), None),
            member.role or None if member else None,
            member.status if member else None,
            state,
            _since(state, member, pause, by_tag=by_tag),
            self._why(state, name, member, servers),
            pause,
            by_tag,
            quarantine,
            member.tags if member else None,
            self._change(name),
            servers,
        )

    def _state(self, name: str, member: Member | None, servers: Sequence[Standing]) -> State:
        if prospect := self._prospect:
            for nodes, state in ((prospect.held, State.HELD), (prospect.quarantined, State.QUARANTINED)):
                if name in nodes:
                    return state
            if name in prospect.plan.changes:
                return State.PENDING
        if member is not None and not member.present:
            return State.UNKNOWN if member.status == UNKNOWN else State.LEFT
        if member is not None and member.role not in self._roles.roles:
            return State.UNKNOWN_ROLE
        if servers and all(one.line == BY_HAND for one in servers):
            return State.BY_HAND
        if name in self._paused:
            return State.PAUSED
        if member is not None and member.status == FAILED:
            return State.FAILED
        return State.IN if servers else State.NO_LINE

    def _pauser(self, name: str) -> Member | None:
        """The member whose pause or tag holds the node out: itself, or another at its address."""
        member = self._members.get(name)
        if member is None or name not in self._paused or member.pause or member.paused_by_tag:
            return member
        return self._pausing.get(member.address)

    def _change(self, name: str) -> Change:
        return _change(self._prospect.plan, name) if self._prospect else _NONE

    def _why(self, state: State, name: str, member: Member | None, servers: Sequence[Standing]) -> str:
        said = []
        if state is State.HELD:
            said.append("its removal was not asked for")
        elif state is State.QUARANTINED and member and member.quarantine:
            said.append(member.quarantine.reason)
        elif state is State.PENDING:
            said.append(_to_come(self._change(name)))
        elif state is State.UNKNOWN_ROLE and member:
            said.append(f"roles.yml has no role {member.role}" if member.role else "it has no role")
        elif state is State.FAILED:
            said.append("its line stays" if servers else "out, as on_failed says")
        if name in self._paused:
            said.append(self._pause_words(name))
        said += self._notes.get(name, ())
        return "; ".join(said) or (self._nowhere(member) if state is State.NO_LINE else "")

    def _pause_words(self, name: str) -> str:
        pauser = self._pauser(name)
        if pauser is None:
            return ""
        said = ["by its tag lbagent=paused"] if pauser.paused_by_tag else []
        if pause := pauser.pause:
            said.append(f"by {pause.by}" + (f": {pause.reason}" if pause.reason else ""))
        return ("" if pauser.name == name else f"as {pauser.name}, ") + "; ".join(said)

    def _nowhere(self, member: Member | None) -> str:
        if self._prospect is None:
            return "haproxy.cfg cannot be used"
        role = self._roles.roles.get(member.role) if member else None
        if role and any(role.sections.values()):
            return "no marker of its role in haproxy.cfg"
        return "its role has no service"


def _change(wanted: Plan, node: str) -> Change:
    return wanted.changes.get(node, _NONE)


def _to_come(change: Change) -> str:
    if change.added and change.removed:
        return "its lines are to change"
    return "its lines are to come" if change.added else "its lines are to go"


def _since(state: State, member: Member | None, pause: Pause | None, *, by_tag: bool) -> int | None:
    if member is None:
        return None
    if state is State.QUARANTINED and member.quarantine:
        return member.quarantine.since
    if pause is not None:
        # Read off haproxy.cfg, which does not tell the time.
        return None if pause.by == REBUILT else pause.since
    return None if by_tag or member.tags is None else member.changed
