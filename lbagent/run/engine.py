"""One run: apply the stored events to membership, plan, and apply the plan.

Every command that changes anything is a run.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import lbagent
from lbagent.errors import Busy, LbagentError, RolesRefused, TryAgain
from lbagent.haproxy import config_files
from lbagent.haproxy.instance import Haproxy
from lbagent.membership.model import Membership, as_table
from lbagent.membership.pauses import may_contain_replay, needs_serf_clocks
from lbagent.membership.updates import UpdateResult, apply_events, drop_expired
from lbagent.outcome import Outcome
from lbagent.planning.lines import rebuild_membership
from lbagent.planning.plan import Plan
from lbagent.roles import model
from lbagent.roles.model import Roles
from lbagent.run import sync
from lbagent.run.recorder import Recorder
from lbagent.run.sync import SyncMerge
from lbagent.run.transaction import RunOptions, Transaction
from lbagent.serf import agent
from lbagent.serf.events import QUERY, TYPED, Command, Event, Ignored, StatusQuery, parse_event
from lbagent.serf.raw_event import RECORD_LIMIT, RawEvent, parse_record
from lbagent.settings import Settings
from lbagent.state import lock, store
from lbagent.state.spool import Record, Spool
from lbagent.state.store import Store
from lbagent.system import untrusted_files
from lbagent.system.log import Log

ParsedEvent = tuple[RawEvent, Event]

_VERBS = ("pause", "resume", "forget")

_ATTEMPTS = 5
"""Number of times a run is started while its lock keeps getting lost."""


class Engine:
    """Makes runs, and keeps the results of the last one."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Nothing is read yet."""
        self.paths, self._roles_path, self._log = settings.paths, settings.roles, log
        self.store = Store(self.paths)
        self._roles: tuple[bytes, Roles] | None = None
        """The content of roles.yml that was read last, and its roles."""
        self.spool = Spool(self.paths.spool, RECORD_LIMIT)
        self.membership = Membership()
        self.plan: Plan | None = None
        """Plan of the last run that succeeded."""
        self.haproxy: Haproxy | None = None
        """The HAProxy that the last run found."""
        self.transaction: Transaction | None = None
        """Transaction of the last run; None where it failed earlier."""
        self.answers: Mapping[str, str] = {}
        """Answers to queries by record id, as in `UpdateResult`."""
        self.foreign_queries: Mapping[str, Command] = {}
        """Stored queries of users without permission to apply them, by record id."""
        self.newest_event_at: int | None = None
        """Epoch seconds at which the newest applied event arrived."""

    def load_roles(self, *, cache_result: bool = False) -> Roles:
        """Return roles.yml, from its JSON cache if current; `cache_result` writes the cache. Raises RolesRefused."""
        try:
            content = untrusted_files.read_whole_file(self._roles_path)
        except OSError as error:
            raise RolesRefused(f"{self._roles_path}: cannot be read: {error.strerror}") from error
        if self._roles and self._roles[0] == content and not cache_result:
            return self._roles[1]
        self._roles = content, self._parse_roles(content, cache_result=cache_result)
        return self._roles[1]

    def _parse_roles(self, content: bytes, *, cache_result: bool) -> Roles:
        key = f"{lbagent.__version__} {len(content)} {zlib.crc32(content)} {zlib.adler32(content)}"
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return model.deserialize_roles(self.store.load_roles_cache(key))
        from lbagent.roles import loader  # noqa: PLC0415  # loads yaml, once per edit

        roles = loader.parse_roles(content, self._roles_path)
        if cache_result:
            self.store.save_roles_cache(key, model.serialize_roles(roles))
        return roles

    def run(self, options: RunOptions, merge_sync: SyncMerge | None = None) -> Outcome:
        """Apply events, merge the sync, plan, and apply the plan. Raises LbagentError, OSError.

        The caller holds the lock. If the lock file was removed or replaced meanwhile, acquire the new one and start
        again with the state that another process may have written since.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._run(options, merge_sync)
            except lock.LockLost as lost:
                self._log.warning(f"{lost}; starting again")
                self.paths.prepare()
                if not lock.acquire_again(self.paths.lock, lock.RUN_WAIT):
                    raise
        raise Busy(
            f"{self.paths.lock}: the lock file was removed or replaced {_ATTEMPTS} times; find the process that does it"
        )

    def _run(self, options: RunOptions, merge_sync: SyncMerge | None) -> Outcome:
        self.transaction = None
        with Recorder(self.store, self.spool, self._log, lambda: peek_queries(self.spool)) as recorder:
            # This comes first: an invalid roles.yml changes nothing on disk, and the spool waits.
            recorder.roles = roles = self.load_roles(cache_result=True)
            recorder.causes = self._apply_events_or_withdraw(roles)
            recorder.newest_event_at = self.newest_event_at
            recorder.foreign_queries, recorder.answers = self.foreign_queries, self.answers
            if merge_sync:
                self._merge_sync(merge_sync, roles, recorder)
            # An answer `done` needs HAProxy's own confirmation in this run.
            options = options._replace(compare=options.compare or bool(self.answers))
            self.transaction = transaction = Transaction(self.store, roles, self.membership, options)
            recorder.transaction = transaction
            try:
                recorder.outcome = outcome = transaction.apply()
            finally:
                self.haproxy = transaction.haproxy
        self.plan = transaction.plan
        self._log_result(transaction, outcome, has_news=bool(recorder.causes) or options.verify)
        if recorder.sync_error:
            raise recorder.sync_error
        return outcome

    # Membership

    def _apply_events_or_withdraw(self, roles: Roles) -> tuple[str, ...]:
        """Apply the spool; on a full disk the events stay there, and only the traffic is withdrawn. Raises OSError."""
        try:
            return self.apply_stored_events(roles)
        except OSError as error:
            message = f"{error.strerror}{self.withdraw_without_storing(roles)}"
            raise type(error)(error.errno, message, error.filename) from error

    def apply_stored_events(self, roles: Roles) -> tuple[str, ...]:
        """Apply the spool to members.json, durably, and empty it; return the causes for the history. Raises OSError."""
        before, is_rebuilt = self._load_or_repair(roles)
        batch = Batch(self.spool, self._log)
        peers = self._ask_peers_first(before, batch.events, is_rebuilt=is_rebuilt)
        updated = batch.apply_to(peers.membership, self._fetch_clocks(peers.membership, batch.events))
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
        self.foreign_queries = batch.foreign_queries
        self.newest_event_at = max((raw.at // 1000 for raw, _ in batch.events), default=self.newest_event_at)
        return peers.causes + updated.causes

    def _merge_sync(self, merge_sync: SyncMerge, roles: Roles, recorder: Recorder) -> None:
        before = self.membership
        try:
            updated = merge_sync(before, roles)
        except TryAgain as error:
            recorder.sync_error = error  # the events in the spool are applied nevertheless
            return
        recorder.is_synced, recorder.causes = True, recorder.causes + updated.causes
        self.membership = after = updated.membership
        is_changed = (after.missed, after.peers_asked_at) != (before.missed, before.peers_asked_at)
        if is_changed or after.members is not before.members:
            self.store.save_membership(after)
        for warning in updated.warnings:
            self._log.warning(warning)

    def preview_membership(self, roles: Roles, merge_sync: SyncMerge | None = None) -> Membership:
        """Return the membership of the next run; nothing is written. Raises OSError, and TryAgain with `merge_sync`."""
        before, events = self._load_or_rebuild(roles), peek_events(self.spool)
        updated = apply_events(before, events, self._fetch_clocks(before, events))
        if merge_sync:
            updated = merge_sync(updated.membership, roles)
        return drop_expired(updated.membership, int(time.time()))

    def prepare_sync(self, log_line: Callable[[str], None], *, force: bool, record: bool = True) -> SyncMerge:
        """Query the other load balancers; return what merges their answers and Serf's list, as `sync.prepare_sync`.

        With `record`, peers.json is written.
        """
        store = self.store if record else None
        return sync.prepare_sync(
            self.load_roles,
            lambda: self.preview_membership(self.load_roles()),
            store,
            self._log,
            log_line,
            force=force,
        )

    def _load_or_repair(self, roles: Roles) -> tuple[Membership, bool]:
        """Return membership, and whether it had to be rebuilt. Raises OSError."""
        try:
            known = self.store.load_membership()
        except store.Damaged as error:
            aside = self.store.set_damaged_aside()
            self._log.warning(f"members.json {error}; kept as {aside} and rebuilt from the managed lines")
            known = None
        if known is not None:
            return known, False
        rebuilt = _rebuild_membership(roles)
        self.store.save_membership(rebuilt)
        return rebuilt, True

    def _load_or_rebuild(self, roles: Roles) -> Membership:
        try:
            known = self.store.load_membership()
        except store.Damaged:
            known = None
        return known or _rebuild_membership(roles)

    def _ask_peers_first(
        self, before: Membership, events: list[tuple[RawEvent, Event]], *, is_rebuilt: bool
    ) -> UpdateResult:
        """Return membership with the pauses of the other load balancers, where the events may be replays.

        Serf replays user events to an agent that joins or was down, but not the queries that came after them. Where no
        other load balancer answers, the events are applied as they are.
        """
        unchanged = UpdateResult(before, {}, (), ())
        if not events or not (is_rebuilt or may_contain_replay(before, (event for _, event in events))):
            return unchanged
        if not is_rebuilt and sync.has_contact_since_start(before, self.paths):
            return unchanged
        return sync.merge_peer_pauses(before, self._log)

    def _fetch_clocks(self, before: Membership, events: list[tuple[RawEvent, Event]]) -> Mapping[str, int]:
        return agent.fetch_clocks() if needs_serf_clocks(before, (event for _, event in events)) else {}

    # A full disk

    def withdraw_without_storing(self, roles: Roles | None = None, raw: RawEvent | None = None) -> str:
        """Take the traffic from servers that are to be removed, also by the event `raw`, when nothing can be stored.

        Returns the servers as the end of a sentence; empty where there are none. Raises RolesRefused, OSError.
        """
        roles = roles or self.load_roles()
        membership = self.preview_membership(roles)
        if raw:
            membership = apply_events(membership, [(raw, parse_event(raw))], {}).membership
        transaction = Transaction(self.store, roles, membership, RunOptions())
        try:
            transaction.withdraw()
        except (LbagentError, OSError):
            return ""  # report the failure of the disk, not this one
        return f"; no new traffic reaches {', '.join(transaction.withdrawn)}" if transaction.withdrawn else ""

    # Log

    def _log_result(self, transaction: Transaction, outcome: Outcome, *, has_news: bool) -> None:
        # Without news these notes were logged before: log them again only with -v.
        log_note = self._log.warning if has_news or not outcome.is_quiet else self._log.info
        for note in _list_notes(transaction):
            log_note(note)
        for blocked in outcome.blocked:
            self._log.error(f"blocked: {blocked.report}")
        if not outcome.is_quiet:
            fields = {"outcome": outcome.verdict, "exit_status": outcome.exit_status}
            fields |= {"added": len(outcome.added), "removed": len(outcome.removed)}
            self._log.info(f"{outcome.verdict}: {outcome.message}", **fields)


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


class Batch:
    """The events of one run, in order."""

    def __init__(self, spool: Spool, log: Log) -> None:
        """Read every record; one that is not an event is moved to `bad/` and logged. Raises OSError."""
        self._spool, self._log = spool, log
        records, warnings = spool.read()
        self.by_name: dict[str, ParsedEvent] = {}
        """The events, by the names of their records."""
        for record in records:
            try:
                self.by_name[record.name] = parse_stored_event(record)
            except ValueError as error:
                warnings.append(spool.set_aside(record.name, str(error)))
        for warning in warnings:
            log.warning(warning)
        self.foreign_queries = _select_foreign_queries(records, self.by_name)
        """Stored queries of users without permission to apply them, by record id."""

    @property
    def events(self) -> list[ParsedEvent]:
        """The events, oldest first."""
        return list(self.by_name.values())

    def apply_to(self, before: Membership, serf_clocks: Mapping[str, int]) -> UpdateResult:
        """Return `before` with all events applied; an event that raises is moved to `bad/` and logged."""
        try:
            return apply_events(before, self.events, serf_clocks)
        except Exception:  # noqa: BLE001  # a defect that one event triggers must not block all others
            for name, event in list(self.by_name.items()):
                self._set_aside_if_failing(name, event, before)
            return apply_events(before, self.events, serf_clocks)

    def _set_aside_if_failing(self, name: str, event: ParsedEvent, before: Membership) -> None:
        try:
            apply_events(before, [event], {})
        except Exception as error:  # noqa: BLE001  # as above
            del self.by_name[name]
            reason = f"cannot be applied ({type(error).__name__}: {error})"
            self._log.warning(self._spool.set_aside(name, reason))


def peek_events(spool: Spool) -> list[ParsedEvent]:
    """Return the events that a run would apply now. The spool is not changed. Raises OSError."""
    return list(_parse_records(spool.peek()).values())


def peek_queries(spool: Spool) -> dict[str, Command]:
    """Return the stored queries of users without permission to apply them, by record id, as far as they can be read.

    The spool is not changed.
    """
    records = spool.peek(partly=True)
    return _select_foreign_queries(records, _parse_records(records))


def parse_stored_event(record: Record) -> ParsedEvent:
    """Return the event in a record. Raises ValueError where no handler of lbagent stored it."""
    raw = parse_record(record.content)
    if record.foreign and raw.kind == TYPED:
        raise ValueError("has a command of an operator, but is not root's file")
    event = parse_event(raw)
    if isinstance(event, Ignored | StatusQuery) or (isinstance(event, Command) and event.verb not in _VERBS):
        raise ValueError(f"has {raw.kind[:40]!r} {raw.name[:40]!r}, not an event for lbagent")
    return raw, event


def _parse_records(records: Iterable[Record]) -> dict[str, ParsedEvent]:
    found = {}
    for record in records:
        with contextlib.suppress(ValueError):
            found[record.name] = parse_stored_event(record)
    return found


def _select_foreign_queries(records: Iterable[Record], by_name: Mapping[str, ParsedEvent]) -> dict[str, Command]:
    found = (by_name[record.name] for record in records if record.foreign and record.name in by_name)
    return {raw.id: event for raw, event in found if isinstance(event, Command) and raw.kind == QUERY}
