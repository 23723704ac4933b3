"""Events on their way in: stored first, then folded by whoever holds the lock."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbagent.errors import LbagentError, NotStored, TryAgain
from lbagent.serf.raw_event import RECORD_LIMIT, RawEvent
from lbagent.settings import Settings
from lbagent.state.lock import acquire_lock, is_locked, may_lock
from lbagent.state.paths import Paths
from lbagent.state.spool import Mark, Spool
from lbagent.system.log import Log, format_error_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lbagent.outcome import Outcome  # its enum is not what storing an event should wait for

WATCH_HANGS = 5.0
"""Seconds a record may lie in the spool before a living `watch` is taken for hung."""


def store_event(raw: RawEvent, paths: Paths) -> None:
    """Put the event into the spool. Raises NotStored."""
    try:
        paths.prepare()
        spool = Spool(paths.spool, RECORD_LIMIT)
        for record in raw.split_records():
            spool.store(record)
    except OSError as error:
        raise NotStored(f"not stored: sync needed: {error.filename or paths.spool}: {error.strerror}") from error


def explain_waiting_event(paths: Paths) -> TryAgain | None:
    """Why the event of a user who may only store it waits; None where a run is under way: it looks again at its end."""
    if is_locked(paths.lock):
        return None
    watch = "hangs: restart it" if is_locked(paths.watch_lock) else "does not run: start it"
    return TryAgain(f"stored, and waits: this user may not write {paths.lock}, and `lbagent watch` {watch}")


def withdraw_unstored(error: NotStored, raw: RawEvent, settings: Settings, log: Log) -> NotStored:
    """The same error, once the traffic is gone from who is to go by this event, which cannot be stored."""
    from lbagent.run.engine import Engine  # noqa: PLC0415  # for a disk that is full

    try:
        return NotStored(f"{error}{Engine(Paths(settings.state_dir), settings.roles, log).withdraw_unstored(raw=raw)}")
    except (LbagentError, OSError):
        return error


class DrainLoop:
    """Run after run, as long as records come: who found the lock busy relies on whoever holds it to look again."""

    def __init__(self, spool: Spool, log: Log, said: set[str] | None = None) -> None:
        """No run has seen any record yet; what was `said` is not said again."""
        self._spool, self._log = spool, log
        self.seen = frozenset[Mark]()
        """The records that lay there when the last run began."""
        self._said = set[str]() if said is None else said
        self.status = 0
        """The exit status of the first run that did not end with 0."""
        self.failed = False
        """Whether a run ended with an error."""

    def mark_seen(self) -> None:
        """Take the records that are there for seen: a run is about to take them, and none is to be tried for ever."""
        # Of what is gone nothing is kept: a stream of events may go on for days.
        self.seen = self._spool.list_marks()

    def run_once(self, run: Callable[[], Outcome]) -> Outcome | None:
        """One run, the lock being the caller's; None where it failed, which is said, but the same words only once."""
        self.mark_seen()
        try:
            outcome = run()
        except (LbagentError, OSError) as error:
            status = error.exit_status if isinstance(error, LbagentError) else 1
            for words in format_error_lines(error):
                if self._log.repeats or words not in self._said:
                    self._log.error(words, exit_status=status)
                self._said.add(words)
            self.failed = True
            self.status = self.status or status
            return None
        self.status = self.status or outcome.exit_status
        return outcome

    def run_while_spooled(self, lock: str, run: Callable[[], Outcome]) -> None:
        """Unlock, look, try the lock, until no run is left to be made or the lock is busy. Raises OSError."""
        while self._spool.list_marks() - self.seen:
            with acquire_lock(lock) as had:
                if not had:
                    return
                self.run_once(run)


def drain_spool(settings: Settings, log: Log) -> int:
    """Run until the spool is empty or the lock is busy: then whoever holds it goes on; what fails is said.

    Returns the exit status. Raises OSError where nothing could be looked at, TryAgain where this user may only store
    and nobody else is at work.
    """
    paths = Paths(settings.state_dir)
    spool = Spool(paths.spool, RECORD_LIMIT)
    if is_locked(paths.watch_lock) and time.time() - (spool.find_oldest_time() or time.time()) < WATCH_HANGS:
        return 0
    if not may_lock(paths.lock):
        if idle := explain_waiting_event(paths):
            raise idle
        return 0

    def run() -> Outcome:
        from lbagent.run.engine import Engine  # noqa: PLC0415  # 20 ms that a busy lock saves
        from lbagent.run.transaction import RunOptions  # noqa: PLC0415  # 20 ms that a busy lock saves

        return Engine(paths, settings.roles, log).run(RunOptions())

    rounds = DrainLoop(spool, log)
    rounds.run_while_spooled(paths.lock, run)
    return rounds.status
