"""The transaction: look, plan, stage, validate, swap, have HAProxy take it over, confirm; or put back."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from lbagent import quarantine, scene
from lbagent.errors import Busy, NotYet, PutBack, Refused
from lbagent.haproxy.takeover import Haproxy, NotAccepted, ReloadFailed
from lbagent.haproxy.text import Document
from lbagent.host.store import Failure, Served, Store
from lbagent.membership import Membership
from lbagent.outcome import Outcome, Verdict, counted, quarantined
from lbagent.plan import Plan, Rules, plan
from lbagent.roles import Roles
from lbagent.scene import Scene

ATTEMPTS = 5
"""How often others may save haproxy.cfg under our hands before we give way."""

_LONGEST_WAIT = 30
"""Minutes between two tries of a reload that fails."""


class Options(NamedTuple):
    """How a run is to be applied."""

    force: bool = False
    adopt: bool = False
    reload: bool = True


class Transaction:
    """One change of haproxy.cfg, from membership to a worker that serves it."""

    def __init__(self, store: Store, roles: Roles, membership: Membership, options: Options) -> None:
        """Nothing is read or written yet."""
        self._store, self._roles, self._options = store, roles, options
        self._served = store.served()
        self._path = ", ".join(roles.haproxy.config)
        self._refused: dict[str, str] = {}
        self.membership = membership
        """May come out with nodes in quarantine."""
        self.plan: Plan | None = None
        """The last one made; what the history tells of, however this ends."""

    def apply(self) -> Outcome:
        """Make haproxy.cfg what membership asks for, and have HAProxy serve it.

        Raises Refused, PutBack, Busy, TryAgain and OSError; the live file is complete in every case.
        """
        for _ in range(ATTEMPTS):
            seen = scene.look(self._roles.haproxy)
            seen.tidy()
            haproxy = scene.haproxy(self._roles.haproxy, seen)
            self.plan = wanted = self._plan(seen)
            if wanted.after == wanted.before and self._is_served(seen, haproxy):
                return self._ended(seen, self._unchanged(wanted, haproxy))
            self._not_too_soon(seen)
            with seen.staged(wanted.after) as paths:
                if words := self._refusal(seen, haproxy, paths):
                    self._find_culprits(seen, haproxy, wanted, words)
                    continue
                if not seen.untouched or not seen.swap(paths, keep=self._worth_keeping(seen)):
                    continue
            return self._ended(seen, self._hand_over(seen, haproxy, wanted))
        raise Busy(f"{self._path} was saved by others while HAProxy checked it, {ATTEMPTS} times: run again")

    def _plan(self, seen: Scene, untried: frozenset[str] = frozenset()) -> Plan:
        rules = Rules(force=self._options.force, adopt=self._options.adopt, kept=self._kept(seen) | untried)
        return plan(seen.document, self._roles, self.membership, rules)

    def _kept(self, seen: Scene) -> frozenset[str]:
        holding = quarantine.holding(self.membership, lambda: self._surroundings(seen))
        return frozenset(self._refused) | (frozenset() if self._options.force else holding)

    def _ended(self, seen: Scene, outcome: Outcome) -> Outcome:
        """The outcome, once members.json says no more of nodes whose lines went in that they are in quarantine."""
        membership = quarantine.lifted(self.membership, self._kept(seen))
        if membership is not self.membership:
            self.membership = membership
            self._store.remember(membership)
        return outcome

    def _refusal(self, seen: Scene, haproxy: Haproxy, paths: Sequence[str]) -> str | None:
        """What HAProxy has against these files, None where it takes them; it is the operator's paths that are named."""
        try:
            haproxy.validate(paths, [target.given for target in seen.targets])
        except NotAccepted as error:
            return str(error)
        return None

    def _surroundings(self, seen: Scene) -> str:
        return quarantine.surroundings(seen.document, self._roles)

    def _is_served(self, seen: Scene, haproxy: Haproxy) -> bool:
        digest, worker = seen.document.digest(), haproxy.serving()
        if worker is None:
            return self._served == (digest, None, None) and haproxy.shown_not_to_run()
        if self._served[:2] == (digest, worker) or (not self._served.digest and not seen.document.serves):
            return True
        # Started or reloaded by somebody else, after the file became what it is.
        if haproxy.has_read_since(seen.changed_at, seen.size):
            self._store.serve(Served(digest, worker))
            return True
        return False

    def _unchanged(self, wanted: Plan, haproxy: Haproxy) -> Outcome:
        if self._refused:
            node, words = next(iter(self._refused.items()))
            more = f" ({len(self._refused)} nodes in all)" if len(self._refused) > 1 else ""
            raise Refused(f"HAProxy refuses the line of {node}{more}: {words}")
        running = haproxy.serving() is not None
        return Outcome(Verdict.UNCHANGED, "nothing to do", held=wanted.held, running=running)

    def _not_too_soon(self, seen: Scene) -> None:
        failure = self._served.failure
        if failure is None or self._options.force or not self._options.reload or failure.key != self._failure_key(seen):
            return
        rest = failure.at + 60 * min(2 ** (failure.times - 1), _LONGEST_WAIT) - int(time.time())
        if rest > 0:
            raise NotYet(
                f"not tried again yet: {failure.words}; in {rest} s, with `lbagent apply --force`,"
                " or when haproxy.cfg or roles.yml changes"
            )

    def _failure_key(self, seen: Scene) -> str:
        return f"{zlib.crc32(self._surroundings(seen).encode()):08x}"

    def _worth_keeping(self, seen: Scene) -> bool:
        # What HAProxy never confirmed must not push out what it did.
        return seen.document.digest() == self._served.digest or scene.previous(seen) is None

    def _find_culprits(self, seen: Scene, haproxy: Haproxy, wanted: Plan, words: str) -> None:
        """Quarantine the nodes whose lines HAProxy refuses. Raises Refused where the fault is the operator's."""
        if own := self._refusal(seen, haproxy, [target.path for target in seen.targets]):
            raise Refused(f"HAProxy refuses the operator's own text, nothing was replaced: {own}")
        if not wanted.changes:
            raise Refused(f"HAProxy refuses the managed lines: {words}")

        def refusal(nodes: Sequence[str]) -> str | None:
            others = frozenset(wanted.changes) - frozenset(nodes)
            with seen.staged(self._plan(seen, others).after) as paths:
                return self._refusal(seen, haproxy, paths)

        from lbagent import blame  # noqa: PLC0415  # for the rare run that HAProxy refuses

        reasons = blame.culprits(tuple(wanted.changes), refusal, words)
        self._refused.update(reasons)
        self.membership = quarantine.impose(self.membership, reasons, self._surroundings(seen), int(time.time()))
        self._store.remember(self.membership)

    def _hand_over(self, seen: Scene, haproxy: Haproxy, wanted: Plan) -> Outcome:
        if not self._options.reload:
            return self._outcome(Verdict.WRITTEN, wanted, "not reloaded, as asked")
        try:
            worker = haproxy.take_over()
        except ReloadFailed as error:
            self._put_back(seen, haproxy, wanted, str(error))
        self._store.serve(Served(wanted.digest, worker))
        if worker is None:
            return self._outcome(Verdict.WRITTEN, wanted, "HAProxy does not run")._replace(running=False)
        return self._outcome(Verdict.APPLIED, wanted, f"HAProxy worker {worker.pid} serves it")

    def _outcome(self, verdict: Verdict, wanted: Plan, words: str) -> Outcome:
        said = "; ".join((counted(len(wanted.added), len(wanted.removed)), words, *quarantined(self._refused)))
        return Outcome(verdict, said, wanted.added, wanted.removed, wanted.held)

    def _put_back(self, seen: Scene, haproxy: Haproxy, wanted: Plan, words: str) -> NoReturn:
        from lbagent import restore  # noqa: PLC0415  # for the rare reload that fails

        failure, key = self._served.failure, self._failure_key(seen)
        times = failure.times + 1 if failure and failure.key == key else 1
        # Said first: a run killed from here on must not reload again at once.
        self._store.serve(self._served._replace(failure=Failure(int(time.time()), times, key, words)))
        previous = self._last_confirmed(seen)
        for _ in range(ATTEMPTS):
            now = scene.look(self._roles.haproxy)
            same = previous is seen.document and now.texts == wanted.after
            texts = wanted.before if same else restore.put_back(now.document, previous)
            with now.staged(texts) as paths:
                if not same and (why := self._refusal(now, haproxy, paths)):
                    raise PutBack(f"{words}; the previous managed lines cannot be put back: {why}")
                if now.untouched and now.swap(paths, keep=False):
                    back = Document([("", text) for text in texts]).digest() == previous.digest()
                    part = f"in {now.targets[0].given}{'' if back else ', where their markers still stand'}"
                    raise PutBack(f"{words}; the previous managed lines are back {part}")
        raise PutBack(f"{words}; {self._path} is being edited by others, the new managed lines still stand in it")

    def _last_confirmed(self, seen: Scene) -> Document:
        kept = scene.previous(seen)
        if seen.document.digest() != self._served.digest and kept and kept.digest() == self._served.digest:
            return kept
        return seen.document
