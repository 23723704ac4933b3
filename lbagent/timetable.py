"""When a daemon has to look up though nothing happens: the next sync, and the end of the next pause."""

from __future__ import annotations

from lbagent.membership import Membership
from lbagent.table import tabled

SYNC_EVERY = 60.0
"""Seconds between two syncs, give or take JITTER of it: load balancers should not all ask at once."""

JITTER = 0.1


def next_sync(now: float, chance: float) -> float:
    """When to sync again; `chance` is a number from 0 to 1."""
    return now + SYNC_EVERY * (1 + JITTER * (2 * chance - 1))


def next_end(membership: Membership, since: int) -> int | None:
    """When the next pause ends by itself that had not ended at `since`; both in epoch seconds."""
    pauses = (one.pause for one in tabled(membership.members).special.values())
    ends = (pause.until for pause in pauses if pause and pause.until is not None)
    return min((end for end in ends if end > since), default=None)
