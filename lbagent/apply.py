"""The transaction: look, plan, say who goes, stage, validate, swap, have HAProxy take it over, confirm; or put back."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lbagent import guard, quarantine, scene
from lbagent.confirmed import Confirmed
from lbagent.errors import Busy, LbagentError, NotYet, Refused, TryAgain
from lbagent.handover import ATTEMPTS, Handed, Handover
from lbagent.haproxy.process import Running
from lbagent.haproxy.takeover import Haproxy
from lbagent.host.store import Store
from lbagent.membership import Membership
from lbagent.outcome import QUIET, Outcome, Verdict, counted, quarantined
from lbagent.plan import Plan, Rules, plan
from lbagent.roles import Roles
from lbagent.scene import Scene
from lbagent.tuples import NamedTuple


class Options(NamedTuple):
    """How a run is to be applied."""

    force: bool = False
    adopt: bool = False
    reload: bool = True
    not_before: float = 0.0
    """Seconds of the monotonic clock before which no reload may be made: what needs one is written, and waits."""
    known: Running | None = None
    """The HAProxy of the run before: as long as its master lives no other is looked for."""
    verify: bool = False
    """Validate haproxy.cfg although nothing is to change, and show all notes: a person asks, or the file was edited."""


class Transaction:
    """One change of haproxy.cfg, from membership to a worker that serves it."""

    def __init__(self, store: Store, roles: Roles, membership: Membership, options: Options) -> None:
        """Nothing is read or written yet."""
        self._store, self._roles, self._options = store, roles, options
        self._path = ", ".join(roles.haproxy.config)
        self._refused: dict[str, str] = {}
        self._waiting: frozenset[str] = frozenset()
        self._too_soon: str | None = None
        self.membership = membership
        """May come out with nodes in quarantine."""
        self.plan: Plan | None = None
        """The last one made; what the history tells of, however this ends."""
        self.haproxy: Haproxy | None = None
        """That which runs haproxy.cfg, as seen last."""
        self.partly: Outcome | None = None
        """What was done where the rest waits for its reload."""
        self.reasons: list[str] = []
        """Why HAProxy could not be told without a reload."""
        self.out: list[str] = []
        """The servers whose traffic was taken away on the stats socket."""

    def apply(self) -> Outcome:
        """Make haproxy.cfg what membership asks for, and have HAProxy serve it.

        Raises Refused, PutBack, Busy, TryAgain and OSError; the live file is complete in every case, and who
        was to go takes no new traffic, where HAProxy could be told.
        """
        try:
            return self._applied()
        except LbagentError as error:
            if self.out and not self.partly:
                raise type(error)(f"{error}; no new traffic reaches {', '.join(self.out)} all the same") from error
            raise

    def withdraw(self) -> None:
        """Only take the traffic from who is to go; nothing is written. Raises LbagentError, OSError."""
        seen = scene.look(self._roles.haproxy)
        haproxy = scene.haproxy(self._roles.haproxy, seen)
        self.plan = wanted = self._plan(seen)
        self._begun(seen, haproxy, Confirmed(self._store, seen, haproxy), self._asked(seen, wanted))

    def _applied(self) -> Outcome:
        for _ in range(ATTEMPTS):
            seen = scene.look(self._roles.haproxy)
            seen.tidy()
            self.haproxy = haproxy = scene.haproxy(self._roles.haproxy, seen, self._options.known)
            self.plan = wanted = self._plan(seen)
            self._remember(
                guard.remember(self.membership, wanted.removals, int(time.time()), force=self._options.force)
            )
            confirmed, asked = Confirmed(self._store, seen, haproxy), self._asked(seen, wanted)
            if wanted.after == wanted.before and confirmed.nothing_to_do(asked):
                self._verify(seen, haproxy)
                return self._ended(seen, self._unchanged(seen, wanted, haproxy, confirmed))
            handover = self._begun(seen, haproxy, confirmed, asked)
            if self._has_to_wait(wanted, handover):
                continue
            # Who was told to go while the file could not be written comes back without one.
            told = wanted.after == wanted.before
            handed = handover.tell(wanted, owing=self._too_soon is not None) if told else None
            if handed is None:
                with seen.staged(wanted.after) as paths:
                    if words := haproxy.refusal(paths, seen.names):
                        self._find_culprits(seen, haproxy, wanted, words)
                        continue
                    if not seen.untouched or not seen.swap(paths, keep=confirmed.worth_keeping):
                        continue
            return self._ended(seen, self._outcome(wanted, handed or self._handed(wanted, handover)))
        raise Busy(f"{self._path} was saved by others while HAProxy checked it, {ATTEMPTS} times: run again")

    def _verify(self, seen: Scene, haproxy: Haproxy) -> None:
        """Raise Refused where HAProxy refuses the text that nothing is to change in."""
        if not self._options.verify:
            return
        try:
            words = haproxy.refusal([target.path for target in seen.targets], seen.names)
        except TryAgain:
            return  # without a program there is no verdict, and nothing that waits for one
        if words:
            raise Refused(f"HAProxy refuses the operator's own text, nothing was replaced: {words}")

    def _plan(self, seen: Scene, untried: frozenset[str] = frozenset()) -> Plan:
        rules = Rules(force=self._options.force, adopt=self._options.adopt, kept=self._kept(seen) | untried)
        return plan(seen.document, self._roles, self.membership, rules)

    def _asked(self, seen: Scene, wanted: Plan) -> Plan:
        """What membership asks for, though the lines of some nodes have to stay as they are."""
        if not self._kept(seen):
            return wanted
        return plan(seen.document, self._roles, self.membership, Rules(self._options.force, self._options.adopt))

    def _kept(self, seen: Scene) -> frozenset[str]:
        holding = quarantine.held_beside(self.membership, seen.document, self._roles)
        return frozenset(self._refused) | self._waiting | (frozenset() if self._options.force else holding)

    def _begun(self, seen: Scene, haproxy: Haproxy, confirmed: Confirmed, asked: Plan) -> Handover:
        """The handover, those who are to go told of already: traffic leaves first, whatever comes of the rest."""
        handover = Handover(self._store, self._roles, haproxy, seen)
        worker = haproxy.serving()
        if self.plan and self._roles.haproxy.runtime and self._options.reload and worker:
            self.reasons = handover.reasons
            self.out = handover.begin(self.plan, asked, worker, sure=confirmed.sure())
        return handover

    def _has_to_wait(self, wanted: Plan, handover: Handover) -> bool:
        """Whether more nodes have to wait for a reload that failed. Raises NotYet where nothing else is to be done."""
        words = handover.too_soon() if self._options.reload and not self._options.force else None
        if words is None:
            return False
        nodes = handover.waiting(wanted)
        if nodes is None:
            raise NotYet(words)
        self._too_soon, known, self._waiting = words, self._waiting, self._waiting | nodes
        return self._waiting != known

    def _ended(self, seen: Scene, outcome: Outcome) -> Outcome:
        """The outcome, once members.json says no more of nodes whose lines went in that they are in quarantine."""
        kept = self._kept(seen)
        self._remember(quarantine.lifted(self.membership, kept))
        if self._waiting and self._too_soon:
            self.partly = None if outcome.verdict is Verdict.UNCHANGED else outcome
            raise NotYet(self._too_soon)
        return outcome._replace(quarantined=(*sorted(kept - self._waiting),))

    def _remember(self, membership: Membership) -> None:
        if membership is not self.membership:
            self.membership = membership
            self._store.remember(membership)

    def _surroundings(self, seen: Scene) -> str:
        return quarantine.surroundings(seen.document, self._roles)

    def _unchanged(self, seen: Scene, wanted: Plan, haproxy: Haproxy, confirmed: Confirmed) -> Outcome:
        if self._refused:
            node, words = next(iter(self._refused.items()))
            more = f" ({len(self._refused)} nodes in all)" if len(self._refused) > 1 else ""
            raise Refused(f"HAProxy refuses the line of {node}{more}: {words}")
        greeted = ""
        if self._roles.haproxy.runtime and self._options.reload:
            if confirmed.met:
                greeted = Handover(self._store, self._roles, haproxy, seen).greeted(wanted, confirmed.met)
            elif confirmed.leaves_servers(wanted) and (worker := haproxy.serving()):
                Handover(self._store, self._roles, haproxy, seen).delete_left(wanted, worker)
        running = haproxy.serving() is not None
        return Outcome(Verdict.UNCHANGED, greeted or QUIET, held=wanted.held, running=running)

    def _find_culprits(self, seen: Scene, haproxy: Haproxy, wanted: Plan, words: str) -> None:
        """Quarantine the nodes whose lines HAProxy refuses, twice. Raises Refused where the fault is the operator's."""
        if own := haproxy.refusal([target.path for target in seen.targets], seen.names):
            raise Refused(f"HAProxy refuses the operator's own text, nothing was replaced: {own}")
        if not wanted.changes:
            raise Refused(f"HAProxy refuses the managed lines: {words}")

        def refusal(nodes: Sequence[str]) -> str | None:
            others = frozenset(wanted.changes) - frozenset(nodes)
            with seen.staged(self._plan(seen, others).after) as paths:
                return haproxy.refusal(paths, seen.names)

        from lbagent import blame  # noqa: PLC0415  # for the rare run that HAProxy refuses

        # Nobody is blamed for what is refused once: the program may have been upgraded, or short of memory, just then.
        said = refusal(tuple(wanted.changes))
        reasons = blame.culprits(tuple(wanted.changes), refusal, said) if said else {}
        self._refused.update(reasons)
        self.membership = quarantine.impose(self.membership, reasons, self._surroundings(seen), int(time.time()))
        self._store.remember(self.membership)

    def _handed(self, wanted: Plan, handover: Handover) -> Handed:
        if not self._options.reload:
            return Handed("not reloaded, as asked", Verdict.WRITTEN, reloaded=False)
        handed = handover.tell(wanted, owing=self._too_soon is not None)
        if handed is None and self._too_soon:
            handover.give_up(wanted, self._too_soon)
        rest = self._options.not_before - time.monotonic()
        if handed is None and rest > 0:
            return Handed(f"the reload follows in {rest:.1f} s", Verdict.QUEUED, reloaded=False)
        return handed or handover.reload(wanted)

    def _outcome(self, wanted: Plan, handed: Handed) -> Outcome:
        said = "; ".join((counted(len(wanted.added), len(wanted.removed)), handed.words, *quarantined(self._refused)))
        ended = Outcome(handed.verdict, said, wanted.added, wanted.removed, wanted.held)
        return ended._replace(running=handed.running, reloaded=handed.reloaded)
