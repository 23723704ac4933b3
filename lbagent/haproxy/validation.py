"""Validate files with `haproxy -c`, first in a quick mode; evaluate conditions as the running HAProxy does."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from lbagent.errors import TryAgain
from lbagent.haproxy import process
from lbagent.haproxy.process import RunningHaproxy, read_own_environ
from lbagent.haproxy.reader import Environment
from lbagent.names import brief
from lbagent.system import subprocess, untrusted_files
from lbagent.system.processes import Process
from lbagent.system.subprocess import Program, ProgramResult

_WITHOUT_CA = os.path.join(os.path.dirname(__file__), "without-ca.cfg")
_PLAIN_RUN_WORDS = (b"httpclient", b"HAPROXY_CFGFILES")
"""Words that make a text depend on being loaded alone."""

_CONDITION_TIMEOUT = 5.0
"""Seconds that `haproxy -cc` may take."""

_RESULTS: Mapping[int | None, bool] = MappingProxyType({0: True, 1: False})
"""The meaning of the exit statuses of `haproxy -cc`. With 2 it rejects the condition."""

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


@contextlib.contextmanager
def start_check(
    paths: Sequence[str], timeout: float, running: RunningHaproxy | None
) -> Iterator[Callable[[], ProgramResult]]:
    """Start `haproxy -c` on these files, in the mode and environment of `running`; yield what waits for its result.

    It is killed at the end of the block if it still runs. Raises TryAgain, and so does the yielded function.

    A first run loads a file before them that keeps HAProxy from loading the system's CA certificates. If it fails, the
    plain run decides.
    """
    with _translate_errors():
        contents = [_read_unquoted(path) for path in paths]
    # Up to 3.0, `program` is rejected without a master.
    mode = ["-W"] if running and running.is_master and any(b"program" in content for content in contents) else []
    is_plain = any(word in content for content in contents for word in _PLAIN_RUN_WORDS)
    first = _make_check(mode, paths if is_plain else [_WITHOUT_CA, *paths], timeout, running)

    def wait_for_result() -> ProgramResult:
        with _translate_errors():
            result = first.wait()
            if is_plain or result.succeeded or result.status is None:  # no time left for a second run
                return result
            with _make_check(mode, paths, timeout, running) as second:
                return second.wait()

    # An ExitStack would leave a moment between the start and the push of its end, in which an interrupt may arrive.
    try:
        with _translate_errors():
            first.start()
        yield wait_for_result
    finally:
        first.end()


def check_files(paths: Sequence[str], timeout: float, running: RunningHaproxy | None) -> ProgramResult:
    """Run `haproxy -c` on these files, as `start_check` does, and return its result. Raises TryAgain."""
    with start_check(paths, timeout, running) as wait_for_result:
        return wait_for_result()


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
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


def read_environment(config: Sequence[str]) -> Environment:
    """Return the environment of the HAProxy that reads these files; that of this process if none runs.

    Variables are unknown if they may not be read, or differ between several processes.
    """
    found = process.list_haproxys(config)
    if not found:
        return Environment(read_own_environ())
    variables = found[0].environ
    is_known = bool(variables) and all(one.environ == variables for one in found)
    running = [one for haproxy in found for one in (haproxy.main, haproxy.worker)]
    return Environment(variables if is_known else None, lambda predicate: _evaluate_predicate(predicate, running))


def _evaluate_predicate(predicate: str, running: Sequence[Process]) -> bool | None:
    """Evaluate a predicate of the program itself, such as `feature(THREAD)`; None where that is unknown.

    The program in PATH is run. It has to be the one that runs, and not its successor after an upgrade.
    """
    try:
        path = subprocess.find_program("haproxy")
        program = os.stat(path)
        if not all(one.runs_program(program) for one in running):
            return None
        return _run_condition(predicate, path, (program.st_dev, program.st_ino, program.st_mtime_ns))
    except OSError:
        return None


@functools.lru_cache(maxsize=1000)
def _run_condition(predicate: str, path: str, program: tuple[int, int, int]) -> bool | None:  # noqa: ARG001  # a key
    """Run `haproxy -cc` (management manual, section 3) once for each predicate and program."""
    return _RESULTS.get(subprocess.run_program([path, "-cc", predicate], _CONDITION_TIMEOUT).status)


def _make_check(mode: Sequence[str], paths: Sequence[str], timeout: float, running: RunningHaproxy | None) -> Program:
    argv = ["haproxy", "-c", *mode, *(word for path in paths for word in ("-f", path))]
    environ, cwd = build_environ(running), None
    if running and running.is_master:
        # What the next worker has: paths in haproxy.cfg may be relative, and `.if defined(HAPROXY_MWORKER)` is true.
        environ, cwd = {**environ, "HAPROXY_MWORKER": "1"}, running.main.cwd
    return Program(argv, timeout, cwd=cwd if cwd and os.path.isdir(cwd) else None, environ=environ)


def _read_unquoted(path: str) -> bytes:
    content = untrusted_files.read_whole_file(path)
    # Skip the translation for most files: they may be megabytes long.
    return content.translate(None, _QUOTES) if any(quote in content for quote in _QUOTES) else content
