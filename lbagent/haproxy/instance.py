"""The HAProxy that runs haproxy.cfg: validate with `haproxy -c`, reload, and confirm the new worker.

A worker starts with all servers UP. So that a DOWN server gets no traffic until its checks pass, the new worker gets
their state from the operator's server-state file, which is rewritten before the reload, and through the runtime API as
soon as it serves.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from lbagent.errors import TryAgain
from lbagent.haproxy import process, reload, validation
from lbagent.haproxy.config import RUNTIME_NAME, Key, format_target
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.reload import Reload
from lbagent.haproxy.runtime import session, state
from lbagent.haproxy.runtime.session import GlobalLines, SessionError, Worker
from lbagent.haproxy.runtime.state import ServerState
from lbagent.roles.model import HaproxySettings
from lbagent.state import files
from lbagent.system import processes
from lbagent.system.subprocess import ProgramResult

States = Mapping[Key, ServerState]
"""The servers of a worker."""

_TIMEOUT = 2.0
"""Seconds to wait for the server states."""

_STATE_FILE_MODE = 0o644
_STATE_FILE_HEADER = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state (and more)"


class Haproxy:
    """One HAProxy: its files and its `global` section."""

    def __init__(self, settings: HaproxySettings, lines: GlobalLines, known: RunningHaproxy | None = None) -> None:
        """`lines` are the words of each line of `global`; `known` saves the search if its master is alive."""
        self._settings, self._lines = settings, lines
        self._running = process.find_haproxy(settings.config, lines, known)
        self.reload_seconds: float | None = None
        """Duration of the last reload, also of one that failed; None before the first."""

    @contextlib.contextmanager
    def start_validation(self, paths: Sequence[str], names: Sequence[str]) -> Iterator[Callable[[], str | None]]:
        """Start `haproxy -c` on these files; yield what waits for its verdict, and returns it as `find_refusal`.

        `names` are the operator's names for the files. Raises TryAgain, and so does the yielded function.
        """
        with validation.start_check(paths, self._settings.timeout, self._running) as wait_for_result:
            yield lambda: _explain_refusal(wait_for_result(), paths, names)

    def find_refusal(self, paths: Sequence[str], names: Sequence[str]) -> str | None:
        """Return why HAProxy rejects these files; None if it accepts them. Raises TryAgain if that is unknown."""
        with self.start_validation(paths, names) as wait_for_refusal:
            return wait_for_refusal()

    def find_worker(self) -> Worker | None:
        """Return the serving worker; None if no process is found."""
        running = self._running
        return Worker(*running.worker.identity) if running else None

    @property
    def running(self) -> RunningHaproxy | None:
        """Master and worker, as last seen."""
        return self._running

    @property
    def pids(self) -> frozenset[int]:
        """The pids of the workers; a new pid means that HAProxy was started or reloaded."""
        running = self._running
        workers = processes.find_children(running.main.pid) if running and running.is_master else frozenset()
        return workers or frozenset(one.pid for one in processes.find_processes("haproxy"))

    @property
    def old_workers(self) -> int | None:
        """Number of old workers that wait for their last connections; None if no process is found."""
        return self._running.old if self._running else None

    def is_shown_not_to_run(self) -> bool:
        """Return whether nothing shows a running HAProxy: no process, pidfile or stats socket."""
        return self._running is None and process.is_shown_not_to_run(self._settings.config, self._lines)

    def explain_other_files(self, names: Sequence[str]) -> str:
        """Return why HAProxy loads other text than `names`, the files of `haproxy.config`; empty where it does not."""
        found = process.explain_other_files(self._running, names) if self._running else ""
        return f"HAProxy was started with other files than haproxy.config: {found}" if found else ""

    def has_read_since(self, changed: float, size: int) -> bool:
        """Return whether the worker has certainly read the file as it is since `changed` (epoch seconds).

        `size` is in bytes.
        """
        return self._running is not None and self._running.has_read_since(changed, size)

    def wait_for_other_reloads(self) -> None:
        """Wait until no reload by another process is in progress."""
        reload.wait_for_other_reloads(self._running, self._settings.timeout)

    def reload(self, changed: Collection[Key] = ()) -> Worker | None:
        """Reload HAProxy and return the new worker; None if HAProxy does not run.

        Servers that were DOWN start DOWN in the new worker, except those in `changed`, whose lines have changed. Raises
        ReloadFailed, or TryAgain if the result is unknown.
        """
        if reload.wait_for_peers(self._lines):
            self._running = self._find()
        if self.is_shown_not_to_run():
            return None
        servers = session.ask_any(self._lines, state.STATES_COMMAND, state.parse_states, _TIMEOUT) or {}
        write_state_file(self._lines, servers, changed)
        started = time.monotonic()
        try:
            worker = Reload(self._settings, self._lines, self._find).run(self._running)
        finally:
            self.reload_seconds = time.monotonic() - started
            with contextlib.suppress(TryAgain):
                self._running = self._find()
        restore_down_servers(self._lines, worker, servers)
        return worker

    def _find(self) -> RunningHaproxy | None:
        return process.find_haproxy(self._settings.config, self._lines)


def _explain_refusal(result: ProgramResult, paths: Sequence[str], names: Sequence[str]) -> str | None:
    if result.status is None:
        raise TryAgain(result.output)
    if result.was_killed:
        raise TryAgain(f"haproxy -c {result.ending}: whether HAProxy accepts haproxy.cfg is not known; run again")
    if result.succeeded:
        return None
    words = validation.find_reason(result.output)
    for path, name in zip(paths, names, strict=True):
        words = words.replace(path, name)
    return words


def restore_down_servers(lines: GlobalLines, worker: Worker, before: States) -> list[str]:
    """Set the servers that were DOWN before to DOWN in the new worker; return their names.

    A server with another address, or without checks that could bring it back, is left as HAProxy starts it.
    """
    if not any(row.down for row in before.values()):
        return []
    with contextlib.suppress(SessionError):
        talk = session.open_session(lines, worker)
        now = talk.fetch_states()
        same = [key for key, row in before.items() if row.down and _may_start_down(now.get(key), row)]
        down = [key for key in same if all(map(RUNTIME_NAME.fullmatch, key))]
        answers = talk.send([f"set server {format_target(key)} health down" for key in down])
        return [format_target(key) for key, answer in zip(down, answers, strict=True) if answer == ""]
    return []


def write_state_file(lines: GlobalLines, rows: States, changed: Collection[Key]) -> None:
    """Write the server-state file, if `global` declares one, without the servers in `changed`.

    For HAProxy, the file takes precedence over the server's line, including its port. Errors are ignored: HAProxy can
    start without the file.
    """
    path = next((words[1] for words in lines if words[0] == "server-state-file" and len(words) > 1), "")
    base = next((words[1] for words in lines if words[0] == "server-state-base" and len(words) > 1), "")
    path = os.path.join(base, path)
    if rows and os.path.isabs(path):
        kept = [row.row for key, row in rows.items() if key not in changed]
        text = "\n".join((state.STATES_VERSION, _STATE_FILE_HEADER, *kept, ""))
        with contextlib.suppress(OSError):
            files.replace_file(path, text.encode("utf-8", "surrogateescape"), _STATE_FILE_MODE, durable=False)


def _may_start_down(now: ServerState | None, before: ServerState) -> bool:
    return now is not None and now.checked and (now.address, now.port) == (before.address, before.port)
