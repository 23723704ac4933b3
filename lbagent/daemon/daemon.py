"""The daemon: folds and applies what `handle` has stored, looks after edits, syncs each minute."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial

from tenacity import Retrying, retry_if_result, wait_exponential_jitter

from lbagent.checks.candidate import Validator, find_refused_lines
from lbagent.daemon import sd_notify
from lbagent.daemon.background import BackgroundSync, run_beside
from lbagent.daemon.file_watcher import ConfigEdits, FileWatcher
from lbagent.daemon.haproxy_watcher import HaproxyWatcher
from lbagent.daemon.schedule import SYNC_EVERY, ReloadInterval, SyncSchedule, next_end
from lbagent.daemon.status_socket import StatusSocket
from lbagent.errors import Busy, LbagentError, ReloadPostponed, RolledBack
from lbagent.haproxy import config_files
from lbagent.haproxy.process import RunningHaproxy
from lbagent.outcome import Outcome, Verdict
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine, Learn
from lbagent.run.queue import DrainLoop
from lbagent.run.sync import prepare_sync
from lbagent.run.transaction import RunOptions
from lbagent.serf import agent
from lbagent.settings import Settings, find_runtime_dir
from lbagent.state import lock
from lbagent.state.lock import acquire_lock
from lbagent.state.paths import Paths
from lbagent.state.spool import Mark
from lbagent.state.store import Store
from lbagent.system import subprocess
from lbagent.system.log import Log, format_error
from lbagent.system.repeats import Repeats

LOCK_WAIT = 30.0
"""Seconds to wait for a run of somebody else."""

QUIET, QUIET_AT_LAST = 0.2, 2.0
"""Seconds without another edit before an edit counts, and after which it counts all the same: editors save in steps."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds after which what failed is tried again, doubled from the first to the last."""

LOOK_EVERY = 1.0
"""Seconds between two looks whether HAProxy was started, or reloaded by somebody else."""


def watch(settings: Settings, log: Log) -> int:
    """Run until told to end. Raises Busy where another `watch` has this state folder."""
    paths = Paths(settings.state_dir)
    paths.prepare()
    log.repeats = Repeats()
    with acquire_lock(paths.watch_lock, writes=False) as had:
        if not had:
            raise Busy(f"{paths.watch_lock}: another `lbagent watch` is running; stop one of the two")
        subprocess.waiting_callbacks.append(sd_notify.alive)
        with FileWatcher() as attention, _open_status_socket(settings, log) as status:
            _Watch(settings, log, attention, status).until_told_to_end()
    _publish_end(paths)
    return 0


@contextlib.contextmanager
def _open_status_socket(settings: Settings, log: Log) -> Iterator[StatusSocket | None]:
    """Serve the status until the block is left; None where no runtime directory is set, or nothing can listen there."""
    folder, status = find_runtime_dir(os.environ), None
    if folder:
        try:
            status = StatusSocket(folder, Engine(Paths(settings.state_dir), settings.roles, log), log)
        except OSError as error:
            log.warning(f"status socket: {format_error(error)}; `lbagent web` shows nothing until this is fixed")
    try:
        yield status
    finally:
        if status:
            status.close()


def _publish_end(paths: Paths) -> None:
    """Have metrics.prom say that no daemon runs, as well as can be."""
    with contextlib.suppress(OSError):
        with open(paths.metrics, "rb") as file:
            content = file.read()
        Store(paths).publish_metrics(content.replace(b"\nlbagent_daemon_running 1\n", b"\nlbagent_daemon_running 0\n"))


class _Watch:
    def __init__(
        self, settings: Settings, log: Log, attention: FileWatcher, status: StatusSocket | None = None
    ) -> None:
        self._settings, self._log, self._attention, self._status = settings, log, attention, status
        self._engine = Engine(Paths(settings.state_dir), settings.roles, log)
        self._edits = ConfigEdits(settings.roles, self._engine.roles)
        self._spooled: frozenset[Mark] = frozenset()
        """What lay in the spool when the last round ended, and stays there."""
        self._newcomers = HaproxyWatcher(self._engine)
        self._inquiry = BackgroundSync(self._truth, log, attention.call)
        self._ends = self._renews = False
        self._said: set[str] = set()
        self._syncs = SyncSchedule()
        self._looked = 0
        """When the last round began, in epoch seconds: what ended before, it has seen."""
        self._words = ""
        self._sync_fails = False
        self._tried = ""
        """The digest of the roles.yml that was read last."""
        self._unverified = True
        """Whether haproxy.cfg was edited since HAProxy last accepted it."""
        self._pace = ReloadInterval(self._engine.roles)

    def until_told_to_end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._called)
        again = Retrying(
            retry=retry_if_result(lambda fine: not (fine or self._ends)),
            wait=wait_exponential_jitter(FIRST_RETRY, LAST_RETRY, jitter=FIRST_RETRY),
            sleep=self._rest,
        )
        while not self._ends:
            again(self._round)
            self._rest(SYNC_EVERY)
        sd_notify.notify("STOPPING=1")
        self._log.info("stopped; the run in progress was completed")

    def _called(self, number: int, _: object) -> None:
        # No more than a note: what is under way comes to its end.
        self._renews = self._renews or number == signal.SIGHUP
        self._ends = self._ends or number != signal.SIGHUP
        self._attention.call()

    def _round(self) -> bool:
        """One round of work; returns whether nothing is left to be tried again."""
        if self._renews:
            sd_notify.reloading()
        self._settle()
        if agent.process_serf_env and agent.process_serf_env.load():
            self._syncs.at = 0.0
        if self._renews or time.monotonic() >= self._syncs.at:
            self._syncs.begun(time.monotonic(), random.random())  # noqa: S311  # no secret
            self._inquiry.begin()
        self._renews = False
        self._looked = int(time.time())
        # Somebody may have removed the folder under our feet.
        self._engine.paths.prepare()
        self._stay_the_only_one()
        rounds = DrainLoop(self._engine.spool, self._log, self._said)
        with acquire_lock(self._engine.paths.lock, LOCK_WAIT, unless=lambda: self._ends) as had:
            if had:
                rounds.run_once(lambda: self._run(self._inquiry.take()))
        rounds.run_while_spooled(self._engine.paths.lock, self._run)
        self._try_service_lines()
        fine = had and not rounds.failed
        if fine and not self._sync_fails:
            self._said.clear()
            if self._log.repeats:
                self._log.repeats.forget()
        # Not what lies there now: that may have come since we looked last.
        self._spooled = rounds.seen if had else self._engine.spool.list_marks()
        sd_notify.notify("READY=1", f"STATUS={self._words or 'waiting for the lock'}")
        return fine

    def _stay_the_only_one(self) -> None:
        """Acquire watch.lock again where its file was removed or replaced. Raises Busy where another `watch` has it."""
        path = self._engine.paths.watch_lock
        try:
            lock.check_lock(path)
        except lock.LockLost as lost:
            self._engine.paths.prepare()
            if not lock.acquire_again(path, 0):
                raise Busy(f"{path}: another `lbagent watch` is running; stop one of the two") from lost
            self._log.warning(f"{path}: the lock file was removed or replaced; created again")

    def _run(self, learn: Learn | None = None) -> Outcome:
        # Before, not after: an edit that comes while we run is another one.
        self._unverified |= self._edits.made
        self._edits.seen()
        self._attention.watch([self._engine.paths.spool, *self._edits.folders()])
        self._newcomers.seen()
        options = RunOptions(
            not_before=self._pace.not_before, known=self._known(learn), verify=self._unverified and not learn
        )
        try:
            outcome = self._engine.run(options, learn)
        except (LbagentError, OSError) as error:
            self._words = format_error(error)
            self._pace.waiting = False  # whatever waited, it is tried again with all the rest
            self._came_to(
                learn, reloaded=isinstance(error, RolledBack) and not isinstance(error, ReloadPostponed), learned=False
            )
            raise
        finally:
            self._newcomers.ours()
        self._came_to(learn, reloaded=outcome.reloaded, learned=True)
        self._unverified &= not options.verify
        self._pace.waiting = outcome.verdict is Verdict.QUEUED
        self._edits.ours(self._engine.plan.after if self._engine.plan else ())
        self._words = f"{outcome.verdict}: {outcome.message}"
        return outcome

    def _try_service_lines(self) -> None:
        """Have the lines of a new roles.yml tried beside the work, before a node asks for one."""
        with contextlib.suppress(LbagentError, OSError):
            roles = self._engine.roles()
            edited, self._tried = self._tried not in ("", roles.digest), roles.digest
            if edited:
                running = self._engine.haproxy.running if self._engine.haproxy else None
                # Beside the work: a `haproxy -c` for each line must hold up neither events nor the end.
                run_beside(partial(self._log_refused_lines, roles, running))

    def _log_refused_lines(self, roles: Roles, running: RunningHaproxy | None) -> None:
        with contextlib.suppress(LbagentError, OSError):
            seen = config_files.read_config(roles.haproxy)
            for refused in find_refused_lines(seen.document, roles, Validator(seen, roles.haproxy, running)):
                self._log.error(f"{self._settings.roles}: {refused}")

    def _known(self, learn: Learn | None) -> RunningHaproxy | None:
        # Each sync looks at all processes: somebody may have started a second HAProxy with this file.
        return self._engine.haproxy.running if self._engine.haproxy and not learn else None

    def _came_to(self, learn: Learn | None, *, reloaded: bool, learned: bool) -> None:
        if reloaded:
            self._pace.reloaded()
        if learn:
            self._syncs.ended(time.monotonic(), good=learned)
            self._sync_fails = not learned

    def _truth(self) -> Learn:
        # An engine of its own: this is asked in another thread.
        engine = Engine(self._engine.paths, self._settings.roles, self._log)
        return prepare_sync(engine, self._log, self._log.hint, force=False)

    def _settle(self) -> None:
        """Wait until nobody has saved a file for a moment."""
        at_last = time.monotonic() + QUIET_AT_LAST
        stamp = self._edits.stamp()
        while self._edits.made and time.monotonic() < at_last and not self._ends:
            time.sleep(QUIET)
            before, stamp = stamp, self._edits.stamp()
            if before == stamp:
                return

    def _rest(self, seconds: float) -> None:
        """Sleep for so long, or until there is something to do."""
        until = min(time.monotonic() + seconds, self._syncs.at)
        until = min(until, self._pace.not_before) if self._pace.waiting else until
        end = next_end(self._engine.membership, self._looked)
        every = sd_notify.alive_every() or seconds
        self._notify_alive()
        while not (self._ends or self._renews or self._news) and (left := _left(until, end)) > 0:
            self._attention.wait(min(left, every, LOOK_EVERY))
            self._stay_the_only_one()
            self._notify_alive()

    def _notify_alive(self) -> None:
        sd_notify.notify("WATCHDOG=1")
        if self._status:
            self._status.heartbeat = time.time()

    @property
    def _news(self) -> bool:
        stored = self._engine.spool.list_marks() - self._spooled
        token = agent.process_serf_env is not None and agent.process_serf_env.changed
        return bool(stored) or token or self._edits.made or self._newcomers.there or self._inquiry.answered


def _left(until: float, end: int | None) -> float:
    """Seconds until a moment of the monotonic clock, or an `end` in epoch seconds; each clock may jump by itself."""
    left = until - time.monotonic()
    return left if end is None else min(left, end - time.time())
