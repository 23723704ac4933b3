"""When a daemon has to look up though nothing happens: the next sync, and the end of the next pause."""

from __future__ import annotations

from lbagent.membership import Membership
from lbagent.table import tabled

SYNC_EVERY = 60.0
"""Seconds between two syncs, give or take JITTER of it: load balancers should not all ask at once."""

JITTER = 0.1


SYNC_AGAIN = 5.0
"""Seconds after which a sync that failed is tried again, doubled each time."""


class Syncs:
    """When Serf is to be asked next, in seconds of the clock that its caller goes by."""

    def __init__(self) -> None:
        """At once."""
        self.at = 0.0
        self._again = SYNC_AGAIN

    def begun(self, now: float, chance: float) -> None:
        """One is made now; `chance` is a number from 0 to 1."""
        self.at = now + SYNC_EVERY * (1 + JITTER * (2 * chance - 1))

    def ended(self, now: float, *, good: bool) -> None:
        """It has come to its end."""
        if good:
            self._again = SYNC_AGAIN
        else:
            self.at = min(self.at, now + self._again)
            self._again *= 2


def next_end(membership: Membership, since: int) -> int | None:
    """When the next pause ends by itself that had not ended at `since`; both in epoch seconds."""
    pauses = (one.pause for one in tabled(membership.members).special.values())
    ends = (pause.until for pause in pauses if pause and pause.until is not None)
    return min((end for end in ends if end > since), default=None)
