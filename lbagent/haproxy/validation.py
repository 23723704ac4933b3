"""Validate files with `haproxy -c`, first in a quick mode."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from lbagent.errors import TryAgain
from lbagent.haproxy.process import RunningHaproxy, read_own_environ
from lbagent.names import brief
from lbagent.system import subprocess, untrusted_files
from lbagent.system.subprocess import ProgramResult

_WITHOUT_CA = os.path.join(os.path.dirname(__file__), "without-ca.cfg")
_PLAIN_RUN_WORDS = (b"httpclient", b"HAPROXY_CFGFILES")
"""Words that make a text depend on being loaded alone."""

_SUMMARY = re.compile(r"Error\(s\) found in configuration|Fatal errors found in configuration|\[\S+\(\)\]")
"""An alert that only summarises; the brackets contain the HAProxy function that gives up."""

_PARSING_WORDS = "parsing ["
_WARNINGS_LIMIT = 3

UNREADABLE_FILE = re.compile(
    r"permission denied|unable to (?:stat|open|load|read)|cannot (?:open|access|stat)", re.IGNORECASE
)
"""HAProxy's messages about a file that haproxy.cfg names and that this user may not read."""

_QUOTES = b"\"'\\"
"""Characters that may be inside a word without being part of it."""


def check_files(paths: Sequence[str], timeout: float, running: RunningHaproxy | None) -> ProgramResult:
    """Run `haproxy -c` on these files, in the mode and environment of `running`. Raises TryAgain.

    A first run loads a file before them that keeps HAProxy from loading the system's CA certificates. If it fails, the
    plain run decides.
    """
    try:
        contents = [_read_unquoted(path) for path in paths]
        # Up to 3.0, `program` is rejected without a master.
        mode = ["-W"] if running and running.is_master and any(b"program" in content for content in contents) else []
        if not any(word in content for content in contents for word in _PLAIN_RUN_WORDS):
            quick = _run_check(mode, [_WITHOUT_CA, *paths], timeout, running)
            if quick.succeeded or quick.status is None:  # no time left for a second run
                return quick
        return _run_check(mode, paths, timeout, running)
    except OSError as error:
        raise TryAgain(f"haproxy -c cannot be run: {error.strerror}: {error.filename}") from error


def find_alert(output: str) -> str:
    """Return the first alert in HAProxy's output or log as one short line; empty if there is none.

    Example: [ALERT]    (4041) : config : parsing [/etc/haproxy/haproxy.cfg:12]: unknown keyword …
    """
    found = [(kind[1:6], words) for kind, words in map(_parse_complaint, output.splitlines()) if words]
    alerts = [words for kind, words in found if kind == "ALERT"]
    reasons = [words for words in alerts if not _SUMMARY.match(words)]
    if alerts and not reasons:
        # HAProxy 3.1 and later print some reasons as a warning.
        warnings = [words for kind, words in found if kind == "WARNI" and _PARSING_WORDS in words]
        reasons = ["; ".join(warnings[:_WARNINGS_LIMIT])] if warnings else alerts
    return brief(reasons[0]) if reasons else ""


def find_reason(output: str) -> str:
    """Return HAProxy's first alert, else the last line that a program printed, as one short line."""
    if found := find_alert(output):
        return found
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return brief(lines[-1]) if lines else "no output"


def _parse_complaint(line: str) -> tuple[str, str]:
    kind, _, words = line.strip().partition(") : ")
    return (kind, words.removeprefix("config : ")) if kind.startswith("[") else ("", "")


def build_environ(running: RunningHaproxy | None) -> Mapping[str, str]:
    """Return the variables for `haproxy -c`: those of the running HAProxy, else our own."""
    return (running.environ if running else {}) or read_own_environ()


def _run_check(
    mode: Sequence[str], paths: Sequence[str], timeout: float, running: RunningHaproxy | None
) -> ProgramResult:
    argv = ["haproxy", "-c", *mode, *(word for path in paths for word in ("-f", path))]
    cwd = running.main.cwd if running and running.is_master else None
    # In the master's working directory: paths in haproxy.cfg may be relative.
    return subprocess.run_program(
        argv, timeout, cwd=cwd if cwd and os.path.isdir(cwd) else None, environ=build_environ(running)
    )


def _read_unquoted(path: str) -> bytes:
    content = untrusted_files.read_whole_file(path)
    # Skip the translation for most files: they may be megabytes long.
    return content.translate(None, _QUOTES) if any(quote in content for quote in _QUOTES) else content
