"""Reload HAProxy, follow the reload to its end, and confirm the new worker.

A master that reloads blocks signals until its new worker serves or has failed. That, its count of reloads and its
children are visible in /proc on every version. The master CLI (`-S`, management manual, section 9.4) adds HAProxy's
reason for a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from lbagent.errors import LbagentError, TryAgain
from lbagent.haproxy import process, validation
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.session import GlobalLines, Worker
from lbagent.roles.model import HaproxySettings
from lbagent.system import processes, subprocess
from lbagent.system.processes import Process

_REQUEST_AGAIN_AFTER = 1.0
"""Seconds without a sign of a reload after which it is requested again; doubled each time."""

_RESTART_LIMIT = 2.0
"""Seconds that a command which restarts HAProxy has from the end of the old one to the start of the new one."""

_POLL_INTERVAL = 0.01
_QUERY_TIMEOUT = 1.0
"""Seconds to wait for an answer of HAProxy."""

_SETTLING_TIME = 0.1
"""Seconds that a worker without a stats socket has to live to count: one that cannot chroot dies sooner."""

_ENDING_LIMIT = 1.0
"""Seconds within which a master that has lost its worker ends."""

_LOG_LIMIT = 64 * 1024
"""Maximum bytes of HAProxy's log to search for the reason of a failure."""

_BUSY_ANSWER = "still in progress"
"""HAProxy's answer to `reload` during another reload."""


_PORT = re.compile(r"(.*):([0-9]+)(?:-([0-9]+))?")
"""An address of a `bind` line with its port or port range."""


class ReloadFailed(LbagentError):
    """The reload failed: the old worker keeps running the old configuration."""

    exit_status = 5


class MasterState(NamedTuple):
    """The reload state of a master at one moment."""

    reloads: int | None
    """Number of reloads since it was started; None if its environment cannot be read."""
    failed: bool | None
    """Whether it reports that the last one failed; None if it does not report (HAProxy 3.1 and later)."""
    busy: bool
    """Whether a reload is in progress, or about to begin."""
    children: frozenset[tuple[int, int]]
    """Its workers, by pid and start time."""


class Reload:
    """One reload, from the request to the serving worker."""

    def __init__(
        self, settings: HaproxySettings, lines: GlobalLines, find: Callable[[], RunningHaproxy | None]
    ) -> None:
        """`lines` is the `global` of the new text; `find` returns the HAProxy that runs it."""
        self._settings, self._lines, self._find = settings, lines, find
        self._answer = ""
        self._log: tuple[str, int] | None = None
        self._lost_worker_at = 0.0
        self._was_busy = False

    def run(self, running: RunningHaproxy | None) -> Worker:
        """Reload `running` and return the new worker. Raises ReloadFailed, TryAgain."""
        before = wait_for_other_reloads(running, self._settings.timeout)
        answering = self._fetch_answering_pid()
        self._log = _find_stderr_log(running.main) if running else None
        self._request_reload(running)
        asked, again = time.monotonic(), _REQUEST_AGAIN_AFTER
        gone_since = asked
        while (waited := time.monotonic() - asked) < self._settings.timeout:
            if worker := self._find_new_worker(running, before, answering):
                return worker
            if running is None or processes.read_process(running.main.pid) is not None or not self._has_ended():
                gone_since = time.monotonic()
            elif time.monotonic() - gone_since > _RESTART_LIMIT:
                raise TryAgain("HAProxy ended during the reload; start it, haproxy.cfg is complete")
            if waited > again and self._is_request_lost(running, before):
                again *= 2
                with contextlib.suppress(TryAgain):
                    self._request_reload(running)
            time.sleep(_POLL_INTERVAL)
        raise TryAgain(f"no new HAProxy worker was seen within {self._settings.timeout:g} s of the reload")

    def _is_request_lost(self, running: RunningHaproxy | None, before: MasterState | None) -> bool:
        """Return whether the master has begun no reload: it may lose a request just after another reload."""
        now = read_master(running.main) if running is not None and before is not None else None
        return now is not None and before is not None and not now.busy and not self._has_begun(before, now)

    def _request_reload(self, running: RunningHaproxy | None) -> None:
        command = self._settings.reload
        if command is not None:
            self._run_command(command)
        elif running is None:
            raise TryAgain(
                "no process with this haproxy.cfg was found, but its stats socket answers; set haproxy.reload"
            )
        elif running.is_master and self._ask_master_cli(running.main):
            return
        elif running.main.unit and os.path.isdir("/run/systemd/system"):
            self._run_command(("systemctl", "reload", running.main.unit))
        elif running.is_master:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.main.pid, signal.SIGUSR2)
        else:
            self._run_command(build_successor_command(running, self._lines), running)

    def _ask_master_cli(self, master: Process) -> bool:
        """Send `reload` to the master CLI; return whether it may have arrived. Raises ReloadFailed.

        HAProxy 2.6 answers nothing; later versions answer once they know the result.
        """
        for address in list_master_sockets(master):
            try:
                answer, cut = session.exchange(address, "reload", self._settings.timeout)
            except (FileNotFoundError, PermissionError):
                continue
            except ConnectionRefusedError:
                if _wait_for_listener(address):
                    return True  # the master was reloading
                continue
            except OSError:
                return True  # the reload has begun
            if answer.startswith("Permission denied"):
                continue
            if answer.startswith("Success=0") and _BUSY_ANSWER not in answer and not cut:
                self._answer = answer
                raise ReloadFailed(self._format_failure(None))
            return True
        return False

    def _run_command(self, argv: Sequence[str], running: RunningHaproxy | None = None) -> None:
        cwd = running.main.cwd if running else None
        try:
            result = subprocess.run_program(
                argv, self._settings.timeout, cwd=cwd, environ=validation.build_environ(running)
            )
        except OSError as error:
            raise ReloadFailed(f"{argv[0]} cannot be run: {error.strerror}") from error
        if result.status is None:
            raise TryAgain(result.output)
        if not result.succeeded:
            raise ReloadFailed(f"{' '.join(argv)} {result.ending}: {validation.find_reason(result.output)}")

    def _find_new_worker(
        self, old: RunningHaproxy | None, before: MasterState | None, answering: int | None
    ) -> Worker | None:
        """Return the worker of this reload once it serves, else None. Raises ReloadFailed."""
        if old is None:
            pid = self._fetch_answering_pid()
            return Worker(pid, 0) if pid and pid != answering else None
        if before is None:
            found = self._find()
            if found is None or found.worker.identity == old.worker.identity or not found.is_up:
                return None
            return self._confirm_worker(found.worker)
        now = read_master(old.main)
        if now is None:
            return self._find_restarted_worker(old)
        self._was_busy = self._was_busy or now.busy
        if now.busy or not self._has_begun(before, now):
            return None
        return self._find_worker_of_master(old.main, before, now)

    def _find_worker_of_master(self, master: Process, before: MasterState, now: MasterState) -> Worker | None:
        """Return the new worker after a reload has ended; None if that is undecided. Raises ReloadFailed."""
        fresh = [one for pid, _ in now.children - before.children if (one := processes.read_process(pid)) is not None]
        worker = max((one for one in fresh if one.alive), key=lambda one: (one.started, one.pid), default=None)
        if worker is not None:
            self._lost_worker_at = 0.0
            return self._confirm_worker(worker) if process.is_up(worker) else None
        if now.failed is not False and now.children & before.children:
            raise ReloadFailed(self._format_failure(master))
        # The new worker served and died at once: the master ends as well, unless `no-exit-on-failure` is configured.
        self._lost_worker_at = self._lost_worker_at or time.monotonic()
        if time.monotonic() - self._lost_worker_at > _ENDING_LIMIT:
            raise ReloadFailed(self._format_failure(master))
        return None

    def _has_begun(self, before: MasterState, now: MasterState) -> bool:
        """Return whether a reload has begun since `before`, on any request: it reads the current file."""
        if before.reloads is not None and now.reloads is not None:
            return now.reloads > before.reloads
        return self._was_busy or bool(now.children - before.children)

    def _find_restarted_worker(self, old: RunningHaproxy) -> Worker | None:
        """Return the worker of another master: a reload command may have restarted HAProxy."""
        found = self._find()
        if found is None or found.main.identity == old.main.identity or not found.is_up:
            return None
        return self._confirm_worker(found.worker)

    def _confirm_worker(self, worker: Process) -> Worker | None:
        """Return the worker if it serves: it answers on the stats socket, or stays alive if there is none."""
        for address in session.list_stats_sockets(self._lines):
            try:
                return (
                    Worker(*worker.identity)
                    if session.fetch_worker_pid(address, _QUERY_TIMEOUT) == worker.inner_pid
                    else None
                )
            except (FileNotFoundError, ConnectionRefusedError, PermissionError):
                continue
            except OSError:
                return None  # not yet: an old worker that is ending neither answers nor refuses
        time.sleep(_SETTLING_TIME)
        return Worker(*worker.identity) if Worker(*worker.identity).alive and process.is_up(worker) else None

    def _fetch_answering_pid(self) -> int | None:
        for address in session.list_stats_sockets(self._lines):
            with contextlib.suppress(OSError):
                return session.fetch_worker_pid(address)
        return None

    def _has_ended(self) -> bool:
        return self._find() is None and process.is_shown_not_to_run(self._settings.config, self._lines)

    def _format_failure(self, master: Process | None) -> str:
        """Return the message of a failed reload, with HAProxy's own reason if it can be found."""
        reason = validation.find_alert(self._answer)
        if not reason and master is not None:
            reason = next(filter(None, (find() for find in self._list_reason_sources(master))), "")
        hint = "see HAProxy's log; `haproxy -c` does not detect a port in use"
        return f"the reload failed, the old worker keeps running: {reason or hint}"

    def _list_reason_sources(self, master: Process) -> Iterable[Callable[[], str]]:
        """Yield functions that look for HAProxy's reason, the most reliable first."""
        yield lambda: validation.find_alert(_fetch_startup_logs(master))
        yield lambda: validation.find_alert(_read_log_end(self._log))
        yield lambda: validation.find_alert(_read_journal(master))
        yield lambda: _find_port_in_use(self._settings.config, master)


def wait_for_other_reloads(running: RunningHaproxy | None, timeout: float) -> MasterState | None:
    """Wait until no reload by another process is in progress; return the master's state, None without a master.

    During such a reload, the master may have read the old file, and may lose another request. `timeout` is in seconds.
    """
    if running is None or not running.is_master:
        return None
    deadline = time.monotonic() + timeout
    while (now := read_master(running.main)) is not None and now.busy and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
    return now


def read_master(master: Process) -> MasterState | None:
    """Return the reload state of a master; None if it has ended."""
    busy = process.is_reloading(master)
    environ, readable = master.environ, master.environ_readable
    now = processes.read_process(master.pid)
    if now is None or not now.alive or now.identity != master.identity:
        return None
    pids = processes.find_children(master.pid)
    children = [one for pid in pids if (one := processes.read_process(pid)) is not None]
    workers = frozenset(one.identity for one in children if one.alive and one.program.startswith("haproxy"))
    row = _find_master_row(environ)
    count = int(row.get("reloads", 0)) if readable else None
    reports = environ.get("HAPROXY_MWORKER_WAIT_ONLY") == "1"
    failed = int(row.get("failedreloads", 0)) > 0 if reports else None
    # Checked before and after: if a reload began in between, the values do not belong together.
    return MasterState(count, failed, busy or process.is_reloading(master), workers)


def _find_master_row(environ: Mapping[str, str]) -> Mapping[str, str]:
    rows = environ.get("HAPROXY_PROCESSES", "").split("|")[1:]
    fields = (dict(field.partition("=")[::2] for field in row.split(";")) for row in rows)
    return next((row for row in fields if row.get("type") == "m"), {})


def list_master_sockets(master: Process) -> list[str]:
    """Return the addresses of the master CLI: from `-S`, else from HAPROXY_MASTER_CLI."""
    given = [word[2:] or following for word, following in pairwise([*master.argv, ""]) if word[:2] == "-S"]
    given = given or master.environ.get("HAPROXY_MASTER_CLI", "").split(";")
    addresses = [word.partition(",")[0] for word in given]
    return [master.translate_address(one) for one in addresses if one and not one.startswith(("sockpair@", "fd@"))]


def _wait_for_listener(address: str) -> bool:
    """Return whether the master listens again within a second: during its exec nothing listens."""
    deadline = time.monotonic() + _QUERY_TIMEOUT
    while time.monotonic() < deadline:
        try:
            session.ask(address, "show proc", _QUERY_TIMEOUT)
        except ConnectionRefusedError:
            time.sleep(_POLL_INTERVAL)
        except OSError:
            return True
        else:
            return True
    return False


def _fetch_startup_logs(master: Process) -> str:
    """Return the log of the last reload from the master CLI (HAProxy 2.7 and later)."""
    for address in list_master_sockets(master):
        with contextlib.suppress(OSError):
            return session.ask(address, "show startup-logs", _QUERY_TIMEOUT)
    return ""


def _find_stderr_log(master: Process) -> tuple[str, int] | None:
    """Return the file that is HAProxy's stderr, and its size; None if it is not a file."""
    path = f"/proc/{master.pid}/fd/2"
    try:
        return (path, os.stat(path).st_size) if os.path.isfile(path) else None
    except OSError:
        return None


def _read_log_end(log: tuple[str, int] | None) -> str:
    if log is None:
        return ""
    path, size = log
    try:
        with open(path, "rb") as file:
            file.seek(size)
            return file.read(_LOG_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""


def _read_journal(master: Process) -> str:
    """Return the last seconds of HAProxy's service in systemd's journal."""
    if not master.unit or not os.path.isdir("/run/systemd/system"):
        return ""
    argv = ("journalctl", "--quiet", "--output=cat", "--lines=50", "--since=-15s", f"--unit={master.unit}")
    try:
        return subprocess.run_program(argv, 5 * _QUERY_TIMEOUT).output
    except OSError:
        return ""


def _find_port_in_use(config: Sequence[str], master: Process) -> str:
    """Return a message about a `bind` line whose port another program uses; empty if there is none."""
    own = {master.pid, *processes.find_children(master.pid)}
    listeners = processes.list_listeners() if master.shares_network else []
    if not any(one.pid in own for one in listeners):
        return ""  # not permitted: any port could be HAProxy's own
    taken = [one for one in listeners if one.pid not in own]
    for where, host, port in _list_bind_addresses(config):
        for one in taken:
            if one.port == port and _is_same_address(host, one.address):
                words = f"{where}: cannot bind socket (Address already in use) for [{host}:{port}]"
                holder = processes.read_process(one.pid) if one.pid else None
                return f"{words}: used by {holder.program} (pid {holder.pid})" if holder else words
    return ""


def _list_bind_addresses(config: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield FILE:LINE, address and port of each `bind` with a numeric TCP port."""
    for path in config:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
        for file in (os.path.join(path, name) if name else path for name in names if not name.startswith(".")):
            with open(file, "rb") as opened:
                lines = opened.read().decode("utf-8", "replace").split("\n")
            for number, line in enumerate(lines, 1):
                words = line.split(None, 2)
                for address in words[1].split(",") if len(words) > 1 and words[0] == "bind" else ():
                    if found := _PORT.fullmatch(address.partition("@")[2] or address):
                        host = found[1].strip("[]").replace("*", "") or "0.0.0.0"  # noqa: S104  # what HAProxy binds
                        for port in range(int(found[2]), int(found[3] or found[2]) + 1):
                            yield f"{file}:{number}", host, port


def _is_same_address(one: str, other: str) -> bool:
    wild = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound
    return one == other or one in wild or other in wild


def build_successor_command(running: RunningHaproxy, lines: GlobalLines) -> list[str]:
    """Return the command line of a new process that replaces one without a master. Raises TryAgain."""
    if os.environ.get("INVOCATION_ID"):
        # It would belong to our service and end with it.
        raise TryAgain("HAProxy runs without a master (-W) and lbagent in a systemd service; set haproxy.reload")
    argv = _drop_handover_options(running.main.argv)
    daemon = "-D" in argv or any(words[0] == "daemon" for words in lines)
    if not daemon or "-db" in argv or "-d" in argv:
        raise TryAgain("HAProxy runs in the foreground without a master; run it with -W, or set haproxy.reload")
    passing = [words[2] for words in lines if words[:2] == ["stats", "socket"] and "listeners" in words[3:]]
    handover = ["-x", passing[0]] if passing and os.path.exists(passing[0]) else []
    end = argv.index("--") if "--" in argv else len(argv)  # only files follow it
    return [*argv[:end], *handover, "-sf", str(running.main.pid), *argv[end:]]


def _drop_handover_options(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(argv)
    skipping = False
    for word in words:
        if skipping and word.isdigit():
            continue
        skipping = word in ("-sf", "-st")
        if word == "-x":
            next(words, None)
        elif not skipping:
            kept.append(word)
    return kept


PEERS_LIMIT = 12
"""Seconds of a worker's life during which it may still be learning tables."""

_PEERS_SECTION = re.compile(r"^0x\S+: .*\bdisabled=0 flags=0x([0-9a-f]+) ", re.MULTILINE)
_ALL_ASKED = 0b11
"""Flags of a section that has been synchronised with the old worker and with the other load balancers."""

_PEERS_TIMEOUT, _PEERS_POLL = 1.0, 0.05


def wait_for_peers(settings: GlobalLines) -> bool:
    """Wait until the worker has learned its stick tables; return whether that was necessary.

    `settings` is its `global`. Does not wait without a stats socket, or after PEERS_LIMIT seconds of its life.
    """
    for address in session.list_stats_sockets(settings):
        waited = False
        try:
            while _is_young(address) and is_learning(session.ask(address, "show peers", _PEERS_TIMEOUT)):
                waited = True
                time.sleep(_PEERS_POLL)
        except OSError:
            if not waited:
                continue
        return waited
    return False


def is_learning(answer: str) -> bool:
    """Return whether `show peers` lists a section that is still being learned."""
    return any(int(flags, 16) & _ALL_ASKED != _ALL_ASKED for flags in _PEERS_SECTION.findall(answer))


def _is_young(address: str) -> bool:
    uptime = session.parse_info(session.ask(address, "show info", _PEERS_TIMEOUT)).get("Uptime_sec", "")
    return uptime.isdigit() and int(uptime) < PEERS_LIMIT
