"""HAProxy as it is on this machine: its program, the process that runs this haproxy.cfg, its answer on the socket."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from lbagent.checks.candidate import UNREADABLE
from lbagent.doctor import said
from lbagent.doctor.finding import AS_SERF, Finding, Kind, error, ok, unseen, warning
from lbagent.doctor.said import Checked
from lbagent.errors import TryAgain
from lbagent.haproxy import process, runtime
from lbagent.haproxy.acceptance import checked
from lbagent.haproxy.process import Running
from lbagent.haproxy.reload import successor
from lbagent.host import commands, processes
from lbagent.roles import HaproxySettings

_VERSION_LIMIT = 5.0
_ANSWER_LIMIT = 2.0

Lines = Sequence[Sequence[str]]
"""The words of each line of `global`."""


def version() -> Finding:
    """The version of the program."""
    try:
        return said.version(commands.run(["haproxy", "-v"], _VERSION_LIMIT).words)
    except OSError as missing:
        what = f"haproxy cannot be run ({missing.strerror}): no change of haproxy.cfg can be validated"
        return error(Kind.HAPROXY, "", what, "install it, or have it in PATH")


def verdict(paths: Sequence[str], settings: HaproxySettings, running: Running | None) -> Iterator[Finding]:
    """What `haproxy -c` says of the files. Raises TryAgain where it cannot be run."""
    started = time.monotonic()
    result = checked(paths, settings.timeout, running)
    took = time.monotonic() - started
    if result.status is None:
        what = f"`haproxy -c` did not end within `haproxy.timeout`, {settings.timeout:g} s"
        yield error(Kind.TIME_LIMIT, "", what, "make `haproxy.timeout` in roles.yml longer")
    elif result.was_killed:
        what = f"`haproxy -c` {result.ending}: whether HAProxy accepts it is not known"
        yield error(Kind.HAPROXY_CFG, paths[0], what, "give this machine more memory, or see why")
    elif os.geteuid() and not result.good and UNREADABLE.search(result.words):
        what = f"`haproxy -c` may not read all that it refers to: {said.first_words(result.words)}"
        yield unseen(Kind.HAPROXY_CFG, paths[0], what, AS_SERF)
    else:
        yield from said.checked(Checked(result.good, result.words, took, settings.timeout), paths[0])


def runs(settings: HaproxySettings, lines: Lines) -> tuple[Running | None, Finding]:
    """The HAProxy that runs this haproxy.cfg, and what is to be said of it."""
    try:
        running = process.find(settings.config, lines)
    except TryAgain as several:
        return None, error(Kind.PROCESS, "", *_parted(str(several)))
    if running is None:
        return None, _none()
    main, worker = running.main, running.worker
    try:
        _reloadable(running, settings, lines)
    except TryAgain as impossible:
        return running, error(Kind.PROCESS, f"pid {main.pid}", *_parted(str(impossible)))
    except OSError as missing:
        what = f"its reload command cannot be run: {missing.filename}: {missing.strerror}"
        return running, error(Kind.PROCESS, f"pid {main.pid}", what, "mend `haproxy.reload` in roles.yml")
    told = f"master {main.pid}, worker {worker.pid}" if running.is_master else f"pid {main.pid}, without a master"
    return running, ok(Kind.PROCESS, "", f"HAProxy runs it: {told}")


def _reloadable(running: Running, settings: HaproxySettings, lines: Lines) -> None:
    """Raise TryAgain or OSError where a reload cannot even be begun."""
    if settings.reload is not None:
        commands.found(settings.reload[0])
    elif not running.is_master and not (running.main.unit and os.path.isdir("/run/systemd/system")):
        successor(running, lines)


def answers(lines: Lines, running: Running) -> Iterator[Finding]:
    """Whether a stats socket of the running HAProxy answers, and to an admin."""
    for address in runtime.sockets(lines):
        try:
            level = runtime.ask(address, "show cli level", _ANSWER_LIMIT).strip()
            pid = runtime.worker_pid(address, _ANSWER_LIMIT)
        except PermissionError:
            what = "cannot be looked at: this user may not connect to it"
            yield unseen(Kind.STATS_ANSWER, address, what, AS_SERF)
        except OSError as refused:
            what = f"does not answer, though HAProxy runs (pid {running.main.pid}): {refused.strerror or refused}"
            yield error(Kind.STATS_ANSWER, address, what, "reload HAProxy, or mend the path of its `stats socket`")
        else:
            yield _answered(address, level, pid, running)


def _answered(address: str, level: str, pid: int | None, running: Running) -> Finding:
    if pid not in (None, running.worker.pid):
        what = f"pid {pid} answers there, not the worker {running.worker.pid} that runs this haproxy.cfg"
        return error(Kind.STATS_ANSWER, address, what, "give each HAProxy a stats socket of its own")
    if level != "admin":
        what = f"the running HAProxy answers with level {level!r} there"
        return warning(Kind.STATS_ANSWER, address, what, "write `level admin`, and reload HAProxy")
    return ok(Kind.STATS_ANSWER, address, f"worker {running.worker.pid} answers an admin there")


def _none() -> Finding:
    if processes.table_readable():
        what = "no HAProxy runs this haproxy.cfg: lines are written, and nobody serves them"
        return error(Kind.PROCESS, "", what, "start it")
    what = "whether HAProxy runs cannot be looked at: processes of others are hidden"
    return unseen(Kind.PROCESS, "HAProxy's process", what, AS_SERF)


def _parted(words: str) -> tuple[str, str]:
    what, _, fix = words.rpartition(": ")
    return what, fix
