"""How events change membership: many events, one new membership, an answer for each query.

Order exists within one clock only. Between clocks, and for what an operator typed, arrival decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbagent.arrivals import members_changed
from lbagent.membership import Membership
from lbagent.orders import commanded
from lbagent.serf.command import Command, Malformed
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
    return Folded(slate.membership, answers, tuple(slate.causes), slate.said)
