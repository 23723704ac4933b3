"""How events change membership: many events, one new membership, an answer for each query.

Order exists within one clock only. Between clocks, and for what an operator typed, arrival decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lbagent.membership import pauses
from lbagent.membership.lookup import find_member
from lbagent.membership.model import (
    ALIVE,
    FAILED,
    LEFT,
    MEMBERS_LIMIT,
    UNKNOWN,
    UNKNOWN_LIMIT,
    Member,
    MemberEdits,
    Membership,
    Pause,
    Said,
    as_table,
)
from lbagent.names import NAME, canonical_address
from lbagent.serf.events import TYPED, USER, Command, Event, Malformed, MemberEvent, MemberLine, fold_tags_as_stdin
from lbagent.serf.raw_event import RawEvent
from lbagent.system.tuples import NamedTuple

# --- orders ----------------------------------------------------------------------------------------------

DONE = "done"
"""What alone is a confirmation, once HAProxy serves it so."""

NOT_YET = "not applied yet"
"""How an answer begins to a command that is remembered, and tried again; `refused` says that nothing is remembered."""

STILL_PAUSED = "still paused by its tag"
UNKNOWN_NODE = {"pause": "unknown node, remembered", "resume": "unknown node", "forget": "unknown node"}
"""What is answered where nobody has that name."""


def apply_command(slate: MembershipDraft, command: Command, raw: RawEvent, serf_clocks: Mapping[str, int]) -> str:
    """Obey the command, unless it is a replay; returns the answer, `done` where HAProxy still has to confirm it."""
    command = _in_time(slate, command, raw.at // 1000)
    _tick(slate, command, raw.at // 1000, serf_clocks)
    # Looked up among the members of this moment, not of before the batch: the member-join may be part of it.
    member = find_member(slate.members, command.name, command.address)
    if member is None:
        return UNKNOWN_NODE["forget"] if command.verb == "forget" else _unknown(slate, command, raw)
    if command.verb == "forget" and member.status == UNKNOWN and member.pause is None:
        return UNKNOWN_NODE["forget"]
    answer = _obey(slate, command, raw, member)
    # A node nobody has seen can be forgotten, but neither pausing nor resuming it does anything yet.
    return answer if member.status != UNKNOWN or command.verb == "forget" else UNKNOWN_NODE[command.verb]


def _obey(slate: MembershipDraft, command: Command, raw: RawEvent, member: Member) -> str:
    if command.verb == "forget" and member.status == ALIVE and not command.force:
        return f"refused: {member.name} is alive"
    host = [member] if command.verb == "pause" else _host(slate, member)
    clock, ltime = _clock(slate, command, raw)
    said = Said(command.digest, command.verb == "pause", command.until, at=raw.at // 1000)
    news = False
    for one in host:
        heard = pauses.hear(one, clock, ltime, said)
        news = news or (one is member and heard is not one)
        slate.members.put(_settled(heard, command, raw))
    slate.hosts_changed = True
    if not news:
        return DONE
    slate.causes.append(f"{command.verb} {member.name} by {_who(command, raw)}")
    if command.verb == "pause":
        if command.until is not None and command.until <= raw.at // 1000:
            slate.ended.append(member.name)
        return DONE
    if command.verb == "forget":
        _forget(slate, slate.members[member.name], raw.at // 1000)
        return DONE
    return STILL_PAUSED if member.paused_by_tag else DONE


def _settled(member: Member, command: Command, raw: RawEvent) -> Member:
    """The member with the pause that is in effect after this command."""
    lasting = pauses.asked(member.heard)
    if command.verb == "pause" and lasting and command.digest in lasting.digests:
        member = member._replace(pause=_pause(command, raw, member.pause))
    return pauses.settle(member, raw.at // 1000, _who(command, raw))


def _host(slate: MembershipDraft, member: Member) -> list[Member]:
    """The node under every name it has at its address, as far as anything was heard of that name; itself first."""
    others = (one for one in slate.members.special() if one.name != member.name and (one.pause or one.heard))
    return [member, *(one for one in others if member.address and member.address in one.addresses)]


def _clock(slate: MembershipDraft, command: Command, raw: RawEvent) -> tuple[str, int]:
    """The clock that orders the command, and its LTime there.

    Each load balancer has a clock of its own for what is typed on it. It starts from the time of day, so that it goes
    on after the state was lost; it is compared with nothing but itself.
    """
    if command.ltime is not None:
        return command.clock, command.ltime
    clock = f"{TYPED}@{raw.self_name}"
    slate.clocks[clock] = max(raw.at // 1000, slate.clocks.get(clock, 0) + 1)
    return clock, slate.clocks[clock]


def _forget(slate: MembershipDraft, member: Member, now: int) -> None:
    slate.missed.pop(member.name, None)
    if member.status != UNKNOWN:
        # As one that left: its lines go, asked for, and what was heard of it orders what may still come.
        slate.members.put(member._replace(status=LEFT, changed=now, quarantine=None))


def _in_time(slate: MembershipDraft, command: Command, now: int) -> Command:
    """The command, with `for=` counted from when it must have been sent: before a later one was heard."""
    if command.clock != USER or command.lasting is None or command.until is None or command.ltime is None:
        return command
    later = [at for ltime, at in slate.marks if ltime > command.ltime]
    return command._replace(until=min([now, *later]) + command.lasting)


def _tick(slate: MembershipDraft, command: Command, now: int, serf_clocks: Mapping[str, int]) -> None:
    if command.ltime is None:
        return
    highest = slate.clocks.get(command.clock, 0)
    if command.ltime <= highest and serf_clocks.get(command.clock, highest + 1) <= highest:
        # A cluster started anew counts from 1 again: what was heard in the old one orders nothing now.
        slate.causes.append(f"the {command.clock} clock of Serf started anew")
        slate.begin_anew(command.clock)
    slate.tick(command.clock, command.ltime, now)


def _unknown(slate: MembershipDraft, command: Command, raw: RawEvent) -> str:
    """Remember a pause or resume of a node that nobody has seen: the node may join later, or the other command come."""
    # A name that is an address means the host that has it, whatever it will be called.
    address = command.address or canonical_address(command.name) or ""
    if why := _not_remembered(slate, command, address):
        if command.verb == "resume":
            return UNKNOWN_NODE["resume"]
        slate.warnings.append(f"pause of {command.name[:80]!r}: {why}")
        return f"refused: {why}"
    now = raw.at // 1000
    clock, ltime = _clock(slate, command, raw)
    said = Said(command.digest, command.verb == "pause", command.until, at=now)
    member = pauses.hear(Member(command.name, address, "", None, UNKNOWN, now), clock, ltime, said)
    slate.await_(_settled(member, command, raw))
    if command.verb == "pause":
        slate.causes.append(f"pause {command.name} (unknown node) by {_who(command, raw)}")
    return UNKNOWN_NODE[command.verb]


def _not_remembered(slate: MembershipDraft, command: Command, address: str) -> str | None:
    """Why a command for a node nobody knows cannot be remembered."""
    if address and (count := sum(one.address == address and one.present for one in slate.members.values())):
        return f"{count} nodes have the address {address}: name one of them"
    if not NAME.fullmatch(command.name):
        return f"no node has the address {address}" if address else "not a node name"
    full = slate.full_of_unknown(paused=command.verb == "pause")
    return "too many unknown nodes are paused" if full else None


def _pause(command: Command, raw: RawEvent, present: Pause | None) -> Pause:
    if present and (present.reason, present.until) == (command.reason, command.until):
        return present  # the same pause again: it began when it began
    return Pause(raw.at // 1000, _who(command, raw), command.reason, command.until)


def _who(command: Command, raw: RawEvent) -> str:
    if command.clock == TYPED:
        return f"operator on {raw.self_name}"
    way = "user event" if command.clock == "user" else "query"
    return f"operator on {command.by}, by {way}" if command.by else way


# --- updates ----------


# --- slate -----------------------------------------------------------------------------------------------

_MARKS = 16
"""LTimes that are kept with their arrival: they tell how old a replayed user event must be at least."""


class MembershipDraft:
    """What the events so far have made of a membership, and what there is to say about it."""

    def __init__(self, membership: Membership) -> None:
        """Nothing has happened yet."""
        self._before = membership
        self.members = MemberEdits(as_table(membership.members))
        self.clocks = dict(membership.clocks)
        self.missed = dict(membership.missed)
        self.marks = membership.marks
        self.met = membership.met
        self.ended: list[str] = []
        """Nodes whose pause had ended before it arrived."""
        self.hosts_changed = False
        """Whether a command was heard of a node that may have other names at its address."""
        self.causes: list[str] = []
        """What happened, in words, for the history."""
        self.warnings: list[str] = []
        unknown = [one for one in self.members.special() if one.status == UNKNOWN]
        self._waiting = {key: one.name for one in unknown for key in (one.name.lower(), one.address) if key}
        self._known = len(membership.members) - len(unknown)
        self._gone: Iterator[str] | None = None
        """Who may make room, looked up when the first has to."""
        self._refused: list[str] = []

    @property
    def membership(self) -> Membership:
        """Membership as it stands now; the very members of before where nothing has changed them."""
        return self._before._replace(
            members=self.members.table(), clocks=self.clocks, missed=self.missed, marks=self.marks, met=self.met
        )

    def tick(self, clock: str, ltime: int, now: int) -> None:
        """Enter an LTime of `clock` that was heard at `now`, in epoch seconds."""
        self.clocks[clock] = max(self.clocks.get(clock, 0), ltime)
        if clock == USER and (not self.marks or ltime > self.marks[-1][0]):
            self.marks = (*self.marks, (ltime, now))[-_MARKS:]

    def begin_anew(self, clock: str) -> None:
        """Take what was heard on `clock` for older than whatever its new cluster says."""
        for member in self.members.special():
            heard = pauses.begin_anew(member.heard, clock)
            if heard is not member.heard:
                self.members.put(member._replace(heard=heard))
        self.clocks[clock] = 0
        if clock == USER:
            self.marks = ()

    def resume_hosts(self, now: int) -> None:
        """End the pauses that were ended under another name of their host, once commands have changed anything."""
        if self.hosts_changed:
            for member in pauses.resume_hosts(self.members.special()):
                self.members.put(pauses.settle(member, now, ""))
        self.hosts_changed = False

    def happened(self, what: str, names: Sequence[str]) -> None:
        """Enter for the history what happened to these nodes: the first is named, and how many more; or nothing."""
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.causes.append(f"{what} {names[0]}{more}")

    @property
    def said(self) -> tuple[str, ...]:
        """What an operator has to be told."""
        if self.ended:
            more = f" and {len(self.ended) - 1} more" if len(self.ended) > 1 else ""
            words = "it had ended before it arrived; where it was sent just now, compare the clocks of both hosts"
            self.warnings.append(f"pause of {self.ended[0]}{more}: {words}")
            self.ended.clear()
        if not self._refused:
            return (*self.warnings,)
        more = f" and {len(self._refused) - 1} more are" if len(self._refused) > 1 else " is"
        words = f"node {self._refused[0]}{more} not enrolled: {MEMBERS_LIMIT} members are known already"
        return (*self.warnings, words)

    def full_of_unknown(self, *, paused: bool) -> bool:
        """Whether no more nodes that nobody has seen can be remembered, paused ones or resumed ones."""
        waiting = (self.members.get(name) for name in set(self._waiting.values()))
        return sum(one is not None and (one.pause is not None) == paused for one in waiting) >= UNKNOWN_LIMIT

    def await_(self, member: Member) -> None:
        """Remember a node nobody has seen: under its name in any case, or at its address."""
        self.members.put(member)
        self._waiting |= {key: member.name for key in (member.name.lower(), member.address) if key}
        self.hosts_changed = True

    def awaited(self, name: str, address: str) -> list[Member]:
        """What was remembered of a node before anybody saw it; from now on it is remembered no more."""
        names = dict.fromkeys(self._waiting[key] for key in (name.lower(), address) if key in self._waiting)
        found = [member for known in names if (member := self.members.get(known))]
        for member in found:
            self._waiting = {key: other for key, other in self._waiting.items() if other != member.name}
            self.members.remove(member.name)
        return found

    def enrol(self, member: Member) -> bool:
        """Add a new member, in the room of one that is gone where there is none; False where there is no room."""
        if self._known >= MEMBERS_LIMIT and not self._make_room():
            self._refused.append(member.name)
            return False
        self.members.put(member)
        self._known += 1
        return True

    def _make_room(self) -> bool:
        if self._gone is None:
            self._gone = iter([name for name, one in self.members.items() if not (one.present or one.pause)])
        for name in self._gone:
            member = self.members.get(name)
            if member is not None and not (member.present or member.pause):
                self.members.remove(name)
                self._known -= 1
                return True
        return False


# --- updates ----------


# --- arrivals --------------------------------------------------------------------------------------------

_GOES = frozenset({"member-leave", "member-reap"})


def apply_member_event(slate: MembershipDraft, event: MemberEvent, now: int) -> None:
    """Enter every line of the event; `now` in epoch seconds."""
    slate.warnings += event.refused
    slate.happened(event.kind, [line.name for line in event.members if _changed(slate, event, line, now)])


def _changed(slate: MembershipDraft, event: MemberEvent, line: MemberLine, now: int) -> bool:
    known = slate.members.get(line.name)
    slate.missed.pop(line.name, None)
    if event.kind in _GOES:
        if known is None or known.status in (LEFT, UNKNOWN):
            return False
        slate.members.put(known._replace(status=LEFT, changed=now, quarantine=None))
        return True
    status = FAILED if event.kind == "member-failed" else ALIVE
    if known is None or known.status == UNKNOWN:
        return _came(slate, line, status, now)
    changed = known.changed if known.status == status else now
    heard = pauses.place(known.heard, line.address)
    slate.hosts_changed = slate.hosts_changed or heard is not known.heard
    tags = line.tags
    if not event.exact and known.tags and fold_tags_as_stdin(known.tags) == line.tags:
        tags = dict(known.tags)  # the same, known without a doubt since the last sync
    fresh = known._replace(
        address=line.address,
        role=line.role,
        tags=tags,
        status=status,
        changed=changed,
        heard=heard,
        elsewhere=(),
    )
    slate.members.put(fresh)
    return fresh != known


def _came(slate: MembershipDraft, line: MemberLine, status: str, now: int) -> bool:
    member = Member(line.name, line.address, line.role, line.tags, status, now)
    for awaited in slate.awaited(line.name, line.address):
        known = pauses.place(awaited.heard, awaited.address or line.address)
        member = member._replace(pause=member.pause or awaited.pause, heard=pauses.join(member.heard, known))
        slate.hosts_changed = True
    return slate.enrol(pauses.settle(member, now, ""))


# --- updates ----------


class UpdateResult(NamedTuple):
    """What came of a batch."""

    membership: Membership
    answers: Mapping[str, str]
    """By record id: what a query is told, `done` standing for what HAProxy still has to confirm."""
    causes: tuple[str, ...]
    """What happened, in words, for the history."""
    warnings: tuple[str, ...]


def needs_serf_clocks(membership: Membership, events: Iterable[Event]) -> bool:
    """Whether a command is not newer than all heard before: a replay, or a cluster started anew."""
    return any(
        isinstance(event, Command) and event.ltime is not None and event.ltime <= membership.clocks.get(event.clock, 0)
        for event in events
    )


def replayable(membership: Membership, events: Iterable[Event]) -> bool:
    """Whether a user event among them may be a replay that is not known to be one."""
    for event in events:
        if isinstance(event, Command) and event.clock == USER and event.ltime is not None:
            member = find_member(membership.members, event.name, event.address)
            last = member.heard.get(USER) if member else None
            digests = {said.digest for said in last.commands} if last else set()
            if last is None or event.ltime > last.ltime or (event.ltime == last.ltime and event.digest not in digests):
                return True
    return False


def apply_events(
    membership: Membership, batch: Iterable[tuple[RawEvent, Event]], serf_clocks: Mapping[str, int]
) -> UpdateResult:
    """`membership` after `batch`; `serf_clocks` is what the agent says its clocks are, where it was asked."""
    slate = MembershipDraft(membership)
    answers: dict[str, str] = {}
    for raw, event in batch:
        if raw.id in membership.folded:
            continue
        if isinstance(event, MemberEvent):
            apply_member_event(slate, event, raw.at // 1000)
        elif isinstance(event, Command):
            answers[raw.id] = apply_command(slate, event, raw, serf_clocks)
        elif isinstance(event, Malformed):
            slate.warnings.append(event.why)
            answers[raw.id] = f"refused: {event.why}"
        slate.resume_hosts(raw.at // 1000)
    return UpdateResult(slate.membership, answers, tuple(slate.causes), slate.said)
