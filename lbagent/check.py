"""The verb `check`: a line for each thing that was looked at, and the fix where one is needed."""

from __future__ import annotations

import os
import sys

from lbagent.doctor.examination import findings
from lbagent.doctor.finding import Finding, Severity, failed
from lbagent.host.log import Log
from lbagent.settings import Settings

_COLOURS = {Severity.OK: "32", Severity.WARNING: "33", Severity.ERROR: "31"}


def check(settings: Settings, log: Log) -> int:
    """Print every finding as it is found; 0 where there is no error, 1 otherwise. Takes no lock, changes nothing."""
    log.journal = False
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    found = []
    for finding in findings(settings, log):
        # Whatever the terminal's encoding lacks is no reason to end.
        line = f"{_line(finding, coloured=coloured)}\n".encode(sys.stdout.encoding, "replace")
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
        found.append(finding)
    return int(failed(found))


def _line(finding: Finding, *, coloured: bool) -> str:
    severity = f"{finding.severity:7}"
    if coloured:
        severity = f"\x1b[{_COLOURS[finding.severity]}m{severity}\x1b[0m"
    return f"{severity}  {finding.words}"
