"""The daemon: folds and applies what `handle` has stored, looks after edits, syncs each minute."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time

from tenacity import Retrying, retry_if_result, wait_exponential_jitter

from lbagent.apply import Options
from lbagent.edits import Edits
from lbagent.engine import Engine, Learn
from lbagent.errors import Busy, LbagentError, NotYet, PutBack
from lbagent.host import notify
from lbagent.host.attention import Attention
from lbagent.host.lock import locked
from lbagent.host.log import Log, told
from lbagent.host.paths import Paths
from lbagent.host.spool import Mark
from lbagent.intake import Rounds
from lbagent.newcomers import Newcomers
from lbagent.outcome import Outcome, Verdict
from lbagent.settings import Settings
from lbagent.timetable import SYNC_EVERY, next_end, next_sync
from lbagent.truth import truth

LOCK_WAIT = 30.0
"""Seconds to wait for a run of somebody else."""

QUIET, QUIET_AT_LAST = 0.2, 2.0
"""Seconds without another edit before an edit counts, and after which it counts all the same: editors save in steps."""

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
"""Seconds after which what failed is tried again, doubled from the first to the last."""

SYNC_AGAIN = 5.0
"""Seconds after which a sync that failed is tried again, doubled each time: Serf may be just starting."""

LOOK_EVERY = 1.0
"""Seconds between two looks whether HAProxy was started, or reloaded by somebody else."""

_FINE = (0, 3)
"""Exit statuses that trying again would not change: all is done, or held back by the guard."""


def watch(settings: Settings, log: Log) -> int:
    """Run until told to end. Raises Busy where another `watch` has this state folder."""
    paths = Paths(settings.state_dir)
    paths.prepare()
    with locked(paths.watch_lock) as had:
        if not had:
            raise Busy(f"another `lbagent watch` runs: it holds {paths.watch_lock}")
        with Attention() as attention:
            _Watch(settings, log, attention).until_told_to_end()
    return 0


class _Watch:
    def __init__(self, settings: Settings, log: Log, attention: Attention) -> None:
        self._log, self._attention = log, attention
        self._engine = Engine(Paths(settings.state_dir), settings.roles, log)
        self._edits = Edits(settings.roles, self._engine.roles)
        self._spooled: frozenset[Mark] = frozenset()
        """What lay in the spool when the last round ended, and stays there."""
        self._newcomers = Newcomers(self._engine)
        self._ends = self._renews = False
        self._said: set[str] = set()
        self._sync_at, self._sync_again = 0.0, SYNC_AGAIN
        self._looked = 0
        """When the last round began, in epoch seconds: what ended before, it has seen."""
        self._words = ""
        self._reloaded_at = -math.inf
        """When, on the monotonic clock, the last reload was made."""
        self._reload_from = 0.0
        """When the next one may be made."""
        self._queued = False
        """Whether one waits for that."""

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
        notify.notify("STOPPING=1")
        self._log.info("told to end: what was under way is done")

    def _called(self, number: int, _: object) -> None:
        # No more than a note: what is under way comes to its end.
        self._renews = self._renews or number == signal.SIGHUP
        self._ends = self._ends or number != signal.SIGHUP
        self._attention.call()

    def _round(self) -> bool:
        """One round of work; returns whether nothing is left to be tried again."""
        if self._renews:
            notify.reloading()
        self._settle()
        learn = self._truth() if self._renews or time.monotonic() >= self._sync_at else None
        self._renews = False
        self._looked = int(time.time())
        # Somebody may have removed the folder under our feet.
        self._engine.paths.prepare()
        rounds = Rounds(self._engine.spool, self._log, self._said)
        with locked(self._engine.paths.lock, LOCK_WAIT, unless=lambda: self._ends) as had:
            if had:
                rounds.once(lambda: self._run(learn))
        rounds.more(self._engine.paths.lock, self._run)
        fine = had and rounds.status in _FINE
        if fine:
            self._said.clear()
        # Not what lies there now: that may have come since we looked last.
        self._spooled = rounds.seen if had else self._engine.spool.marks()
        notify.notify("READY=1", f"STATUS={self._words or 'waiting for the lock'}")
        return fine

    def _run(self, learn: Learn | None = None) -> Outcome:
        # Before, not after: an edit that comes while we run is another one.
        self._edits.seen()
        self._attention.watch([self._engine.paths.spool, *self._edits.folders()])
        self._newcomers.seen()
        self._space_reloads()
        try:
            outcome = self._engine.run(Options(not_before=self._reload_from), learn)
        except (LbagentError, OSError) as error:
            self._words = told(error)
            self._queued = False  # whatever waited, it is tried again with all the rest
            self._came_to(learn, reloaded=isinstance(error, PutBack) and not isinstance(error, NotYet), learned=False)
            raise
        finally:
            self._newcomers.ours()
        self._came_to(learn, reloaded=outcome.reloaded, learned=True)
        self._queued = outcome.verdict is Verdict.QUEUED
        self._edits.ours(self._engine.plan.after if self._engine.plan else ())
        self._words = f"{outcome.verdict}: {outcome.words}"
        return outcome

    def _came_to(self, learn: Learn | None, *, reloaded: bool, learned: bool) -> None:
        now = time.monotonic()
        if reloaded:
            self._reloaded_at = now
            self._space_reloads()
        if learn and learned:
            self._sync_again = SYNC_AGAIN
        elif learn:
            self._sync_at = min(self._sync_at, now + self._sync_again)
            self._sync_again *= 2

    def _space_reloads(self) -> None:
        with contextlib.suppress(LbagentError):
            self._reload_from = self._reloaded_at + self._engine.roles().haproxy.min_reload_interval

    def _truth(self) -> Learn:
        self._sync_at = next_sync(time.monotonic(), random.random())  # noqa: S311  # no secret
        return truth(self._engine, self._log, self._log.info, force=False)

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
        until = min(time.monotonic() + seconds, self._sync_at)
        until = min(until, self._reload_from) if self._queued else until
        end = next_end(self._engine.membership, self._looked)
        every = notify.alive_every() or seconds
        notify.notify("WATCHDOG=1")
        while not (self._ends or self._renews or self._news) and (left := _left(until, end)) > 0:
            self._attention.wait(min(left, every, LOOK_EVERY))
            notify.notify("WATCHDOG=1")

    @property
    def _news(self) -> bool:
        stored = self._engine.spool.marks() - self._spooled
        return bool(stored) or self._edits.made or self._newcomers.there


def _left(until: float, end: int | None) -> float:
    """Seconds until a moment of the monotonic clock, or an `end` in epoch seconds; each clock may jump by itself."""
    left = until - time.monotonic()
    return left if end is None else min(left, end - time.time())
