"""`haproxy -c`: whether HAProxy takes some files, asked the quick way first."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from lbagent.errors import TryAgain
from lbagent.haproxy.process import RunningHaproxy
from lbagent.names import brief
from lbagent.system import subprocess, untrusted_files
from lbagent.system.subprocess import ProgramResult

_WITHOUT_CA = os.path.join(os.path.dirname(__file__), "without-ca.cfg")
_PLAIN = (b"httpclient", b"HAPROXY_CFGFILES")
"""Words in a text that means what it says only where nothing stands before it."""

_SUMMARY = re.compile(r"Error\(s\) found in configuration|Fatal errors found in configuration|\[\S+\(\)\]")
"""An alert that follows the reason; in brackets is the function of HAProxy that gives up."""

_PLACE = "parsing ["
_WARNINGS = 3

_QUOTES = b"\"'\\"
"""What may stand in the midst of a word and be no part of it."""


def check_files(paths: Sequence[str], timeout: float, running: RunningHaproxy | None) -> ProgramResult:
    """How `haproxy -c` ends on these files, read as the running one would read them. Raises TryAgain.

    Only the plain way refuses, in HAProxy's own words.
    """
    try:
        contents = [_content(path) for path in paths]
        # Up to 3.0, `program` is refused without a master.
        mode = ["-W"] if running and running.is_master and any(b"program" in content for content in contents) else []
        if not any(word in content for content in contents for word in _PLAIN):
            quick = _checked(mode, [_WITHOUT_CA, *paths], timeout, running)
            if quick.succeeded or quick.status is None:  # no time left for another
                return quick
        return _checked(mode, paths, timeout, running)
    except OSError as error:
        raise TryAgain(f"haproxy -c cannot be run: {error.strerror}: {error.filename}") from error


def find_alert(output: str) -> str:
    """The first complaint in what HAProxy printed or logged, cut to a line; nothing where it has none.

    [ALERT]    (4041) : config : parsing [/etc/haproxy/haproxy.cfg:12]: unknown keyword …
    """
    found = [(kind[1:6], words) for kind, words in map(_complaint, output.splitlines()) if words]
    alerts = [words for kind, words in found if kind == "ALERT"]
    reasons = [words for words in alerts if not _SUMMARY.match(words)]
    if alerts and not reasons:
        # HAProxy 3.1 and later give some reasons in a warning.
        warnings = [words for kind, words in found if kind == "WARNI" and _PLACE in words]
        reasons = ["; ".join(warnings[:_WARNINGS])] if warnings else alerts
    return brief(reasons[0]) if reasons else ""


def find_reason(output: str) -> str:
    """The first complaint of HAProxy, or the last line of what another program printed; cut to a line."""
    if found := find_alert(output):
        return found
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return brief(lines[-1]) if lines else "without a word"


def _complaint(line: str) -> tuple[str, str]:
    kind, _, words = line.strip().partition(") : ")
    return (kind, words.removeprefix("config : ")) if kind.startswith("[") else ("", "")


def build_environ(running: RunningHaproxy | None) -> Mapping[str, str]:
    """The variables for ${…}: of the HAProxy that runs, else our own."""
    return (running.environ if running else {}) or _own_environ()


def _checked(
    mode: Sequence[str], paths: Sequence[str], timeout: float, running: RunningHaproxy | None
) -> ProgramResult:
    argv = ["haproxy", "-c", *mode, *(word for path in paths for word in ("-f", path))]
    cwd = running.main.cwd if running and running.is_master else None
    # In its folder: paths in haproxy.cfg may be relative to it.
    return subprocess.run_program(
        argv, timeout, cwd=cwd if cwd and os.path.isdir(cwd) else None, environ=build_environ(running)
    )


def _content(path: str) -> bytes:
    content = untrusted_files.read_whole_file(path)
    # A pass over all bytes, of which there may be millions, that most files do not need.
    return content.translate(None, _QUOTES) if any(quote in content for quote in _QUOTES) else content


def _own_environ() -> dict[str, str]:
    # What Serf put into it was chosen by others.
    return {key: value for key, value in os.environ.items() if not key.startswith("SERF_")}
