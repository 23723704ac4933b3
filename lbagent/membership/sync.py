"""Membership updated from Serf's member list: events are hints, and the list is the truth."""

from __future__ import annotations

from lbagent.membership.model import ALIVE, FAILED, LEFT, LOST, PRESENT, Membership, Table, as_table
from lbagent.membership.updates import MembershipDraft, UpdateResult, apply_member_event
from lbagent.names import role_names
from lbagent.roles.model import Roles
from lbagent.serf.events import MemberEvent, MemberLine
from lbagent.serf.member_list import ListedMember, MemberList

CONFIRM_AFTER = 30
"""Minimum seconds between two syncs that both lack a node before it is lost. A list may lack nodes during gossip."""

_STATUSES = {"alive": ALIVE, "leaving": ALIVE, "failed": FAILED, "left": LEFT}
"""A node that is leaving serves until Serf lists it as `left`."""


def lists_no_known_role(listing: MemberList, myself: str, roles: Roles) -> bool:
    """Return whether the list has no node of a role that serves. An agent that has just started lists only itself."""
    serving = {name for name, role in roles.roles.items() if any(role.sections.values())}
    return not any(not serving.isdisjoint(role_names(one.role)) for one in listing.members if one.name != myself)


def has_no_serving_member(membership: Membership, roles: Roles) -> bool:
    """Return whether no present member has a role that serves, as on a load balancer of a new cluster."""
    serving = {name for name, role in roles.roles.items() if any(role.sections.values())}
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
