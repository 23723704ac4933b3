"""Lines that repeat: a failure that goes on for hours is logged once, then as a count."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

QUIET_FOR = 900.0
"""Seconds after which the same line is news again."""

_EVERY = 3600.0
"""Seconds between two counts of a line that goes on repeating."""

_VARYING = re.compile(r"\b(in|for|after|pid|worker|master) [0-9]+(?:\.[0-9]+)?\b")
"""What differs from one time to the next in lines that mean the same."""

_KNOWN = 1000
"""Lines that are remembered; beyond that all count as new."""


class _Repeated:
    """One line, and how often it has come since it was logged last."""

    def __init__(self, now: float) -> None:
        self.last = self.logged = now
        self.count = 0


class Repeats:
    """Remembers the lines of the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has been logged yet; `clock` returns seconds."""
        self._clock = clock
        self._lines: dict[str, _Repeated] = {}

    def next_line(self, words: str) -> str | None:
        """The line to be logged for `words`: itself the first time, then None, and once an hour a count."""
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
        """Take every line for news again: what was wrong is over."""
        self._lines.clear()
