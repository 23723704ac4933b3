"""Members as a table: columns for the thousands of whom nothing special is known, objects for the few.

A mapping from name to Member like any other; what walks over all of 20,000 members walks over columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lbagent.membership import Member, Members
from lbagent.tuples import NamedTuple


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

    def row(self, name: str) -> int | None:
        """The number of a member's row; None for one who has none."""
        return self._index.get(name)

    def edited(self, edits: Mapping[str, Member | None]) -> Table:
        """The table with some members changed, added, or (None) gone; itself where there are no edits."""
        if not edits:
            return self
        kept = self.without({name for name, member in edits.items() if member is None})
        columns = kept.columns.copy()
        special = {name: member for name, member in kept.special.items() if name not in edits}
        for name, member in edits.items():
            if member is not None:
                columns.put(kept.row(name), member)
                if _is_special(member):
                    special[name] = member
        return Table(columns, special)

    def without(self, gone: set[str]) -> Table:
        """The table without some of its members."""
        if gone.isdisjoint(self._index):
            return self
        kept = [at for at, name in enumerate(self.columns.names) if name not in gone]
        columns = Columns(*([column[at] for at in kept] for column in self.columns))  # type: ignore[arg-type]
        return Table(columns, {name: member for name, member in self.special.items() if name not in gone})


class Ledger(Mapping[str, Member]):
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

    def enter(self, member: Member) -> None:
        """Add or change a member."""
        self._edits[member.name] = member

    def strike(self, name: str) -> None:
        """Forget a member."""
        self._edits[name] = None

    def table(self) -> Table:
        """The table with all edits made; the very same one where there were none."""
        return self._table.edited({name: one for name, one in self._edits.items() if one != self._table.get(name)})


def tabled(members: Members) -> Table:
    """The members as a table."""
    if isinstance(members, Table):
        return members
    return Table(Columns([], [], [], [], []), {}).edited(members)


def _is_special(member: Member) -> bool:
    return bool(
        member.tags is None or member.tags or member.pause or member.heard or member.quarantine or member.elsewhere
    )
