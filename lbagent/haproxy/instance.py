"""The HAProxy that runs haproxy.cfg: validate with `haproxy -c`, reload, and confirm the new worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence

from lbagent.errors import LbagentError, TryAgain
from lbagent.haproxy import process, reload, validation
from lbagent.haproxy.config import Key
from lbagent.haproxy.process import RunningHaproxy, Worker
from lbagent.haproxy.reload import Reload, ReloadFailed
from lbagent.haproxy.runtime import health
from lbagent.roles.model import HaproxySettings
from lbagent.system import processes

__all__ = ["Haproxy", "NotAccepted", "ReloadFailed"]


class NotAccepted(LbagentError):
    """`haproxy -c` rejected a text; the message is HAProxy's own."""

    exit_status = 4


class Haproxy:
    """One HAProxy: its files and its `global` section."""

    def __init__(
        self, settings: HaproxySettings, lines: Sequence[Sequence[str]], known: RunningHaproxy | None = None
    ) -> None:
        """`lines` are the words of each line of `global`; `known` saves the search if its master is alive."""
        self._settings, self._lines = settings, lines
        self._running = process.find_haproxy(settings.config, lines, known)
        self.reload_seconds: float | None = None
        """Duration of the last reload, also of one that failed; None before the first."""

    def validate(self, paths: Sequence[str], names: Sequence[str]) -> None:
        """Validate these files with `haproxy -c`; `names` are the operator's names for them.

        Raises NotAccepted, or TryAgain if `haproxy -c` cannot be run.
        """
        result = validation.check_files(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.output)
        if result.was_killed:
            raise TryAgain(f"haproxy -c {result.ending}: whether HAProxy accepts haproxy.cfg is not known; run again")
        if not result.succeeded:
            words = validation.find_reason(result.output)
            for path, name in zip(paths, names, strict=True):
                words = words.replace(path, name)
            raise NotAccepted(words)

    def find_refusal(self, paths: Sequence[str], names: Sequence[str]) -> str | None:
        """Return why HAProxy rejects these files; None if it accepts them. Raises TryAgain."""
        try:
            self.validate(paths, names)
        except NotAccepted as error:
            return str(error)
        return None

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

    def has_read_since(self, changed: float, size: int) -> bool:
        """Return whether the worker has certainly read the file as it is since `changed` (epoch seconds).

        `size` is in bytes.
        """
        return self._running is not None and self._running.has_read_since(changed, size)

    def reload(self, changed: Collection[Key] = ()) -> Worker | None:
        """Reload HAProxy and return the new worker; None if HAProxy does not run.

        Servers that were DOWN start DOWN in the new worker, except those in `changed`, whose lines have changed. Raises
        ReloadFailed, or TryAgain if the result is unknown.
        """
        if reload.wait_for_peers(self._lines):
            self._running = self._find()
        if self.is_shown_not_to_run():
            return None
        servers = health.read_health(self._lines)
        health.write_state_file(self._lines, servers, changed)
        started = time.monotonic()
        try:
            worker = Reload(self._settings, self._lines, self._find).run(self._running)
        finally:
            self.reload_seconds = time.monotonic() - started
            with contextlib.suppress(TryAgain):
                self._running = self._find()
        health.restore_down_servers(self._lines, worker, servers)
        return worker

    def _find(self) -> RunningHaproxy | None:
        return process.find_haproxy(self._settings.config, self._lines)
