"""Membership: all members, their pauses, the last commands received for each, and the member that a name means.

These are pure values. `updates` applies events to them. `pauses` decides which of several commands is in effect.
`planning` makes managed lines of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lbagent.names import canonical_address

MEMBERS_LIMIT = 20_000
UNKNOWN_LIMIT = 1_000
"""Unknown nodes of which a pause, or a resume, is remembered."""

FORGET_AFTER = 24 * 3600
"""Seconds for which a node that left, or the pause of an unknown node, is remembered."""

QUARANTINE_LENGTH = 600
"""Seconds after which a line that HAProxy refused is tried again."""

REMOVALS_WINDOW = 3600
"""Seconds for which the safety guard counts a removal that was not requested."""

ALIVE, FAILED, LEFT, UNKNOWN = "alive", "failed", "left", "unknown"
LOST = "lost"
"""No longer in Serf's list although no leave was received. The removal was not requested."""

STATUSES = frozenset({ALIVE, FAILED, LEFT, UNKNOWN, LOST})
PRESENT = (ALIVE, FAILED)
"""Statuses of a member that may have managed lines."""

PAUSED_TAG = ("lbagent", "paused")
"""Name and value of the Serf tag by which a node pauses itself."""

PAUSED_BY_CONFIG = "haproxy.cfg"
"""`Pause.by` of a pause that is known from haproxy.cfg only."""


class Pause(NamedTuple):
    """A pause in effect since `since`, until a resume or `until`; both in epoch seconds."""

    since: int
    by: str
    reason: str = ""
    until: int | None = None


class Quarantine(NamedTuple):
    """HAProxy refused the lines of this node. They stay as they are while `key` is the same."""

    since: int
    reason: str
    key: str


LEGACY_DIGEST = "told"
"""In place of the digest of a command received from a load balancer of an older version, which sends no digests."""


class PauseCommand(NamedTuple):
    """One pause or resume of one node: what it requests, and what was known when it arrived.

    The names of the fields are the keys in members.json.
    """

    digest: str
    """Digest of the event. It is the same on every load balancer and at every arrival."""
    pauses: bool
    until: int | None = None
    """End of the pause in epoch seconds, past or future; None where it has no end."""
    after: tuple[tuple[str, int], ...] = ()
    """Pairs of clock and LTime: the last commands of this node on the other clocks at the arrival. Sorted by clock."""
    address: str = ""
    """Address of the node at the arrival; empty where it was not known."""
    at: int = 0
    """Time of the arrival in epoch seconds."""


class LastCommands(NamedTuple):
    """The last commands of one node on one clock. A command with a lower LTime is a replay."""

    ltime: int
    commands: tuple[PauseCommand, ...]
    """All commands with this LTime, usually one, sorted by digest."""


class Member(NamedTuple):
    """A node as Serf describes it, and what lbagent remembers of it."""

    name: str
    address: str
    role: str
    tags: Mapping[str, str] | None
    """None where unknown: membership was rebuilt from haproxy.cfg, which holds no tags."""
    status: str
    changed: int
    """Time of the last change of the status, in epoch seconds."""
    pause: Pause | None = None
    """The pause in effect. It follows from `last_commands`; without any, it is known from haproxy.cfg only."""
    last_commands: Mapping[str, LastCommands] = MappingProxyType({})
    """The last commands, by clock. They are kept after a pause has ended, so that a replay cannot revive it."""
    quarantine: Quarantine | None = None
    elsewhere: tuple[str, ...] = ()
    """Addresses at which other load balancers last saw the node. They count only while the node is not present."""

    @property
    def present(self) -> bool:
        """Whether the node may have managed lines."""
        return self.status in PRESENT

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address to which a pause of this node applies."""
        elsewhere = () if self.present else self.elsewhere
        return tuple(dict.fromkeys(one for one in (self.address, *elsewhere) if one))

    @property
    def paused_by_tag(self) -> bool:
        """Whether the node is paused by its own Serf tag."""
        # A tag applies only while its node is present.
        return self.present and self.tags is not None and self.tags.get(PAUSED_TAG[0]) == PAUSED_TAG[1]


Members = Mapping[str, Member]


class Membership(NamedTuple):
    """All members by name, the highest LTime of each clock, and the ids of the events that were applied last."""

    members: Members = MappingProxyType({})
    clocks: Mapping[str, int] = MappingProxyType({})
    applied_events: frozenset[str] = frozenset()
    missed: Mapping[str, int] = MappingProxyType({})
    """Present members that Serf's list lacks, each with the time since when, in epoch seconds."""
    removals: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    """By place in haproxy.cfg: the nodes whose lines were removed without a request, each with the time.

    Times are in epoch seconds.
    """
    marks: tuple[tuple[int, int], ...] = ()
    """Pairs of LTime and time of arrival (epoch seconds) of the last user events that raised the clock."""
    peers_asked_at: int = 0
    """Time (epoch seconds) at which the other load balancers last sent all pauses that they know; 0 for never."""


class Columns(NamedTuple):
    """The fields that every member has, one list per field."""

    names: list[str]
    addresses: list[str]
    roles: list[str]
    statuses: list[str]
    changed: list[int]

    def copy(self) -> Columns:
        """Return a copy that may be changed."""
        return Columns(*map(list, self))  # type: ignore[arg-type]  # five lists of different types

    def put(self, at: int | None, member: Member) -> None:
        """Write the fields of a member into row `at`, or into a new row where `at` is None."""
        if at is None:
            at = len(self.names)
            for column in self:
                column.append("")  # type: ignore[arg-type]  # filled at once
        self.names[at], self.addresses[at], self.roles[at] = member.name, member.address, member.role
        self.statuses[at], self.changed[at] = member.status, member.changed


class Table(Mapping[str, Member]):
    """All members, in the order in which they were added.

    Columns make it fast: 20,000 members are loaded before a run can do anything.
    """

    __slots__ = ("_index", "columns", "special")

    def __init__(self, columns: Columns, special: Mapping[str, Member]) -> None:
        """Columns have equal lengths; `special` holds the members that have more than the fields in `columns`."""
        self.columns, self.special = columns, dict(special)
        self._index = dict(zip(columns.names, range(len(columns.names)), strict=True))

    def __getitem__(self, name: str) -> Member:
        if name in self.special:
            return self.special[name]
        at, columns = self._index[name], self.columns
        return Member(name, columns.addresses[at], columns.roles[at], {}, columns.statuses[at], columns.changed[at])

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def find_row(self, name: str) -> int | None:
        """Return the row number of a member; None where it has no row."""
        return self._index.get(name)

    def apply_edits(self, edits: Mapping[str, Member | None]) -> Table:
        """Return a table with members changed, added, or removed (None); this table where there are no edits."""
        if not edits:
            return self
        kept = self.remove_members({name for name, member in edits.items() if member is None})
        columns = kept.columns.copy()
        special = {name: member for name, member in kept.special.items() if name not in edits}
        for name, member in edits.items():
            if member is not None:
                columns.put(kept.find_row(name), member)
                if _is_special(member):
                    special[name] = member
        return Table(columns, special)

    def remove_members(self, gone: set[str]) -> Table:
        """Return a table without the members named in `gone`; this table where it has none of them."""
        if gone.isdisjoint(self._index):
            return self
        kept = [at for at, name in enumerate(self.columns.names) if name not in gone]
        columns = Columns(*([column[at] for at in kept] for column in self.columns))  # type: ignore[arg-type]
        return Table(columns, {name: member for name, member in self.special.items() if name not in gone})


class MemberEdits(Mapping[str, Member]):
    """A table and the edits made to it so far."""

    def __init__(self, table: Table) -> None:
        """No edits yet."""
        self._table = table
        self._edits: dict[str, Member | None] = {}

    def __getitem__(self, name: str) -> Member:
        member = self._edits[name] if name in self._edits else self._table[name]
        if member is None:
            raise KeyError(name)
        return member

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._table if name not in self._edits)
        yield from (name for name, member in self._edits.items() if member is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def special(self) -> list[Member]:
        """Return the members that have more than the fields in the columns, and all edited members."""
        edited = [member for member in self._edits.values() if member is not None]
        return edited + [member for name, member in self._table.special.items() if name not in self._edits]

    def put(self, member: Member) -> None:
        """Add or replace a member."""
        self._edits[member.name] = member

    def remove(self, name: str) -> None:
        """Remove a member."""
        self._edits[name] = None

    def table(self) -> Table:
        """Return the table with all edits applied; the same object where nothing differs."""
        return self._table.apply_edits({name: one for name, one in self._edits.items() if one != self._table.get(name)})


def as_table(members: Members) -> Table:
    """Return the members as a table; the same object where they are one."""
    if isinstance(members, Table):
        return members
    return Table(Columns([], [], [], [], []), {}).apply_edits(members)


def find_paused(membership: Membership) -> frozenset[str]:
    """Return the names of all paused members.

    A pause applies to the host, not to the name: every member with the address of a paused node is paused.
    """
    table = as_table(membership.members)
    found = [member for member in table.special.values() if member.pause or member.paused_by_tag]
    if not found:
        return frozenset()
    addresses = {address for member in found for address in member.addresses}
    there = {
        name for name, address in zip(table.columns.names, table.columns.addresses, strict=True) if address in addresses
    }
    return frozenset(there | {member.name for member in found})


def find_superseded(membership: Membership) -> dict[str, str]:
    """Return the failed members whose address an alive member has now, each with the name of one such member."""
    names, addresses, _, statuses, _ = as_table(membership.members).columns
    if FAILED not in statuses:
        return {}
    living = {at: name for name, at, status in zip(names, addresses, statuses, strict=True) if status == ALIVE}
    failed = (row for row in zip(names, addresses, statuses, strict=True) if row[2] == FAILED)
    return {name: living[address] for name, address, _ in failed if address in living}


def find_member(members: Members, name: str, address: str | None) -> Member | None:
    """Return the member that `name` means; None where no member or several match.

    An exact match comes first. Then the case is ignored, as Windows changes it. Then the only member at `address`
    matches. A present member comes before those that are gone: a host that was reinstalled under a new name leaves its
    old name behind.
    """
    exact = members.get(name)
    if exact is not None and exact.status != UNKNOWN:
        return exact
    alike = find_members_in_any_case(members, name)
    if len(alike) == 1:
        return alike[0]
    address = address or canonical_address(name)
    there = [member for member in alike or members.values() if address and member.address == address]
    there = [member for member in there if member.present] or there
    return there[0] if len(there) == 1 else exact


def find_members_in_any_case(members: Members, name: str) -> list[Member]:
    """Return the members whose names differ from `name` at most in case: present ones, else listed ones, else all."""
    lower = name.lower()
    alike = [members[known] for known in members if known.lower() == lower]
    present = [member for member in alike if member.present]
    # A member that Serf has listed comes before a name that is known from a command only.
    return present or [member for member in alike if member.status != UNKNOWN] or alike


def _is_special(member: Member) -> bool:
    return bool(
        member.tags is None
        or member.tags
        or member.pause
        or member.last_commands
        or member.quarantine
        or member.elsewhere
    )


def count_statuses(membership: Membership) -> dict[str, int]:
    """Return the number of members by Serf status."""
    column = as_table(membership.members).columns.statuses
    alive = column.count(ALIVE)
    # Usually all are alive, and counting one status is three times faster than counting each.
    return {ALIVE: alive} if alive == len(column) else dict(Counter(column))


def count_quarantined(membership: Membership) -> int:
    """Return the number of nodes whose lines HAProxy refuses."""
    return sum(member.quarantine is not None for member in as_table(membership.members).special.values())


def count_paused(membership: Membership) -> int:
    """Return the number of present members that are paused."""
    return sum(membership.members[name].present for name in find_paused(membership))


def find_pause_starts(membership: Membership) -> dict[str, int]:
    """Return when each pause of a present member began, in epoch seconds; a pause by the tag has no start."""
    special = as_table(membership.members).special.values()
    return {member.name: member.pause.since for member in special if member.pause and member.present}
