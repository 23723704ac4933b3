"""Every deliberate error with its exit status.

LbagentError             1   unexpected, or not confirmed
├── NotStored            1   the event was not stored; `sync` is needed
├── UsageError           2   invalid command line
├── RolesRefused         2   roles.yml is invalid
├── LastServer           3   a pause would leave a service without any server
├── Refused              4   HAProxy, or a rule about markers, rejects haproxy.cfg; the file is unchanged
├── RolledBack           5   the reload failed; the previous managed lines are restored
│   └── ReloadPostponed  5   the same, and it is too soon to try again
├── Busy                 6   could not acquire the lock in time, or haproxy.cfg kept changing
└── TryAgain            75   Serf or HAProxy is unreachable; the next run continues
"""

from __future__ import annotations

from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C or SIGTERM interrupted."""


class LbagentError(Exception):
    """An error that lbagent expects. Its text is one line for the operator: object, problem, what to do."""

    exit_status = 1
    outcome = "failed"
    """The `outcome` of such a run in history.jsonl."""
    meaning = "unexpected error (no permission, a full disk), or a load balancer did not confirm"
    """What the exit status means, for --help and the man page. Subclasses with the same meaning define none."""


class NotStored(LbagentError):
    """The event could not be stored. `sync` has to fetch membership from Serf."""


class UsageError(LbagentError):
    """The command line is invalid."""

    exit_status = 2
    meaning = "invalid command line"


class RolesRefused(LbagentError):
    """roles.yml is invalid. Nothing on disk was changed."""

    exit_status = 2
    meaning = "invalid roles.yml; `plan`: there are changes"
    mistakes: tuple[str, ...] = ()
    """One sentence per mistake. The text of the error itself is the first one."""

    @classmethod
    def from_mistakes(cls, mistakes: Sequence[str]) -> RolesRefused:
        """Return the error for these mistakes, of which there is at least one."""
        more = len(mistakes) - 1
        rest = f" (and {more} more mistake{'' if more == 1 else 's'}: run lbagent check)" if more else ""
        error = cls(f"{mistakes[0]}{rest}")
        error.mistakes = tuple(mistakes)
        return error


class LastServer(LbagentError):
    """A pause would leave a service without any serving server. Nothing was paused."""

    exit_status = 3
    meaning = "`pause`: no other server of the service serves, nothing was paused"


class Refused(LbagentError):
    """haproxy.cfg was rejected. The file is unchanged."""

    exit_status = 4
    meaning = "HAProxy refuses haproxy.cfg, or a marker appears twice in a proxy; haproxy.cfg is unchanged"
    outcome = "refused"


class RolledBack(LbagentError):
    """HAProxy did not load the change. The previous managed lines are restored."""

    exit_status = 5
    meaning = "the reload failed; the previous managed lines are restored"
    outcome = "rolled back"


class ReloadPostponed(RolledBack):
    """A failed reload is not retried yet.

    Its waiting time is not over, and neither haproxy.cfg nor roles.yml has changed.
    """


class Busy(LbagentError):
    """Another process holds the lock, or haproxy.cfg keeps changing."""

    exit_status = 6
    meaning = "timed out waiting for the lock, or haproxy.cfg kept changing"
    outcome = "busy"


class TryAgain(LbagentError):
    """Serf or HAProxy is unreachable. Nothing is lost: the next run continues."""

    exit_status = 75
    meaning = "Serf or HAProxy is not reachable; try again"
    outcome = "not confirmed"
