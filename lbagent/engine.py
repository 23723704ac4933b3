"""One run: fold the spool into membership, plan, apply. Every verb that changes anything is this run."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping

import lbagent
from lbagent import memory, rolescache, scene
from lbagent.apply import Options, Transaction
from lbagent.batch import Batch, peeked
from lbagent.chronicle import Chronicle
from lbagent.errors import Busy, RolesRefused, TryAgain
from lbagent.fold import Folded, fold, outdated
from lbagent.haproxy.takeover import Haproxy
from lbagent.host import foreign, lock
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.host.spool import Spool
from lbagent.host.store import Store
from lbagent.membership import Membership
from lbagent.outcome import Outcome
from lbagent.plan import Plan
from lbagent.roles import Roles
from lbagent.roll import expired
from lbagent.serf import agent
from lbagent.serf.command import Command
from lbagent.serf.events import Event
from lbagent.serf.raw import RECORD_LIMIT, Raw
from lbagent.table import tabled

Learn = Callable[[Membership, Roles], Folded]
"""What is learned from elsewhere once all events are folded. Raises TryAgain where there is nothing to be learned."""


class Engine:
    """What a run needs, and what came of the last one."""

    def __init__(self, paths: Paths, roles_path: str, log: Log) -> None:
        """Nothing is read yet."""
        self.paths, self._roles_path, self._log = paths, roles_path, log
        self.store = Store(paths)
        self.spool = Spool(paths.spool, RECORD_LIMIT)
        self.membership = Membership()
        self.plan: Plan | None = None
        """Of the last run that went well."""
        self.haproxy: Haproxy | None = None
        """As the last run saw it that got so far."""
        self.transaction: Transaction | None = None
        """Of the last run; None where it failed before."""
        self.answers: Mapping[str, str] = {}
        """What queries are told, by record id, as in Folded."""
        self.asked: Mapping[str, Command] = {}
        """The queries of who may only store them and wait, by the ids of their records."""
        self.heard: int | None = None
        """Epoch seconds at which the newest event that was folded arrived."""

    def roles(self, *, keep: bool = False) -> Roles:
        """roles.yml as it stands, kept as JSON for the next run where we hold the lock. Raises RolesRefused."""
        try:
            content = foreign.content(self._roles_path)
        except OSError as error:
            raise RolesRefused(f"{self._roles_path}: cannot be read: {error.strerror}") from error
        key = f"{lbagent.__version__} {len(content)} {zlib.crc32(content)} {zlib.adler32(content)}"
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return rolescache.thawed(self.store.cached(key))
        from lbagent import rolesfile  # noqa: PLC0415  # once for each edit

        roles = rolesfile.parse(content, self._roles_path)
        if keep:
            self.store.cache(key, rolescache.frozen(roles))
        return roles

    def run(self, options: Options, learn: Learn | None = None) -> Outcome:
        """Fold, learn what there is to learn, plan, apply; the lock is the caller's. Raises LbagentError, OSError.

        Where the lock file was removed or replaced meanwhile, the new one is acquired and all begins again: with what
        another process has written since.
        """
        for _ in range(_STARTS):
            try:
                return self._run(options, learn)
            except lock.Lost as lost:
                self._log.warning(f"{lost}: starting over")
                self.paths.prepare()
                if not lock.acquire_again(self.paths.lock, _LOCK_WAIT):
                    raise
        raise Busy(f"{self.paths.lock}: the lock file was removed or replaced {_STARTS} times; find out by whom")

    def _run(self, options: Options, learn: Learn | None) -> Outcome:
        self.transaction = None
        with Chronicle(self.store, self.spool, self._log) as chronicle:
            # First of all: a refused roles.yml changes nothing on disk, and what is in the spool waits.
            chronicle.roles = roles = self.roles(keep=True)
            try:
                chronicle.causes = self.drain(roles)
            except OSError as error:
                # Stored in the spool it is; told it can be.
                raise type(error)(error.errno, f"{error.strerror}{self.urged(roles)}", error.filename) from error
            chronicle.heard, chronicle.asked, chronicle.answers = self.heard, self.asked, self.answers
            if learn:
                self._learn(learn, roles, chronicle)
            # `done` is for what HAProxy itself confirms now.
            options = options._replace(compare=options.compare or bool(self.answers))
            self.transaction = transaction = Transaction(self.store, roles, self.membership, options)
            chronicle.transaction = transaction
            try:
                chronicle.outcome = outcome = transaction.apply()
            finally:
                self.haproxy = transaction.haproxy
        self.plan = transaction.plan
        self._tell(transaction, outcome, news=bool(chronicle.causes) or options.verify)
        if chronicle.unknown:
            raise chronicle.unknown
        return outcome

    def drain(self, roles: Roles) -> tuple[str, ...]:
        """Fold the spool into members.json, durably, and empty it; returns what happened. Raises OSError."""
        before = self._sound(roles)
        batch = Batch(self.spool, self._log)
        folded = batch.folded(before, self._clocks(before, batch.events))
        self.asked = batch.asked
        self.heard = max((raw.at // 1000 for raw, _ in batch.events), default=self.heard)
        membership = expired(folded.membership, int(time.time()))
        if batch.by_name or membership.members is not before.members:
            # Who is killed before the spool is empty folds these again: known by their ids, they change nothing.
            membership = membership._replace(folded=frozenset(raw.id for raw, _ in batch.events))
            self.store.remember(membership)
            self.spool.remove(batch.by_name)
        for warning in folded.warnings:
            self._log.warning(warning)
        self.membership, self.answers = membership, folded.answers
        return folded.causes

    def urged(self, roles: Roles | None = None, raw: Raw | None = None) -> str:
        """Take the traffic from who is to go by all we know, and by `raw`, though nothing of it can be stored.

        Returns who that is, as the end of a sentence. Raises RolesRefused, OSError.
        """
        from lbagent import unstored  # noqa: PLC0415  # for a disk that is full

        roles = roles or self.roles()
        membership = self.foreseen(roles)
        return unstored.withdrawn(self.store, roles, unstored.after(membership, raw) if raw else membership)

    def foreseen(self, roles: Roles, learn: Learn | None = None) -> Membership:
        """Membership as the next run would have it; nothing is written. Raises OSError."""
        before, events = self._remembered(roles), peeked(self.spool)
        folded = fold(before, events, self._clocks(before, events))
        if learn:
            folded = learn(folded.membership, roles)
        return expired(folded.membership, int(time.time()))

    def _learn(self, learn: Learn, roles: Roles, chronicle: Chronicle) -> None:
        before = self.membership
        try:
            learned = learn(before, roles)
        except TryAgain as error:
            chronicle.unknown = error  # what is known already is done all the same
            return
        chronicle.synced, chronicle.causes = True, chronicle.causes + learned.causes
        self.membership = after = learned.membership
        if after.members is not before.members or after.missed != before.missed:
            self.store.remember(after)
        for warning in learned.warnings:
            self._log.warning(warning)

    def _tell(self, transaction: Transaction, outcome: Outcome, *, news: bool) -> None:
        # Known already where nothing has come and nothing changes: then only whoever asks (-v) is told again.
        say = self._log.warning if news or not outcome.quiet else self._log.info
        for note in _notes(transaction):
            say(note)
        for held in outcome.held:
            self._log.error(f"held back: {held}; `lbagent apply --force` lets them go")
        if not outcome.quiet:
            fields = {"outcome": outcome.verdict, "exit_status": outcome.exit_status}
            fields |= {"added": len(outcome.added), "removed": len(outcome.removed)}
            self._log.info(f"{outcome.verdict}: {outcome.words}", **fields)

    def _remembered(self, roles: Roles) -> Membership:
        try:
            known = self.store.membership()
        except memory.Damaged:
            known = None
        return known or _rebuilt(roles)

    def _sound(self, roles: Roles) -> Membership:
        try:
            known = self.store.membership()
        except memory.Damaged as error:
            aside = self.store.set_damaged_aside()
            self._log.warning(f"members.json {error}: kept as {aside}, rebuilt from the managed lines")
            known = None
        if known is None:
            known = _rebuilt(roles)
            self.store.remember(known)
        return known

    def _clocks(self, before: Membership, batch: list[tuple[Raw, Event]]) -> Mapping[str, int]:
        return agent.clocks() if outdated(before, (event for _, event in batch)) else {}


_STARTS = 5
"""Runs that are begun where the lock is lost again and again."""

_LOCK_WAIT = 30.0
"""Seconds to wait for the process that acquired the new lock."""


def _notes(transaction: Transaction) -> Iterator[str]:
    """What an operator should look at, though nothing has failed."""
    plan = transaction.plan
    for member in tabled(transaction.membership.members).special.values():
        # Who is in again stays marked until then.
        if member.quarantine and (plan is None or member.name not in plan.changes):
            yield f"{member.name} is in quarantine: HAProxy refuses its line: {member.quarantine.reason}"
    yield from plan.notes if plan else ()


def _rebuilt(roles: Roles) -> Membership:
    from lbagent import restore  # noqa: PLC0415  # once in the life of a load balancer

    return restore.rebuilt(scene.look(roles.haproxy).document, roles, int(time.time()))
