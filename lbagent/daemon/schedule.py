"""When a daemon has to look up though nothing happens: the next sync, and the end of the next pause."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.membership.model import Membership, as_table
from lbagent.roles.model import Roles

SYNC_EVERY = 60.0
"""Seconds between two syncs, give or take JITTER of it: load balancers should not all ask at once."""

JITTER = 0.1


SYNC_AGAIN = 5.0
"""Seconds after which a sync that failed is tried again, doubled each time."""


class SyncSchedule:
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
    pauses = (one.pause for one in as_table(membership.members).special.values())
    ends = (pause.until for pause in pauses if pause and pause.until is not None)
    return min((end for end in ends if end > since), default=None)


class ReloadInterval:
    """When the last reload was, and when the next one may be; in seconds of the monotonic clock."""

    def __init__(self, roles: Callable[[], Roles]) -> None:
        """`roles` reads roles.yml; while it is refused, what it said last holds."""
        self._roles = roles
        self._interval = 0.0
        self._reloaded = -math.inf
        self.waiting = False
        """Whether something waits for a reload."""

    @property
    def not_before(self) -> float:
        """When the next one may be made."""
        with contextlib.suppress(LbagentError):
            self._interval = self._roles().haproxy.min_reload_interval
        return self._reloaded + self._interval

    def reloaded(self) -> None:
        """One has been made, or tried, now."""
        self._reloaded = time.monotonic()
