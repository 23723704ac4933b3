"""The queue of events: events are stored first, then applied by the process that holds the lock."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbagent.errors import LbagentError, NotStored, TryAgain
from lbagent.serf.raw_event import RECORD_LIMIT, RawEvent
from lbagent.settings import Paths, Settings
from lbagent.state.lock import acquire_lock, is_locked, may_lock
from lbagent.state.spool import Mark, Spool
from lbagent.system.log import Log, format_error_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lbagent.outcome import Outcome  # storing an event must not wait for `enum` and `typing`

WATCH_HANGS_AFTER = 5.0
"""Seconds that a record may wait in the spool before a running `watch` counts as hung."""


def store_event(raw: RawEvent, paths: Paths) -> None:
    """Store the event in the spool. Raises NotStored."""
    try:
        paths.prepare()
        spool = Spool(paths.spool, RECORD_LIMIT)
        for record in raw.split_records():
            spool.store(record)
    except OSError as error:
        raise NotStored(f"not stored: sync needed: {error.filename or paths.spool}: {error.strerror}") from error


def explain_waiting_event(paths: Paths) -> TryAgain | None:
    """Return why an event waits that this user may only store; None during a run, which applies it at its end."""
    if is_locked(paths.lock):
        return None
    watch = "hangs; restart it" if is_locked(paths.watch_lock) else "is not running; start it"
    return TryAgain(f"event stored but not applied: this user cannot write {paths.lock} and `lbagent watch` {watch}")


def withdraw_without_storing(error: NotStored, raw: RawEvent, settings: Settings, log: Log) -> NotStored:
    """Take the traffic from the servers that this event removes; return `error` with their names added."""
    from lbagent.run.engine import Engine  # noqa: PLC0415  # needed only on a full disk

    engine = Engine(settings, log)
    try:
        return NotStored(f"{error}{engine.withdraw_without_storing(raw=raw)}")
    except (LbagentError, OSError):
        return error


class DrainLoop:
    """Runs until the spool is empty: a process that finds the lock busy relies on its holder to look again."""

    def __init__(self, spool: Spool, log: Log, logged: set[str] | None = None) -> None:
        """Mark no record as seen. Messages in `logged` are not logged again."""
        self._spool, self._log = spool, log
        self.seen = frozenset[Mark]()
        """The records that were in the spool when the last run began."""
        self._logged = set[str]() if logged is None else logged
        self.status = 0
        """Exit status of the first run that did not end with 0."""
        self.failed = False
        """Whether a run ended with an error."""

    def mark_seen(self) -> None:
        """Mark the present records as seen: the next run tries them, and a record that stays is not retried at once."""
        # Keep no marks of removed records: a stream of events may last for days.
        self.seen = self._spool.list_marks()

    def run_once(self, run: Callable[[], Outcome]) -> Outcome | None:
        """Make one run and return its outcome, None if it failed. Each message is logged once."""
        self.mark_seen()
        try:
            outcome = run()
        except (LbagentError, OSError) as error:
            status = error.exit_status if isinstance(error, LbagentError) else 1
            for line in format_error_lines(error):
                if self._log.repeats or line not in self._logged:
                    self._log.error(line, exit_status=status)
                self._logged.add(line)
            self.failed = True
            self.status = self.status or status
            return None
        self.status = self.status or outcome.exit_status
        return outcome

    def run_while_spooled(self, lock: str, run: Callable[[], Outcome]) -> None:
        """Acquire the lock and run, until no unseen record is left or the lock is busy. Raises OSError."""
        while self._spool.list_marks() - self.seen:
            with acquire_lock(lock) as acquired:
                if not acquired:
                    return
                self.run_once(run)


def _is_late(spool: Spool) -> bool:
    """Return whether the oldest event waits for longer than the daemon takes; not where that is unknown."""
    try:
        oldest = spool.find_oldest_time()
    except OSError:
        return False
    return oldest is not None and time.time() - oldest >= WATCH_HANGS_AFTER


def drain_spool(settings: Settings, log: Log) -> int:
    """Run until the spool is empty, or the lock is busy: its holder then applies the rest. Failures are logged.

    Returns the exit status. Raises OSError if the spool cannot be read, TryAgain if this user may only store events and
    no other process applies them.
    """
    paths = settings.paths
    spool = Spool(paths.spool, RECORD_LIMIT)
    if is_locked(paths.watch_lock) and not _is_late(spool):
        return 0
    if not may_lock(paths.lock):
        if error := explain_waiting_event(paths):
            raise error
        return 0

    def run() -> Outcome:
        from lbagent.run.engine import Engine  # noqa: PLC0415  # takes 20 ms, not needed if the lock is busy
        from lbagent.run.transaction import RunOptions  # noqa: PLC0415  # as above

        return Engine(settings, log).run(RunOptions())

    loop = DrainLoop(spool, log)
    loop.run_while_spooled(paths.lock, run)
    return loop.status
