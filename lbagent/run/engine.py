"""One run: apply the stored events to membership, plan, and apply the plan.

Every command that changes anything is a run.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping

import lbagent
from lbagent.errors import Busy, LbagentError, RolesRefused, TryAgain
from lbagent.haproxy import config_files
from lbagent.haproxy.instance import Haproxy
from lbagent.membership import storage
from lbagent.membership.model import Membership, as_table
from lbagent.membership.pauses import may_contain_replay, needs_serf_clocks
from lbagent.membership.updates import UpdateResult, apply_events, drop_expired
from lbagent.outcome import Outcome
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import Plan
from lbagent.roles import cache
from lbagent.roles.model import Roles
from lbagent.run import exchange
from lbagent.run.batch import Batch, peek_events
from lbagent.run.recorder import Recorder
from lbagent.run.transaction import RunOptions, Transaction
from lbagent.serf import agent
from lbagent.serf.events import Command, Event, parse_event
from lbagent.serf.raw_event import RECORD_LIMIT, RawEvent
from lbagent.state import lock
from lbagent.state.paths import Paths
from lbagent.state.spool import Spool
from lbagent.state.store import Store
from lbagent.system import untrusted_files
from lbagent.system.log import Log

Learn = Callable[[Membership, Roles], UpdateResult]
"""Updates membership from outside once all events are applied. Raises TryAgain where nothing can be learned."""

_ATTEMPTS = 5
"""Starts of a run while the lock keeps getting lost."""

_LOCK_WAIT = 30.0
"""Seconds to wait for the process that acquired the new lock."""


class Engine:
    """Makes runs, and keeps the results of the last one."""

    def __init__(self, paths: Paths, roles_path: str, log: Log) -> None:
        """Nothing is read yet."""
        self.paths, self._roles_path, self._log = paths, roles_path, log
        self.store = Store(paths)
        self.spool = Spool(paths.spool, RECORD_LIMIT)
        self.membership = Membership()
        self.plan: Plan | None = None
        """Plan of the last run that succeeded."""
        self.haproxy: Haproxy | None = None
        """HAProxy as the last run saw it."""
        self.transaction: Transaction | None = None
        """Transaction of the last run; None where it failed earlier."""
        self.answers: Mapping[str, str] = {}
        """Answers to queries by record id, as in `UpdateResult`."""
        self.asked: Mapping[str, Command] = {}
        """Queries stored by users who may not apply them, by the ids of their records."""
        self.heard: int | None = None
        """Epoch seconds at which the newest applied event arrived."""

    def roles(self, *, keep: bool = False) -> Roles:
        """Return roles.yml, cached as JSON for the next run with `keep`. Raises RolesRefused."""
        try:
            content = untrusted_files.read_whole_file(self._roles_path)
        except OSError as error:
            raise RolesRefused(f"{self._roles_path}: cannot be read: {error.strerror}") from error
        key = f"{lbagent.__version__} {len(content)} {zlib.crc32(content)} {zlib.adler32(content)}"
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return cache.deserialize_roles(self.store.load_roles_cache(key))
        from lbagent.roles import loader  # noqa: PLC0415  # loads yaml, once per edit

        roles = loader.parse_roles(content, self._roles_path)
        if keep:
            self.store.save_roles_cache(key, cache.serialize_roles(roles))
        return roles

    def run(self, options: RunOptions, learn: Learn | None = None) -> Outcome:
        """Apply events, learn, plan and apply the plan; the caller holds the lock. Raises LbagentError, OSError.

        Where the lock file was removed or replaced meanwhile, acquire the new one and start over with the state that
        another process may have written since.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._run(options, learn)
            except lock.LockLost as lost:
                self._log.warning(f"{lost}; starting again")
                self.paths.prepare()
                if not lock.acquire_again(self.paths.lock, _LOCK_WAIT):
                    raise
        raise Busy(
            f"{self.paths.lock}: the lock file was removed or replaced {_ATTEMPTS} times; find the process that does it"
        )

    def _run(self, options: RunOptions, learn: Learn | None) -> Outcome:
        self.transaction = None
        with Recorder(self.store, self.spool, self._log) as recorder:
            # This comes first: an invalid roles.yml changes nothing on disk, and the spool waits.
            recorder.roles = roles = self.roles(keep=True)
            try:
                recorder.causes = self.drain(roles)
            except OSError as error:
                # The events stay in the spool; HAProxy can still be reached.
                raise type(error)(
                    error.errno, f"{error.strerror}{self.withdraw_unstored(roles)}", error.filename
                ) from error
            recorder.heard, recorder.asked, recorder.answers = self.heard, self.asked, self.answers
            if learn:
                self._learn(learn, roles, recorder)
            # An answer `done` needs HAProxy's own confirmation in this run.
            options = options._replace(compare=options.compare or bool(self.answers))
            self.transaction = transaction = Transaction(self.store, roles, self.membership, options)
            recorder.transaction = transaction
            try:
                recorder.outcome = outcome = transaction.apply()
            finally:
                self.haproxy = transaction.haproxy
        self.plan = transaction.plan
        self._log_result(transaction, outcome, news=bool(recorder.causes) or options.verify)
        if recorder.unknown:
            raise recorder.unknown
        return outcome

    def drain(self, roles: Roles) -> tuple[str, ...]:
        """Apply the spool to members.json, durably, and empty it; returns what happened. Raises OSError."""
        before, fresh = self._load_repaired(roles)
        batch = Batch(self.spool, self._log)
        asked = self._ask_peers_first(before, batch.events, fresh=fresh)
        updated = batch.apply_to(asked.membership, self._fetch_clocks(asked.membership, batch.events))
        self.asked = batch.asked
        self.heard = max((raw.at // 1000 for raw, _ in batch.events), default=self.heard)
        membership = drop_expired(updated.membership, int(time.time()))
        if (
            batch.by_name
            or membership.members is not before.members
            or membership.peers_asked_at != before.peers_asked_at
        ):
            # A run killed before the spool is empty applies these again: they are known by id, and change nothing.
            membership = membership._replace(applied_events=frozenset(raw.id for raw, _ in batch.events))
            self.store.save_membership(membership)
            self.spool.remove(batch.by_name)
        for warning in updated.warnings:
            self._log.warning(warning)
        self.membership, self.answers = membership, updated.answers
        return asked.causes + updated.causes

    def withdraw_unstored(self, roles: Roles | None = None, raw: RawEvent | None = None) -> str:
        """Take the traffic from servers that are to be removed, including those of `raw`, though nothing can be stored.

        Returns the servers as the end of a sentence. Raises RolesRefused, OSError.
        """
        roles = roles or self.roles()
        membership = self.preview_membership(roles)
        return withdraw_traffic(self.store, roles, apply_raw_event(membership, raw) if raw else membership)

    def preview_membership(self, roles: Roles, learn: Learn | None = None) -> Membership:
        """Return membership as the next run would have it; nothing is written. Raises OSError."""
        before, events = self._load_or_rebuild(roles), peek_events(self.spool)
        updated = apply_events(before, events, self._fetch_clocks(before, events))
        if learn:
            updated = learn(updated.membership, roles)
        return drop_expired(updated.membership, int(time.time()))

    def _learn(self, learn: Learn, roles: Roles, recorder: Recorder) -> None:
        before = self.membership
        try:
            learned = learn(before, roles)
        except TryAgain as error:
            recorder.unknown = error  # the events in the spool are applied nevertheless
            return
        recorder.synced, recorder.causes = True, recorder.causes + learned.causes
        self.membership = after = learned.membership
        if after.members is not before.members or (after.missed, after.peers_asked_at) != (
            before.missed,
            before.peers_asked_at,
        ):
            self.store.save_membership(after)
        for warning in learned.warnings:
            self._log.warning(warning)

    def _log_result(self, transaction: Transaction, outcome: Outcome, *, news: bool) -> None:
        # Without news these notes were logged before: log them again only with -v.
        say = self._log.warning if news or not outcome.is_quiet else self._log.info
        for note in _list_notes(transaction):
            say(note)
        for held in outcome.blocked:
            self._log.error(f"blocked: {held}; `lbagent apply --force` applies these removals")
        if not outcome.is_quiet:
            fields = {"outcome": outcome.verdict, "exit_status": outcome.exit_status}
            fields |= {"added": len(outcome.added), "removed": len(outcome.removed)}
            self._log.info(f"{outcome.verdict}: {outcome.message}", **fields)

    def _load_or_rebuild(self, roles: Roles) -> Membership:
        try:
            known = self.store.load_membership()
        except storage.Damaged:
            known = None
        return known or _rebuild_membership(roles)

    def _load_repaired(self, roles: Roles) -> tuple[Membership, bool]:
        """Return membership, and whether it had to be rebuilt. Raises OSError."""
        try:
            known = self.store.load_membership()
        except storage.Damaged as error:
            aside = self.store.set_damaged_aside()
            self._log.warning(f"members.json {error}; kept as {aside} and rebuilt from the managed lines")
            known = None
        if known is not None:
            return known, False
        known = _rebuild_membership(roles)
        self.store.save_membership(known)
        return known, True

    def _ask_peers_first(self, before: Membership, batch: list[tuple[RawEvent, Event]], *, fresh: bool) -> UpdateResult:
        """Return membership with the pauses of the other load balancers, where the events may be replays.

        Serf replays user events to an agent that joins or was down, but not the queries that came after them. Where no
        other load balancer can be asked, the events count as they are.
        """
        nothing = UpdateResult(before, {}, (), ())
        if not batch or not (fresh or may_contain_replay(before, (event for _, event in batch))):
            return nothing
        return (
            nothing
            if not fresh and exchange.has_contact_since_start(before, self.paths)
            else exchange.merge_peer_pauses(before, self._log)
        )

    def _fetch_clocks(self, before: Membership, batch: list[tuple[RawEvent, Event]]) -> Mapping[str, int]:
        return agent.fetch_clocks() if needs_serf_clocks(before, (event for _, event in batch)) else {}


def _list_notes(transaction: Transaction) -> Iterator[str]:
    """Yield what an operator should look at although nothing has failed."""
    plan = transaction.plan
    for member in as_table(transaction.membership.members).special.values():
        # A node whose lines this plan changes stays quarantined until the plan is applied.
        if member.quarantine and (plan is None or member.name not in plan.changes):
            yield f"{member.name} is in quarantine, HAProxy refuses its line: {member.quarantine.reason}"
    yield from plan.notes if plan else ()


def _rebuild_membership(roles: Roles) -> Membership:

    return rebuild_membership(config_files.read_config(roles.haproxy).document, roles, int(time.time()))


def apply_raw_event(membership: Membership, raw: RawEvent) -> Membership:
    """Return membership with this event applied."""
    return apply_events(membership, [(raw, parse_event(raw))], {}).membership


def withdraw_traffic(store: Store, roles: Roles, membership: Membership) -> str:
    """Take the traffic from servers that should have none in this membership.

    Returns the servers as the end of a sentence; empty where there are none.
    """
    transaction = Transaction(store, roles, membership, RunOptions())
    try:
        transaction.withdraw()
    except (LbagentError, OSError):
        return ""  # the failure of the disk is the one to report
    return f"; no new traffic reaches {', '.join(transaction.out)}" if transaction.out else ""
