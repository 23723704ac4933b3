"""Membership: who is there, who is paused, and what has been heard of whom so far.

Pure values. How events change them is in `fold`, which of two commands counts in `pauses`; how they become managed
lines is in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from lbagent.system.tuples import NamedTuple

MEMBERS_LIMIT = 20_000
UNKNOWN_LIMIT = 1_000
"""Pauses remembered for nodes nobody has seen yet."""

REMEMBERED = 24 * 3600
"""Seconds that a node which left, or a pause of an unknown one, is remembered."""

QUARANTINE = 600
"""Seconds after which a refused line is tried again."""

REMOVALS = 3600
"""Seconds for which the safety guard counts a removal that nobody asked for."""

ALIVE, FAILED, LEFT, UNKNOWN = "alive", "failed", "left", "unknown"
LOST = "lost"
"""Not in Serf's list any more, though no leave was heard: its removal was not asked for."""

STATUSES = frozenset({ALIVE, FAILED, LEFT, UNKNOWN, LOST})
PRESENT = (ALIVE, FAILED)
"""May have lines at all."""

PAUSED_TAG = ("lbagent", "paused")


REBUILT = "haproxy.cfg"
"""Who paused a node of which only a managed line still tells."""


class Pause(NamedTuple):
    """Out of balancing until a resume; `until` (epoch seconds) ends it by itself."""

    since: int
    by: str
    reason: str = ""
    until: int | None = None


class Quarantine(NamedTuple):
    """HAProxy refused this node's lines; they stay as they are while `key` is the same."""

    since: int
    reason: str
    key: str


TOLD = "told"
"""In place of a digest: what a load balancer of an older version knows of this LTime, whatever the command was."""


class Said(NamedTuple):
    """One pause or resume of one node: what it asked for, and what was known when it arrived."""

    digest: str
    """Of the event: equal for the same event, whenever and wherever it arrives."""
    pauses: bool
    until: int | None = None
    """When the pause ends or has ended, in epoch seconds; None where it has no end."""
    after: tuple[tuple[str, int], ...] = ()
    """The LTimes that had been heard of this node on the other clocks, in the order of their names."""
    address: str = ""
    """Where the node was then; nothing where that was not known."""
    at: int = 0
    """Arrival, in epoch seconds."""


class LastCommand(NamedTuple):
    """The last that was heard of one node on one clock. What has a lower LTime is a replay."""

    ltime: int
    commands: tuple[Said, ...]
    """Those with this LTime, as a rule one, in the order of their digests."""


class Member(NamedTuple):
    """A node as Serf describes it, with what lbagent remembers of it."""

    name: str
    address: str
    role: str
    tags: Mapping[str, str] | None
    """None while unknown: membership was rebuilt from haproxy.cfg, which does not hold them."""
    status: str
    changed: int
    """Epoch seconds at which the status last changed."""
    pause: Pause | None = None
    """The pause in effect. It follows from `heard`; where that is empty, haproxy.cfg is all that is known."""
    heard: Mapping[str, LastCommand] = MappingProxyType({})
    """The last commands, by clock. They stay when a pause has ended: a replay must not revive it."""
    quarantine: Quarantine | None = None
    elsewhere: tuple[str, ...] = ()
    """Where other load balancers have last seen it: counts only while it is not present."""

    @property
    def present(self) -> bool:
        """Whether it may have lines at all."""
        return self.status in PRESENT

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address at which a pause of it holds."""
        elsewhere = () if self.present else self.elsewhere
        return tuple(dict.fromkeys(one for one in (self.address, *elsewhere) if one))

    @property
    def paused_by_tag(self) -> bool:
        """Whether the node itself says so, on every load balancer at once."""
        # A tag holds as long as its node is there to carry it.
        return self.present and self.tags is not None and self.tags.get(PAUSED_TAG[0]) == PAUSED_TAG[1]


Members = Mapping[str, Member]


class Membership(NamedTuple):
    """All members by name; the highest LTime of each clock; the records folded last."""

    members: Members = MappingProxyType({})
    clocks: Mapping[str, int] = MappingProxyType({})
    folded: frozenset[str] = frozenset()
    missed: Mapping[str, int] = MappingProxyType({})
    """Present members that Serf's list did not hold, and since when (epoch seconds) it does not."""
    removals: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    """By place in haproxy.cfg, the nodes whose lines were removed unasked, and when (epoch seconds)."""
    marks: tuple[tuple[int, int], ...] = ()
    """The last LTimes of user events that were the highest when they arrived, and when (epoch seconds) that was."""
    met: int = 0
    """When (epoch seconds) the other load balancers last told all that they know of pauses; 0 for never."""


# --- table -----------------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """What is known of every member, a list for each field."""

    names: list[str]
    addresses: list[str]
    roles: list[str]
    statuses: list[str]
    changed: list[int]

    def copy(self) -> Columns:
        """The same, to be changed."""
        return Columns(*map(list, self))  # type: ignore[arg-type]  # five lists, of their own kinds

    def put(self, at: int | None, member: Member) -> None:
        """Write a member's fields into row `at`, or (None) into a new one."""
        if at is None:
            at = len(self.names)
            for column in self:
                column.append("")  # type: ignore[arg-type]  # filled at once
        self.names[at], self.addresses[at], self.roles[at] = member.name, member.address, member.role
        self.statuses[at], self.changed[at] = member.status, member.changed


class Table(Mapping[str, Member]):
    """All members, in the order they came."""

    __slots__ = ("_index", "columns", "special")

    def __init__(self, columns: Columns, special: Mapping[str, Member]) -> None:
        """Columns of equal length; `special` holds the members that are more than their columns tell."""
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
        """The number of a member's row; None for one who has none."""
        return self._index.get(name)

    def apply_edits(self, edits: Mapping[str, Member | None]) -> Table:
        """The table with some members changed, added, or (None) gone; itself where there are no edits."""
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
        """The table without some of its members."""
        if gone.isdisjoint(self._index):
            return self
        kept = [at for at, name in enumerate(self.columns.names) if name not in gone]
        columns = Columns(*([column[at] for at in kept] for column in self.columns))  # type: ignore[arg-type]
        return Table(columns, {name: member for name, member in self.special.items() if name not in gone})


class MemberEdits(Mapping[str, Member]):
    """A table with the edits that have been made to it so far."""

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
        """The members of whom more is known than their columns tell, and all that were edited."""
        edited = [member for member in self._edits.values() if member is not None]
        return edited + [member for name, member in self._table.special.items() if name not in self._edits]

    def put(self, member: Member) -> None:
        """Add or change a member."""
        self._edits[member.name] = member

    def remove(self, name: str) -> None:
        """Forget a member."""
        self._edits[name] = None

    def table(self) -> Table:
        """The table with all edits made; the very same one where there were none."""
        return self._table.apply_edits({name: one for name, one in self._edits.items() if one != self._table.get(name)})


def as_table(members: Members) -> Table:
    """The members as a table."""
    if isinstance(members, Table):
        return members
    return Table(Columns([], [], [], [], []), {}).apply_edits(members)


def _is_special(member: Member) -> bool:
    return bool(
        member.tags is None or member.tags or member.pause or member.heard or member.quarantine or member.elsewhere
    )
