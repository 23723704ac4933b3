"""Queries on a whole membership: the member that a name means, the paused members, and what has expired."""

from __future__ import annotations

from collections.abc import Mapping

from lbagent.membership.model import (
    ALIVE,
    FAILED,
    FORGET_AFTER,
    PRESENT,
    QUARANTINE_LENGTH,
    REMOVALS_WINDOW,
    UNKNOWN,
    Member,
    Members,
    Membership,
    as_table,
)
from lbagent.membership.pauses import find_last_activity
from lbagent.names import canonical_address


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
    matches.
    """
    exact = members.get(name)
    if exact is not None and exact.status != UNKNOWN:
        return exact
    lower = name.lower()
    alike = [members[known] for known in members if known.lower() == lower]
    # A member that Serf has listed comes before a name that is known from a command only.
    alike = [one for one in alike if one.status != UNKNOWN] or alike
    if len(alike) == 1:
        return alike[0]
    address = address or canonical_address(name)
    there = [member for member in alike or members.values() if address and member.address == address]
    # A host that was reinstalled under a new name leaves its old name behind: a present member comes first.
    there = [member for member in there if member.present] or there
    return there[0] if len(there) == 1 else exact


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
    if member.present or max(member.changed, find_last_activity(member.heard, now)) + FORGET_AFTER > now:
        return member.status == UNKNOWN and member.pause is None and not member.heard
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
