"""Nodes whose lines HAProxy refused: kept as they are until something changes that could change the verdict."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from lbagent.membership import Member, Membership, Quarantine


def holding(membership: Membership, surroundings: str) -> frozenset[str]:
    """The nodes whose quarantine still holds in these `surroundings` (operator's text and roles.yml)."""
    return frozenset(
        member.name
        for member in membership.members.values()
        if member.quarantine and member.quarantine.key == _key(member, surroundings)
    )


def impose(membership: Membership, reasons: Mapping[str, str], surroundings: str, now: int) -> Membership:
    """Membership with the nodes of `reasons` in quarantine since `now`, in epoch seconds."""
    members = dict(membership.members)
    for node, reason in reasons.items():
        if member := members.get(node):
            members[node] = member._replace(quarantine=Quarantine(now, reason, _key(member, surroundings)))
    return membership._replace(members=members)


def _key(member: Member, surroundings: str) -> str:
    tags = sorted((member.tags or {}).items())
    said = (member.address, member.role, tags, member.present, bool(member.pause), surroundings)
    return f"{zlib.crc32(repr(said).encode('utf-8', 'surrogateescape')):08x}"
