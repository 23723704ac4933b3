"""The whole examination: everything is looked at, whatever went wrong before, and nothing is changed."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence

import lbagent
from lbagent.checks.files import Account, account_of
from lbagent.checks.finding import AS_SERF, Finding, Kind, Severity, Subject, ok, unseen, warning
from lbagent.checks.lines import LinesSide
from lbagent.checks.serf import SerfSide
from lbagent.errors import LbagentError
from lbagent.settings import Settings
from lbagent.system.log import Log, format_error

Look = Callable[[], Iterator[Finding]]


def findings(settings: Settings, log: Log) -> list[Finding]:
    """Every finding, grouped by subject."""
    lines = LinesSide(settings, log)
    serf = SerfSide(lambda: lines.roles, lambda: lines.has_peers)
    found = [ok(Kind.LBAGENT, "", f"version {lbagent.__version__} on Python {platform.python_version()}")]

    def handler() -> Account | None:
        return account_of(serf.running.process) if serf.running else None

    for kind, look in (
        (Kind.ROLES, lines.declared),
        (Kind.HAPROXY, lines.program),
        (Kind.MARKERS, lines.marked),
        (Kind.PROCESS, lines.process),
        (Kind.HAPROXY_CFG, lines.verdict),
        (Kind.SERVICE_LINE, lines.service_lines),
        (Kind.HAPROXY_CFG, lines.sections),
        (Kind.STATS_ANSWER, lines.answers),
        (Kind.DRIFT, lines.drift),
        (Kind.PERMISSIONS, lines.permissions),
        (Kind.STATE, lines.state),
        (Kind.SERF, serf.agent),
        (Kind.HANDLERS, serf.handlers),
        (Kind.PEERS, serf.peers),
        (Kind.AGENT_FILES, serf.settings),
        (Kind.ACCESS, lambda: lines.access(handler())),
        (Kind.DAEMON, lambda: lines.daemon(handler())),
    ):
        found += _whatever_happens(kind, look)
    found = [*_without_repetitions(found)]
    if os.geteuid():
        found = [*_as_one(found)]
    return sorted(found, key=lambda one: _ORDER.index(one.subject))


def _without_repetitions(found: Sequence[Finding]) -> Iterator[Finding]:
    """The findings without those that only say again, in general words, what others say."""
    kinds = {one.kind for one in found}
    subjects = {one.subject for one in found if one.severity is not Severity.OK and one.kind is not Kind.LAST_RUN}
    explained = not subjects.isdisjoint((Subject.ROLES, Subject.HAPROXY, Subject.LINES, Subject.FILES))
    for one in found:
        lines_left = one.kind is Kind.MIGRATION and one.severity is Severity.WARNING
        if not (one.kind is Kind.LAST_RUN and explained) and not (lines_left and Kind.BY_HAND in kinds):
            yield one


_ORDER = [*Subject]

_NAMED_OBJECTS = 8


def _as_one(found: Sequence[Finding]) -> Iterator[Finding]:
    """The findings, all that this user may not look at being one of them."""
    hidden = [one for one in found if one.unseen]
    yield from (one for one in found if not one.unseen)
    if hidden:
        names = list(dict.fromkeys(one.where for one in hidden if one.where)) or [hidden[0].kind.value]
        more = len(names) - _NAMED_OBJECTS
        named = ", ".join(names[:_NAMED_OBJECTS]) + (f" and {more} more" if more > 0 else "")
        what = f"not run as root, and not readable for this user: {named}"
        yield warning(Kind.USER, "", what, "run `lbagent check` as root; nothing is said of these")


def _whatever_happens(kind: Kind, look: Look) -> Iterator[Finding]:
    """What one look finds; where it cannot be done, that is a finding, and the next look goes on."""
    try:
        yield from look()
    except PermissionError as refused:
        yield unseen(kind, refused.filename or "", f"cannot be looked at: {format_error(refused)}", AS_SERF)
    except (LbagentError, OSError) as hindered:
        yield warning(kind, "", f"cannot be looked at: {format_error(hindered)}", "mend that, and check again")
    except Exception as defect:  # noqa: BLE001  # one broken look must not hide the others
        what = f"cannot be looked at, by a defect of lbagent: {type(defect).__name__}: {defect}"
        yield warning(kind, "", what, "please report it")
