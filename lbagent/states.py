"""The state of a node, in one word, and why it is so: what membership, the plan and haproxy.cfg say together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from lbagent.membership import FAILED, REBUILT, UNKNOWN, Member
from lbagent.plan import Change
from lbagent.roles import Role
from lbagent.standing import BY_HAND, Standing
from lbagent.tuples import NamedTuple


class State(StrEnum):
    """How it is with a node. Of several that hold the first one here is told."""

    HELD = "held"
    QUARANTINED = "quarantined"
    PENDING = "pending"
    UNKNOWN = "unknown"
    LEFT = "left"
    BALANCER = "load balancer"
    UNKNOWN_ROLE = "unknown role"
    BY_HAND = "by hand"
    PAUSED = "paused"
    FAILED = "failed"
    IN = "in"
    NO_LINE = "no line"


class Facts(NamedTuple):
    """What is known of one node."""

    name: str
    member: Member | None
    """None where only a line of haproxy.cfg tells of it."""
    roles: Sequence[Role]
    """Those that it has in roles.yml."""
    servers: Sequence[Standing]
    change: Change
    """What the next run does to its lines."""
    notes: Sequence[str]
    """What the plan says of it."""
    pauser: Member | None
    """The member whose pause or tag holds it out: itself, or another one at its address."""
    held: bool
    quarantined: bool
    balancer: bool
    """Whether it is another load balancer."""
    hindrance: str
    """Why nobody knows what would be done to its lines; nothing where that is known."""


def state(facts: Facts) -> State:
    """The state of a node."""
    member = facts.member
    absent = member is not None and not member.present
    holds = {
        State.HELD: facts.held,
        State.QUARANTINED: facts.quarantined,
        State.PENDING: bool(facts.change.added or facts.change.removed),
        State.UNKNOWN: member is not None and member.status == UNKNOWN,
        State.LEFT: absent,
        State.BALANCER: facts.balancer,
        State.UNKNOWN_ROLE: member is not None and not facts.roles,
        State.BY_HAND: bool(facts.servers) and all(one.line == BY_HAND for one in facts.servers),
        State.PAUSED: facts.pauser is not None,
        State.FAILED: member is not None and member.status == FAILED,
        State.IN: bool(facts.servers),
        State.NO_LINE: True,
    }
    return next(one for one in State if holds[one])


def since(found: State, facts: Facts) -> int | None:
    """Since when, in epoch seconds; None where that is not known."""
    member, pauser = facts.member, facts.pauser
    if found is State.QUARANTINED and member and member.quarantine:
        return member.quarantine.since
    if pauser is not None:
        # Of a tag, and of a pause that was read off haproxy.cfg, nobody knows when it began.
        return pauser.pause.since if pauser.pause and pauser.pause.by != REBUILT else None
    return member.changed if member and member.tags is not None else None


def why(found: State, facts: Facts) -> str:
    """Why it is so; nothing where nothing is to be said."""
    said = [*_because(found, facts), *_paused(found, facts), *facts.notes]
    if found is State.BALANCER:
        return "; ".join(said)
    if not said and not facts.servers:
        serves = any(any(role.sections.values()) for role in facts.roles)
        return (facts.hindrance or "haproxy.cfg has no marker of its role") if serves else "its role has no service"
    return "; ".join(said)


def _because(found: State, facts: Facts) -> Iterator[str]:
    member = facts.member
    if found is State.HELD:
        yield "its removal was not asked for"
    elif found is State.QUARANTINED and member and member.quarantine:
        yield member.quarantine.reason
    elif found is State.PENDING:
        yield _to_come(facts.change)
    elif found is State.UNKNOWN_ROLE and member:
        yield f"roles.yml has no role {member.role}" if member.role else "it has no role"
    elif found is State.FAILED and facts.servers:
        yield "its line stays"
    elif found is State.FAILED and any(role.remove_failed for role in facts.roles):
        yield "out, as on_failed says"


def _to_come(change: Change) -> str:
    if change.added and change.removed:
        return "its lines are to change"
    return "its lines are to come" if change.added else "its lines are to go"


def _paused(found: State, facts: Facts) -> Iterator[str]:
    pauser = facts.pauser
    if pauser is None:
        return
    paused = "" if found is State.PAUSED else "paused "
    whose = "" if pauser.name == facts.name else f"as {pauser.name}, "
    if pauser.paused_by_tag:
        yield f"{paused}{whose}by its tag lbagent=paused"
    if pause := pauser.pause:
        yield f"{paused}{whose}by {pause.by}" + (f": {pause.reason}" if pause.reason else "")
