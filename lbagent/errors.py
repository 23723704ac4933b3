"""Every deliberate error, and the exit status that goes with it.

LbagentError             1   unexpected, or not confirmed
├── NotStored            1   nothing could be written: `sync` needed
├── UsageError           2   wrong options
├── RolesRefused         2   roles.yml cannot be used as it stands
├── LastServer           3   a pause would leave a service without any server
├── Refused              4   HAProxy (or a rule about markers) refused haproxy.cfg; the live file is untouched
├── PutBack              5   the reload failed; the previous managed lines are back
│   └── NotYet           5   … and it is too soon to try again
├── Busy                 6   the lock, or a haproxy.cfg nobody is editing, was not had in time
└── TryAgain            75   Serf or HAProxy could not be reached; the next run goes on from here
"""

from __future__ import annotations

from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C or SIGTERM has ended."""


class LbagentError(Exception):
    """One line for the operator: what, where, what would be right."""

    exit_status = 1
    outcome = "failed"
    """What history.jsonl calls a run that ended so."""
    meaning = "unexpected (no permission, a full disk), or not confirmed"
    """What its exit status means, as --help and man page say it; kinds of it need none of their own."""


class NotStored(LbagentError):
    """The event could not be stored; membership may have to be asked of Serf."""


class UsageError(LbagentError):
    """The command line cannot be understood."""

    exit_status = 2
    meaning = "the command line cannot be understood"


class RolesRefused(LbagentError):
    """roles.yml cannot be used; nothing on disk was changed."""

    exit_status = 2
    mistakes: tuple[str, ...] = ()
    """A sentence for each mistake; the error itself is one line, of the first."""

    @classmethod
    def of(cls, mistakes: Sequence[str]) -> RolesRefused:
        """The error with all of these."""
        more = len(mistakes) - 1
        rest = f" (and {more} more mistake{'' if more == 1 else 's'}: run lbagent check)" if more else ""
        error = cls(f"{mistakes[0]}{rest}")
        error.mistakes = tuple(mistakes)
        return error

    meaning = "roles.yml is refused; of `plan`: something would change"


class LastServer(LbagentError):
    """A pause would leave a service without any server that serves; nothing was done."""

    exit_status = 3
    meaning = "of `pause`: no other server of the service serves, nothing was paused"


class Refused(LbagentError):
    """haproxy.cfg was refused; the live file was never touched."""

    exit_status = 4
    meaning = "HAProxy refuses haproxy.cfg, or a marker stands twice; nothing was replaced"
    outcome = "refused"


class RolledBack(LbagentError):
    """HAProxy did not take the change over; the previous managed lines are back."""

    exit_status = 5
    meaning = "the reload failed; the previous managed lines are back"
    outcome = "put back"


class ReloadPostponed(RolledBack):
    """A reload that failed waits for its time, or for haproxy.cfg or roles.yml to change."""


class Busy(LbagentError):
    """Somebody else holds the lock, or keeps editing haproxy.cfg."""

    exit_status = 6
    meaning = "the lock, or a haproxy.cfg that nobody is editing, was not had in time"
    outcome = "busy"


class TryAgain(LbagentError):
    """Serf or HAProxy could not be reached; nothing is lost, the next run goes on."""

    exit_status = 75
    meaning = "Serf or HAProxy could not be reached; the next run goes on from there"
    outcome = "not confirmed"
