"""The order of pauses and resumes: which command of a node is in effect, in whatever order they arrive.

A command pauses or resumes one node; `forget` counts as a resume. It arrives on a clock: `user` (user events), `query`
(queries), or `typed@NAME` (typed on the load balancer NAME). Serf numbers user events and queries with two separate
LTimes, so an LTime can be compared only with LTimes of the same clock.

1. On one clock the highest LTime is in effect. A lower or equal one is a replay of Serf and changes nothing.
   At an equal LTime, a pause wins over a resume, and the longest of several pauses wins.
2. Between clocks the arrival decides: a command overrules what had arrived before it on the other clocks. So each
   command keeps their LTimes (`PauseCommand.after`). Where two load balancers received two commands in different
   orders, neither command overrules the other, and a pause wins.
3. A cluster that is started again counts from 1. Its commands overrule all commands of the earlier cluster, whose
   clocks get another name (`@user`, `@query`).

For each node and clock, the commands with the highest LTime are kept (`LastCommands`), also after a pause has ended: a
replay cannot revive it. Merging the knowledge of two load balancers gives the same result in any order and any number
of times, so both agree after each has asked the other.

An example, with the commands for web01 that lb01 receives:

    arrives                      kept for web01                               in effect
    user event pause, LTime 7    user 7: pause                                pause
    query resume, LTime 3        user 7: pause; query 3: resume after user 7  resume, by rule 2
    user event pause, LTime 7    the same, it is a replay                     resume, by rule 1
    user event pause, LTime 8    user 8: pause after query 3; query 3: …      pause, by rule 2

lb02 was down and received only the last one. With `query 3` from lb01 it has the same two commands, and web01 is paused
on both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lbagent.membership.model import (
    LEGACY_DIGEST,
    LastCommands,
    Member,
    Membership,
    Pause,
    PauseCommand,
    find_member,
)
from lbagent.serf.events import TYPED, USER, Command, Event

COMMANDS_LIMIT = 8
"""Commands with the same LTime that are kept for a node. More are never sent by accident."""

ADDRESSES_LIMIT = 4
"""Addresses that are kept for a node."""

CommandsByClock = Mapping[str, LastCommands]
"""The last commands of one node, by clock."""

_MARKS_LIMIT = 16
"""LTimes that are kept with their times of arrival: they give the minimum age of a replayed user event."""

FORMER_CLOCK_PREFIX = "@"
"""Prefix for the name of a clock of an earlier cluster: its clocks stopped when the cluster was started again."""


class RequestedPause(NamedTuple):
    """A pause that the last commands request; `since` and `until` are in epoch seconds."""

    since: int
    until: int | None
    digests: frozenset[str]
    """Digests of the commands that request it."""

    def is_active(self, now: int) -> bool:
        """Return whether the pause has not ended at `now` (epoch seconds)."""
        return self.until is None or self.until > now


class Position(NamedTuple):
    """Where a command is in the order of the commands on one clock."""

    clock: str
    ltime: int


class Clocks:
    """The highest LTime received on each clock, and the times at which the last user events arrived."""

    def __init__(self, highest: Mapping[str, int], marks: tuple[tuple[int, int], ...]) -> None:
        """Start from `Membership.clocks` and `Membership.marks`."""
        self.highest = dict(highest)
        self.marks = marks

    def has_started_over(self, command: Command, serf_clocks: Mapping[str, int]) -> bool:
        """Return whether the command is from a cluster that was started again, and not a replay.

        `serf_clocks` holds the LTimes of the Serf agent by clock; empty where it was not asked. In the same cluster the
        agent's LTime is above every LTime that it has delivered.
        """
        highest, serf_ltime = self.highest.get(command.clock, 0), serf_clocks.get(command.clock)
        return command.ltime is not None and serf_ltime is not None and max(command.ltime, serf_ltime) <= highest

    def restart(self, clock: str) -> None:
        """Forget the LTimes of the earlier cluster."""
        self.highest[clock] = 0
        if clock == USER:
            self.marks = ()

    def record(self, command: Command, now: int) -> None:
        """Record the LTime of a command that arrived at `now` (epoch seconds)."""
        if command.ltime is None:
            return
        self.highest[command.clock] = max(self.highest.get(command.clock, 0), command.ltime)
        if command.clock == USER and (not self.marks or command.ltime > self.marks[-1][0]):
            self.marks = (*self.marks, (command.ltime, now))[-_MARKS_LIMIT:]

    def place(self, command: Command, load_balancer: str, now: int) -> Position:
        """Return the position of a command that is applied at `now` (epoch seconds).

        The commands typed on a load balancer have a clock of their own. It starts from the time in epoch seconds, so
        that it continues after the state was lost, and is compared only with itself.
        """
        if command.ltime is not None:
            return Position(command.clock, command.ltime)
        clock = f"{TYPED}@{load_balancer}"
        self.highest[clock] = max(now, self.highest.get(clock, 0) + 1)
        return Position(clock, self.highest[clock])

    def correct_end(self, command: Command, now: int) -> Command:
        """Return the command with `for=` counted from the latest time at which it can have been sent.

        It was sent before a user event with a higher LTime arrived. Without the correction, a replay would pause the
        node for the same length again.
        """
        if command.clock != USER or command.duration is None or command.until is None or command.ltime is None:
            return command
        later = [at for ltime, at in self.marks if ltime > command.ltime]
        return command._replace(until=min([now, *later]) + command.duration)


def needs_serf_clocks(membership: Membership, events: Iterable[Event]) -> bool:
    """Return whether a command is not newer than all earlier ones: a replay, or a cluster that was started again."""
    return any(
        isinstance(event, Command) and event.ltime is not None and event.ltime <= membership.clocks.get(event.clock, 0)
        for event in events
    )


def may_contain_replay(membership: Membership, events: Iterable[Event]) -> bool:
    """Return whether a user event among `events` may be a replay that membership does not reveal."""
    for event in events:
        if isinstance(event, Command) and event.clock == USER and event.ltime is not None:
            member = find_member(membership.members, event.name, event.address)
            last = member.last_commands.get(USER) if member else None
            digests = {pause_command.digest for pause_command in last.commands} if last else set()
            if last is None or event.ltime > last.ltime or (event.ltime == last.ltime and event.digest not in digests):
                return True
    return False


def find_requested_pause(known: CommandsByClock) -> RequestedPause | None:
    """Return the pause that the last commands request, ended or not; None where they request none.

    A command overrules all commands that were known when it arrived. Among commands without an order, such as those
    with the same LTime, a pause wins, and the longest of several pauses.
    """
    everything = [(clock, one.ltime, command) for clock, one in known.items() for command in one.commands]
    last = [one for one in everything if not any(_overrules(other, one) for other in everything)]
    pauses = [command for _, _, command in last or everything if command.pauses]
    if not pauses:
        return None
    ends = [command.until for command in pauses if command.until is not None]
    until = max(ends) if len(ends) == len(pauses) else None
    return RequestedPause(min(command.at for command in pauses), until, frozenset(command.digest for command in pauses))


def _overrules(one: tuple[str, int, PauseCommand], other: tuple[str, int, PauseCommand]) -> bool:
    (clock, ltime, command), (other_clock, other_ltime, other_command) = one, other
    if clock in (other_clock, f"{FORMER_CLOCK_PREFIX}{other_clock}"):
        return False
    if other_clock == f"{FORMER_CLOCK_PREFIX}{clock}":
        return True  # the later cluster
    return dict(command.after).get(other_clock, 0) >= other_ltime and dict(other_command.after).get(clock, 0) < ltime


def update_pause(member: Member, now: int, by: str) -> Member:
    """Return the member with the pause that its last commands request at `now` (epoch seconds).

    `by` becomes the source of a pause that was not in effect before.
    """
    if not member.last_commands:
        return member
    requested, pause = find_requested_pause(member.last_commands), member.pause
    if requested is None or not requested.is_active(now):
        return member if pause is None else member._replace(pause=None)
    if pause is None:
        return member._replace(pause=Pause(requested.since, by, "", requested.until))
    return member if pause.until == requested.until else member._replace(pause=pause._replace(until=requested.until))


def record_command(member: Member, position: Position, command: PauseCommand) -> Member:
    """Return the member with a command that has arrived here; the same object where the command is a replay.

    `command.after` and `command.address` are set from the member.
    """
    clock, ltime = position
    last = member.last_commands.get(clock)
    after = tuple(sorted((other, one.ltime) for other, one in member.last_commands.items() if other != clock))
    new = LastCommands(ltime, (command._replace(after=after, address=member.address),))
    if last and ltime == last.ltime:
        digests = {one.digest: one for one in last.commands}
        if LEGACY_DIGEST in digests:
            return member
        if same := digests.get(command.digest):  # the earlier end is the better one: `for=` counts from the arrival
            new = LastCommands(ltime, (same._replace(until=_pick_earlier(same.until, command.until)),))
    merged = merge_clock(last, new)
    return member if merged == last else member._replace(last_commands={**member.last_commands, clock: merged})


def merge_commands(one: CommandsByClock, other: CommandsByClock) -> CommandsByClock:
    """Return the last commands of both, merged clock by clock."""
    return {clock: merge_clock(one.get(clock), other.get(clock)) for clock in sorted({*one, *other})}


def merge_clock(one: LastCommands | None, other: LastCommands | None) -> LastCommands:
    """Return the last commands of both on one clock, merged. At most one of them is None."""
    if one is None or other is None:
        found = one or other
        assert found  # noqa: S101  # the caller passes at least one
        return found
    if one.ltime != other.ltime:
        return max(one, other, key=lambda last: last.ltime)
    commands: dict[str, PauseCommand] = {}
    for command in (*one.commands, *other.commands):
        commands[command.digest] = (
            _merge_command(commands[command.digest], command) if command.digest in commands else command
        )
    if len(commands) > 1:
        commands.pop(LEGACY_DIGEST, None)  # the command itself is known now
    kept = sorted(commands.values(), key=lambda command: (not command.pauses, command.digest))[:COMMANDS_LIMIT]
    return LastCommands(one.ltime, tuple(sorted(kept)))


def _merge_command(one: PauseCommand, other: PauseCommand) -> PauseCommand:
    return PauseCommand(
        one.digest,
        one.pauses or other.pauses,
        _pick_earlier(one.until, other.until),
        _merge_after((one, other)),
        max(one.address, other.address),
        min(one.at, other.at),
    )


def _merge_after(commands: Iterable[PauseCommand]) -> tuple[tuple[str, int], ...]:
    after: dict[str, int] = {}
    for clock, ltime in (known for command in commands for known in command.after):
        after[clock] = max(ltime, after.get(clock, 0))
    return tuple(sorted(after.items()))


def _pick_earlier(one: int | None, other: int | None) -> int | None:
    # Both are the same event. Where its end counts from the arrival, the first arrival is nearest to the sending.
    return min((end for end in (one, other) if end is not None), default=None)


def find_last_activity(known: CommandsByClock, now: int) -> int:
    """Return when the last command arrived or its pause ended by `now`, in epoch seconds; 0 where there is none."""
    moments = [command.at for last in known.values() for command in last.commands]
    ends = [
        command.until for last in known.values() for command in last.commands if command.until and command.until <= now
    ]
    return max([0, *moments, *ends])


def merge_addresses(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses of both, sorted and without duplicates; at most ADDRESSES_LIMIT."""
    return tuple(sorted({*one, *other} - {""})[:ADDRESSES_LIMIT])


def fill_addresses(known: CommandsByClock, address: str) -> CommandsByClock:
    """Return the commands with `address` set where the address was not known at the arrival."""
    if not address or all(command.address for last in known.values() for command in last.commands):
        return known
    return {
        clock: last._replace(
            commands=tuple(command._replace(address=command.address or address) for command in last.commands)
        )
        for clock, last in known.items()
    }


def restart_clock(known: CommandsByClock, clock: str) -> CommandsByClock:
    """Return the commands after the cluster of this `clock` was started again.

    The commands on `clock` move to its former clock: they come before all commands of the new cluster.
    """
    if clock not in known:
        return known
    former = f"{FORMER_CLOCK_PREFIX}{clock}"
    base = known[former].ltime if former in known else 0

    def rename_clock(command: PauseCommand) -> PauseCommand:
        after = {former if name == clock else name: base + lt if name == clock else lt for name, lt in command.after}
        return command._replace(after=tuple(sorted(after.items())))

    moved = {former: LastCommands(base + known[clock].ltime, known[clock].commands)}
    kept = {name: last for name, last in known.items() if name not in (clock, former)} | moved
    return {
        name: last._replace(commands=tuple(sorted(rename_clock(command) for command in last.commands)))
        for name, last in kept.items()
    }


def resume_hosts(members: Iterable[Member]) -> Iterator[Member]:
    """Yield the members whose pause was ended by a resume of another name of their host, with that resume.

    A reinstalled host has a new name, and a load balancer may receive the resume under the new name without knowing
    the old name. Names belong to the same host where their commands arrived for the same address, in Lamport order. A
    node that has moved to another address since its pause is another host.
    """
    members = list(members)
    resumed = _find_last_resumes(members)
    commanded_addresses = {
        command.address for one in members for last in one.last_commands.values() for command in last.commands
    } - {""}
    for member in members:
        if member.pause and not member.last_commands:
            # The pause is known from haproxy.cfg only: commands for the same address are more reliable.
            if member.address in commanded_addresses:
                yield member._replace(pause=None)
            continue
        known = dict(member.last_commands)
        for clock, last in member.last_commands.items():
            paused_at = {command.address for command in last.commands if command.pauses}
            keys = [(address, clock) for address in paused_at if address in member.addresses]
            ltime, end = max((resumed[key] for key in keys if key in resumed), default=(0, None))
            if end is not None and ltime > last.ltime:
                # The LTimes of the other name on other clocks do not apply to this name. What the ended commands
                # had overruled stays overruled.
                known[clock] = LastCommands(ltime, (end._replace(after=_merge_after(last.commands)),))
        if known != member.last_commands:
            yield member._replace(last_commands=known)


def _find_last_resumes(members: Iterable[Member]) -> dict[tuple[str, str], tuple[int, PauseCommand]]:
    """Return the last resume by address and clock, each with its LTime."""
    found: dict[tuple[str, str], tuple[int, PauseCommand]] = {}
    for member in members:
        for clock, last in member.last_commands.items():
            if not any(command.pauses for command in last.commands):
                for command in last.commands:
                    key = command.address, clock
                    found[key] = max(found.get(key, (0, command)), (last.ltime, command))
    return found
