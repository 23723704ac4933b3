"""Which pause of a node is in effect, given the last commands on each clock.

Each clock (user events; queries; commands typed on one load balancer) keeps the commands with its highest LTime,
also after a pause has ended. Joining what two load balancers know gives the same result in any order and any number
of times. So load balancers that have exchanged what they know agree, and a replay changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lbagent.membership.model import TOLD, LastCommand, Member, Pause, Said
from lbagent.system.tuples import NamedTuple

COMMANDS_LIMIT = 8
"""Commands with one LTime that are kept for a node: more are not sent by accident."""

ADDRESSES_LIMIT = 4

Known = Mapping[str, LastCommand]
"""The last commands of one node, by clock."""

FORMER = "@"
"""Before the name of a clock that no longer ticks: that of a cluster which has been started anew since."""


class Lasting(NamedTuple):
    """A pause that the last commands ask for."""

    since: int
    until: int | None
    digests: frozenset[str]
    """Of the commands that ask for it."""

    def runs(self, now: int) -> bool:
        """Whether it has not ended at `now`, in epoch seconds."""
        return self.until is None or self.until > now


def asked(known: Known) -> Lasting | None:
    """The pause that the last commands ask for, ended or not; None where they ask for none.

    A command that had been heard when another one arrived is overruled by that. Of commands in no order, as at an
    equal LTime, a pause wins, and of several pauses the longest.
    """
    everything = [(clock, heard.ltime, said) for clock, heard in known.items() for said in heard.commands]
    last = [one for one in everything if not any(_overrules(other, one) for other in everything)]
    pauses = [said for _, _, said in last or everything if said.pauses]
    if not pauses:
        return None
    ends = [said.until for said in pauses if said.until is not None]
    until = max(ends) if len(ends) == len(pauses) else None
    return Lasting(min(said.at for said in pauses), until, frozenset(said.digest for said in pauses))


def _overrules(one: tuple[str, int, Said], other: tuple[str, int, Said]) -> bool:
    (clock, ltime, said), (other_clock, other_ltime, other_said) = one, other
    if clock in (other_clock, f"{FORMER}{other_clock}"):
        return False
    if other_clock == f"{FORMER}{clock}":
        return True  # the cluster that came after
    return dict(said.after).get(other_clock, 0) >= other_ltime and dict(other_said.after).get(clock, 0) < ltime


def settle(member: Member, now: int, by: str) -> Member:
    """The member with the pause that its last commands ask for; `by` is from where an unexpected one is known."""
    if not member.heard:
        return member
    lasting, pause = asked(member.heard), member.pause
    if lasting is None or not lasting.runs(now):
        return member if pause is None else member._replace(pause=None)
    if pause is None:
        return member._replace(pause=Pause(lasting.since, by, "", lasting.until))
    return member if pause.until == lasting.until else member._replace(pause=pause._replace(until=lasting.until))


def hear(member: Member, clock: str, ltime: int, said: Said) -> Member:
    """The member after a command has arrived here; itself where the command is a replay.

    `said.after` and `said.address` are filled in.
    """
    last = member.heard.get(clock)
    after = tuple(sorted((other, heard.ltime) for other, heard in member.heard.items() if other != clock))
    new = LastCommand(ltime, (said._replace(after=after, address=member.address),))
    if last and ltime == last.ltime:
        digests = {one.digest: one for one in last.commands}
        if TOLD in digests:
            return member
        if same := digests.get(said.digest):  # only its end may be known better now: `for=` counts from the arrival
            new = LastCommand(ltime, (same._replace(until=_earlier(same.until, said.until)),))
    heard = join_clock(last, new)
    return member if heard == last else member._replace(heard={**member.heard, clock: heard})


def join(one: Known, other: Known) -> Known:
    """What both know together."""
    return {clock: join_clock(one.get(clock), other.get(clock)) for clock in sorted({*one, *other})}


def join_clock(one: LastCommand | None, other: LastCommand | None) -> LastCommand:
    """What both know together of one clock. At least one of them is given."""
    if one is None or other is None:
        found = one or other
        assert found  # noqa: S101  # the caller has one
        return found
    if one.ltime != other.ltime:
        return max(one, other, key=lambda heard: heard.ltime)
    commands: dict[str, Said] = {}
    for said in (*one.commands, *other.commands):
        commands[said.digest] = _join_said(commands[said.digest], said) if said.digest in commands else said
    if len(commands) > 1:
        commands.pop(TOLD, None)  # what the command really was is known now
    kept = sorted(commands.values(), key=lambda said: (not said.pauses, said.digest))[:COMMANDS_LIMIT]
    return LastCommand(one.ltime, tuple(sorted(kept)))


def _join_said(one: Said, other: Said) -> Said:
    after = dict(one.after)
    for clock, ltime in other.after:
        after[clock] = max(ltime, after.get(clock, 0))
    return Said(
        one.digest,
        one.pauses or other.pauses,
        _earlier(one.until, other.until),
        tuple(sorted(after.items())),
        max(one.address, other.address),
        min(one.at, other.at),
    )


def _earlier(one: int | None, other: int | None) -> int | None:
    # The same event: where its end was counted from the arrival, the first arrival was nearest to when it was sent.
    return min((end for end in (one, other) if end is not None), default=None)


def last_moment(known: Known, now: int) -> int:
    """When the last command arrived or its pause ended, in epoch seconds; 0 where there is none."""
    moments = [said.at for heard in known.values() for said in heard.commands]
    ends = [said.until for heard in known.values() for said in heard.commands if said.until and said.until <= now]
    return max([0, *moments, *ends])


def join_addresses(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """The addresses of both, as far as there is room."""
    return tuple(sorted({*one, *other} - {""})[:ADDRESSES_LIMIT])


def place(known: Known, address: str) -> Known:
    """The same, with the address of a node that was not known when its commands arrived."""
    if not address or all(said.address for heard in known.values() for said in heard.commands):
        return known
    return {
        clock: heard._replace(commands=tuple(said._replace(address=said.address or address) for said in heard.commands))
        for clock, heard in known.items()
    }


def begin_anew(known: Known, clock: str) -> Known:
    """The same, where the cluster of this `clock` has been started anew: it comes before whatever the new one says."""
    if clock not in known:
        return known
    former = f"{FORMER}{clock}"
    base = known[former].ltime if former in known else 0

    def renamed(said: Said) -> Said:
        after = {former if name == clock else name: base + lt if name == clock else lt for name, lt in said.after}
        return said._replace(after=tuple(sorted(after.items())))

    moved = {former: LastCommand(base + known[clock].ltime, known[clock].commands)}
    kept = {name: heard for name, heard in known.items() if name not in (clock, former)} | moved
    return {
        name: heard._replace(commands=tuple(sorted(renamed(said) for said in heard.commands)))
        for name, heard in kept.items()
    }


def resume_hosts(members: Iterable[Member]) -> Iterator[Member]:
    """The members whose pause was ended under another name of their host, with that resume.

    A host that was reinstalled has a new name, and a load balancer may learn of the resume under the new name without
    having known the old one. Names belong together where the commands were heard at one address, in Lamport order.
    """
    members = list(members)
    resumed = _resumed(members)
    heard_at = {said.address for one in members for heard in one.heard.values() for said in heard.commands} - {""}
    for member in members:
        if member.pause and not member.heard:
            # haproxy.cfg alone tells of it: commands that were heard for that address tell more.
            if member.address in heard_at:
                yield member._replace(pause=None)
            continue
        known = dict(member.heard)
        for clock, heard in member.heard.items():
            keys = ((said.address, clock) for said in heard.commands if said.pauses and said.address)
            ltime, end = max((resumed[key] for key in keys if key in resumed), default=(0, None))
            if end is not None and ltime > heard.ltime:
                # What had been heard of the other name on other clocks says nothing of this one.
                known[clock] = LastCommand(ltime, (end._replace(after=()),))
        if known != member.heard:
            yield member._replace(heard=known)


def _resumed(members: Iterable[Member]) -> dict[tuple[str, str], tuple[int, Said]]:
    """The last resume that was heard at each address on each clock, with its LTime."""
    found: dict[tuple[str, str], tuple[int, Said]] = {}
    for member in members:
        for clock, heard in member.heard.items():
            if not any(said.pauses for said in heard.commands):
                for said in heard.commands:
                    key = said.address, clock
                    found[key] = max(found.get(key, (0, said)), (heard.ltime, said))
    return found
