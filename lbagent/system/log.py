"""Log lines: on stderr for people, and once in the journal (or syslog) for later.

Serf keeps what a handler prints only at its DEBUG level, so stderr alone would be lost.
"""

from __future__ import annotations

import os
import sys
import syslog
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lbagent.system.repeats import Repeats  # only `watch` logs the same line again and again

_JOURNAL = "/run/systemd/journal/socket"

_LIMIT = 4000
"""Characters of a line: what other programs print may have any size."""


class Log:
    """Lines of text, each printed once on stderr and stored once in the journal or syslog.

    Where stderr is the journal itself (a systemd service), the line goes there only, with fields of its own.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        """Failures and warnings are printed; with `verbose` also what went well."""
        self._verbose = verbose
        self.silent = False
        """Nothing on stderr: to a Serf query it would be part of the answer."""
        self.journal = True
        """Whether lines are kept for later; not for dry runs, whose mistakes are nobody's but the user's."""
        self.repeats: Repeats | None = None
        """What recognises a failure or warning that was logged a moment ago; a daemon has one."""
        self._stream = os.environ.get("JOURNAL_STREAM", "")
        syslog.openlog("lbagent", syslog.LOG_PID, syslog.LOG_DAEMON)

    def error(self, words: str, **fields: object) -> None:
        """Log that something failed; `fields` become LBAGENT_… fields of the journal."""
        self._log_once(syslog.LOG_ERR, words, fields)

    def warning(self, words: str, **fields: object) -> None:
        """Log something an operator should look at, which did not stop the run."""
        self._log_once(syslog.LOG_WARNING, words, fields)

    def info(self, words: str, **fields: object) -> None:
        """Log what was done."""
        self._write(syslog.LOG_INFO, words, fields, shown=self._verbose)

    def hint(self, words: str) -> None:
        """Log what may be so for hours, at the level of what was done, but not again and again."""
        if line := self.repeats.next_line(words) if self.repeats else words:
            self.info(line)

    def _log_once(self, priority: int, words: str, fields: dict[str, object]) -> None:
        line = self.repeats.next_line(words) if self.repeats else words
        if line is not None:
            self._write(priority, line, fields, shown=True)

    def _write(self, priority: int, words: str, fields: dict[str, object], *, shown: bool) -> None:
        # Foreign names may hold escape sequences and line ends.
        from lbagent.names import brief, make_printable  # noqa: PLC0415  # most events only stored log nothing

        line = make_printable(brief(words, _LIMIT))
        is_journal = self._stderr_is_journal()
        if shown and not self.silent and not is_journal:
            print(f"lbagent: {line}", file=sys.stderr)
        if not self.journal:
            return
        if self._stream and _send(priority, line, {key: make_printable(str(value)) for key, value in fields.items()}):
            return
        if is_journal:
            print(f"<{priority}>lbagent: {line}", file=sys.stderr, flush=True)
        else:
            syslog.syslog(priority, line)

    def _stderr_is_journal(self) -> bool:
        """Whether systemd has connected stderr to the journal, and nobody has redirected it since."""
        if not self._stream:
            return False
        try:
            found = os.fstat(2)
        except OSError:
            return False
        return self._stream == f"{found.st_dev}:{found.st_ino}"


def format_error(error: Exception) -> str:
    """The one line that an error is; of the system's, the file that it is about comes first."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    return str(error)


def format_error_lines(error: Exception) -> list[str]:
    """The lines that an error is: of a refused roles.yml one for each mistake, of any other one."""
    mistakes: Sequence[str] = getattr(error, "mistakes", ())
    return list(mistakes) or [format_error(error)]


def _send(priority: int, line: str, fields: dict[str, str]) -> bool:
    """Send an entry to the journal in its own protocol; False where it cannot be reached."""
    import socket  # noqa: PLC0415  # most events that are only stored have nothing to log

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
