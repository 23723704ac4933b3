"""The other load balancers, as the last sync saw them: their statuses, and whether their managed lines are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lbagent.membership.model import Members, as_table
from lbagent.names import make_printable
from lbagent.serf.member_list import AgentInfo, ListedMember

DEFAULT_ROLE = "lb"

_LINE_LIMIT = 1024

_DIGEST = re.compile(r"\bdigest=([0-9a-z]{1,32})\b")


class Peer(NamedTuple):
    """Another load balancer. The names of the fields are the keys in peers.json."""

    name: str
    address: str
    status: str
    """Status in Serf: alive, failed."""
    digest: str | None = None
    """Digest of its managed lines when it last answered; None where it has never answered."""
    equal: bool | None = None
    """Whether this load balancer had the same managed lines at that time."""
    seen: int | None = None
    """Time of its last answer in epoch seconds."""
    answers: bool = False
    """Whether it answered the last query."""
    status_line: str | None = None
    """Its answer: name, counts, digest and the outcome of its last run. None where it has never answered."""


class Peers(NamedTuple):
    """All other load balancers, as one sync saw them."""

    at: int
    """Time of the sync in epoch seconds."""
    role: str
    """The Serf role that all load balancers have."""
    peers: tuple[Peer, ...] = ()


class Observer(NamedTuple):
    """The load balancer that runs the sync, at the time of a sync."""

    now: int
    """Time in epoch seconds."""
    info: AgentInfo
    digest: str
    """Digest of its managed lines."""


def update_peers(
    before: Peers | None, observer: Observer, listed: Sequence[ListedMember], status_lines: Mapping[str, str]
) -> Peers:
    """Return the other load balancers as `observer` sees them.

    `listed` are their members in Serf's list, `status_lines` the answers to `lbagent-status` by name.
    """
    now, digest = observer.now, observer.digest
    known = {peer.name: peer for peer in before.peers} if before else {}
    found = []
    for one in listed:
        peer = known.get(one.name, Peer(one.name, one.address, one.status))
        peer = peer._replace(address=one.address, status=one.status, answers=False)
        answer = status_lines.get(one.name, "")
        if words := _DIGEST.search(answer):
            # Serf lets an answer have 1,024 bytes.
            line = make_printable(answer[:_LINE_LIMIT])
            peer = peer._replace(digest=words[1], equal=words[1] == digest, seen=now, answers=True, status_line=line)
        found.append(peer)
    return Peers(now, observer.info.role or DEFAULT_ROLE, tuple(found))


def list_current_peers(peers: Peers | None, members: Members, roles: Sequence[str]) -> list[Peer]:
    """Return the other load balancers as the last sync saw them, with the statuses from later events.

    Before the first sync they are the members with DEFAULT_ROLE. `roles` are the names of the roles in roles.yml.
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
                now.append(peer)  # listed by Serf, no event yet
            continue
        # The newer status counts: that of an event, or that of the last sync.
        newer = not (peers and peer.status) or member.changed > peers.at
        now.append(peer._replace(status=member.status, address=member.address) if newer else peer)
    return sorted(now, key=lambda one: one.name)


def serialize_peers(peers: Peers) -> bytes:
    """Return the content of peers.json."""
    return json.dumps({**peers._asdict(), "peers": [one._asdict() for one in peers.peers]}).encode()


def parse_peers(content: bytes) -> Peers:
    """Parse what `serialize_peers` returned. Raises ValueError, KeyError, TypeError, AttributeError, RecursionError."""
    found = json.loads(content)
    rows = [_parse_peer(row) for row in found["peers"]]
    return Peers(int(found["at"]), str(found["role"]), tuple(rows))


def _parse_peer(row: Mapping[str, Any]) -> Peer:
    seen, digest, equal, line = (row.get(key) for key in ("seen", "digest", "equal", "status_line"))
    return Peer(
        str(row["name"]),
        str(row["address"]),
        str(row["status"]),
        str(digest) if digest is not None else None,
        bool(equal) if equal is not None else None,
        int(seen) if seen is not None else None,
        bool(row.get("answers")),
        str(line) if line is not None else None,
    )
