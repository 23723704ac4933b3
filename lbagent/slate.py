"""Membership while a batch of events changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbagent.membership import MEMBERS_LIMIT, UNKNOWN, UNKNOWN_LIMIT, Member, Membership
from lbagent.table import Ledger, tabled


class Slate:
    """What the events so far have made of a membership, and what there is to say about it."""

    def __init__(self, membership: Membership) -> None:
        """Nothing has happened yet."""
        self._before = membership
        self.members = Ledger(tabled(membership.members))
        self.clocks = dict(membership.clocks)
        self.missed = dict(membership.missed)
        self.causes: list[str] = []
        """What happened, in words, for the history."""
        self.warnings: list[str] = []
        unknown = [one for one in self.members.special() if one.status == UNKNOWN]
        self._waiting = {key: one.name for one in unknown for key in (one.name.lower(), one.address)}
        self._known = len(membership.members) - len(unknown)
        self._gone: Iterator[str] | None = None
        """Who may make room, looked up when the first has to."""
        self._refused: list[str] = []

    @property
    def membership(self) -> Membership:
        """Membership as it stands now; the very members of before where nothing has changed them."""
        return self._before._replace(members=self.members.table(), clocks=self.clocks, missed=self.missed)

    def happened(self, what: str, names: Sequence[str]) -> None:
        """Enter for the history what happened to these nodes: the first is named, and how many more; or nothing."""
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.causes.append(f"{what} {names[0]}{more}")

    @property
    def said(self) -> tuple[str, ...]:
        """What an operator has to be told."""
        if not self._refused:
            return (*self.warnings,)
        more = f" and {len(self._refused) - 1} more are" if len(self._refused) > 1 else " is"
        words = f"node {self._refused[0]}{more} not enrolled: {MEMBERS_LIMIT} members are known already"
        return (*self.warnings, words)

    @property
    def full_of_unknown(self) -> bool:
        """Whether no more pauses of nodes nobody has seen can be remembered."""
        return len(set(self._waiting.values())) >= UNKNOWN_LIMIT

    def await_(self, member: Member) -> None:
        """Remember a node nobody has seen: under its name in any case, or at its address."""
        self.members.enter(member)
        self._waiting |= {member.name.lower(): member.name, member.address: member.name}

    def awaited(self, name: str, address: str) -> Member | None:
        """What was remembered of a node before anybody saw it; from now on it is remembered no more."""
        known = self._waiting.get(name.lower()) or self._waiting.get(address)
        member = self.members.get(known) if known else None
        if member:
            self._waiting = {key: other for key, other in self._waiting.items() if other != member.name}
            self.members.strike(member.name)
        return member

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
