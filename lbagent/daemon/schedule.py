"""What the daemon does by the clock: syncs, the ends of pauses, and reloads that wait for `min_reload_interval`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.membership.model import Membership, as_table
from lbagent.roles.model import Roles

SYNC_EVERY = 60.0
"""Seconds between two syncs, ± JITTER of it: not all load balancers should query Serf at once."""

JITTER = 0.1

SYNC_AGAIN = 5.0
"""Seconds until the first retry of a sync that failed, doubled with each further one."""


class SyncSchedule:
    """The time of the next sync, in seconds of the caller's clock."""

    def __init__(self) -> None:
        """The first sync is due at once."""
        self.next_at = 0.0
        self._retry_after = SYNC_AGAIN

    def record_start(self, now: float, chance: float) -> None:
        """Schedule the sync after the one that starts now; `chance` is a number from 0 to 1."""
        self.next_at = now + SYNC_EVERY * (1 + JITTER * (2 * chance - 1))

    def record_end(self, now: float, *, good: bool) -> None:
        """Schedule a retry if the sync that ends now has failed."""
        if good:
            self._retry_after = SYNC_AGAIN
        else:
            self.next_at = min(self.next_at, now + self._retry_after)
            self._retry_after *= 2


def find_next_pause_end(membership: Membership, since: int) -> int | None:
    """Return when the next pause expires that had not expired at `since`; None if none does. Both in epoch seconds."""
    pauses = (member.pause for member in as_table(membership.members).special.values())
    ends = (pause.until for pause in pauses if pause and pause.until is not None)
    return min((end for end in ends if end > since), default=None)


class ReloadInterval:
    """The time of the next reload that `min_reload_interval` allows, in seconds of the monotonic clock."""

    def __init__(self, load_roles: Callable[[], Roles]) -> None:
        """While `load_roles` raises LbagentError, the interval that it returned last applies."""
        self._load_roles = load_roles
        self._interval = 0.0
        self._last_reload = -math.inf
        self.is_waiting = False
        """Whether a change waits for its reload."""

    @property
    def not_before(self) -> float:
        """When the next reload is allowed."""
        with contextlib.suppress(LbagentError):
            self._interval = self._load_roles().haproxy.min_reload_interval
        return self._last_reload + self._interval

    def record_reload(self) -> None:
        """Record that a reload was made, or tried, now."""
        self._last_reload = time.monotonic()
