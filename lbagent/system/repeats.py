"""Suppress repeated log lines: an error that lasts for hours is logged once, then as a count."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

QUIET_FOR = 900.0
"""Seconds without a repetition after which a line counts as new."""

_EVERY = 3600.0
"""Seconds between two counts of a line that keeps repeating."""

_VARYING = re.compile(r"\b(in|for|after|pid|worker|master) [0-9]+(?:\.[0-9]+)?\b")
"""Numbers that vary between lines of the same meaning."""

_KNOWN = 1000
"""Maximum number of lines remembered; above it, all are forgotten."""


class _Repeated:
    """One line: when it last occurred and was last logged, and how often it was suppressed since."""

    def __init__(self, now: float) -> None:
        self.last = self.logged = now
        self.count = 0


class Repeats:
    """Remembers the lines of the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any line; `clock` returns seconds."""
        self._clock = clock
        self._lines: dict[str, _Repeated] = {}

    def next_line(self, words: str) -> str | None:
        """Return the line to log for `words`: itself the first time, then None, and once an hour a count."""
        now, key = self._clock(), _VARYING.sub(r"\1 #", words)
        known = self._lines.get(key)
        if known is None or now - known.last > QUIET_FOR:
            if len(self._lines) >= _KNOWN:
                self._lines.clear()
            self._lines[key] = _Repeated(now)
            return words
        known.last, known.count = now, known.count + 1
        if now - known.logged < _EVERY:
            return None
        minutes, count = round((now - known.logged) / 60), known.count
        known.logged, known.count = now, 0
        return f"{words} (repeated {count} times in the last {minutes} minutes)"

    def forget(self) -> None:
        """Forget all lines: the error is over."""
        self._lines.clear()
