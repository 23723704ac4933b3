"""Log to stderr, and once to the journal or syslog.

Serf logs the output of a handler only at its DEBUG level, so stderr alone would be lost. The daemon logs an error that
lasts for hours once, then as a count.
"""

from __future__ import annotations

import os
import sys
import syslog
import time
from collections.abc import Callable, Sequence

QUIET_FOR = 900.0
"""Seconds without a repetition after which a line counts as new."""

_COUNT_EVERY = 3600.0
"""Seconds between two counts of a line that keeps repeating."""

_VARYING_NUMBERS = r"\b(in|for|after|pid|worker|master) [0-9]+(?:\.[0-9]+)?\b"
"""Numbers that vary between lines of the same meaning."""

_KNOWN_LINES = 1000
"""Maximum number of lines remembered; above it, all are forgotten."""

_JOURNAL = "/run/systemd/journal/socket"

_LIMIT = 4000
"""Maximum characters of a line: output of other programs may have any size."""


class Log:
    """Writes each line once to stderr and once to the journal or syslog.

    If stderr is connected to the journal (a systemd service), the line is written there only, with its fields.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        """Print errors and warnings; with `verbose` also information."""
        self._verbose = verbose
        self.silent = False
        """Write nothing to stderr. Serf would send it as part of the answer to a query."""
        self.journal = True
        """Whether to write to the journal or syslog; False for dry runs, whose errors concern only the user."""
        self.repeats: Repeats | None = None
        """Detects repeated errors and warnings; set by the daemon."""
        self._stream = os.environ.get("JOURNAL_STREAM", "")
        syslog.openlog("lbagent", syslog.LOG_PID, syslog.LOG_DAEMON)

    def error(self, words: str, **fields: object) -> None:
        """Log an error. `fields` become LBAGENT_… fields of the journal entry."""
        self._log_once(syslog.LOG_ERR, words, fields)

    def warning(self, words: str, **fields: object) -> None:
        """Log a warning: an operator should look at it, but the run continued."""
        self._log_once(syslog.LOG_WARNING, words, fields)

    def info(self, words: str, **fields: object) -> None:
        """Log what was done; printed only if verbose."""
        self._write(syslog.LOG_INFO, words, fields, shown=self._verbose)

    def hint(self, words: str) -> None:
        """Log a condition that may last for hours as information, without repeating it."""
        if line := self.repeats.next_line(words) if self.repeats else words:
            self.info(line)

    def _log_once(self, priority: int, words: str, fields: dict[str, object]) -> None:
        line = self.repeats.next_line(words) if self.repeats else words
        if line is not None:
            self._write(priority, line, fields, shown=True)

    def _write(self, priority: int, words: str, fields: dict[str, object], *, shown: bool) -> None:
        # Names from Serf may contain escape sequences and line ends.
        from lbagent.names import brief, make_printable  # noqa: PLC0415  # loads `re`, and most handlers log nothing

        line = make_printable(brief(words, _LIMIT))
        is_journal = self._stderr_is_journal()
        if shown and not self.silent and not is_journal:
            print(f"lbagent: {line}", file=sys.stderr)
        if not self.journal:
            return
        if self._stream and _send_to_journal(
            priority, line, {key: make_printable(str(value)) for key, value in fields.items()}
        ):
            return
        if is_journal:
            print(f"<{priority}>lbagent: {line}", file=sys.stderr, flush=True)
        else:
            syslog.syslog(priority, line)

    def _stderr_is_journal(self) -> bool:
        """Return whether stderr is the journal socket that systemd connected: JOURNAL_STREAM, systemd.exec(5)."""
        if not self._stream:
            return False
        try:
            found = os.fstat(2)
        except OSError:
            return False
        return self._stream == f"{found.st_dev}:{found.st_ino}"


def format_error(error: Exception) -> str:
    """Return the message of an error; for an OSError, `FILE: REASON`."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    return str(error)


def format_error_lines(error: Exception) -> list[str]:
    """Return the lines to log for an error: one per mistake of roles.yml, else one."""
    mistakes: Sequence[str] = getattr(error, "mistakes", ())
    return list(mistakes) or [format_error(error)]


def _send_to_journal(priority: int, line: str, fields: dict[str, str]) -> bool:
    """Send an entry with the journal's native protocol; return False if the journal is unreachable."""
    import socket  # noqa: PLC0415  # most handlers log nothing

    entry = {"MESSAGE": line, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "lbagent", "SYSLOG_PID": str(os.getpid())}
    entry |= {f"LBAGENT_{key.upper()}": value for key, value in fields.items()}
    text = "".join(f"{key}={value}\n" for key, value in entry.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as journal:
            journal.settimeout(0)
            journal.sendto(text.encode("utf-8", "replace"), _JOURNAL)
    except OSError:
        return False
    return True


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
        import re  # noqa: PLC0415  # a handler that stores an event does not need it

        now, key = self._clock(), re.sub(_VARYING_NUMBERS, r"\1 #", words)
        known = self._lines.get(key)
        if known is None or now - known.last > QUIET_FOR:
            if len(self._lines) >= _KNOWN_LINES:
                self._lines.clear()
            self._lines[key] = _Repeated(now)
            return words
        known.last, known.count = now, known.count + 1
        if now - known.logged < _COUNT_EVERY:
            return None
        minutes, count = round((now - known.logged) / 60), known.count
        known.logged, known.count = now, 0
        return f"{words} (repeated {count} times in the last {minutes} minutes)"

    def forget(self) -> None:
        """Forget all lines: the error is over."""
        self._lines.clear()
