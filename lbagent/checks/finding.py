"""A finding: one result of `lbagent check`, with its severity and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, Self

from lbagent.names import make_printable

NAMES_LIMIT = 5
"""Names that `join_names` lists before `and N more`."""

RUN_AS_ROOT = "run `lbagent check` as root"
"""The fix where this user may not read something."""

SEE_MIGRATION = "see docs/how-to/from-handler-rb.md"
"""The last part of the fix for what is left of the classic handler.rb."""

_TEXT_LIMIT = 600
"""Characters of one finding. Output of other programs may be longer than a screen."""


class Severity(StrEnum):
    """How severe a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Subject(StrEnum):
    """The headings that findings are grouped by, in the order of the output."""

    LBAGENT = "lbagent"
    ROLES = "roles.yml and markers"
    HAPROXY = "haproxy.cfg and HAProxy"
    LINES = "Managed lines"
    FILES = "Files"
    SERF = "Serf"
    PEERS = "Other load balancers"


class Kind(StrEnum):
    """What a check is about. docs/reference/check.md has a row for each kind."""

    subject: Subject

    def __new__(cls, value: str, subject: Subject) -> Self:
        """Make a kind that is shown below the heading `subject`."""
        kind = str.__new__(cls, value)
        kind._value_, kind.subject = value, subject
        return kind

    LBAGENT = "lbagent", Subject.LBAGENT
    USER = "user", Subject.LBAGENT
    DAEMON = "daemon", Subject.LBAGENT
    LOCK = "lock", Subject.LBAGENT
    SETTINGS = "settings", Subject.LBAGENT
    SYNC = "sync", Subject.LBAGENT
    LAST_RUN = "last-run", Subject.LBAGENT
    ROLES = "roles", Subject.ROLES
    ROLE_EMPTY = "role-empty", Subject.ROLES
    SERVICE_UNUSED = "service-unused", Subject.ROLES
    NETWORKS = "networks", Subject.ROLES
    SERVICE_LINE = "service-line", Subject.ROLES
    MIGRATION = "migration", Subject.ROLES
    MARKERS = "markers", Subject.ROLES
    MARKER_UNKNOWN = "marker-unknown", Subject.ROLES
    MARKER_MISSING = "marker-missing", Subject.ROLES
    MARKER_DUPLICATE = "marker-duplicate", Subject.ROLES
    MARKER_MISPLACED = "marker-misplaced", Subject.ROLES
    MARKER_MALFORMED = "marker-malformed", Subject.ROLES
    MARKER_INACTIVE = "marker-inactive", Subject.ROLES
    LINE_WITHOUT_MARKER = "line-without-marker", Subject.ROLES
    ROLE_WITHOUT_MARKER = "role-without-marker", Subject.ROLES
    OPERATOR_LINE = "operator-line", Subject.ROLES
    NODE = "node", Subject.ROLES
    HAPROXY = "haproxy", Subject.HAPROXY
    HAPROXY_CFG = "haproxy-cfg", Subject.HAPROXY
    TIME_LIMIT = "time-limit", Subject.HAPROXY
    PROCESS = "process", Subject.HAPROXY
    STATS_SOCKET = "stats-socket", Subject.HAPROXY
    STATS_ANSWER = "stats-answer", Subject.HAPROXY
    HAND_OVER = "hand-over", Subject.HAPROXY
    HARD_STOP = "hard-stop", Subject.HAPROXY
    IDLE_CLOSE = "idle-close", Subject.HAPROXY
    TIMEOUTS = "timeouts", Subject.HAPROXY
    SERVER_STATE = "server-state", Subject.HAPROXY
    RUNTIME_API = "runtime-api", Subject.HAPROXY
    LINE_DAMAGED = "line-damaged", Subject.LINES
    COOKIE = "cookie", Subject.LINES
    DRIFT = "drift", Subject.LINES
    PENDING = "pending", Subject.LINES
    BLOCKED = "blocked", Subject.LINES
    QUARANTINE = "quarantine", Subject.LINES
    PERMISSIONS = "permissions", Subject.FILES
    ACCESS = "access", Subject.FILES
    STATE = "state", Subject.FILES
    DISK = "disk", Subject.FILES
    DAMAGED = "damaged", Subject.FILES
    BAD_EVENTS = "bad-events", Subject.FILES
    SERF = "serf", Subject.SERF
    ENCRYPTION = "encryption", Subject.SERF
    HANDLERS = "handlers", Subject.SERF
    HANDLER_SPEC = "handler-spec", Subject.SERF
    MEMBERS = "members", Subject.SERF
    AGENT_FILES = "agent-files", Subject.SERF
    REPLAY = "replay", Subject.SERF
    LEAVE = "leave", Subject.SERF
    KEY = "key", Subject.SERF
    RPC = "rpc", Subject.SERF
    ROLE_TAG = "role-tag", Subject.PEERS
    PEERS = "peers", Subject.PEERS


class Finding(NamedTuple):
    """One result of a check."""

    severity: Severity
    kind: Kind
    where: str
    """The object: FILE:LINE, a file, a process, a node; empty where `text` names it."""
    text: str
    """What was found."""
    fix: str = ""
    """What the operator should do; empty where nothing has to be done."""
    unreadable: bool = False
    """Whether this user may not read the object, so that nothing is known about it."""

    @property
    def problem(self) -> str:
        """Kind, object and text on one line, without the fix."""
        return ": ".join(part for part in (self.kind, self.where, self.text) if part)

    @property
    def line(self) -> str:
        """The finding without its severity, as `OBJECT: PROBLEM; WHAT TO DO`: one printable line."""
        line = make_printable("; ".join(part for part in (self.problem, self.fix) if part))
        return line if len(line) <= _TEXT_LIMIT else f"{line[:_TEXT_LIMIT]} …"


def ok(kind: Kind, where: str, text: str) -> Finding:
    """Return a finding about something that is as it should be."""
    return Finding(Severity.OK, kind, where, text)


def warning(kind: Kind, where: str, text: str, fix: str) -> Finding:
    """Return a finding about something that can cost requests or safety, or that could not be checked."""
    return Finding(Severity.WARNING, kind, where, text, fix)


def error(kind: Kind, where: str, text: str, fix: str) -> Finding:
    """Return a finding about something that keeps an event from taking effect, or lets strangers control lbagent."""
    return Finding(Severity.ERROR, kind, where, text, fix)


def unreadable(kind: Kind, where: str, text: str = "not readable for this user") -> Finding:
    """Return a finding about something that this user may not read: nothing is known about it."""
    return Finding(Severity.WARNING, kind, where, text, RUN_AS_ROOT, unreadable=True)


def has_error(findings: Iterable[Finding]) -> bool:
    """Return whether any finding is an error."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def join_names(names: Sequence[str]) -> str:
    """Return the names separated by commas; beyond NAMES_LIMIT they are counted."""
    more = len(names) - NAMES_LIMIT
    return ", ".join(names[:NAMES_LIMIT]) + (f" and {more} more" if more > 0 else "")
