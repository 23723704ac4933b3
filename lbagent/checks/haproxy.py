"""Check the haproxy program, its verdict on haproxy.cfg, the running process, and the stats sockets."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lbagent.checks.candidate import UNREADABLE_FILE
from lbagent.checks.finding import Finding, Kind, error, join_names, ok, unreadable, warning
from lbagent.errors import TryAgain
from lbagent.haproxy import process, validation
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.reload import build_successor_command
from lbagent.haproxy.runtime import session
from lbagent.names import format_count
from lbagent.roles.model import HaproxySettings
from lbagent.system import processes, subprocess

TESTED = ("2.6", "2.8", "3.0", "3.2")
"""The versions of HAProxy that lbagent is tested with, oldest first."""

_OLDEST, _NEWEST = (tuple(map(int, TESTED[at].split("."))) for at in (0, -1))

_MESSAGES_LIMIT = 10
"""Warnings, and alerts, of HAProxy that get a finding each."""

_MESSAGE = re.compile(r"\[(ALERT|WARNING)\] +(?:\([0-9]+\)|[0-9/ ]+) ?: (?:config ?: )?(.*)")
_PLACE = re.compile(r"parsing \[([^\]]+:[0-9]+)\] ?: ?(.*)")
_SUMMARY = re.compile(r"Error\(s\) found in configuration file|Fatal errors found in configuration")
_VERSION = re.compile(r"version ([0-9]+)\.([0-9]+)[^ ]*")

_VERSION_TIMEOUT = 5.0
_SOCKET_TIMEOUT = 2.0

_FIX_CONFIG = "fix haproxy.cfg; until then no server line can be added or removed"

GlobalLines = Sequence[Sequence[str]]
"""The words of each line of `global`."""


class ValidationResult(NamedTuple):
    """How `haproxy -c` ended."""

    accepted: bool
    output: str
    seconds: float
    limit: float
    """`haproxy.timeout` of roles.yml, in seconds."""


def check_program() -> Finding:
    """Check whether the haproxy program can be run, and its version."""
    try:
        return check_version(subprocess.run_program(["haproxy", "-v"], _VERSION_TIMEOUT).output)
    except OSError as missing:
        text = f"the haproxy program cannot be run ({missing.strerror}); changes of haproxy.cfg cannot be validated"
        return error(Kind.HAPROXY, "", text, "install HAProxy, or add it to PATH")


def check_version(output: str) -> Finding:
    """Compare the version in the output of `haproxy -v` with the tested ones."""
    found = _VERSION.search(output)
    if found is None:
        text = f"the output is not a version: {_first_line(output)!r}"
        return warning(Kind.HAPROXY, "haproxy -v", text, "install HAProxy")
    version = found[0].removeprefix("version ")
    number = (int(found[1]), int(found[2]))
    if number < _OLDEST:
        text = f"HAProxy {version} is older than the oldest supported version, {TESTED[0]}; each change needs a reload"
        return warning(Kind.HAPROXY, "", text, f"use {', '.join(TESTED[:-1])} or {TESTED[-1]}")
    if number > _NEWEST:
        text = f"HAProxy {version} is newer than the newest tested version, {TESTED[-1]}"
        return warning(Kind.HAPROXY, "", text, f"use {TESTED[-1]}, or try changes on a test system first")
    tested = f"{found[1]}.{found[2]}" in TESTED
    note = "" if tested else f" (not tested; tested are {', '.join(TESTED[:-1])} and {TESTED[-1]})"
    return ok(Kind.HAPROXY, "", f"HAProxy {version}{note}")


def check_config(paths: Sequence[str], settings: HaproxySettings, running: RunningHaproxy | None) -> Iterator[Finding]:
    """Check the files with `haproxy -c`. Raises TryAgain where it cannot be run."""
    started = time.monotonic()
    result = validation.check_files(paths, settings.timeout, running)
    seconds = time.monotonic() - started
    if result.status is None:
        text = f"`haproxy -c` did not end within `haproxy.timeout` ({settings.timeout:g} s)"
        yield error(Kind.TIME_LIMIT, "", text, "set a longer `haproxy.timeout` in roles.yml")
    elif result.was_killed:
        text = f"`haproxy -c` {result.ending}; its verdict is unknown"
        yield error(
            Kind.HAPROXY_CFG, paths[0], text, "check the memory of this machine, then run `lbagent check` again"
        )
    elif os.geteuid() and not result.succeeded and UNREADABLE_FILE.search(result.output):
        text = f"`haproxy -c` may not read a file that it names: {_first_line(result.output)}"
        yield unreadable(Kind.HAPROXY_CFG, paths[0], text)
    else:
        yield from check_verdict(ValidationResult(result.succeeded, result.output, seconds, settings.timeout), paths[0])


def check_verdict(result: ValidationResult, main: str) -> Iterator[Finding]:
    """Yield a finding for each message of `haproxy -c`, and one for its run time. `main` is the first file."""
    messages = [(found[1], found[2]) for found in map(_MESSAGE.match, result.output.split("\n")) if found]
    alerts = [text for severity, text in messages if severity == "ALERT"]
    reasons = [text for text in alerts if not _SUMMARY.match(text)]
    warnings = [text for severity, text in messages if severity == "WARNING"]
    if not result.accepted and not reasons:
        # HAProxy 3.1 and later give some reasons in a warning.
        reasons = [text for text in warnings if _PLACE.match(text)]
        warnings = [text for text in warnings if text not in reasons]
    alerts = reasons or alerts
    if not result.accepted:
        for text in alerts[:_MESSAGES_LIMIT] or [_first_line(result.output) or "HAProxy refuses it without a reason"]:
            yield error(Kind.HAPROXY_CFG, *_split_place(text, main), _FIX_CONFIG)
    for text in warnings[:_MESSAGES_LIMIT]:
        yield warning(Kind.HAPROXY_CFG, *_split_place(text, main), "this is a warning of HAProxy; see its manual")
    if more := len(alerts[_MESSAGES_LIMIT:]) + len(warnings[_MESSAGES_LIMIT:]):
        yield warning(Kind.HAPROXY_CFG, main, f"{format_count(more, 'more message')} of HAProxy", "run `haproxy -c`")
    if result.accepted and not warnings:
        yield ok(Kind.HAPROXY_CFG, main, "`haproxy -c` accepts it without a warning")
    if result.seconds > result.limit / 2:
        text = f"`haproxy -c` took {result.seconds:.1f} s; `haproxy.timeout` in roles.yml is {result.limit:g} s"
        yield warning(Kind.TIME_LIMIT, "", text, "set `haproxy.timeout` to four times that duration")
    else:
        yield ok(Kind.TIME_LIMIT, "", f"`haproxy -c` takes less than half of {result.limit:g} s")


def _split_place(text: str, main: str) -> tuple[str, str]:
    found = _PLACE.match(text)
    return (found[1], found[2]) if found else (main, text)


def _first_line(output: str) -> str:
    return output.strip().split("\n")[0]


def check_process(settings: HaproxySettings, lines: GlobalLines) -> tuple[RunningHaproxy | None, Finding]:
    """Return the HAProxy that runs this haproxy.cfg, and whether it runs and can be reloaded."""
    try:
        running = process.find_haproxy(settings.config, lines)
    except TryAgain as several:
        return None, error(Kind.PROCESS, "", *_split_fix(several))
    if running is None:
        if not processes.can_read_processes():
            return None, unreadable(Kind.PROCESS, "HAProxy's process", "processes of other users are hidden")
        return None, _explain_no_process(settings)
    pid = running.main.pid
    try:
        _prepare_reload(running, settings, lines)
    except TryAgain as impossible:
        return running, error(Kind.PROCESS, f"HAProxy pid {pid}", *_split_fix(impossible))
    except OSError as missing:
        text = f"the reload command cannot be run: {missing.filename}: {missing.strerror}"
        return running, error(Kind.PROCESS, f"HAProxy pid {pid}", text, "fix `haproxy.reload` in roles.yml")
    name = f"master {pid}, worker {running.worker.pid}" if running.is_master else f"pid {pid}, without a master"
    return running, ok(Kind.PROCESS, "", f"HAProxy runs this haproxy.cfg ({name})")


def _explain_no_process(settings: HaproxySettings) -> Finding:
    """Return the finding where no HAProxy runs this haproxy.cfg; those that run other files are named."""
    found = processes.find_processes("haproxy")
    pids, folders = {one.pid for one in found}, {os.path.dirname(path) for path in settings.config}
    mains = [(one.pid, process.list_config_files(one.argv)) for one in found if one.parent not in pids]
    # First those with a file in the same directory: most likely one of them is meant.
    mains.sort(key=lambda one: not folders & {os.path.dirname(path) for path in one[1]})
    others = [f"pid {pid} runs {' '.join(files)}" for pid, files in mains if files]
    text = f"no HAProxy runs {' '.join(settings.config)}; server lines have no effect"
    if not others:
        return error(Kind.PROCESS, "", text, "start HAProxy")
    fix = "set `haproxy.config` in roles.yml to the `-f` files of your HAProxy, or start it"
    return error(Kind.PROCESS, "", f"{text} ({join_names(others)})", fix)


def _prepare_reload(running: RunningHaproxy, settings: HaproxySettings, lines: GlobalLines) -> None:
    """Raise TryAgain or OSError where a reload cannot be started."""
    if settings.reload is not None:
        subprocess.find_program(settings.reload[0])
    elif not running.is_master and not (running.main.unit and os.path.isdir("/run/systemd/system")):
        build_successor_command(running, lines)


def _split_fix(refusal: TryAgain) -> tuple[str, str]:
    """Return problem and fix of a message of the form `PROBLEM; FIX` or `PROBLEM: FIX`."""
    message = str(refusal)
    text, _, fix = message.rpartition("; ") if "; " in message else message.rpartition(": ")
    return text, fix


def check_stats_answers(lines: GlobalLines, running: RunningHaproxy) -> Iterator[Finding]:
    """Check whether each stats socket is answered, by this worker, with level admin."""
    for address in session.list_stats_sockets(lines):
        try:
            level = session.ask(address, "show cli level", _SOCKET_TIMEOUT).strip()
            pid = session.fetch_worker_pid(address, _SOCKET_TIMEOUT)
        except PermissionError:
            yield unreadable(Kind.STATS_ANSWER, address, "this user may not connect to it")
        except OSError as refused:
            reason = refused.strerror or refused
            text = f"no answer, although HAProxy runs (pid {running.main.pid}): {reason}"
            yield error(Kind.STATS_ANSWER, address, text, "reload HAProxy, or fix the path of its `stats socket`")
        else:
            yield _check_stats_answer(address, level, pid, running)


def _check_stats_answer(address: str, level: str, pid: int | None, running: RunningHaproxy) -> Finding:
    if pid not in (None, running.worker.pid):
        text = f"pid {pid} answers, not worker {running.worker.pid}, which runs this haproxy.cfg"
        return error(Kind.STATS_ANSWER, address, text, "give each HAProxy its own stats socket")
    if level != "admin":
        text = f"the running HAProxy answers with level {level!r}"
        return warning(Kind.STATS_ANSWER, address, text, "set `level admin`, and reload HAProxy")
    return ok(Kind.STATS_ANSWER, address, f"worker {running.worker.pid} answers with level admin")
