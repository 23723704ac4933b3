"""Membership while a batch of events changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbagent import pauses
from lbagent.membership import MEMBERS_LIMIT, UNKNOWN, UNKNOWN_LIMIT, Member, Membership
from lbagent.serf.command import USER
from lbagent.table import Ledger, tabled

_MARKS = 16
"""LTimes that are kept with their arrival: they tell how old a replayed user event must be at least."""


class Slate:
    """What the events so far have made of a membership, and what there is to say about it."""

    def __init__(self, membership: Membership) -> None:
        """Nothing has happened yet."""
        self._before = membership
        self.members = Ledger(tabled(membership.members))
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
                self.members.enter(member._replace(heard=heard))
        self.clocks[clock] = 0
        if clock == USER:
            self.marks = ()

    def resume_hosts(self, now: int) -> None:
        """End the pauses that were ended under another name of their host, once commands have changed anything."""
        if self.hosts_changed:
            for member in pauses.resume_hosts(self.members.special()):
                self.members.enter(pauses.settle(member, now, ""))
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
        self.members.enter(member)
        self._waiting |= {key: member.name for key in (member.name.lower(), member.address) if key}
        self.hosts_changed = True

    def awaited(self, name: str, address: str) -> list[Member]:
        """What was remembered of a node before anybody saw it; from now on it is remembered no more."""
        names = dict.fromkeys(self._waiting[key] for key in (name.lower(), address) if key in self._waiting)
        found = [member for known in names if (member := self.members.get(known))]
        for member in found:
            self._waiting = {key: other for key, other in self._waiting.items() if other != member.name}
            self.members.strike(member.name)
        return found

    def enrol(self, member: Member) -> bool:
        """Add a new member, in the room of one that is gone where there is none; False where there is no room."""
        if self._known >= MEMBERS_LIMIT and not self._make_room():
            self._refused.append(member.name)
            return False
        self.members.enter(member)
        self._known += 1
        return True

    def _make_room(self) -> bool:
        if self._gone is None:
            self._gone = iter([name for name, one in self.members.items() if not (one.present or one.pause)])
        for name in self._gone:
            member = self.members.get(name)
            if member is not None and not (member.present or member.pause):
                self.members.strike(name)
                self._known -= 1
                return True
        return False
