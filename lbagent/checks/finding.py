"""A finding: one thing that was looked at, and what an operator should make of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from lbagent.names import make_printable

NAMED = 5
"""Names that are told before `and N more`."""

AS_SERF = "run this as root"
"""What would be right where something may not be looked at."""

_LIMIT = 600
"""Characters of one line: foreign words are cut before they fill a screen."""


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Kind(StrEnum):
    """What was looked at; docs/reference/check.md has a row for each."""

    LBAGENT = "lbagent"
    USER = "user"
    DAEMON = "daemon"
    SYNC = "sync"
    LAST_RUN = "last-run"
    ROLES = "roles"
    ROLE_EMPTY = "role-empty"
    SERVICE_UNUSED = "service-unused"
    NETWORKS = "networks"
    SERVICE_LINE = "service-line"
    MIGRATION = "migration"
    MARKERS = "markers"
    MARKER_UNKNOWN = "marker-unknown"
    MARKER_MISSING = "marker-missing"
    MARKER_TWICE = "marker-twice"
    MARKER_MISPLACED = "marker-misplaced"
    MARKER_NEARLY = "marker-nearly"
    MARKER_UNREAD = "marker-unread"
    MARKER_GONE = "marker-gone"
    LINE_DAMAGED = "line-damaged"
    COOKIE = "cookie"
    ROLE_NOWHERE = "role-nowhere"
    BY_HAND = "by-hand"
    NODE = "node"
    HAPROXY = "haproxy"
    HAPROXY_CFG = "haproxy-cfg"
    TIME_LIMIT = "time-limit"
    PROCESS = "process"
    STATS_SOCKET = "stats-socket"
    STATS_ANSWER = "stats-answer"
    HAND_OVER = "hand-over"
    HARD_STOP = "hard-stop"
    IDLE_CLOSE = "idle-close"
    TIMEOUTS = "timeouts"
    SERVER_STATE = "server-state"
    RUNTIME_API = "runtime-api"
    DRIFT = "drift"
    PENDING = "pending"
    HELD = "held"
    QUARANTINE = "quarantine"
    PERMISSIONS = "permissions"
    ACCESS = "access"
    STATE = "state"
    DISK = "disk"
    DAMAGED = "damaged"
    BAD_RECORDS = "bad-records"
    SERF = "serf"
    ENCRYPTION = "encryption"
    HANDLERS = "handlers"
    HANDLER_SPEC = "handler-spec"
    ROLE_TAG = "role-tag"
    PEERS = "peers"
    MEMBERS = "members"
    AGENT_FILES = "agent-files"
    REPLAY = "replay"
    LEAVE = "leave"
    KEY = "key"
    RPC = "rpc"


class Subject(StrEnum):
    """What findings are grouped by, in the order in which they are shown."""

    LBAGENT = "lbagent"
    ROLES = "roles.yml and markers"
    HAPROXY = "haproxy.cfg and HAProxy"
    LINES = "Managed lines"
    FILES = "Files"
    SERF = "Serf"
    PEERS = "Other load balancers"


_SUBJECTS = {
    Subject.LBAGENT: (Kind.LBAGENT, Kind.USER, Kind.DAEMON, Kind.SYNC, Kind.LAST_RUN),
    Subject.ROLES: (
        Kind.ROLES,
        Kind.ROLE_EMPTY,
        Kind.SERVICE_UNUSED,
        Kind.NETWORKS,
        Kind.SERVICE_LINE,
        Kind.MIGRATION,
        Kind.MARKERS,
        Kind.MARKER_UNKNOWN,
        Kind.MARKER_MISSING,
        Kind.MARKER_TWICE,
        Kind.MARKER_GONE,
        Kind.ROLE_NOWHERE,
        Kind.BY_HAND,
        Kind.NODE,
    ),
    Subject.LINES: (Kind.LINE_DAMAGED, Kind.COOKIE, Kind.DRIFT, Kind.PENDING, Kind.HELD, Kind.QUARANTINE),
    Subject.FILES: (Kind.PERMISSIONS, Kind.ACCESS, Kind.STATE, Kind.DISK, Kind.DAMAGED, Kind.BAD_RECORDS),
    Subject.SERF: (
        Kind.SERF,
        Kind.ENCRYPTION,
        Kind.HANDLERS,
        Kind.HANDLER_SPEC,
        Kind.MEMBERS,
        Kind.AGENT_FILES,
        Kind.REPLAY,
        Kind.LEAVE,
        Kind.KEY,
        Kind.RPC,
    ),
    Subject.PEERS: (Kind.ROLE_TAG, Kind.PEERS),
}
_SUBJECT_OF = {kind: subject for subject, kinds in _SUBJECTS.items() for kind in kinds}


class Finding(NamedTuple):
    """What was found, where, and what would be right."""

    severity: Severity
    kind: Kind
    where: str
    """FILE:LINE, a file, a program; may be empty."""
    what: str
    fix: str = ""
    unseen: bool = False
    """Whether this user may not look there: nothing is known, and nothing is wrong."""

    @property
    def subject(self) -> Subject:
        """The group it is shown in."""
        if self.kind.startswith("marker-"):
            return Subject.ROLES
        return _SUBJECT_OF.get(self.kind, Subject.HAPROXY)

    @property
    def words(self) -> str:
        """All of it but the severity: one line, and nothing a terminal obeys."""
        told = ": ".join(part for part in (self.kind, self.where, self.what, self.fix) if part)
        line = make_printable(told)
        return line if len(line) <= _LIMIT else f"{line[:_LIMIT]} …"


def ok(kind: Kind, where: str, what: str) -> Finding:
    """All is well there."""
    return Finding(Severity.OK, kind, where, what)


def warning(kind: Kind, where: str, what: str, fix: str) -> Finding:
    """Something to look at; or what could not be looked at."""
    return Finding(Severity.WARNING, kind, where, what, fix)


def unseen(kind: Kind, where: str, what: str, fix: str) -> Finding:
    """What this user may not look at."""
    return Finding(Severity.WARNING, kind, where, what, fix, unseen=True)


def error(kind: Kind, where: str, what: str, fix: str) -> Finding:
    """Something that keeps lbagent from doing its work, or lets others do it."""
    return Finding(Severity.ERROR, kind, where, what, fix)


def failed(findings: Iterable[Finding]) -> bool:
    """Whether there is an error among them."""
    return any(found.severity is Severity.ERROR for found in findings)


def enumerated(names: Sequence[str]) -> str:
    """The names in one phrase, the many cut short."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
