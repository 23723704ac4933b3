"""What a command is answered by what membership and the plan are now, whichever run has folded it."""

from __future__ import annotations

from lbagent.membership import UNKNOWN, Member, Membership
from lbagent.orders import DONE, NOBODY, NOT_YET, STILL_PAUSED
from lbagent.plan import Plan
from lbagent.roll import find, paused
from lbagent.serf.command import Command
from lbagent.table import tabled
from lbagent.wishes import ByHand, Note


def judged(command: Command, membership: Membership, plan: Plan | None) -> str:
    """`done` where membership and plan are what the command asks for; else what stands in its way."""
    member = find(membership.members, command.name, command.address)
    if command.verb == "forget":
        return f"refused: {member.name} is {member.status}" if member and member.present else DONE
    if member is None or member.status == UNKNOWN:
        return NOBODY[command.verb] if member else NOBODY["resume"]
    out, host = member.name in paused(membership), names_of_host(member, membership)
    notes = [note for note in plan.notes if isinstance(note, Note) and note.node in host] if plan else []
    by_hand = [note for note in notes if isinstance(note, ByHand)]
    if command.verb == "pause":
        return f"{NOT_YET}: {by_hand[0]}" if out and by_hand else (DONE if out else "refused: a later resume was heard")
    if out:
        return STILL_PAUSED if _by_tag(member, membership) else "refused: a later pause was heard"
    return f"{NOT_YET}: {notes[0]}" if notes and not by_hand and not _has_line(member, plan) else DONE


def names_of_host(member: Member, membership: Membership) -> frozenset[str]:
    """All names of the node's host: a pause holds for each."""
    columns = tabled(membership.members).columns
    there = zip(columns.names, columns.addresses, strict=True)
    return frozenset(name for name, address in there if address == member.address) | {member.name}


def _by_tag(member: Member, membership: Membership) -> bool:
    there = [one for one in tabled(membership.members).special.values() if one.paused_by_tag]
    return any(one.name == member.name or one.address == member.address for one in there)


def _has_line(member: Member, plan: Plan | None) -> bool:
    names = (f"server {member.name} ", f"server {member.name}.")
    return any(text.startswith(names) for texts in plan.standing.values() for text in texts) if plan else False
