"""How HAProxy accepts a text, and how it takes one over: `haproxy -c`, a reload, and proof that it happened."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

from lbagent.errors import LbagentError, TryAgain
from lbagent.haproxy import acceptance, master, peers, process, runtime
from lbagent.haproxy.master import Reloads
from lbagent.haproxy.process import Running, Worker
from lbagent.haproxy.successor import spoken, successor
from lbagent.host import commands, processes
from lbagent.roles import HaproxySettings

_AGAIN = 1.0
"""Seconds without any sign of a reload after which it is asked for again; then twice as long, and so on."""

_POLL = 0.01
_FAILED = "the reload failed, the old worker goes on (HAProxy's log has the reason; a port in use passes `haproxy -c`)"
_SETTLED = 0.1
"""Seconds a worker without a stats socket has to live before it counts: one that cannot chroot dies sooner."""


class NotAccepted(LbagentError):
    """`haproxy -c` refused a text; the words are HAProxy's own."""

    exit_status = 4


class ReloadFailed(LbagentError):
    """The reload says that it failed: the old worker goes on with the old text."""

    exit_status = 5


class Haproxy:
    """One HAProxy: the files it is started with, and what its `global` section says."""

    def __init__(self, settings: HaproxySettings, lines: Sequence[Sequence[str]], known: Running | None = None) -> None:
        """`lines` are the words of each line of `global`; whose master is `known` and lives is not looked for."""
        self._settings, self._lines = settings, lines
        self._running = process.find(settings.config, lines, known)

    def validate(self, paths: Sequence[str], names: Sequence[str]) -> None:
        """Have HAProxy check these very files, which the operator knows by `names`.

        Raises NotAccepted, TryAgain where HAProxy cannot be asked.
        """
        result = acceptance.checked(paths, self._settings.timeout, self._running)
        if result.status is None:
            raise TryAgain(result.words)
        if not result.good:
            words = spoken(result.words)
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
        return Worker(*running.worker.named) if running else None

    @property
    def running(self) -> Running | None:
        """Master and worker, as seen last."""
        return self._running

    @property
    def pids(self) -> frozenset[int]:
        """Processes among which a new one means that HAProxy was started or reloaded."""
        running = self._running
        workers = processes.children(running.main.pid) if running and running.is_master else frozenset()
        return workers or frozenset(one.pid for one in processes.named("haproxy"))

    @property
    def old_workers(self) -> int | None:
        """How many workers of before go on until their last connection ends; None where no process is found."""
        return self._running.old if self._running else None

    def shown_not_to_run(self) -> bool:
        """Whether all that could show a running HAProxy shows none."""
        return self._running is None and process.shown_not_to_run(self._lines)

    def has_read_since(self, changed: float, size: int) -> bool:
        """Whether the worker was started so late that it has read the file as it is since `changed`."""
        return self._running is not None and self._running.read_since(changed, size)

    def take_over(self) -> Worker | None:
        """Reload and see a new worker; None where HAProxy is shown not to run.

        Raises ReloadFailed where the reload says so, TryAgain where nobody can know.
        """
        if peers.waited_for(self._lines):
            self._running = self._found()
        running, before = master.at_rest(self._running, self._found, self._settings.timeout)
        self._running = running
        if self.shown_not_to_run():
            return None
        asked = self._asked_pid()
        self._reload(running)
        return self._confirmed(running, before, asked)

    def _reload(self, running: Running | None) -> None:
        command = self._settings.reload
        if command is None and running is not None and running.main.unit and os.path.isdir("/run/systemd/system"):
            command = ("systemctl", "reload", running.main.unit)
        if command is not None:
            self._command(command)
        elif running is None:
            raise TryAgain("no process runs this haproxy.cfg, though its stats socket answers: set haproxy.reload")
        elif running.is_master:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.main.pid, signal.SIGUSR2)
        else:
            self._command(successor(running, self._lines), running)

    def _command(self, argv: Sequence[str], running: Running | None = None) -> None:
        cwd = running.main.cwd if running else None
        try:
            result = commands.run(argv, self._settings.timeout, cwd=cwd, environ=acceptance.environ(running))
        except OSError as error:
            raise ReloadFailed(f"{argv[0]} cannot be run: {error.strerror}") from error
        if result.status is None:
            raise TryAgain(result.words)
        if not result.good:
            raise ReloadFailed(f"{' '.join(argv)} ended with {result.status}: {spoken(result.words)}")

    def _confirmed(self, old: Running | None, before: Reloads | None, asked: int | None) -> Worker:
        began, again = time.monotonic(), _AGAIN
        while (waited := time.monotonic() - began) < self._settings.timeout:
            if worker := self._new_worker(old, before, asked):
                return worker
            if old is not None and processes.process(old.main.pid) is None and self._gone():
                raise TryAgain("HAProxy ended during the reload: start it, haproxy.cfg is complete")
            if waited > again and old is not None and before is not None and master.reloads(old.main) == before:
                # Just back from somebody else's reload, a master throws away what it is told.
                again *= 2
                with contextlib.suppress(LbagentError):
                    self._reload(old)
            time.sleep(_POLL)
        raise TryAgain(f"no new HAProxy worker was seen within {self._settings.timeout:g} s of the reload")

    def _new_worker(self, old: Running | None, before: Reloads | None, asked: int | None) -> Worker | None:
        if old is None:
            pid = self._asked_pid()
            return Worker(pid, 0) if pid and pid != asked else None
        if before is not None:
            now = master.reloads(old.main)
            if now is None or now.done == before.done:
                return None
            if now.failed:
                raise ReloadFailed(_FAILED)
        self._running = found = self._found()
        if found is None or found.worker.named == old.worker.named or not self._settled(found, before):
            return None
        return Worker(*found.worker.named)

    def _found(self) -> Running | None:
        return process.find(self._settings.config, self._lines)

    def _gone(self) -> bool:
        self._running = self._found()
        return self.shown_not_to_run()

    def _settled(self, found: Running, before: Reloads | None) -> bool:
        """Whether the new worker really serves: it answers on the stats socket, or has lived for a moment."""
        if before is not None:
            now = master.reloads(found.main)
            if now is None or now.done == before.done or now.worker != found.worker.pid:
                return False
        for address in runtime.sockets(self._lines):
            try:
                return runtime.worker_pid(address) == found.worker.pid
            except OSError:
                continue
        time.sleep(_SETTLED)
        return Worker(*found.worker.named).alive

    def _asked_pid(self) -> int | None:
        for address in runtime.sockets(self._lines):
            with contextlib.suppress(OSError):
                return runtime.worker_pid(address)
        return None
