"""How HAProxy accepts a text, and how it takes one over: `haproxy -c`, a reload, and proof that it happened."""

from __future__ import annotations

import contextlib
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
    """`haproxy -c` refused a text; the words are HAProxy's own."""

    exit_status = 4


class Haproxy:
    """One HAProxy: the files it is started with, and what its `global` section says."""

    def __init__(
        self, settings: HaproxySettings, lines: Sequence[Sequence[str]], known: RunningHaproxy | None = None
    ) -> None:
        """`lines` are the words of each line of `global`; whose master is `known` and lives is not looked for."""
        self._settings, self._lines = settings, lines
        self._running = process.find_haproxy(settings.config, lines, known)

    def validate(self, paths: Sequence[str], names: Sequence[str]) -> None:
        """Have HAProxy check these very files, which the operator knows by `names`.

        Raises NotAccepted, TryAgain where HAProxy cannot be asked.
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

    def refusal(self, paths: Sequence[str], names: Sequence[str]) -> str | None:
        """What HAProxy has against these files, None where it takes them. Raises TryAgain."""
        try:
            self.validate(paths, names)
        except NotAccepted as error:
            return str(error)
        return None

    def serving(self) -> Worker | None:
        """The worker that serves now; None where no process is found."""
        running = self._running
        return Worker(*running.worker.identity) if running else None

    @property
    def running(self) -> RunningHaproxy | None:
        """Master and worker, as seen last."""
        return self._running

    @property
    def pids(self) -> frozenset[int]:
        """Processes among which a new one means that HAProxy was started or reloaded."""
        running = self._running
        workers = processes.find_children(running.main.pid) if running and running.is_master else frozenset()
        return workers or frozenset(one.pid for one in processes.find_processes("haproxy"))

    @property
    def old_workers(self) -> int | None:
        """How many workers of before go on until their last connection ends; None where no process is found."""
        return self._running.old if self._running else None

    def shown_not_to_run(self) -> bool:
        """Whether all that could show a running HAProxy shows none."""
        return self._running is None and process.is_shown_not_to_run(self._settings.config, self._lines)

    def has_read_since(self, changed: float, size: int) -> bool:
        """Whether the worker was started so late that it has read the file as it is since `changed`."""
        return self._running is not None and self._running.has_read_since(changed, size)

    def take_over(self, changed: Collection[Key] = ()) -> Worker | None:
        """Reload and see a new worker; None where HAProxy is shown not to run.

        Servers that were DOWN start as DOWN in it; `changed` are those whose lines are not what they were.
        Raises ReloadFailed where the reload says so, TryAgain where nobody can know.
        """
        if reload.wait_for_peers(self._lines):
            self._running = self._found()
        if self.shown_not_to_run():
            return None
        servers = health.read_health(self._lines)
        health.write_state_file(self._lines, servers, changed)
        try:
            worker = Reload(self._settings, self._lines, self._found).run(self._running)
        finally:
            with contextlib.suppress(TryAgain):
                self._running = self._found()
        health.restore_down_servers(self._lines, worker, servers)
        return worker

    def _found(self) -> RunningHaproxy | None:
        return process.find_haproxy(self._settings.config, self._lines)
