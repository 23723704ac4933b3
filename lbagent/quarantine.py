"""Nodes whose lines HAProxy refused: kept as they are until something changes that could change the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

from lbagent.haproxy.text import Document
from lbagent.membership import Member, Membership, Quarantine
from lbagent.roles import Roles
from lbagent.roll import paused
from lbagent.table import tabled


def surroundings(document: Document, roles: Roles) -> str:
    """What could change HAProxy's verdict, but for the node itself: the operator's text and roles.yml."""
    return f"{document.operator_digest()}{roles.digest}"


def holding(membership: Membership, surroundings: Callable[[], str]) -> frozenset[str]:
    """The nodes whose quarantine still holds in these `surroundings` (operator's text and roles.yml)."""
    there = [member for member in tabled(membership.members).special.values() if member.quarantine]
    if not there:
        return frozenset()
    key = _keys(membership, surroundings())
    return frozenset(member.name for member in there if member.quarantine and member.quarantine.key == key(member))


def held_beside(membership: Membership, document: Document, roles: Roles) -> frozenset[str]:
    """The nodes whose quarantine still holds beside this text and roles.yml; digested only where there is one."""
    return holding(membership, lambda: surroundings(document, roles))


def impose(membership: Membership, reasons: Mapping[str, str], surroundings: str, now: int) -> Membership:
    """Membership with the nodes of `reasons` in quarantine since `now`, in epoch seconds."""
    table, key = tabled(membership.members), _keys(membership, surroundings)
    known = (table[node] for node in reasons if node in table)
    edits = {one.name: one._replace(quarantine=Quarantine(now, reasons[one.name], key(one))) for one in known}
    return membership._replace(members=table.edited(edits))


def lifted(membership: Membership, held: frozenset[str]) -> Membership:
    """Membership with no node in quarantine but those in `held`; the very same where there is none to lift."""
    table = tabled(membership.members)
    over = {
        name: member._replace(quarantine=None)
        for name, member in table.special.items()
        if member.quarantine and name not in held
    }
    return membership._replace(members=table.edited(over)) if over else membership


def _keys(membership: Membership, surroundings: str) -> Callable[[Member], str]:
    """What makes the key of a member: all that its lines are made of, a pause by its address's other names too."""
    out = paused(membership)

    def key(member: Member) -> str:
        tags = sorted((member.tags or {}).items())
        said = (member.address, member.role, tags, member.present, member.name in out, surroundings)
        return f"{zlib.crc32(repr(said).encode('utf-8', 'surrogateescape')):08x}"

    return key
