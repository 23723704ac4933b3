"""Membership as Serf's own list has it: events are hints, what Serf knows now is the truth."""

from __future__ import annotations

from lbagent.membership.model import ALIVE, FAILED, LEFT, LOST, PRESENT, Membership, as_table
from lbagent.membership.updates import MembershipDraft, UpdateResult, apply_member_event
from lbagent.names import role_names
from lbagent.roles.model import Roles
from lbagent.serf.events import MemberEvent, MemberLine
from lbagent.serf.member_list import ListedMember, MemberList

TWICE = 30
"""Seconds that two syncs which miss a node have to lie apart: a list read while gossip still spreads lacks many."""

_STATUSES = {"alive": ALIVE, "leaving": ALIVE, "failed": FAILED, "left": LEFT}
"""Who says goodbye serves until it has gone: then the list says `left`."""


def lists_no_known_role(listing: MemberList, myself: str, roles: Roles) -> bool:
    """Whether the list holds no node of any role that serves: an agent that has just started sees only itself."""
    serving = {name for name, role in roles.roles.items() if any(role.sections.values())}
    return not any(not serving.isdisjoint(role_names(one.role)) for one in listing.members if one.name != myself)


def knows_nobody(membership: Membership, roles: Roles) -> bool:
    """Whether no present member has a role that serves, as on a load balancer of a new cluster."""
    serving = {name for name, role in roles.roles.items() if any(role.sections.values())}
    columns = as_table(membership.members).columns
    return not any(
        role in serving and status in PRESENT for role, status in zip(columns.roles, columns.statuses, strict=True)
    )


def merge_member_list(
    membership: Membership, listing: MemberList, myself: str, now: int, *, force: bool
) -> UpdateResult:
    """`membership` after the list was read at `now` (epoch seconds) by the load balancer `myself`.

    Who is not in it is gone when another such list, TWICE seconds ago, missed it too, or with `force`.
    """
    slate = MembershipDraft(membership)
    others = [one for one in listing.members if one.name != myself]
    for kind, lines in _told(slate, others).items():
        apply_member_event(slate, MemberEvent(kind, tuple(lines), (), exact=True), now)
    slate.happened("not in serf's list any more:", _missed(slate, listing, now, force=force))
    causes = tuple(f"sync: {cause}" for cause in slate.causes)
    return UpdateResult(slate.membership, {}, causes, slate.said)


def _told(slate: MembershipDraft, listed: list[ListedMember]) -> dict[str, list[MemberLine]]:
    """What the list says, as the events that would have said it."""
    told: dict[str, list[MemberLine]] = {
        "member-leave": [],
        "member-failed": [],
        "member-join": [],
        "member-update": [],
    }
    for one in listed:
        known, status = slate.members.get(one.name), _STATUSES.get(one.status)
        line = MemberLine(one.name, one.address, one.role, dict(one.tags))
        if status == LEFT:
            told["member-leave"].append(line)
        elif status == FAILED and (known is None or known.status != LEFT):
            # Who left, or was forgotten, does not come back by failing.
            told["member-failed"].append(line)
        elif status == ALIVE:
            told["member-update" if known and known.present else "member-join"].append(line)
    return told


def _missed(slate: MembershipDraft, listing: MemberList, now: int, *, force: bool) -> list[str]:
    """Mark as lost who was missed for long enough; returns their names."""
    members = as_table(slate.membership.members)
    present = (
        name for name, status in zip(members.columns.names, members.columns.statuses, strict=True) if status in PRESENT
    )
    missed = {name: min(slate.missed.get(name, now), now) for name in present if name not in listing.names}
    gone = [name for name, since in missed.items() if force or since + TWICE <= now]
    for name in gone:
        slate.members.put(members[name]._replace(status=LOST, changed=now))
    slate.missed = {name: since for name, since in missed.items() if name not in gone}
    return gone
