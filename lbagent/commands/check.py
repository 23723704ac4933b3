"""The verb `check`: what was looked at, grouped by subject, with the fix where one is needed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lbagent.checks.finding import Finding, Severity, failed
from lbagent.checks.run import findings
from lbagent.names import format_count, make_printable
from lbagent.settings import Settings
from lbagent.system.log import Log

VERSION = 1
"""Of the JSON object: it grows by keys; what a key means changes only with this number."""

_COLOURS = {Severity.OK: "32", Severity.WARNING: "33", Severity.ERROR: "31"}
_NARROWEST = 40
_INDENT = 11
"""Columns in front of the words of a finding: two, the severity, two."""


def check(as_json: bool, quiet: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the verb's two switches
    """The verb that looks at everything; 0 where there is no error, 1 otherwise. It takes no lock, changes nothing.

    `quiet` leaves out what is well, and prints nothing where all is.
    """

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        found = findings(settings, log)
        shown = [one for one in found if not quiet or one.severity is not Severity.OK]
        if as_json:
            print(json.dumps(_as_json(found, shown)))
        elif shown:
            terminal = sys.stdout.isatty()
            lines = _grouped(shown) if terminal else map(_line, shown)
            _print([*lines, *([""] if terminal else []), summary(found)])
        return int(failed(found))

    return verb


def summary(found: Sequence[Finding]) -> str:
    """How many findings of each kind: `2 errors, 1 warning, 28 ok`."""
    counts = Counter(one.severity for one in found)
    errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
    return f"{format_count(errors, 'error')}, {format_count(warnings, 'warning')}, {counts[Severity.OK]} ok"


def _print(lines: Sequence[str]) -> None:
    # Whatever the terminal's encoding lacks is no reason to end.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding, "replace"))
    sys.stdout.flush()


def _line(finding: Finding) -> str:
    return f"{finding.severity:7}  {finding.words}"


def _grouped(found: Sequence[Finding]) -> Iterator[str]:
    """Each subject with its findings, wrapped to the width of the terminal; a fix is a line of its own."""
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    coloured = not os.environ.get("NO_COLOR")
    subject = None
    for one in found:
        if one.subject is not subject:
            yield from ([""] if subject else [])
            subject = one.subject
            yield f"\x1b[1m{subject}\x1b[0m" if coloured else str(subject)
        severity = f"{one.severity:7}"
        first, *more = _wrapped(": ".join(part for part in (one.kind, one.where, one.what) if part), width)
        yield f"  {_colour(severity, one.severity) if coloured else severity}  {first}"
        yield from (" " * _INDENT + line for line in more)
        if one.fix:
            yield from (" " * _INDENT + line for line in _wrapped(f"Fix: {one.fix}", width))


def _wrapped(words: str, width: int) -> list[str]:
    return textwrap.wrap(make_printable(words[:_LIMIT]), width - _INDENT, break_on_hyphens=False) or [""]


_LIMIT = 600


def _colour(text: str, severity: Severity) -> str:
    return f"\x1b[{_COLOURS[severity]}m{text}\x1b[0m"


def _as_json(found: Sequence[Finding], shown: Sequence[Finding]) -> dict[str, object]:
    """The object that `check --json` prints; docs/reference/check.md has every key."""
    counts = Counter(one.severity for one in found)
    return {
        "version": VERSION,
        "at": int(time.time()),
        "errors": counts[Severity.ERROR],
        "warnings": counts[Severity.WARNING],
        "ok": counts[Severity.OK],
        "findings": [
            {
                "severity": one.severity,
                "subject": one.subject,
                "kind": one.kind,
                "where": one.where,
                "what": one.what,
                "fix": one.fix,
            }
            for one in shown
        ],
    }
