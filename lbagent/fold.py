"""How events change membership: many events, one new membership, an answer for each query.

Order exists within one clock only. Between clocks, and for what an operator typed, arrival decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbagent.arrivals import members_changed
from lbagent.membership import Membership
from lbagent.orders import commanded
from lbagent.roll import find
from lbagent.serf.command import USER, Command, Malformed
from lbagent.serf.events import Event, MemberEvent
from lbagent.serf.raw import Raw
from lbagent.slate import Slate
from lbagent.tuples import NamedTuple


class Folded(NamedTuple):
    """What came of a batch."""

    membership: Membership
    answers: Mapping[str, str]
    """By record id: what a query is told, `done` standing for what HAProxy still has to confirm."""
    causes: tuple[str, ...]
    """What happened, in words, for the history."""
    warnings: tuple[str, ...]


def outdated(membership: Membership, events: Iterable[Event]) -> bool:
    """Whether a command is not newer than all heard before: a replay, or a cluster started anew."""
    return any(
        isinstance(event, Command) and event.ltime is not None and event.ltime <= membership.clocks.get(event.clock, 0)
        for event in events
    )


def replayable(membership: Membership, events: Iterable[Event]) -> bool:
    """Whether a user event among them may be a replay that is not known to be one."""
    for event in events:
        if isinstance(event, Command) and event.clock == USER and event.ltime is not None:
            member = find(membership.members, event.name, event.address)
            last = member.heard.get(USER) if member else None
            digests = {said.digest for said in last.commands} if last else set()
            if last is None or event.ltime > last.ltime or (event.ltime == last.ltime and event.digest not in digests):
                return True
    return False


def fold(membership: Membership, batch: Iterable[tuple[Raw, Event]], serf_clocks: Mapping[str, int]) -> Folded:
    """`membership` after `batch`; `serf_clocks` is what the agent says its clocks are, where it was asked."""
    slate = Slate(membership)
    answers: dict[str, str] = {}
    for raw, event in batch:
        if raw.id in membership.folded:
            continue
        if isinstance(event, MemberEvent):
            members_changed(slate, event, raw.at // 1000)
        elif isinstance(event, Command):
            answers[raw.id] = commanded(slate, event, raw, serf_clocks)
        elif isinstance(event, Malformed):
            slate.warnings.append(event.why)
            answers[raw.id] = f"refused: {event.why}"
        slate.resume_hosts(raw.at // 1000)
    return Folded(slate.membership, answers, tuple(slate.causes), slate.said)
