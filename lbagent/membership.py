"""Membership: who is there, who is paused, and what has been heard of whom so far.

Pure values. How events change them stands in `fold`; how they become managed lines in `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lbagent.tuples import NamedTuple

MEMBERS_LIMIT = 20_000
UNKNOWN_LIMIT = 1_000
"""Pauses remembered for nodes nobody has seen yet."""

REMEMBERED = 24 * 3600
"""Seconds that a node which left, or a pause of an unknown one, is remembered."""

QUARANTINE = 600
"""Seconds after which a refused line is tried again."""

REMOVALS = 3600
"""Seconds for which the safety guard counts a removal that nobody asked for."""

ALIVE, FAILED, LEFT, UNKNOWN = "alive", "failed", "left", "unknown"
LOST = "lost"
"""Not in Serf's list any more, though no leave was heard: its removal was not asked for."""

STATUSES = frozenset({ALIVE, FAILED, LEFT, UNKNOWN, LOST})
PRESENT = (ALIVE, FAILED)
"""May have lines at all."""

PAUSED_TAG = ("lbagent", "paused")


REBUILT = "haproxy.cfg"
"""Who paused a node of which only a managed line still tells."""


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


TOLD = "told"
"""In place of a digest: another load balancer has heard what there was at this LTime, whatever it was."""


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
    heard: Mapping[str, Heard] = MappingProxyType({})
    quarantine: Quarantine | None = None

    @property
    def present(self) -> bool:
        """Whether it may have lines at all."""
        return self.status in PRESENT

    @property
    def paused_by_tag(self) -> bool:
        """Whether the node itself says so, on every load balancer at once."""
        # A tag holds as long as its node is there to carry it.
        return self.present and self.tags is not None and self.tags.get(PAUSED_TAG[0]) == PAUSED_TAG[1]


Members = Mapping[str, Member]


class Membership(NamedTuple):
    """All members by name; the highest LTime of each clock; the records folded last."""

    members: Members = MappingProxyType({})
    clocks: Mapping[str, int] = MappingProxyType({})
    folded: frozenset[str] = frozenset()
    missed: Mapping[str, int] = MappingProxyType({})
    """Present members that Serf's list did not hold, and since when (epoch seconds) it does not."""
    removals: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    """By place in haproxy.cfg, the nodes whose lines were removed unasked, and when (epoch seconds)."""
