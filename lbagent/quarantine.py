"""Nodes whose lines HAProxy refused: kept as they are until something changes that could change the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from lbagent.membership import Member, Membership, Quarantine
from lbagent.table import tabled


def holding(membership: Membership, surroundings: str) -> frozenset[str]:
    """The nodes whose quarantine still holds in these `surroundings` (operator's text and roles.yml)."""
    return frozenset(
        member.name
        for member in tabled(membership.members).special.values()
        if member.quarantine and member.quarantine.key == _key(member, surroundings)
    )


def impose(membership: Membership, reasons: Mapping[str, str], surroundings: str, now: int) -> Membership:
    """Membership with the nodes of `reasons` in quarantine since `now`, in epoch seconds."""
    table = tabled(membership.members)
    known = (table[node] for node in reasons if node in table)
    edits = {
        one.name: one._replace(quarantine=Quarantine(now, reasons[one.name], _key(one, surroundings))) for one in known
    }
    return membership._replace(members=table.edited(edits))


def _key(member: Member, surroundings: str) -> str:
    tags = sorted((member.tags or {}).items())
    said = (member.address, member.role, tags, member.present, bool(member.pause), surroundings)
    return f"{zlib.crc32(repr(said).encode('utf-8', 'surrogateescape')):08x}"
