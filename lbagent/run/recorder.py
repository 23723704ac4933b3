"""The records of a run, however it ended: history.jsonl, last.json, metrics.prom and answers.json.

None of them changes the outcome.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import lbagent
from lbagent import metrics
from lbagent.errors import LbagentError, ReloadPostponed, RolledBack, TryAgain
from lbagent.haproxy import config_files
from lbagent.membership.model import (
    Membership,
    count_paused,
    count_quarantined,
    count_statuses,
    find_pause_starts,
)
from lbagent.metrics import INTERRUPTED, RELOAD_BOUNDS, RUN_BOUNDS, Last, PeerCounts
from lbagent.outcome import Outcome, Verdict
from lbagent.planning.lines import LinesByMarker, count_servers, list_managed_lines
from lbagent.planning.plan import Plan
from lbagent.roles.model import Roles
from lbagent.run import replies
from lbagent.run.transaction import Transaction
from lbagent.serf.events import Command
from lbagent.state.lock import is_held, is_locked
from lbagent.state.spool import Spool
from lbagent.state.store import Damaged, Store
from lbagent.system.log import Log, format_error

_LENGTH_LIMIT = 1000
"""Characters of a message that are kept in last.json."""


class CurrentConfig(NamedTuple):
    """haproxy.cfg at the end of a run."""

    texts: tuple[str, ...]
    """The texts of all files."""
    digest: str
    """The digest of the managed lines in all of them."""
    lines: LinesByMarker


class Recorder:
    """Collects what a run reaches, and records it when the block is left."""

    def __init__(self, store: Store, spool: Spool, log: Log, peek_queries: Callable[[], Mapping[str, Command]]) -> None:
        """The run begins now. `peek_queries` returns `foreign_queries` where the run ends before it reads the spool."""
        self._store, self._spool, self._log, self._peek_queries = store, spool, log, peek_queries
        self._started = time.monotonic()
        self.roles: Roles | None = None
        self.causes: tuple[str, ...] = ()
        self.foreign_queries: Mapping[str, Command] = {}
        """Stored queries of users without permission to apply them, by record id."""
        self.answers: Mapping[str, str] = {}
        """Answers from the update of membership, by record id."""
        self.newest_event_at: int | None = None
        """Epoch seconds at which the newest event of this run arrived."""
        self.transaction: Transaction | None = None
        self.outcome: Outcome | None = None
        self.is_synced = False
        """Whether Serf's member list was read."""
        self.sync_error: TryAgain | None = None
        """Why Serf's member list could not be used, where it was requested."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self._publish_answers(error)
            self._record_history(error)
            live = self._read_current_config()
            last = self._make_last(error, live)
            self._store.save_last(last)
            self._store.publish_metrics(metrics.format_metrics(self._collect_numbers(last, live)))
        except Exception as failure:  # noqa: BLE001  # a full disk or a defect must not change the outcome
            self._log.info(f"history and metrics not written: {format_error(failure)}")

    @property
    def _plan(self) -> Plan | None:
        """The last plan of this run, however the run ended."""
        return self.transaction.plan if self.transaction else None

    def _publish_answers(self, error: BaseException | None) -> None:
        queries = self.foreign_queries or (self._peek_queries() if error else {})
        if not queries:
            return
        run = replies.FinishedRun(self.roles, self.transaction, self.outcome, self.answers, error)
        self._store.publish_answers({key: replies.format_reply(key, query, run) for key, query in queries.items()})

    def _record_history(self, error: BaseException | None) -> None:
        if self.transaction is None:
            return
        for reason in self.transaction.reasons:
            self._log.info(f"reload needed: {reason}")
        if isinstance(error, ReloadPostponed):
            if partial := self.transaction.partial_outcome:
                self._append_history(partial.verdict, partial.message, reloaded=partial.reloaded)
            return
        if isinstance(error, LbagentError | OSError):
            self._append_history(
                getattr(error, "outcome", "failed"), format_error(error), reloaded=isinstance(error, RolledBack)
            )
        elif self.outcome and self.outcome.verdict is not Verdict.UNCHANGED:
            self._append_history(self.outcome.verdict, self.outcome.message, reloaded=self.outcome.reloaded)

    def _append_history(self, outcome: str, message: str, *, reloaded: bool = False) -> None:
        plan = self._plan
        self._store.append_history(
            {
                "why": "; ".join(self.causes) or "no new events",
                "added": plan.added if plan else (),
                "removed": plan.removed if plan else (),
                "outcome": outcome,
                "words": message,
                "reloaded": reloaded,
                "ms": round((time.monotonic() - self._started) * 1000),
            }
        )

    def _read_current_config(self) -> CurrentConfig | None:
        """Return haproxy.cfg as it is now; after a run that succeeded, as planned."""
        plan = self._plan
        if plan and self.outcome:
            return CurrentConfig(plan.after, plan.digest, plan.managed_lines)
        if self.roles:
            with contextlib.suppress(OSError):
                document = config_files.read_config(self.roles.haproxy).document
                return CurrentConfig(document.texts, document.compute_digest(), list_managed_lines(document))
        return None

    def _make_last(self, error: BaseException | None, live: CurrentConfig | None) -> Last:
        now = int(time.time())
        verdict, status, words = self._describe_end(error)
        last = self._count_run(self._store.load_last()._replace(run=now, status=status, words=words), now, verdict)
        if status == 0:
            last = last._replace(success=now)
        if self.newest_event_at:
            last = last._replace(event=self.newest_event_at)
        if self.is_synced:
            last = last._replace(sync=now, sync_failing=None, sync_words="")
        elif self.sync_error:
            last = last._replace(
                sync_failing=last.sync_failing or now, sync_words=_shorten(format_error(self.sync_error))
            )
        if self.is_synced or self.sync_error:
            last = last._replace(peers=self._count_peers() or last.peers)
        plan = self._plan
        is_as_planned = bool(plan and live and live.texts == plan.after)
        if plan and is_as_planned and plan.after != plan.before:
            last = last._replace(change=now)
        # The file is as planned, and HAProxy was not seen to load it: the reload could not be confirmed.
        failed = isinstance(error, RolledBack) or (isinstance(error, TryAgain) and is_as_planned)
        if (failed and not isinstance(error, ReloadPostponed)) or (self.outcome and self.outcome.reloaded):
            last = last._replace(reload=now, reload_good=not failed)
        return last

    def _count_run(self, last: Last, now: int, verdict: str) -> Last:
        """Return `last` with this run counted in its totals."""
        haproxy = self.transaction.haproxy if self.transaction else None
        if haproxy and haproxy.reload_seconds is not None:
            last = last._replace(reload_seconds=last.reload_seconds.add(haproxy.reload_seconds, RELOAD_BOUNDS))
        return last._replace(
            heartbeat=now if is_held(self._store.paths.watch_lock) else last.heartbeat,
            runs={**last.runs, verdict: last.runs.get(verdict, 0) + 1},
            ended={**last.ended, verdict: now},
            run_seconds=last.run_seconds.add(time.monotonic() - self._started, RUN_BOUNDS),
        )

    def _count_peers(self) -> PeerCounts | None:
        """Return the numbers of the other load balancers, as the last sync that could ask Serf has stored them."""
        if (found := self._store.load_peers()) is None:
            return None
        return PeerCounts(
            len(found.peers),
            sum(peer.answers for peer in found.peers),
            sum(peer.equal is False for peer in found.peers),
        )

    def _describe_end(self, error: BaseException | None) -> tuple[str, int, str]:
        """Return the verdict, the exit status and one sentence."""
        failure = error or self.sync_error
        if isinstance(failure, LbagentError | OSError):
            verdict, status = getattr(failure, "outcome", LbagentError.outcome), getattr(failure, "exit_status", 1)
            return verdict, status, _shorten(f"{verdict}: {format_error(failure)}")
        if failure is None and self.outcome:
            end = self.outcome
            return end.verdict, end.exit_status, _shorten(f"{end.verdict}: {end.message}")
        return INTERRUPTED, int(failure is not None), "interrupted"

    def _collect_numbers(self, last: Last, live: CurrentConfig | None) -> metrics.Numbers:
        membership, plan = self._find_membership(), self._plan
        haproxy = self.transaction.haproxy if self.transaction else None
        oldest = None
        with contextlib.suppress(OSError):
            oldest = self._spool.find_oldest_time()
        numbers = metrics.Numbers(
            lbagent.__version__,
            last.run or 0,
            last,
            digest=live.digest if live else None,
            old_workers=haproxy.old_workers if haproxy else None,
            blocked=sum(blocked.lines for blocked in plan.blocked) if plan else 0,
            pending=len(self._spool.list_names()),
            oldest_event=None if oldest is None else int(oldest),
            bad=_count_files(self._store.paths.bad),
            daemon=is_locked(self._store.paths.watch_lock),
        )
        if membership is None:
            return numbers
        return numbers._replace(
            servers=count_servers(live.lines, self.roles, membership) if live and self.roles else None,
            members=count_statuses(membership),
            quarantined=count_quarantined(membership),
            paused=count_paused(membership),
            pauses=find_pause_starts(membership),
        )

    def _find_membership(self) -> Membership | None:
        if self.transaction:
            return self.transaction.membership
        with contextlib.suppress(Damaged, OSError):
            return self._store.load_membership()
        return None


def _shorten(message: str) -> str:
    """Return the message, cut to what `status` shows."""
    return message if len(message) <= _LENGTH_LIMIT else f"{message[:_LENGTH_LIMIT]} …"


def _count_files(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return 0
