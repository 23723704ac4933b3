"""The daemon: applies the events that `handle` has stored, watches for edits, and syncs every minute.

It wakes up when something changes and makes one round: settle, start a sync if it is due, run. A round that fails is
retried. What a round does is the same run that every other command makes; the daemon only decides when.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

from tenacity import Retrying, retry_if_result, wait_exponential_jitter

from lbagent.checks.haproxy import Validator
from lbagent.checks.roles import find_refused_lines
from lbagent.daemon import sd_notify
from lbagent.daemon.file_watcher import ConfigEdits, FileWatcher
from lbagent.daemon.status_socket import StatusSocket
from lbagent.errors import Busy, LbagentError, ReloadPostponed, RolledBack
from lbagent.haproxy import config_files
from lbagent.haproxy.process import RunningHaproxy
from lbagent.membership.model import Membership, as_table
from lbagent.outcome import Outcome, Verdict
from lbagent.roles.model import Roles
from lbagent.run.engine import Engine
from lbagent.run.queue import DrainLoop
from lbagent.run.sync import SyncMerge
from lbagent.run.transaction import RunOptions
from lbagent.serf import agent
from lbagent.settings import Paths, Settings, find_runtime_dir
from lbagent.state import lock
from lbagent.state.lock import RUN_WAIT, acquire_lock
from lbagent.state.spool import Mark
from lbagent.state.store import Store
from lbagent.system import subprocess, untrusted_files
from lbagent.system.log import Log, Repeats, format_error

SYNC_EVERY = 60.0
"""Seconds between two syncs, ± JITTER of it: not all load balancers should query Serf at once."""

JITTER = 0.1

SYNC_AGAIN = 5.0
"""Seconds until the first retry of a sync that failed, doubled with each further one."""

QUIET, QUIET_LIMIT = 0.2, 2.0
"""Seconds without a further edit after which an edit is applied, and after which it is applied in any case.

Editors save in several steps.
"""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds until a failed round is retried, doubled from the first to the last."""

POLL_EVERY = 1.0
"""Seconds between two polls: was HAProxy started or reloaded by another process, is there a new event or edit?"""


def watch(settings: Settings, log: Log) -> int:
    """Run the daemon until SIGTERM or SIGINT. Raises Busy where another daemon uses this state directory."""
    paths = settings.paths
    paths.prepare()
    log.repeats = Repeats()
    with acquire_lock(paths.watch_lock, writes=False) as acquired:
        if not acquired:
            raise Busy(f"{paths.watch_lock}: another `lbagent watch` is running; stop one of the two")
        subprocess.waiting_callbacks.append(sd_notify.notify_alive)
        with FileWatcher() as watcher, _open_status_socket(settings, log) as status_socket:
            Daemon(settings, log, watcher, status_socket).run_until_stopped()
    _publish_stop(paths)
    return 0


@contextlib.contextmanager
def _open_status_socket(settings: Settings, log: Log) -> Iterator[StatusSocket | None]:
    """Serve the status until the block is left; None without a runtime directory, or if that fails."""
    folder, status_socket = find_runtime_dir(os.environ), None
    if folder:
        try:
            status_socket = StatusSocket(folder, Engine(settings, log), log)
        except OSError as error:
            log.warning(f"status socket: {format_error(error)}; `lbagent web` shows nothing until this is fixed")
    try:
        yield status_socket
    finally:
        if status_socket:
            status_socket.close()


def _publish_stop(paths: Paths) -> None:
    """Set `lbagent_daemon_running` in metrics.prom to 0. Errors are ignored."""
    with contextlib.suppress(OSError):
        content = untrusted_files.read_whole_file(paths.metrics)
        Store(paths).publish_metrics(content.replace(b"\nlbagent_daemon_running 1\n", b"\nlbagent_daemon_running 0\n"))


class Daemon:
    """The daemon of one state directory."""

    def __init__(
        self, settings: Settings, log: Log, watcher: FileWatcher, status_socket: StatusSocket | None = None
    ) -> None:
        """Nothing is read yet; the caller holds watch.lock."""
        self._settings, self._log, self._watcher, self._status_socket = settings, log, watcher, status_socket
        self._engine = Engine(settings, log)
        self._edits = ConfigEdits(settings.roles, self._engine.load_roles)
        self._haproxys = HaproxyWatcher(self._engine)
        self._sync = BackgroundSync(self._prepare_sync, log, watcher.wake)
        self._sync_schedule = SyncSchedule()
        self._sync_failed = False
        self._reload_interval = ReloadInterval(self._engine.load_roles)
        self._is_stopping = False
        self._is_refreshing = False
        """Whether SIGHUP has requested a sync and fresh settings."""
        self._spooled: frozenset[Mark] = frozenset()
        """Records that stay in the spool after the last round."""
        self._round_began = 0
        """Epoch seconds at which the last round began: it has handled every pause that expired before."""
        self._logged: set[str] = set()
        """Messages of the rounds since the last good one, which are not logged again."""
        self._status = ""
        """How the last run ended, for `systemctl status`."""
        self._roles_digest = ""
        """Digest of the roles.yml whose service lines were validated last."""
        self._is_unverified = True
        """Whether haproxy.cfg or roles.yml was edited since HAProxy last accepted the text."""

    def run_until_stopped(self) -> None:
        """Make rounds until SIGTERM or SIGINT; a run in progress is completed. Raises Busy if watch.lock is lost."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle_signal)
        retrying = Retrying(
            retry=retry_if_result(lambda good: not (good or self._is_stopping)),
            wait=wait_exponential_jitter(FIRST_RETRY, LAST_RETRY, jitter=FIRST_RETRY),
            sleep=self._wait_for_work,
        )
        while not self._is_stopping:
            retrying(self._try_round)
            self._wait_for_work(SYNC_EVERY)
        sd_notify.notify("STOPPING=1")
        self._log.info("stopped; the run in progress was completed")

    def _handle_signal(self, number: int, _: object) -> None:
        # Only set a flag, so that a run in progress is completed.
        self._is_refreshing = self._is_refreshing or number == signal.SIGHUP
        self._is_stopping = self._is_stopping or number != signal.SIGHUP
        self._watcher.wake()

    def _try_round(self) -> bool:
        """Make one round; return False where it has to be retried. Raises Busy if watch.lock is lost."""
        try:
            return self._run_round()
        except OSError as error:
            # Outside of the runs, for example where the spool cannot be read: the next round shows whether it passes.
            self._log_failure(error)
            return False

    def _log_failure(self, error: OSError) -> None:
        self._status = format_error(error)
        self._log.error(self._status)

    def _run_round(self) -> bool:
        """Make one round; return False where it has to be retried. Raises Busy, OSError."""
        if self._is_refreshing:
            sd_notify.notify_reloading()
        self._wait_for_quiet_files()
        if agent.process_serf_env and agent.process_serf_env.load():
            self._sync_schedule.next_at = 0.0
        if self._is_refreshing or time.monotonic() >= self._sync_schedule.next_at:
            self._sync_schedule.record_start(time.monotonic(), random.random())  # noqa: S311  # not a secret
            self._sync.start()
        self._is_refreshing = False
        self._round_began = int(time.time())
        self._engine.paths.prepare()  # the state directory may have been removed
        self._keep_watch_lock()
        loop = DrainLoop(self._engine.spool, self._log, self._logged)
        with acquire_lock(self._engine.paths.lock, RUN_WAIT, unless=lambda: self._is_stopping) as acquired:
            if acquired:
                loop.run_once(lambda: self._run(self._sync.take_result()))
        loop.run_while_spooled(self._engine.paths.lock, self._run)
        self._validate_new_roles()
        is_good = acquired and not loop.failed
        if is_good and not self._sync_failed:
            self._logged.clear()
            if self._log.repeats:
                self._log.repeats.forget()
        # Use the marks of the last run: a record that is in the spool only since then is new.
        self._spooled = loop.seen if acquired else self._engine.spool.list_marks()
        sd_notify.notify("READY=1", f"STATUS={self._status or 'waiting for the lock'}")
        return is_good

    def _keep_watch_lock(self) -> None:
        """Acquire watch.lock again if its file was removed or replaced. Raises Busy if another daemon has it."""
        path = self._engine.paths.watch_lock
        try:
            lock.check_lock(path)
        except lock.LockLost as lost:
            self._engine.paths.prepare()
            if not lock.acquire_again(path, 0):
                raise Busy(f"{path}: another `lbagent watch` is running; stop one of the two") from lost
            self._log.warning(f"{path}: the lock file was removed or replaced; created again")

    def _run(self, merge_sync: SyncMerge | None = None) -> Outcome:
        """Make one run, with the results of a sync if given; the caller holds the lock. Raises as `Engine.run` does."""
        # Mark edits before the run: one that is made during the run is applied by the next.
        self._is_unverified |= self._edits.are_new
        self._edits.mark_seen()
        self._watcher.watch_folders(self._edits.list_folders(), self._engine.paths.spool)
        self._haproxys.mark_seen()
        options = RunOptions(
            not_before=self._reload_interval.not_before,
            # A sync looks for HAProxy in all processes: a second one may have been started with this haproxy.cfg.
            known=None if merge_sync else self._find_known_haproxy(),
            verify=self._is_unverified and not merge_sync,
        )
        try:
            outcome = self._engine.run(options, merge_sync)
        except (LbagentError, OSError) as error:
            self._status = format_error(error)
            self._reload_interval.is_waiting = False  # the next run retries everything
            was_reloaded = isinstance(error, RolledBack) and not isinstance(error, ReloadPostponed)
            self._record_run(merge_sync, reloaded=was_reloaded, good=False)
            raise
        finally:
            self._haproxys.mark_own_worker()
        self._record_run(merge_sync, reloaded=outcome.reloaded, good=True)
        self._is_unverified &= not options.verify
        self._reload_interval.is_waiting = outcome.verdict is Verdict.QUEUED
        self._edits.mark_own_texts(self._engine.plan.after if self._engine.plan else ())
        self._status = f"{outcome.verdict}: {outcome.message}"
        return outcome

    def _find_known_haproxy(self) -> RunningHaproxy | None:
        return self._engine.haproxy.running if self._engine.haproxy else None

    def _record_run(self, merge_sync: SyncMerge | None, *, reloaded: bool, good: bool) -> None:
        if reloaded:
            self._reload_interval.record_reload()
        if merge_sync:
            self._sync_schedule.record_end(time.monotonic(), good=good)
            self._sync_failed = not good

    def _validate_new_roles(self) -> None:
        """After an edit of roles.yml, validate the line of each service, before a node needs it."""
        with contextlib.suppress(LbagentError, OSError):
            roles = self._engine.load_roles()
            is_edited, self._roles_digest = self._roles_digest not in ("", roles.digest), roles.digest
            if is_edited:
                # In a thread: one `haproxy -c` per line must not delay events or the end of the daemon.
                arguments = (roles, self._find_known_haproxy())
                threading.Thread(target=self._log_refused_lines, args=arguments, daemon=True).start()

    def _log_refused_lines(self, roles: Roles, running: RunningHaproxy | None) -> None:
        with contextlib.suppress(LbagentError, OSError):
            seen = config_files.read_config(roles.haproxy)
            for refused in find_refused_lines(seen.document, roles, Validator(seen, roles.haproxy, running)):
                self._log.error(f"{self._settings.roles}: {refused}")

    def _prepare_sync(self) -> SyncMerge:
        # An engine of its own, as this runs in another thread.
        engine = Engine(self._settings, self._log)
        return engine.prepare_sync(self._log.hint, force=False)

    def _wait_for_quiet_files(self) -> None:
        """Wait until edited files have not changed for a moment."""
        deadline = time.monotonic() + QUIET_LIMIT
        stamps = self._edits.read_stamps()
        while self._edits.are_new and time.monotonic() < deadline and not self._is_stopping:
            time.sleep(QUIET)
            before, stamps = stamps, self._edits.read_stamps()
            if before == stamps:
                return

    def _wait_for_work(self, seconds: float) -> None:
        """Sleep until there is work, at most `seconds`. Raises Busy if watch.lock is lost."""
        try:
            self._sleep_until_work(seconds)
        except OSError as error:
            self._log_failure(error)
            time.sleep(min(seconds, FIRST_RETRY))

    def _sleep_until_work(self, seconds: float) -> None:
        until = min(time.monotonic() + seconds, self._sync_schedule.next_at)
        until = min(until, self._reload_interval.not_before) if self._reload_interval.is_waiting else until
        pause_end = find_next_pause_end(self._engine.membership, self._round_began)
        interval = sd_notify.get_watchdog_interval() or seconds
        self._report_alive()
        while not self._has_work() and (rest := _compute_rest(until, pause_end)) > 0:
            self._watcher.wait(min(rest, interval, POLL_EVERY))
            self._keep_watch_lock()
            self._report_alive()

    def _report_alive(self) -> None:
        sd_notify.notify("WATCHDOG=1")
        if self._status_socket:
            self._status_socket.heartbeat = time.time()

    def _has_work(self) -> bool:
        if self._is_stopping or self._is_refreshing:
            return True
        has_events = bool(self._engine.spool.list_marks() - self._spooled)
        has_new_serf_env = agent.process_serf_env is not None and agent.process_serf_env.changed
        return (
            has_events
            or has_new_serf_env
            or self._edits.are_new
            or self._haproxys.has_new_process
            or self._sync.has_result
        )


def _compute_rest(until: float, pause_end: int | None) -> float:
    """Return the seconds until the earlier of two times: `until` is monotonic, `pause_end` in epoch seconds.

    They are compared as durations, since the wall clock may jump.
    """
    rest = until - time.monotonic()
    return rest if pause_end is None else min(rest, pause_end - time.time())


class HaproxyWatcher:
    """Detects that HAProxy was started, or reloaded by another process, since the last run."""

    def __init__(self, engine: Engine) -> None:
        """Use the HAProxy that the last run of `engine` has found."""
        self._engine = engine
        self._known: frozenset[int] = frozenset()

    def mark_seen(self) -> None:
        """Mark the present processes as seen: a run is about to look at them."""
        self._known = self._list_pids()

    def mark_own_worker(self) -> None:
        """Mark the worker that the run has found as seen: the run itself may have started it."""
        worker = self._engine.haproxy.find_worker() if self._engine.haproxy else None
        self._known |= {worker.pid} if worker else frozenset()

    @property
    def has_new_process(self) -> bool:
        """Whether a process of HAProxy was not marked as seen."""
        return bool(self._list_pids() - self._known)

    def _list_pids(self) -> frozenset[int]:
        return self._engine.haproxy.pids if self._engine.haproxy else frozenset()


class SyncSchedule:
    """The time of the next sync, in seconds of the caller's clock."""

    def __init__(self) -> None:
        """The first sync is due at once."""
        self.next_at = 0.0
        self._retry_after = SYNC_AGAIN

    def record_start(self, now: float, chance: float) -> None:
        """Schedule the sync after the one that starts now; `chance` is a number from 0 to 1."""
        self.next_at = now + SYNC_EVERY * (1 + JITTER * (2 * chance - 1))

    def record_end(self, now: float, *, good: bool) -> None:
        """Schedule a retry if the sync that ends now has failed."""
        if good:
            self._retry_after = SYNC_AGAIN
        else:
            self.next_at = min(self.next_at, now + self._retry_after)
            self._retry_after *= 2


def find_next_pause_end(membership: Membership, since: int) -> int | None:
    """Return when the next pause expires that had not expired at `since`; None if none does. Both in epoch seconds."""
    pauses = (member.pause for member in as_table(membership.members).special.values())
    ends = (pause.until for pause in pauses if pause and pause.until is not None)
    return min((end for end in ends if end > since), default=None)


class ReloadInterval:
    """The time of the next reload that `min_reload_interval` allows, in seconds of the monotonic clock."""

    def __init__(self, load_roles: Callable[[], Roles]) -> None:
        """While `load_roles` raises LbagentError, the interval that it returned last applies."""
        self._load_roles = load_roles
        self._interval = 0.0
        self._last_reload = -math.inf
        self.is_waiting = False
        """Whether a change waits for its reload."""

    @property
    def not_before(self) -> float:
        """When the next reload is allowed."""
        with contextlib.suppress(LbagentError):
            self._interval = self._load_roles().haproxy.min_reload_interval
        return self._last_reload + self._interval

    def record_reload(self) -> None:
        """Record that a reload was made, or tried, now."""
        self._last_reload = time.monotonic()


class BackgroundSync:
    """Queries Serf and the other load balancers in a thread, as answers take seconds and events must not wait."""

    def __init__(self, prepare: Callable[[], SyncMerge], log: Log, wake: Callable[[], None]) -> None:
        """`prepare` runs in the thread, which calls `wake` at its end."""
        self._prepare, self._log, self._wake = prepare, log, wake
        self._thread: threading.Thread | None = None
        self._result: SyncMerge | None = None

    def start(self) -> None:
        """Start a sync, unless one is in progress."""
        if self._thread is None or not self._thread.is_alive():
            # A daemon thread: the end of the process does not wait for another load balancer.
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    @property
    def has_result(self) -> bool:
        """Whether a result can be taken."""
        return self._result is not None

    def take_result(self) -> SyncMerge | None:
        """Return the result once; None where there is none."""
        result, self._result = self._result, None
        return result

    def _run(self) -> None:
        try:
            self._result = self._prepare()
        except (LbagentError, OSError) as error:
            self._log.hint(f"sync failed: {format_error(error)}")
        self._wake()
