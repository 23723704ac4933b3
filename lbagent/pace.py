"""How far apart reloads are: `haproxy.min_reload_interval`, as roles.yml has it now."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.roles import Roles


class Pace:
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
