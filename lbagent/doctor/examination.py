"""The whole examination: everything is looked at, whatever went wrong before, and nothing is changed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import lbagent
from lbagent.doctor.finding import Finding, Kind, ok, warning
from lbagent.doctor.lines_side import LinesSide
from lbagent.doctor.serf_side import SerfSide
from lbagent.errors import LbagentError
from lbagent.host.log import Log, told
from lbagent.settings import Settings

Look = Callable[[], Iterator[Finding]]


def findings(settings: Settings, log: Log) -> Iterator[Finding]:
    """Every finding, in the order in which an operator would look."""
    lines = LinesSide(settings, log)
    serf = SerfSide(lambda: lines.roles)
    yield ok(Kind.LBAGENT, "", f"version {lbagent.__version__} on Python {platform.python_version()}")
    for kind, look in (
        (Kind.ROLES, lines.declared),
        (Kind.HAPROXY, lines.program),
        (Kind.MARKERS, lines.marked),
        (Kind.PROCESS, lines.process),
        (Kind.HAPROXY_CFG, lines.verdict),
        (Kind.HAPROXY_CFG, lines.sections),
        (Kind.STATS_ANSWER, lines.answers),
        (Kind.DRIFT, lines.drift),
        (Kind.PERMISSIONS, lines.permissions),
        (Kind.STATE, lines.state),
        (Kind.SERF, serf.agent),
        (Kind.HANDLERS, serf.handlers),
        (Kind.PEERS, serf.peers),
        (Kind.AGENT_FILES, serf.settings),
    ):
        yield from _whatever_happens(kind, look)


def _whatever_happens(kind: Kind, look: Look) -> Iterator[Finding]:
    """What one look finds; where it cannot be done, that is a finding, and the next look goes on."""
    try:
        yield from look()
    except (LbagentError, OSError) as unseen:
        yield warning(kind, "", f"cannot be looked at: {told(unseen)}", "mend that, and check again")
    except Exception as defect:  # noqa: BLE001  # one broken look must not hide the others
        what = f"cannot be looked at, by a defect of lbagent: {type(defect).__name__}: {defect}"
        yield warning(kind, "", what, "please report it")
