"""The verb `check`: prints the findings, grouped by subject, each with its fix."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lbagent.checks.finding import Finding, Severity, has_error
from lbagent.checks.run import run_checks
from lbagent.names import format_count, make_printable
from lbagent.settings import Settings
from lbagent.system.log import Log

VERSION = 1
"""Version of the JSON object. New keys do not change it; a new meaning of a key does."""

_COLOURS = {Severity.OK: "32", Severity.WARNING: "33", Severity.ERROR: "31"}
_MIN_WIDTH = 40
_INDENT = 11
"""Columns before the text of a finding: two blanks, the severity, two blanks."""

_TEXT_LIMIT = 600
"""Characters of a finding, and of its fix, on a terminal."""


def check(as_json: bool, quiet: bool) -> Callable[[Settings, Log], int]:  # noqa: FBT001  # the two options of the verb
    """Return the verb. It exits with 1 if a finding is an error, else with 0; it takes no lock and changes nothing.

    `quiet` omits what is ok, and prints nothing if everything is.
    """

    def verb(settings: Settings, log: Log) -> int:
        log.journal = False
        found = run_checks(settings, log)
        shown = [one for one in found if not quiet or one.severity is not Severity.OK]
        if as_json:
            print(json.dumps(_build_json(found, shown)))
        elif shown:
            terminal = sys.stdout.isatty()
            lines = _format_groups(shown) if terminal else map(_format_line, shown)
            _print([*lines, *([""] if terminal else []), format_summary(found)])
        return int(has_error(found))

    return verb


def format_summary(found: Sequence[Finding]) -> str:
    """Return the number of findings of each severity: `2 errors, 1 warning, 28 ok`."""
    counts = Counter(one.severity for one in found)
    errors, warnings = counts[Severity.ERROR], counts[Severity.WARNING]
    return f"{format_count(errors, 'error')}, {format_count(warnings, 'warning')}, {counts[Severity.OK]} ok"


def _print(lines: Sequence[str]) -> None:
    # A character that the terminal's encoding lacks must not end the command.
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding, "replace"))
    sys.stdout.flush()


def _format_line(finding: Finding) -> str:
    return f"{finding.severity:7}  {finding.line}"


def _format_groups(found: Sequence[Finding]) -> Iterator[str]:
    """Yield each subject with its findings, wrapped to the width of the terminal; a fix starts on its own line."""
    width = max(_MIN_WIDTH, shutil.get_terminal_size().columns)
    coloured = not os.environ.get("NO_COLOR")
    subject = None
    for one in found:
        if one.kind.subject is not subject:
            yield from ([""] if subject else [])
            subject = one.kind.subject
            yield f"\x1b[1m{subject}\x1b[0m" if coloured else str(subject)
        severity = f"{one.severity:7}"
        first, *more = _wrap(one.problem, width)
        yield f"  {_colour(severity, one.severity) if coloured else severity}  {first}"
        yield from (" " * _INDENT + line for line in more)
        if one.fix:
            yield from (" " * _INDENT + line for line in _wrap(f"Fix: {one.fix}", width))


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(make_printable(text[:_TEXT_LIMIT]), width - _INDENT, break_on_hyphens=False) or [""]


def _colour(text: str, severity: Severity) -> str:
    return f"\x1b[{_COLOURS[severity]}m{text}\x1b[0m"


def _build_json(found: Sequence[Finding], shown: Sequence[Finding]) -> dict[str, object]:
    """Return the object that `check --json` prints. docs/reference/check.md has every key."""
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
                "subject": one.kind.subject,
                "kind": one.kind,
                "where": one.where,
                "what": one.text,
                "fix": one.fix,
            }
            for one in shown
        ],
    }
