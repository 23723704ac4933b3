"""Questions to a whole membership: who is meant, who is paused, whose time has run out."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.membership.model import (
    ALIVE,
    FAILED,
    PRESENT,
    QUARANTINE,
    REMEMBERED,
    REMOVALS,
    UNKNOWN,
    Member,
    Members,
    Membership,
    as_table,
)
from lbagent.membership.pauses import last_moment
from lbagent.names import canonical_address


def find_paused(membership: Membership) -> frozenset[str]:
    """The names of all members that are out of balancing.

    A pause holds for the host, whatever it is called today: for every member with the node's address.
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


def superseded(membership: Membership) -> dict[str, str]:
    """The failed members whose address a living member has now, each with one such member."""
    names, addresses, _, statuses, _ = as_table(membership.members).columns
    if FAILED not in statuses:
        return {}
    living = {at: name for name, at, status in zip(names, addresses, statuses, strict=True) if status == ALIVE}
    failed = (row for row in zip(names, addresses, statuses, strict=True) if row[2] == FAILED)
    return {name: living[address] for name, address, _ in failed if address in living}


def find_member(members: Members, name: str, address: str | None) -> Member | None:
    """The member meant by `name`: exactly, else in any case (Windows), else the only one at `address`."""
    exact = members.get(name)
    if exact is not None and exact.status != UNKNOWN:
        return exact
    lower = name.lower()
    alike = [members[known] for known in members if known.lower() == lower]
    # Whom somebody has seen comes before a name that was only heard.
    alike = [one for one in alike if one.status != UNKNOWN] or alike
    if len(alike) == 1:
        return alike[0]
    address = address or canonical_address(name)
    there = [member for member in alike or members.values() if address and member.address == address]
    # A host reinstalled under a new name leaves its old name behind: who is there comes first.
    there = [member for member in there if member.present] or there
    return there[0] if len(there) == 1 else exact


def drop_expired(membership: Membership, now: int) -> Membership:
    """Membership without the pauses, quarantines and memories that have run out by `now`, in epoch seconds."""
    table = as_table(membership.members)
    edits: dict[str, Member | None] = {}
    absent = [
        name for name, status in zip(table.columns.names, table.columns.statuses, strict=True) if status not in PRESENT
    ]
    for name in {*absent, *table.special}:
        member = table[name]
        current = None if _outlived(member, now) else _current(member, now)
        if current != member:
            edits[name] = current
    return membership._replace(members=table.apply_edits(edits), removals=_recent(membership.removals, now))


def _recent(removals: Mapping[str, Mapping[str, int]], now: int) -> Mapping[str, Mapping[str, int]]:
    # None of a clock that was ahead either.
    kept = {
        where: {node: at for node, at in nodes.items() if 0 <= now - at < REMOVALS} for where, nodes in removals.items()
    }
    return {where: nodes for where, nodes in kept.items() if nodes}


def _outlived(member: Member, now: int) -> bool:
    # Longer than its commands may be replayed, a node that is gone need not be known.
    if member.present or max(member.changed, last_moment(member.heard, now)) + REMEMBERED > now:
        return member.status == UNKNOWN and member.pause is None and not member.heard
    # The pause of a node that left waits for its return; that of a node nobody has ever seen does not.
    return member.status == UNKNOWN or member.pause is None


def _current(member: Member, now: int) -> Member:
    pause, quarantine = member.pause, member.quarantine
    if pause and pause.until is not None and pause.until <= now:
        pause = None
    if quarantine and not quarantine.since <= now < quarantine.since + QUARANTINE:  # nor of a clock that was ahead
        quarantine = None
    if pause is member.pause and quarantine is member.quarantine:
        return member
    return member._replace(pause=pause, quarantine=quarantine)
