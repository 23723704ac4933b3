"""How events change membership: many events, one new membership, an answer for each query.

Order exists within one clock only. Between clocks, and for what an operator typed, arrival decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lbagent import order
from lbagent.membership import (
    ALIVE,
    FAILED,
    LEFT,
    MEMBERS_LIMIT,
    UNKNOWN,
    UNKNOWN_LIMIT,
    Member,
    Membership,
    Pause,
)
from lbagent.names import NAME, canonical_address
from lbagent.roll import find
from lbagent.serf.events import TYPED, Command, Event, Malformed, MemberEvent, MemberLine
from lbagent.serf.raw import Raw
from lbagent.table import Ledger, tabled

_GOES = frozenset({"member-leave", "member-reap"})
_UNKNOWN = {"pause": "unknown node, remembered", "resume": "unknown node"}


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
    folding = _Folding(membership)
    for raw, event in batch:
        if raw.id in membership.folded:
            continue
        now = raw.at // 1000
        if isinstance(event, MemberEvent):
            folding.members_changed(event, now)
        elif isinstance(event, Command):
            folding.answers[raw.id] = folding.command(event, raw, now, serf_clocks)
        elif isinstance(event, Malformed):
            folding.warnings.append(event.why)
            folding.answers[raw.id] = f"refused: {event.why}"
    return folding.result()


class _Folding:
    """Membership while it changes."""

    def __init__(self, membership: Membership) -> None:
        self.before = membership
        self.members = Ledger(tabled(membership.members))
        self.clocks = dict(membership.clocks)
        self.answers: dict[str, str] = {}
        self.causes: list[str] = []
        self.warnings: list[str] = []
        unknown = [one for one in self.members.special() if one.status == UNKNOWN]
        self._waiting = {key: one.name for one in unknown for key in (one.name.lower(), one.address)}
        self._present = len(membership.members) - len(unknown)

    def result(self) -> Folded:
        membership = Membership(self.members.table(), self.clocks, self.before.folded)
        return Folded(membership, self.answers, tuple(self.causes), tuple(self.warnings))

    def members_changed(self, event: MemberEvent, now: int) -> None:
        self.warnings += event.refused
        changed = [line.name for line in event.members if self._member_changed(event.kind, line, now)]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self.causes.append(f"{event.kind} {changed[0]}{more}")

    def _member_changed(self, kind: str, line: MemberLine, now: int) -> bool:
        known = self.members.get(line.name)
        if kind in _GOES:
            if known is None or known.status in (LEFT, UNKNOWN):
                return False
            self.members.enter(known._replace(status=LEFT, changed=now, quarantine=None))
            return True
        status = FAILED if kind == "member-failed" else ALIVE
        if known is None or known.status == UNKNOWN:
            return self._enrol(line, status, now)
        _, address, role, tags = line
        changed = known.changed if known.status == status else now
        fresh = known._replace(address=address, role=role, tags=tags, status=status, changed=changed)
        self.members.enter(fresh)
        return fresh != known

    def _enrol(self, line: MemberLine, status: str, now: int) -> bool:
        if self._present >= MEMBERS_LIMIT and not self._make_room():
            self.warnings.append(f"node {line.name} is not enrolled: {MEMBERS_LIMIT} members are known already")
            return False
        # Paused before anybody knew it: by its name in any case, or by its address.
        name = self._waiting.get(line.name.lower()) or self._waiting.get(line.address)
        waiting = self.members.get(name) if name else None
        if waiting:
            self._waiting = {key: other for key, other in self._waiting.items() if other != waiting.name}
            self.members.strike(waiting.name)
        pause, heard = (waiting.pause, waiting.heard) if waiting else (None, {})
        self.members.enter(Member(line.name, line.address, line.role, line.tags, status, now, pause, heard))
        self._present += 1
        return True

    def _make_room(self) -> bool:
        gone = next((name for name, member in self.members.items() if member.status == LEFT and not member.pause), None)
        if gone is not None:
            self.members.strike(gone)
            self._present -= 1
        return gone is not None

    def command(self, command: Command, raw: Raw, now: int, serf_clocks: Mapping[str, int]) -> str:
        self._tick(command, serf_clocks)
        # Looked up among what stands now, not before the batch: the member-join may be part of it.
        member = find(self.members, command.name, command.address)
        if member is None:
            return self._unknown(command, raw, now)
        answer = self._obey(command, raw, now, member)
        return answer if member.status != UNKNOWN else _UNKNOWN[command.verb]

    def _obey(self, command: Command, raw: Raw, now: int, member: Member) -> str:
        heard = member.heard.get(command.clock)
        obeyed = order.obeyed(command, heard)
        member = member._replace(heard=order.hear(member.heard, command, heard))
        self.members.enter(member)
        if not obeyed:
            return "done"
        self.causes.append(f"{command.verb} {member.name} by {_who(command, raw)}")
        if command.verb == "pause":
            self.members.enter(member._replace(pause=_pause(command, raw, now)))
            return "done"
        self._resume(member)
        return "still paused by its tag" if member.paused_by_tag else "done"

    def _tick(self, command: Command, serf_clocks: Mapping[str, int]) -> None:
        if command.ltime is None:
            return
        highest = self.clocks.get(command.clock, 0)
        if command.ltime <= highest and serf_clocks.get(command.clock, highest + 1) <= highest:
            # A cluster started anew counts from 1 again: what was heard in the old one orders nothing now.
            self.causes.append(f"the {command.clock} clock of Serf started anew")
            highest = 0
            for member in self.members.special():
                heard = {clock: last for clock, last in member.heard.items() if clock != command.clock}
                self.members.enter(member._replace(heard=heard))
        self.clocks[command.clock] = max(highest, command.ltime)

    def _unknown(self, command: Command, raw: Raw, now: int) -> str:
        if command.verb == "resume":
            return _UNKNOWN["resume"]
        if not NAME.fullmatch(command.name):
            self.warnings.append(f"pause: node name {command.name[:80]!r} is not {NAME.pattern}")
            return "refused: not a node name"
        if len(set(self._waiting.values())) >= UNKNOWN_LIMIT:
            self.warnings.append(f"pause of {command.name}: {UNKNOWN_LIMIT} pauses of unknown nodes are remembered")
            return "refused: too many unknown nodes are paused"
        pause = _pause(command, raw, now)
        heard = order.hear({}, command, None)
        # A name that is an address means the host that has it, whatever it will be called.
        address = command.address or canonical_address(command.name) or ""
        self.members.enter(Member(command.name, address, "", None, UNKNOWN, now, pause, heard))
        self._waiting |= {command.name.lower(): command.name, address: command.name}
        self.causes.append(f"pause {command.name} (unknown node) by {_who(command, raw)}")
        return _UNKNOWN["pause"]

    def _resume(self, member: Member) -> None:
        for other in self.members.special():
            if other.pause and (other.name == member.name or (member.address and other.address == member.address)):
                self.members.enter(other._replace(pause=None))


def _pause(command: Command, raw: Raw, now: int) -> Pause:
    return Pause(now, _who(command, raw), command.reason, command.until)


def _who(command: Command, raw: Raw) -> str:
    if command.clock == TYPED:
        return f"operator on {raw.self_name}"
    return "user event" if command.clock == "user" else "query"
