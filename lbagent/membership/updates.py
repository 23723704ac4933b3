"""Updates of membership by a batch of events, and by Serf's member list: events are hints, and the list is the truth.

A batch gives one new membership and an answer for each query. `pauses` decides the order of commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.membership import pauses
from lbagent.membership.model import (
    ALIVE,
    FAILED,
    FORGET_AFTER,
    LEFT,
    LOST,
    MEMBERS_LIMIT,
    PRESENT,
    QUARANTINE_LENGTH,
    REMOVALS_WINDOW,
    UNKNOWN,
    UNKNOWN_LIMIT,
    Member,
    MemberEdits,
    Membership,
    Pause,
    PauseCommand,
    Table,
    as_table,
    find_member,
    find_members_in_any_case,
)
from lbagent.names import NAME, canonical_address
from lbagent.roles.model import Roles
from lbagent.serf.events import TYPED, Command, Event, Malformed, MemberEvent, MemberLine, fold_tags_as_stdin
from lbagent.serf.member_list import ListedMember, MemberList
from lbagent.serf.raw_event import RawEvent

CONFIRM_AFTER = 30
"""Minimum seconds between two syncs that both lack a node before it is lost. A list may lack nodes during gossip."""

_STATUSES = {"alive": ALIVE, "leaving": ALIVE, "failed": FAILED, "left": LEFT}
"""A node that is leaving serves until Serf lists it as `left`."""

DONE = "done"
"""The only answer that confirms a command: HAProxy is running the new configuration."""

NOT_YET = "not applied yet"
"""First words of the answer to a command that is stored and retried. A command answered `refused` is not stored."""

STILL_PAUSED = "still paused by its tag"

UNKNOWN_NODE = {"pause": "unknown node, remembered", "resume": "unknown node", "forget": "unknown node"}
"""Answers by verb where no node has the name."""

_LEAVE_EVENTS = frozenset({"member-leave", "member-reap"})


def is_confirmation(answer: str) -> bool:
    """Return whether the answer of a load balancer is a confirmation, also one with notes behind it."""
    return answer.partition(",")[0] == DONE


class UpdateResult(NamedTuple):
    """Membership after a batch of events, and what to answer, record and log."""

    membership: Membership
    answers: Mapping[str, str]
    """Answers to queries by record id; `done` still needs HAProxy's confirmation."""
    causes: tuple[str, ...]
    """What happened, one phrase each, for the history."""
    warnings: tuple[str, ...]


def apply_events(
    membership: Membership, batch: Iterable[tuple[RawEvent, Event]], serf_clocks: Mapping[str, int]
) -> UpdateResult:
    """Return `membership` after all events of `batch`, in order.

    `serf_clocks` holds the LTimes of the Serf agent by clock; empty where it was not asked.
    """
    draft = MembershipDraft(membership)
    answers: dict[str, str] = {}
    for raw, event in batch:
        if raw.id in membership.applied_events:
            continue
        if isinstance(event, MemberEvent):
            apply_member_event(draft, event, raw.at // 1000)
        elif isinstance(event, Command):
            answers[raw.id] = apply_command(draft, event, raw, serf_clocks)
        elif isinstance(event, Malformed):
            draft.warnings.append(event.why)
            answers[raw.id] = f"refused: {event.why}"
        draft.resume_hosts(raw.at // 1000)
    return UpdateResult(draft.membership, answers, tuple(draft.causes), draft.all_warnings)


class MembershipDraft:
    """A membership with the events applied so far, and what to log about them."""

    def __init__(self, membership: Membership) -> None:
        """Start from `membership`; no event is applied yet."""
        self._before = membership
        self.members = MemberEdits(as_table(membership.members))
        self.clocks = pauses.Clocks(membership.clocks, membership.marks)
        self.missed = dict(membership.missed)
        self.peers_asked_at = membership.peers_asked_at
        self.expired_pauses: list[str] = []
        """Nodes whose pause had ended before it arrived."""
        self.hosts_changed = False
        """Whether a command arrived for a node that may have other names at its address."""
        self.causes: list[str] = []
        """What happened, one phrase each, for the history."""
        self.warnings: list[str] = []
        unknown = [one for one in self.members.special() if one.status == UNKNOWN]
        self._unknown_names = {key: one.name for one in unknown for key in (one.name.lower(), one.address) if key}
        self._known_count = len(membership.members) - len(unknown)
        self._replaceable: Iterator[str] | None = None
        """Names of members that were not tried yet when room was needed; listed when the first is needed."""
        self._rejected: list[str] = []

    @property
    def membership(self) -> Membership:
        """Membership with all events applied so far. `members` is the same object where no member has changed."""
        return self._before._replace(
            members=self.members.table(),
            clocks=self.clocks.highest,
            missed=self.missed,
            marks=self.clocks.marks,
            peers_asked_at=self.peers_asked_at,
        )

    def restart_clock(self, clock: str) -> None:
        """Make all commands on `clock` older than every command of the new cluster."""
        self.causes.append(f"new Serf cluster: its {clock} clock starts over")
        for member in self.members.special():
            commands = pauses.restart_clock(member.last_commands, clock)
            if commands is not member.last_commands:
                self.members.put(member._replace(last_commands=commands))
        self.clocks.restart(clock)

    def resume_hosts(self, now: int) -> None:
        """End the pauses that a resume of another name of their host has ended; nothing without new commands.

        `now` is in epoch seconds.
        """
        if self.hosts_changed:
            for member in pauses.resume_hosts(self.members.special()):
                self.members.put(pauses.update_pause(member, now, ""))
        self.hosts_changed = False

    def add_cause(self, what: str, names: Sequence[str]) -> None:
        """Add to the causes what happened to these nodes: the first name and the number of further nodes.

        Adds nothing where `names` is empty.
        """
        if names:
            self.causes.append(f"{what} {_format_names(names)}")

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """All warnings to log, in full sentences."""
        found = [*self.warnings]
        if self.expired_pauses:
            words = "it ended before it arrived; if it was sent just now, compare the clocks of both hosts"
            found.append(f"pause of {_format_names(self.expired_pauses)}: {words}")
        if self._rejected:
            words = (
                f"not added, as {MEMBERS_LIMIT} members are known; run `lbagent forget` for nodes that no longer exist"
            )
            found.append(f"node {_format_names(self._rejected)}: {words}")
        return tuple(found)

    def is_full_of_unknown(self, *, paused: bool) -> bool:
        """Return whether no more unknown nodes can be remembered: paused ones, or resumed ones."""
        waiting = (self.members.get(name) for name in set(self._unknown_names.values()))
        return sum(one is not None and (one.pause is not None) == paused for one in waiting) >= UNKNOWN_LIMIT

    def remember_unknown(self, member: Member) -> None:
        """Remember an unknown node, to be found by its name in any case or by its address."""
        self.members.put(member)
        self._unknown_names |= {key: member.name for key in (member.name.lower(), member.address) if key}
        self.hosts_changed = True

    def take_unknown(self, name: str, address: str) -> list[Member]:
        """Remove and return what was remembered of an unknown node with this name or address."""
        names = dict.fromkeys(self._unknown_names[key] for key in (name.lower(), address) if key in self._unknown_names)
        found = [member for known in names if (member := self.members.get(known))]
        for member in found:
            self._unknown_names = {key: other for key, other in self._unknown_names.items() if other != member.name}
            self.members.remove(member.name)
        return found

    def add_member(self, member: Member) -> bool:
        """Add a new member. A member that is gone makes room where the limit is reached; False where none can."""
        if self._known_count < MEMBERS_LIMIT:
            self._known_count += 1
        elif not self._make_room():
            self._rejected.append(member.name)
            return False
        self.members.put(member)
        return True

    def _make_room(self) -> bool:
        if self._replaceable is None:
            self._replaceable = iter([*self.members])
        for name in self._replaceable:
            member = self.members.get(name)
            if member is not None and not (member.present or member.pause):
                self.members.remove(name)
                return True
        return False


def apply_member_event(draft: MembershipDraft, event: MemberEvent, now: int) -> None:
    """Apply every line of the event; `now` is in epoch seconds."""
    draft.warnings += event.refused
    draft.add_cause(event.kind, [line.name for line in event.members if _apply_member_line(draft, event, line, now)])


def _apply_member_line(draft: MembershipDraft, event: MemberEvent, line: MemberLine, now: int) -> bool:
    known = draft.members.get(line.name)
    draft.missed.pop(line.name, None)
    if event.kind in _LEAVE_EVENTS:
        if known is None or known.status in (LEFT, UNKNOWN):
            return False
        draft.members.put(known._replace(status=LEFT, changed=now, quarantine=None))
        return True
    status = FAILED if event.kind == "member-failed" else ALIVE
    if known is None or known.status == UNKNOWN:
        return _add_member(draft, line, status, now)
    changed = known.changed if known.status == status else now
    commands = pauses.fill_addresses(known.last_commands, line.address)
    draft.hosts_changed = draft.hosts_changed or line.address != known.address
    tags = line.tags
    if not event.exact and known.tags and fold_tags_as_stdin(known.tags) == line.tags:
        tags = dict(known.tags)  # equal as stdin shows them: keep the exact tags of the last sync
    fresh = known._replace(
        address=line.address,
        role=line.role,
        tags=tags,
        status=status,
        changed=changed,
        last_commands=commands,
        elsewhere=(),
    )
    draft.members.put(fresh)
    return fresh != known


def _add_member(draft: MembershipDraft, line: MemberLine, status: str, now: int) -> bool:
    member = Member(line.name, line.address, line.role, line.tags, status, now)
    for unknown in draft.take_unknown(line.name, line.address):
        known = pauses.fill_addresses(unknown.last_commands, line.address)
        member = member._replace(
            pause=member.pause or unknown.pause, last_commands=pauses.merge_commands(member.last_commands, known)
        )
        draft.hosts_changed = True
    return draft.add_member(pauses.update_pause(member, now, ""))


def apply_command(draft: MembershipDraft, command: Command, raw: RawEvent, serf_clocks: Mapping[str, int]) -> str:
    """Apply the command unless it is a replay. Returns the answer; `done` still needs HAProxy's confirmation.

    `serf_clocks` holds the LTimes of the Serf agent by clock; empty where it was not asked.
    """
    now = raw.at // 1000
    command = draft.clocks.correct_end(command, now)
    if draft.clocks.has_started_over(command, serf_clocks):
        draft.restart_clock(command.clock)
    draft.clocks.record(command, now)
    # Search the draft: the member-join may be part of the same batch.
    member = find_member(draft.members, command.name, command.address)
    if member is None:
        if why := _explain_ambiguous(draft, command):
            return _refuse(draft, command, why)
        return UNKNOWN_NODE["forget"] if command.verb == "forget" else _remember_unknown(draft, command, raw)
    if command.verb == "forget" and member.status == UNKNOWN and member.pause is None:
        return UNKNOWN_NODE["forget"]
    answer = _apply_to_host(draft, command, raw, member)
    # An unknown node can be forgotten. Pausing or resuming it has no effect yet.
    return answer if member.status != UNKNOWN or command.verb == "forget" else UNKNOWN_NODE[command.verb]


def _apply_to_host(draft: MembershipDraft, command: Command, raw: RawEvent, member: Member) -> str:
    if command.verb == "forget" and member.status == ALIVE and not command.force:
        return f"refused: {member.name} is alive"
    host = [member] if command.verb == "pause" else _list_names_of_host(draft, member)
    position = draft.clocks.place(command, raw.self_name, raw.at // 1000)
    pause_command = PauseCommand(command.digest, command.verb == "pause", command.until, at=raw.at // 1000)
    news = False
    for one in host:
        updated = pauses.record_command(one, position, pause_command)
        news = news or (one is member and updated is not one)
        draft.members.put(_update_pause(updated, command, raw))
    draft.hosts_changed = True
    if not news:
        return DONE
    draft.causes.append(f"{command.verb} {member.name} by {_describe_sender(command, raw)}")
    if command.verb == "pause":
        if command.until is not None and command.until <= raw.at // 1000:
            draft.expired_pauses.append(member.name)
        return DONE
    if command.verb == "forget":
        _forget(draft, draft.members[member.name], raw.at // 1000)
        return DONE
    return STILL_PAUSED if member.paused_by_tag else DONE


def _update_pause(member: Member, command: Command, raw: RawEvent) -> Member:
    """Return the member with the pause that is in effect after this command."""
    requested = pauses.find_requested_pause(member.last_commands)
    if command.verb == "pause" and requested and command.digest in requested.digests:
        member = member._replace(pause=_make_pause(command, raw, member.pause))
    return pauses.update_pause(member, raw.at // 1000, _describe_sender(command, raw))


def _list_names_of_host(draft: MembershipDraft, member: Member) -> list[Member]:
    """Return the member, and all other members at its address that have a pause or commands."""
    others = (one for one in draft.members.special() if one.name != member.name and (one.pause or one.last_commands))
    return [member, *(one for one in others if member.address and member.address in one.addresses)]


def _forget(draft: MembershipDraft, member: Member, now: int) -> None:
    draft.missed.pop(member.name, None)
    if member.status != UNKNOWN:
        # The node counts as one that left: the removal of its lines is requested. Its commands still order later ones.
        draft.members.put(member._replace(status=LEFT, changed=now, quarantine=None))


def _remember_unknown(draft: MembershipDraft, command: Command, raw: RawEvent) -> str:
    """Remember a pause or resume of an unknown node: the node may join later, or the opposite command may arrive.

    Returns the answer.
    """
    # A name that is an address means the host with that address, whatever its name will be.
    address = command.address or canonical_address(command.name) or ""
    if why := _explain_not_remembered(draft, command, address):
        return UNKNOWN_NODE["resume"] if command.verb == "resume" else _refuse(draft, command, why)
    now = raw.at // 1000
    position = draft.clocks.place(command, raw.self_name, now)
    pause_command = PauseCommand(command.digest, command.verb == "pause", command.until, at=now)
    member = pauses.record_command(Member(command.name, address, "", None, UNKNOWN, now), position, pause_command)
    draft.remember_unknown(_update_pause(member, command, raw))
    if command.verb == "pause":
        draft.causes.append(f"pause {command.name} (unknown node) by {_describe_sender(command, raw)}")
    return UNKNOWN_NODE[command.verb]


def _refuse(draft: MembershipDraft, command: Command, why: str) -> str:
    draft.warnings.append(f"{command.verb} of {command.name[:80]!r}: {why}")
    return f"refused: {why}"


def _explain_ambiguous(draft: MembershipDraft, command: Command) -> str | None:
    """Return which members the command may mean; None where it means none."""
    alike = [one.name for one in find_members_in_any_case(draft.members, command.name) if one.status != UNKNOWN]
    if alike:
        names = f"{', '.join(sorted(alike)[:3])}{', …' if len(alike) > 3 else ''}"  # noqa: PLR2004
        return f"{len(alike)} nodes have this name in another case: {names}; use the exact name"
    address = command.address or canonical_address(command.name)
    count = sum(one.address == address and one.present for one in draft.members.values()) if address else 0
    return f"{count} nodes have the address {address}; use the name of one of them" if count else None


def _explain_not_remembered(draft: MembershipDraft, command: Command, address: str) -> str | None:
    """Return why a command for an unknown node cannot be remembered; None where it can."""
    if not NAME.fullmatch(command.name):
        return f"no node has the address {address}" if address else "invalid node name"
    full = draft.is_full_of_unknown(paused=command.verb == "pause")
    return "too many unknown nodes are paused" if full else None


def _format_names(names: Sequence[str]) -> str:
    """Return the first name and the number of further names, such as `web01 and 2 more`."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _make_pause(command: Command, raw: RawEvent, present: Pause | None) -> Pause:
    if present and (present.reason, present.until) == (command.reason, command.until):
        return present  # the same pause again: keep its begin
    return Pause(raw.at // 1000, _describe_sender(command, raw), command.reason, command.until)


def _describe_sender(command: Command, raw: RawEvent) -> str:
    if command.clock == TYPED:
        return f"operator on {raw.self_name}"
    way = "user event" if command.clock == "user" else "query"
    user, _, name = command.by.rpartition("@")
    return f"{user or 'operator'} on {name}, by {way}" if name else way


def drop_expired(membership: Membership, now: int) -> Membership:
    """Return `membership` without the pauses, quarantines, members and removals that have expired at `now`.

    `now` is in epoch seconds.
    """
    table = as_table(membership.members)
    edits: dict[str, Member | None] = {}
    absent = [
        name for name, status in zip(table.columns.names, table.columns.statuses, strict=True) if status not in PRESENT
    ]
    for name in {*absent, *table.special}:
        member = table[name]
        current = None if _is_forgettable(member, now) else _drop_expired_of(member, now)
        if current != member:
            edits[name] = current
    return membership._replace(members=table.apply_edits(edits), removals=_drop_old_removals(membership.removals, now))


def _drop_old_removals(removals: Mapping[str, Mapping[str, int]], now: int) -> Mapping[str, Mapping[str, int]]:
    # A removal in the future was recorded while the clock was ahead: drop it too.
    kept = {
        where: {node: at for node, at in nodes.items() if 0 <= now - at < REMOVALS_WINDOW}
        for where, nodes in removals.items()
    }
    return {where: nodes for where, nodes in kept.items() if nodes}


def _is_forgettable(member: Member, now: int) -> bool:
    # A node that is gone is kept for as long as Serf may replay its commands.
    if member.present or max(member.changed, pauses.find_last_activity(member.last_commands, now)) + FORGET_AFTER > now:
        return member.status == UNKNOWN and member.pause is None and not member.last_commands
    # The pause of a node that left is kept until the node returns. The pause of an unknown node is not.
    return member.status == UNKNOWN or member.pause is None


def _drop_expired_of(member: Member, now: int) -> Member:
    pause, quarantine = member.pause, member.quarantine
    if pause and pause.until is not None and pause.until <= now:
        pause = None
    if quarantine and not quarantine.since <= now < quarantine.since + QUARANTINE_LENGTH:
        quarantine = None
    if pause is member.pause and quarantine is member.quarantine:
        return member
    return member._replace(pause=pause, quarantine=quarantine)


def lists_no_known_role(listing: MemberList, myself: str, roles: Roles) -> bool:
    """Return whether the list has no node of a role that serves. An agent that has just started lists only itself."""
    others = (one for one in listing.members if one.name != myself)
    return not any(role.has_services for one in others for role in roles.find_roles(one.role))


def has_no_serving_member(membership: Membership, roles: Roles) -> bool:
    """Return whether no present member has a role that serves, as on a load balancer of a new cluster."""
    serving = {name for name, role in roles.roles.items() if role.has_services}
    columns = as_table(membership.members).columns
    return not any(
        role in serving and status in PRESENT for role, status in zip(columns.roles, columns.statuses, strict=True)
    )


def merge_member_list(
    membership: Membership, listing: MemberList, myself: str, now: int, *, force: bool
) -> UpdateResult:
    """Return `membership` with the list that the load balancer `myself` read at `now` (epoch seconds).

    A present member that is not in the list is lost when a list at least CONFIRM_AFTER seconds earlier lacked it too,
    or with `force`.
    """
    draft = MembershipDraft(membership)
    table = as_table(membership.members)
    others = [one for one in listing.members if one.name != myself and not _is_as_known(table, one)]
    for kind, lines in _build_event_lines(draft, others).items():
        apply_member_event(draft, MemberEvent(kind, tuple(lines), (), exact=True), now)
    draft.add_cause("no longer listed by Serf:", _mark_lost(draft, listing, now, force=force))
    causes = tuple(f"sync: {cause}" for cause in draft.causes)
    return UpdateResult(draft.membership, {}, causes, draft.all_warnings)


def _is_as_known(table: Table, one: ListedMember) -> bool:
    """Return whether an alive member is known as it is listed, so that an event would change nothing.

    Ten thousand of them are normal.
    """
    row, columns = table.find_row(one.name), table.columns
    if row is None or (one.status, columns.statuses[row]) != ("alive", ALIVE):
        return False
    if (one.address, one.role) != (columns.addresses[row], columns.roles[row]):
        return False
    known = table.special.get(one.name)
    return known.tags == one.tags and not (known.last_commands or known.elsewhere) if known else not one.tags


def _build_event_lines(draft: MembershipDraft, listed: list[ListedMember]) -> dict[str, list[MemberLine]]:
    """Return the listed members by the kind of event that would have reported them."""
    lines: dict[str, list[MemberLine]] = {
        "member-leave": [],
        "member-failed": [],
        "member-join": [],
        "member-update": [],
    }
    for one in listed:
        known, status = draft.members.get(one.name), _STATUSES.get(one.status)
        line = MemberLine(one.name, one.address, one.role, dict(one.tags))
        if status == LEFT:
            lines["member-leave"].append(line)
        elif status == FAILED and (known is None or known.status != LEFT):
            # A node that left, or was forgotten, does not return by failing.
            lines["member-failed"].append(line)
        elif status == ALIVE:
            lines["member-update" if known and known.present else "member-join"].append(line)
    return lines


def _mark_lost(draft: MembershipDraft, listing: MemberList, now: int, *, force: bool) -> list[str]:
    """Mark the members as lost that were missing for long enough. Returns their names."""
    members = as_table(draft.membership.members)
    present = (
        name for name, status in zip(members.columns.names, members.columns.statuses, strict=True) if status in PRESENT
    )
    missed = {name: min(draft.missed.get(name, now), now) for name in present if name not in listing.names}
    gone = [name for name, since in missed.items() if force or since + CONFIRM_AFTER <= now]
    for name in gone:
        draft.members.put(members[name]._replace(status=LOST, changed=now))
    draft.missed = {name: since for name, since in missed.items() if name not in gone}
    return gone
