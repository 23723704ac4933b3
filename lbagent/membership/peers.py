"""The other load balancers, as the last sync saw them: who is there, and whether it has the same managed lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lbagent.membership.model import Members, as_table
from lbagent.serf.member_list import AgentInfo, ListedMember
from lbagent.system.tuples import NamedTuple

DEFAULT_ROLE = "lb"

_DIGEST = re.compile(r"\bdigest=([0-9a-z]{1,32})\b")


class Peer(NamedTuple):
    """Another load balancer."""

    name: str
    address: str
    status: str
    """Serf's word: alive, failed."""
    digest: str | None = None
    """Of its managed lines, when it last answered; None where it never has."""
    equal: bool | None = None
    """Whether this load balancer had the same managed lines at that moment."""
    seen: int | None = None
    """When it last answered, in epoch seconds."""
    answers: bool = False
    """Whether it answered the last time it was asked."""


class Peers(NamedTuple):
    """All of them, as one sync saw them."""

    at: int
    """Epoch seconds."""
    role: str
    """The role by which load balancers know each other."""
    peers: tuple[Peer, ...] = ()


class Here(NamedTuple):
    """The load balancer that looks, at one moment."""

    now: int
    """Epoch seconds."""
    info: AgentInfo
    digest: str
    """Of its managed lines."""


def observed(before: Peers | None, here: Here, there: Sequence[ListedMember], said: Mapping[str, str]) -> Peers:
    """The other load balancers `there`, of which some have `said` their status line, as seen from `here`."""
    now, digest = here.now, here.digest
    known = {peer.name: peer for peer in before.peers} if before else {}
    found = []
    for one in there:
        peer = known.get(one.name, Peer(one.name, one.address, one.status))
        peer = peer._replace(address=one.address, status=one.status, answers=False)
        if words := _DIGEST.search(said.get(one.name, "")):
            peer = peer._replace(digest=words[1], equal=words[1] == digest, seen=now, answers=True)
        found.append(peer)
    return Peers(now, here.info.role or DEFAULT_ROLE, tuple(found))


def current(peers: Peers | None, members: Members, roles: Sequence[str]) -> list[Peer]:
    """The other load balancers now: as the last sync saw them, with the status that events have told since.

    Without any sync they are the members with the usual role of a load balancer; `roles` are those of roles.yml.
    """
    role = peers.role if peers else DEFAULT_ROLE
    found = {peer.name: peer for peer in peers.peers} if peers else {}
    table = as_table(members)
    if role not in roles:
        rows = zip(table.columns.names, table.columns.addresses, table.columns.roles, strict=True)
        found |= {name: Peer(name, address, "") for name, address, its in rows if its == role and name not in found}
    now = []
    for name, peer in found.items():
        member = members.get(name)
        if member is None or not (member.present or member.status == "failed"):
            if peers and peer.status and member is None:
                now.append(peer)  # Serf has told of it, and no event yet
            continue
        # The newer word: of an event, or of the last sync.
        newer = not (peers and peer.status) or member.changed > peers.at
        now.append(peer._replace(status=member.status, address=member.address) if newer else peer)
    return sorted(now, key=lambda one: one.name)


def dump(peers: Peers) -> bytes:
    """What peers.json holds."""
    return json.dumps({**peers._asdict(), "peers": [one._asdict() for one in peers.peers]}).encode()


def load(content: bytes) -> Peers:
    """What `dump` wrote. Raises ValueError, KeyError, TypeError, AttributeError, RecursionError."""
    found = json.loads(content)
    rows = [_peer(row) for row in found["peers"]]
    return Peers(int(found["at"]), str(found["role"]), tuple(rows))


def _peer(row: Mapping[str, Any]) -> Peer:
    seen, digest, equal = row.get("seen"), row.get("digest"), row.get("equal")
    return Peer(
        str(row["name"]),
        str(row["address"]),
        str(row["status"]),
        str(digest) if digest is not None else None,
        bool(equal) if equal is not None else None,
        int(seen) if seen is not None else None,
        bool(row.get("answers")),
    )
