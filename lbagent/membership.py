"""Membership: who is there, who is paused, and what has been heard of whom so far.

Pure values. How events change them stands in `fold`; how they become managed lines in `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lbagent.names import canonical_address

MEMBERS_LIMIT = 20_000
UNKNOWN_LIMIT = 1_000
"""Pauses remembered for nodes nobody has seen yet."""

REMEMBERED = 24 * 3600
"""Seconds that a node which left, or a pause of an unknown one, is remembered."""

QUARANTINE = 600
"""Seconds after which a refused line is tried again."""

ALIVE, FAILED, LEFT, UNKNOWN = "alive", "failed", "left", "unknown"
LOST = "lost"
"""Not in Serf's list any more, though no leave was heard: its removal was not asked for."""

PRESENT = (ALIVE, FAILED)
"""May have lines at all."""

PAUSED_TAG = ("lbagent", "paused")


class Pause(NamedTuple):
    """Out of balancing until a resume; `until` (epoch seconds) ends it by itself."""

    since: int
    by: str
    reason: str = ""
    until: int | None = None


class Quarantine(NamedTuple):
    """HAProxy refused this node's lines; they stay as they are while `key` is the same."""

    since: int
    reason: str
    key: str


class Heard(NamedTuple):
    """The last pause or resume of one node on one clock: what is older is a replay."""

    ltime: int
    digests: tuple[str, ...]
    paused: bool
    """Whether one of them was a pause: at an equal LTime it wins."""


class Member(NamedTuple):
    """A node as Serf describes it, with what lbagent remembers of it."""

    name: str
    address: str
    role: str
    tags: Mapping[str, str] | None
    """None while unknown: membership was rebuilt from haproxy.cfg, which does not hold them."""
    status: str
    changed: int
    """Epoch seconds at which the status last changed."""
    pause: Pause | None = None
    heard: Mapping[str, Heard] = {}
    quarantine: Quarantine | None = None

    @property
    def present(self) -> bool:
        """Whether it may have lines at all."""
        return self.status in PRESENT

    @property
    def paused_by_tag(self) -> bool:
        """Whether the node itself says so, on every load balancer at once."""
        return self.tags is not None and self.tags.get(PAUSED_TAG[0]) == PAUSED_TAG[1]


class Membership(NamedTuple):
    """All members by name; the highest LTime of each clock; the records folded last."""

    members: Mapping[str, Member] = {}
    clocks: Mapping[str, int] = {}
    folded: frozenset[str] = frozenset()

    def paused_addresses(self) -> frozenset[str]:
        """Addresses whose every member is paused: a pause holds for the host, whatever it is called today."""
        return frozenset(
            member.address
            for member in self.members.values()
            if (member.pause or member.tags) and member.address and (member.pause or member.paused_by_tag)
        )

    def paused(self) -> frozenset[str]:
        """The names of all members that are out of balancing."""
        addresses = self.paused_addresses()
        if not addresses:
            return frozenset(name for name, member in self.members.items() if member.pause)
        return frozenset(name for name, member in self.members.items() if member.pause or member.address in addresses)

    def find(self, name: str, address: str | None) -> Member | None:
        """The member meant by `name`: exactly, else in any case (Windows), else the only one at `address`."""
        if name in self.members:
            return self.members[name]
        lower = name.lower()
        alike = [member for member in self.members.values() if member.name.lower() == lower]
        if len(alike) == 1:
            return alike[0]
        address = address or canonical_address(name)
        there = [member for member in alike or self.members.values() if address and member.address == address]
        # A host reinstalled under a new name leaves its old name behind: who is there comes first.
        there = [member for member in there if member.present] or there
        return there[0] if len(there) == 1 else None


def expire(membership: Membership, now: int) -> Membership:
    """Membership without the pauses, quarantines and memories that have run out by `now`."""
    kept = dict(membership.members)
    for name, member in membership.members.items():
        if member.pause or member.quarantine or member.status not in PRESENT:
            if _outlived(member, now):
                del kept[name]
            else:
                kept[name] = _current(member, now)
    return membership._replace(members=kept)


def _outlived(member: Member, now: int) -> bool:
    if member.status == UNKNOWN:
        return member.pause is None or member.changed + REMEMBERED <= now
    return not member.present and member.pause is None and member.changed + REMEMBERED <= now


def _current(member: Member, now: int) -> Member:
    pause, quarantine = member.pause, member.quarantine
    if pause and pause.until is not None and pause.until <= now:
        pause = None
    if quarantine and quarantine.since + QUARANTINE <= now:
        quarantine = None
    return member._replace(pause=pause, quarantine=quarantine)
