"""The transaction: look, plan, say who goes, stage, validate, swap, have HAProxy take it over, confirm; or put back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence

from lbagent.errors import Busy, LbagentError, Refused, ReloadPostponed, RolledBack, TryAgain
from lbagent.haproxy import config_files
from lbagent.haproxy.config import Document, Key
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.process import RunningHaproxy, Worker
from lbagent.membership.model import Membership
from lbagent.outcome import QUIET, Outcome, Verdict, format_line_counts, format_quarantined
from lbagent.planning import guard, quarantine
from lbagent.planning.plan import Change, Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.run.rollout import ATTEMPTS, Rollout, RolloutResult, withheld
from lbagent.state.store import Served, Store
from lbagent.system.tuples import NamedTuple

# --- confirmed -------------------------------------------------------------------------------------------


class AppliedState:
    """What served.json says, beside a text and the HAProxy that runs it."""

    def __init__(self, store: Store, seen: ConfigSnapshot, haproxy: Haproxy) -> None:
        """As both stand now."""
        self._store, self._seen, self._haproxy = store, seen, haproxy
        self.served = store.load_served()
        self.met: Worker | None = None
        """The worker that is believed, since just now, to have what stands in the file: it has not been asked."""

    @property
    def worth_keeping(self) -> bool:
        """Whether the text that stands is to be kept as the previous one."""
        # What HAProxy never confirmed must not push out what it did.
        return (
            self._seen.document.compute_digest() == self.served.digest or config_files.read_previous(self._seen) is None
        )

    def nothing_to_do(self, wanted: Plan, asked: Plan) -> bool:
        """Whether HAProxy serves all that is `asked` for and the file can have (`wanted`), or is shown not to run."""
        if self._haproxy.find_worker() is None:
            # It will read the file when it starts.
            here = (self._seen.document.compute_digest(), None, None)
            return self.served[:3] == here and self._haproxy.is_shown_not_to_run()
        return self.sure() and not self._owes(wanted, asked)

    def leaves_servers(self, asked: Plan) -> bool:
        """Whether servers of nodes that are gone for good are left behind in the worker, to be deleted."""
        left = self.served.left
        if left.worker != self._haproxy.find_worker() or not left.lines:
            return False
        from lbagent.haproxy import config  # noqa: PLC0415  # only after a node went

        paused = config.find_paused_servers(self._seen.document, asked.changed)
        return any(not config.is_paused_server(key, paused) for key in left.lines)

    def sure(self) -> bool:
        """Whether the worker has the managed lines of the file."""
        digest, worker = self._seen.document.compute_digest(), self._haproxy.find_worker()
        if self.served[:2] == (digest, worker) or (
            not self.served.digest and not self._seen.document.has_managed_lines
        ):
            return True
        # Started or reloaded by somebody else, after the file became what it is.
        if self._haproxy.has_read_since(self._seen.changed_at, self._seen.size):
            self.served, self.met = Served(digest, worker, left=self.served.left), worker
            with contextlib.suppress(OSError):  # on a full disk it is found out again
                self._store.save_served(self.served)
            return True
        return False

    def _owes(self, wanted: Plan, asked: Plan) -> bool:
        """Whether a server that was taken out is to serve again, though its line has never been away."""
        left = self.served.left
        if left.worker != self._haproxy.find_worker() or not left.lines:
            return False
        from lbagent.haproxy import config  # noqa: PLC0415  # only after a server went
        from lbagent.haproxy.server_line import is_drained  # noqa: PLC0415  # as above

        after = config.predict_servers(self._seen.document, wanted.after, wanted.changed)
        asked_for = (
            after if asked is wanted else config.predict_servers(self._seen.document, asked.after, asked.changed)
        )
        serving = (key for key, line in asked_for.items() if key in after and not is_drained(line))
        return any(key in left.lines for key in serving)

    def pauses_sent(self, withheld: Collection[Key]) -> bool:
        """Whether the worker that serves was sent that these servers take no traffic, though the file has them."""
        left = self.served.left
        return not withheld or (
            left.worker == self._haproxy.find_worker() and all(key in left.lines for key in withheld)
        )


# --- transaction ----------


class RunOptions(NamedTuple):
    """How a run is to be applied."""

    force: bool = False
    adopt: bool = False
    reload: bool = True
    not_before: float = 0.0
    """Seconds of the monotonic clock before which no reload may be made: what needs one is written, and waits."""
    compare: bool = False
    """Whether HAProxy is asked what it serves, even where it is known to have confirmed what the file has."""
    known: RunningHaproxy | None = None
    """The HAProxy of the run before: as long as its master lives no other is looked for."""
    verify: bool = False
    """Validate haproxy.cfg although nothing is to change, and show all notes: a person asks, or the file was edited."""


class Transaction:
    """One change of haproxy.cfg, from membership to a worker that serves it."""

    def __init__(self, store: Store, roles: Roles, membership: Membership, options: RunOptions) -> None:
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
        self.confirmed_out: frozenset[Key] = frozenset()
        """The servers of which HAProxy has confirmed in this run that they take no new clients."""
        self.reached: Outcome | None = None
        """How far a run got that failed for some nodes: all others are as membership asks for."""
        self.pending: Mapping[str, Change] = {}
        """By node, what is asked for and haproxy.cfg does not have, as HAProxy refuses it."""

    def apply(self) -> Outcome:
        """Make haproxy.cfg what membership asks for, and have HAProxy serve it.

        Raises Refused, RolledBack, Busy, TryAgain and OSError; the live file is complete in every case, and who
        was to go takes no new traffic, where HAProxy could be told.
        """
        try:
            return self._applied()
        except LbagentError as error:
            if isinstance(error, Refused | RolledBack):
                self._last_resort()
            if self.out and not self.partly:
                raise type(error)(f"{error}; no new traffic reaches {', '.join(self.out)} all the same") from error
            raise

    def withdraw(self) -> None:
        """Only take the traffic from servers that are to go; nothing is written. Raises LbagentError, OSError."""
        seen = config_files.read_config(self._roles.haproxy)
        haproxy = config_files.find_haproxy(self._roles.haproxy, seen)
        self.plan = wanted = self._plan(seen)
        self._begun(seen, haproxy, AppliedState(self._store, seen, haproxy), self._asked(seen, wanted))

    def hindrance(self, node: str) -> str:
        """Why haproxy.cfg does not have what is asked for a node of `pending`; nothing where it only has to wait."""
        member = self.membership.members.get(node)
        why = self._refused.get(node) or (member.quarantine.reason if member and member.quarantine else "")
        return f"{refused_words(node, self.pending[node])}: {why}" if why else ""

    def _applied(self) -> Outcome:
        for _ in range(ATTEMPTS):
            seen = config_files.read_config(self._roles.haproxy)
            seen.remove_stale_stages()
            self.haproxy = haproxy = config_files.find_haproxy(self._roles.haproxy, seen, self._options.known)
            self.plan = wanted = self._plan(seen)
            self._remember(
                guard.remember(self.membership, wanted.removals, int(time.time()), force=self._options.force)
            )
            confirmed, asked = AppliedState(self._store, seen, haproxy), self._asked(seen, wanted)
            self.pending = {node: asked.changes[node] for node in self._kept(seen) if node in asked.changes}
            if wanted.after == wanted.before and confirmed.nothing_to_do(wanted, asked):
                self._verify(seen, haproxy)
                unchanged = self._unchanged(seen, wanted, asked, haproxy, confirmed)
                if unchanged:
                    return self._ended(seen, unchanged)
            handover = self._begun(seen, haproxy, confirmed, asked)
            if self._has_to_wait(wanted, handover):
                continue
            # Who was told to go while the file could not be written comes back without one.
            told = wanted.after == wanted.before
            handed = handover.tell(wanted, owing=self._too_soon is not None) if told else None
            if handed is None:
                with seen.stage(wanted.after) as paths:
                    if words := haproxy.find_refusal(paths, seen.names):
                        self._find_culprits(seen, haproxy, wanted, words)
                        continue
                    if not seen.is_unchanged or not seen.swap(paths, keep=confirmed.worth_keeping):
                        continue
            handed = handed or self._handed(wanted, handover)
            self.confirmed_out |= handover.confirmed_out
            self._keep_out(seen.document, handover, wanted, asked)
            return self._ended(seen, self._outcome(wanted, handed))
        raise Busy(f"{self._path} was saved by others while HAProxy checked it, {ATTEMPTS} times: run again")

    def _verify(self, seen: ConfigSnapshot, haproxy: Haproxy) -> None:
        """Raise Refused where HAProxy refuses the text that nothing is to change in."""
        if not self._options.verify:
            return
        try:
            words = haproxy.find_refusal([target.path for target in seen.targets], seen.names)
        except TryAgain:
            return  # without a program there is no verdict, and nothing that waits for one
        if words:
            raise Refused(f"HAProxy refuses the operator's own text, nothing was replaced: {words}")

    def _plan(self, seen: ConfigSnapshot, untried: frozenset[str] = frozenset()) -> Plan:
        rules = PlanOptions(force=self._options.force, adopt=self._options.adopt, kept=self._kept(seen) | untried)
        return make_plan(seen.document, self._roles, self.membership, rules)

    def _asked(self, seen: ConfigSnapshot, wanted: Plan) -> Plan:
        """What membership asks for, though the lines of some nodes have to stay as they are."""
        if not self._kept(seen):
            return wanted
        return make_plan(
            seen.document, self._roles, self.membership, PlanOptions(self._options.force, self._options.adopt)
        )

    def _kept(self, seen: ConfigSnapshot) -> frozenset[str]:
        holding = quarantine.find_quarantined_in(self.membership, seen.document, self._roles)
        return frozenset(self._refused) | self._waiting | (frozenset() if self._options.force else holding)

    def _begun(self, seen: ConfigSnapshot, haproxy: Haproxy, confirmed: AppliedState, asked: Plan) -> Rollout:
        """The handover, those who are to go told of already: traffic leaves first, whatever comes of the rest."""
        handover = Rollout(self._store, self._roles, haproxy, seen)
        worker = haproxy.find_worker()
        if self.plan and self._roles.haproxy.runtime and self._options.reload and worker:
            self.reasons = handover.reasons
            self.out = handover.begin(self.plan, asked, worker, sure=confirmed.sure())
            self.confirmed_out = handover.confirmed_out
        return handover

    def _keep_out(self, document: Document, handover: Rollout, wanted: Plan | None, asked: Plan) -> None:
        """Take the traffic from the servers that the file keeps in though `asked` takes them out, with `runtime: off`.

        The file is `document` after `wanted`. For a pause that haproxy.cfg cannot have, the stats socket is the last
        resort, whatever roles.yml says.
        """
        if not self._roles.haproxy.runtime and self._options.reload:
            self.out = handover.keep_out(withheld(document, wanted, asked))
            self.confirmed_out = handover.confirmed_out

    def _last_resort(self) -> None:
        """The same after a run that could not write the file. Whatever fails here, the run has failed already."""
        with contextlib.suppress(LbagentError, OSError):
            seen = config_files.read_config(self._roles.haproxy)
            haproxy = config_files.find_haproxy(self._roles.haproxy, seen, self._options.known)
            asked = make_plan(
                seen.document, self._roles, self.membership, PlanOptions(self._options.force, self._options.adopt)
            )
            self._keep_out(seen.document, Rollout(self._store, self._roles, haproxy, seen), None, asked)

    def _has_to_wait(self, wanted: Plan, handover: Rollout) -> bool:
        """Whether more nodes wait for a reload that failed. Raises ReloadPostponed where nothing else is to be done."""
        words = handover.too_soon() if self._options.reload and not self._options.force else None
        if words is None:
            return False
        nodes = handover.waiting(wanted)
        if nodes is None:
            raise ReloadPostponed(words)
        self._too_soon, known, self._waiting = words, self._waiting, self._waiting | nodes
        return self._waiting != known

    def _ended(self, seen: ConfigSnapshot, outcome: Outcome) -> Outcome:
        """The outcome, once members.json says no more of nodes whose lines went in that they are in quarantine."""
        kept = self._kept(seen)
        self._remember(quarantine.lift_quarantines(self.membership, kept))
        if self._waiting and self._too_soon:
            self.reached = outcome
            self.partly = None if outcome.verdict is Verdict.UNCHANGED else outcome
            raise ReloadPostponed(self._too_soon)
        # To events it makes no difference: they are remembered, and the other nodes' lines are in.
        quarantined = sorted(kept - self._waiting) if self._options.verify else ()
        return outcome._replace(quarantined=(*quarantined,))

    def _remember(self, membership: Membership) -> None:
        if membership is not self.membership:
            self.membership = membership
            self._store.save_membership(membership)

    def _surroundings(self, seen: ConfigSnapshot) -> str:
        return quarantine.fingerprint_context(seen.document, self._roles)

    def _unchanged(
        self, seen: ConfigSnapshot, wanted: Plan, asked: Plan, haproxy: Haproxy, confirmed: AppliedState
    ) -> Outcome | None:
        """The outcome where the text stays as it is; None where HAProxy turns out to serve something else.

        Raises Refused where it stays only because HAProxy refuses what is asked for.
        """
        worker, fixed = haproxy.find_worker(), ""
        if worker and self._options.reload:
            handover = Rollout(self._store, self._roles, haproxy, seen)
            kept_out = withheld(seen.document, wanted, asked)
            suspect = self._options.compare or not confirmed.served.complete
            if not self._roles.haproxy.runtime:
                self._keep_out(seen.document, handover, wanted, asked)
                if not confirmed.served.complete and handover.recordable():
                    return None
            elif confirmed.met or suspect or not confirmed.pauses_sent(kept_out):
                fixed, good = handover.compare(wanted, asked, worker, urgent=bool(kept_out))
                self.out, self.confirmed_out = handover.out, handover.confirmed_out
                if suspect and not good:
                    return None
            if self._roles.haproxy.runtime and confirmed.leaves_servers(wanted):
                Rollout(self._store, self._roles, haproxy, seen).delete_left(wanted, asked, worker)
        self.reached = Outcome(Verdict.UNCHANGED, fixed or QUIET, blocked=wanted.blocked, running=worker is not None)
        if self._refused:
            node, words = next(iter(self._refused.items()))
            more = f" ({len(self._refused)} nodes in all)" if len(self._refused) > 1 else ""
            raise Refused(f"{refused_words(node, asked.changes.get(node))}{more}: {words}")
        return self.reached

    def _find_culprits(self, seen: ConfigSnapshot, haproxy: Haproxy, wanted: Plan, words: str) -> None:
        """Quarantine the nodes whose lines HAProxy refuses, twice. Raises Refused where the fault is the operator's."""
        if own := haproxy.find_refusal([target.path for target in seen.targets], seen.names):
            raise Refused(f"HAProxy refuses the operator's own text, nothing was replaced: {own}")
        if not wanted.changes:
            raise Refused(f"HAProxy refuses the managed lines: {words}")

        def refusal(nodes: Sequence[str]) -> str | None:
            others = frozenset(wanted.changes) - frozenset(nodes)
            with seen.stage(self._plan(seen, others).after) as paths:
                return haproxy.find_refusal(paths, seen.names)

        from lbagent.planning import quarantine  # noqa: PLC0415  # for the rare run that HAProxy refuses

        # Nobody is blamed for what is refused once: the program may have been upgraded, or short of memory, just then.
        said = refusal(tuple(wanted.changes))
        reasons = quarantine.find_refused_nodes(tuple(wanted.changes), refusal, said) if said else {}
        self._refused.update(reasons)
        self.membership = quarantine.quarantine_nodes(
            self.membership, reasons, self._surroundings(seen), int(time.time())
        )
        self._store.save_membership(self.membership)

    def _handed(self, wanted: Plan, handover: Rollout) -> RolloutResult:
        if not self._options.reload:
            return RolloutResult("not reloaded, as asked", Verdict.WRITTEN, reloaded=False)
        handed = handover.tell(wanted, owing=self._too_soon is not None)
        if handed is None and self._too_soon:
            handover.give_up(wanted, self._too_soon)
        rest = self._options.not_before - time.monotonic()
        if handed is None and rest > 0:
            return RolloutResult(f"the reload follows in {rest:.1f} s", Verdict.QUEUED, reloaded=False)
        return handed or handover.reload(wanted)

    def _outcome(self, wanted: Plan, handed: RolloutResult) -> Outcome:
        said = "; ".join(
            (
                format_line_counts(len(wanted.added), len(wanted.removed)),
                handed.words,
                *format_quarantined(self._refused),
            )
        )
        ended = Outcome(handed.verdict, said, wanted.added, wanted.removed, wanted.blocked)
        return ended._replace(running=handed.running, reloaded=handed.reloaded)


def refused_words(node: str, asked: Change | None) -> str:
    """What HAProxy refuses of a node, whose lines would change as `asked`."""
    comes = asked is None or any(": server " in line for line in asked.added)
    return f"HAProxy refuses the line of {node}" if comes else f"HAProxy refuses haproxy.cfg without {node}"
