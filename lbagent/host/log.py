"""Where the one line goes: stderr for people, syslog (and so the journal) for later.

Serf keeps what a handler prints only at its DEBUG level, so stderr alone would be lost.
"""

from __future__ import annotations

import sys
import syslog

_LIMIT = 4000
"""Characters of a line: what other programs print may have any size."""


class Log:
    """Lines of text, each said once on stderr and once in the log."""

    def __init__(self, *, verbose: bool = False) -> None:
        """Failures and warnings are said; with `verbose` also what went well."""
        self._verbose = verbose
        self.silent = False
        """Nothing on stderr: to a Serf query it would be part of the answer."""
        syslog.openlog("lbagent", syslog.LOG_PID, syslog.LOG_DAEMON)

    def error(self, words: str) -> None:
        """Something failed."""
        self._say(syslog.LOG_ERR, words, shown=True)

    def warning(self, words: str) -> None:
        """Something an operator should look at, which did not stop the run."""
        self._say(syslog.LOG_WARNING, words, shown=True)

    def info(self, words: str) -> None:
        """What was done."""
        self._say(syslog.LOG_INFO, words, shown=self._verbose)

    def _say(self, priority: int, words: str, *, shown: bool) -> None:
        # Foreign names may hold escape sequences and line ends.
        from lbagent.names import brief, printable  # noqa: PLC0415  # most events that are only stored have nothing to say

        line = printable(brief(words, _LIMIT))
        if shown and not self.silent:
            print(f"lbagent: {line}", file=sys.stderr)
        syslog.syslog(priority, line)


def told(error: Exception) -> str:
    """The one line that an error is; of the system's, the file that it is about comes first."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    return str(error)
