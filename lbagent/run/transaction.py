"""The transaction: read, plan, withdraw traffic, stage, validate, replace, roll out and confirm; or roll back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lbagent.errors import Busy, LbagentError, Refused, ReloadPostponed, RolledBack, TryAgain
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import Document, Key
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.process import RunningHaproxy, Worker
from lbagent.haproxy.server_line import is_drained
from lbagent.membership.model import Membership
from lbagent.outcome import QUIET, Outcome, Verdict, format_line_counts, format_quarantined
from lbagent.planning import guard, quarantine
from lbagent.planning.plan import Change, Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.run.rollout import ATTEMPTS, Rollout, RolloutResult, find_withheld
from lbagent.state.store import Served, Store


class AppliedState:
    """The recorded state of HAProxy, compared with a text and the HAProxy that runs it."""

    def __init__(self, store: Store, seen: ConfigSnapshot, haproxy: Haproxy) -> None:
        """Load the record; text and HAProxy are as they are now."""
        self._store, self._seen, self._haproxy = store, seen, haproxy
        self.served = store.load_served()
        self.met: Worker | None = None
        """A worker that is now recorded as having the lines of the file, without having been asked."""

    @property
    def worth_keeping(self) -> bool:
        """Whether the present text is to be kept as the previous one."""
        # A text that HAProxy never confirmed must not replace one that it did.
        return (
            self._seen.document.compute_digest() == self.served.digest or config_files.read_previous(self._seen) is None
        )

    def is_up_to_date(self, wanted: Plan, requested: Plan) -> bool:
        """Return whether HAProxy runs all that is `requested` and the file can have, or does not run."""
        if self._haproxy.find_worker() is None:
            # HAProxy reads the file when it starts.
            here = (self._seen.document.compute_digest(), None, None)
            return self.served[:3] == here and self._haproxy.is_shown_not_to_run()
        return self.is_loaded() and not self._has_servers_to_enable(wanted, requested)

    def has_servers_left(self, requested: Plan) -> bool:
        """Return whether servers of removed nodes are left in the worker, to be deleted."""
        left = self.served.left
        if left.worker != self._haproxy.find_worker() or not left.lines:
            return False

        paused = config.find_paused_servers(self._seen.document, requested.changed)
        return any(not config.is_paused_server(key, paused) for key in left.lines)

    def is_loaded(self) -> bool:
        """Return whether the worker has the managed lines of the file."""
        digest, worker = self._seen.document.compute_digest(), self._haproxy.find_worker()
        if self.served[:2] == (digest, worker) or (
            not self.served.digest and not self._seen.document.has_managed_lines
        ):
            return True
        # HAProxy was started or reloaded by another process after the last change of the file.
        if self._haproxy.has_read_since(self._seen.changed_at, self._seen.size):
            self.served, self.met = Served(digest, worker, left=self.served.left), worker
            with contextlib.suppress(OSError):  # on a full disk the next run finds out again
                self._store.save_served(self.served)
            return True
        return False

    def _has_servers_to_enable(self, wanted: Plan, requested: Plan) -> bool:
        """Return whether a server that was taken out is to serve again although its line never left the file."""
        left = self.served.left
        if left.worker != self._haproxy.find_worker() or not left.lines:
            return False

        after = config.predict_servers(self._seen.document, wanted.after, wanted.changed)
        asked_for = (
            after
            if requested is wanted
            else config.predict_servers(self._seen.document, requested.after, requested.changed)
        )
        serving = (key for key, line in asked_for.items() if key in after and not is_drained(line))
        return any(key in left.lines for key in serving)

    def pauses_sent(self, withheld: Collection[Key]) -> bool:
        """Whether the worker that serves was sent that these servers take no traffic, though the file has them."""
        left = self.served.left
        return not withheld or (
            left.worker == self._haproxy.find_worker() and all(key in left.lines for key in withheld)
        )


class RunOptions(NamedTuple):
    """How a run is to be applied."""

    force: bool = False
    adopt: bool = False
    reload: bool = True
    not_before: float = 0.0
    """Seconds of the monotonic clock before which no reload may be made: what needs one is written, and waits."""
    compare: bool = False
    """Whether HAProxy is requested what it serves, even where it is known to have confirmed what the file has."""
    known: RunningHaproxy | None = None
    """The HAProxy of the run before: as long as its master lives no other is looked for."""
    verify: bool = False
    """Validate haproxy.cfg although nothing is to change, and show all notes: a person asks, or the file was edited."""


class Transaction:
    """One change of haproxy.cfg, from membership to a worker that runs it."""

    def __init__(self, store: Store, roles: Roles, membership: Membership, options: RunOptions) -> None:
        """Nothing is read or written yet."""
        self._store, self._roles, self._options = store, roles, options
        self._path = ", ".join(roles.haproxy.config)
        self._refused: dict[str, str] = {}
        self._waiting: frozenset[str] = frozenset()
        self._too_soon: str | None = None
        self.membership = membership
        """Membership, with nodes that this transaction has quarantined."""
        self.plan: Plan | None = None
        """The last plan, for the history."""
        self.haproxy: Haproxy | None = None
        """The HAProxy that runs haproxy.cfg, as last seen."""
        self.partly: Outcome | None = None
        """What was applied where the rest waits for its reload."""
        self.reasons: list[str] = []
        """Why the runtime API could not make the change."""
        self.out: list[str] = []
        """Servers whose traffic was taken away through the stats socket."""
        self.confirmed_out: frozenset[Key] = frozenset()
        """Servers of which HAProxy has confirmed in this run that they take no new clients."""
        self.reached: Outcome | None = None
        """What a run applied that failed for some nodes: all others are as membership asks."""
        self.pending: Mapping[str, Change] = {}
        """Changes by node that membership asks for and haproxy.cfg lacks, as HAProxy refuses them."""

    def apply(self) -> Outcome:
        """Make haproxy.cfg as membership asks, and make HAProxy run it.

        Raises Refused, RolledBack, Busy, TryAgain and OSError. The live file is complete in every case. Servers to be
        removed take no new traffic where HAProxy could be reached.
        """
        try:
            return self._apply()
        except LbagentError as error:
            if isinstance(error, Refused | RolledBack):
                self._keep_out_after_failure()
            if self.out and not self.partly:
                raise type(error)(f"{error}; no new traffic reaches {', '.join(self.out)}") from error
            raise

    def withdraw(self) -> None:
        """Only take the traffic from servers that are to be removed. Raises LbagentError, OSError."""
        seen = config_files.read_config(self._roles.haproxy)
        haproxy = config_files.find_haproxy(self._roles.haproxy, seen)
        self.plan = wanted = self._plan(seen)
        self._start_rollout(seen, haproxy, AppliedState(self._store, seen, haproxy), self._plan_requested(seen, wanted))

    def explain_refusal(self, node: str) -> str:
        """Return why haproxy.cfg lacks the change for a node of `pending`; empty where it only has to wait."""
        member = self.membership.members.get(node)
        why = self._refused.get(node) or (member.quarantine.reason if member and member.quarantine else "")
        return f"{format_refused(node, self.pending[node])}: {why}" if why else ""

    def _apply(self) -> Outcome:
        for _ in range(ATTEMPTS):
            seen = config_files.read_config(self._roles.haproxy)
            seen.remove_stale_stages()
            self.haproxy = haproxy = config_files.find_haproxy(self._roles.haproxy, seen, self._options.known)
            self.plan = wanted = self._plan(seen)
            self._save_membership(
                guard.remember_removals(self.membership, wanted.removals, int(time.time()), force=self._options.force)
            )
            confirmed, requested = AppliedState(self._store, seen, haproxy), self._plan_requested(seen, wanted)
            self.pending = {
                node: requested.changes[node] for node in self._list_kept_nodes(seen) if node in requested.changes
            }
            if wanted.after == wanted.before and confirmed.is_up_to_date(wanted, requested):
                self._verify(seen, haproxy)
                unchanged = self._check_unchanged(seen, wanted, requested, haproxy, confirmed)
                if unchanged:
                    return self._finish(seen, unchanged)
            rollout = self._start_rollout(seen, haproxy, confirmed, requested)
            if self._has_to_wait(wanted, rollout):
                continue
            # Servers that were withdrawn while the file could not be written are enabled without a new file.
            is_unchanged = wanted.after == wanted.before
            result = rollout.apply_at_runtime(wanted, owing=self._too_soon is not None) if is_unchanged else None
            if result is None:
                with seen.stage(wanted.after) as paths:
                    if words := haproxy.find_refusal(paths, seen.names):
                        self._quarantine_refused(seen, haproxy, wanted, words)
                        continue
                    if not seen.is_unchanged or not seen.swap(paths, keep=confirmed.worth_keeping):
                        continue
            result = result or self._roll_out(wanted, rollout)
            self.confirmed_out |= rollout.confirmed_out
            self._keep_out(seen.document, rollout, wanted, requested)
            return self._finish(seen, self._make_outcome(wanted, result))
        raise Busy(f"{self._path} was saved by another process during each of {ATTEMPTS} attempts; run again")

    def _verify(self, seen: ConfigSnapshot, haproxy: Haproxy) -> None:
        """Raise Refused where HAProxy refuses the text, though nothing is to change in it."""
        if not self._options.verify:
            return
        try:
            words = haproxy.find_refusal([target.path for target in seen.targets], seen.names)
        except TryAgain:
            return  # haproxy cannot be started: no verdict, and no change depends on one
        if words:
            raise Refused(f"haproxy.cfg is invalid, not because of lbagent; nothing was changed: {words}")

    def _plan(self, seen: ConfigSnapshot, untried: frozenset[str] = frozenset()) -> Plan:
        rules = PlanOptions(
            force=self._options.force, adopt=self._options.adopt, kept=self._list_kept_nodes(seen) | untried
        )
        return make_plan(seen.document, self._roles, self.membership, rules)

    def _plan_requested(self, seen: ConfigSnapshot, wanted: Plan) -> Plan:
        """Return the plan that membership asks for, without the lines that have to stay."""
        if not self._list_kept_nodes(seen):
            return wanted
        return make_plan(
            seen.document, self._roles, self.membership, PlanOptions(self._options.force, self._options.adopt)
        )

    def _list_kept_nodes(self, seen: ConfigSnapshot) -> frozenset[str]:
        holding = quarantine.find_quarantined_in(self.membership, seen.document, self._roles)
        return frozenset(self._refused) | self._waiting | (frozenset() if self._options.force else holding)

    def _start_rollout(
        self, seen: ConfigSnapshot, haproxy: Haproxy, confirmed: AppliedState, requested: Plan
    ) -> Rollout:
        """Start the rollout and withdraw traffic first, whatever the result of the rest."""
        rollout = Rollout(self._store, self._roles, haproxy, seen)
        worker = haproxy.find_worker()
        if self.plan and self._roles.haproxy.runtime and self._options.reload and worker:
            self.reasons = rollout.reasons
            self.out = rollout.withdraw_leaving(self.plan, requested, worker, sure=confirmed.is_loaded())
            self.confirmed_out = rollout.confirmed_out
        return rollout

    def _keep_out(self, document: Document, rollout: Rollout, wanted: Plan | None, requested: Plan) -> None:
        """With `runtime: off`, take the traffic from servers in the file that `requested` takes out.

        The file is `document` after `wanted`. For a pause that haproxy.cfg cannot have, the stats socket is the last
        resort, whatever roles.yml says.
        """
        if not self._roles.haproxy.runtime and self._options.reload:
            self.out = rollout.keep_out(find_withheld(document, wanted, requested))
            self.confirmed_out = rollout.confirmed_out

    def _keep_out_after_failure(self) -> None:
        """Do the same after a run that could not write the file; errors are ignored, as the run has failed."""
        with contextlib.suppress(LbagentError, OSError):
            seen = config_files.read_config(self._roles.haproxy)
            haproxy = config_files.find_haproxy(self._roles.haproxy, seen, self._options.known)
            requested = make_plan(
                seen.document, self._roles, self.membership, PlanOptions(self._options.force, self._options.adopt)
            )
            self._keep_out(seen.document, Rollout(self._store, self._roles, haproxy, seen), None, requested)

    def _has_to_wait(self, wanted: Plan, rollout: Rollout) -> bool:
        """Return whether more nodes wait for a reload that failed.

        Raises ReloadPostponed where nothing else is to do.
        """
        words = rollout.explain_postponed_reload() if self._options.reload and not self._options.force else None
        if words is None:
            return False
        nodes = rollout.list_waiting_nodes(wanted)
        if nodes is None:
            raise ReloadPostponed(words)
        self._too_soon, known, self._waiting = words, self._waiting, self._waiting | nodes
        return self._waiting != known

    def _finish(self, seen: ConfigSnapshot, outcome: Outcome) -> Outcome:
        """Return the outcome, after lifting the quarantine of nodes whose lines were added."""
        kept = self._list_kept_nodes(seen)
        self._save_membership(quarantine.lift_quarantines(self.membership, kept))
        if self._waiting and self._too_soon:
            self.reached = outcome
            self.partly = None if outcome.verdict is Verdict.UNCHANGED else outcome
            raise ReloadPostponed(self._too_soon)
        # To events it makes no difference: they are remembered, and the other nodes' lines are in.
        quarantined = sorted(kept - self._waiting) if self._options.verify else ()
        return outcome._replace(quarantined=(*quarantined,))

    def _save_membership(self, membership: Membership) -> None:
        if membership is not self.membership:
            self.membership = membership
            self._store.save_membership(membership)

    def _fingerprint_context(self, seen: ConfigSnapshot) -> str:
        return quarantine.fingerprint_context(seen.document, self._roles)

    def _check_unchanged(
        self, seen: ConfigSnapshot, wanted: Plan, requested: Plan, haproxy: Haproxy, confirmed: AppliedState
    ) -> Outcome | None:
        """Return the outcome where the text stays as it is; None where HAProxy runs something else.

        Raises Refused where it stays only because HAProxy refuses the requested lines.
        """
        worker, fixed = haproxy.find_worker(), ""
        if worker and self._options.reload:
            rollout = Rollout(self._store, self._roles, haproxy, seen)
            kept_out = find_withheld(seen.document, wanted, requested)
            suspect = self._options.compare or not confirmed.served.complete
            if not self._roles.haproxy.runtime:
                self._keep_out(seen.document, rollout, wanted, requested)
                if not confirmed.served.complete and rollout.can_record():
                    return None
            elif confirmed.met or suspect or not confirmed.pauses_sent(kept_out):
                fixed, good = rollout.compare_and_fix(wanted, requested, worker, urgent=bool(kept_out))
                self.out, self.confirmed_out = rollout.out, rollout.confirmed_out
                if suspect and not good:
                    return None
            if self._roles.haproxy.runtime and confirmed.has_servers_left(wanted):
                Rollout(self._store, self._roles, haproxy, seen).delete_left(wanted, requested, worker)
        self.reached = Outcome(Verdict.UNCHANGED, fixed or QUIET, blocked=wanted.blocked, running=worker is not None)
        if self._refused:
            node, words = next(iter(self._refused.items()))
            more = f" ({len(self._refused)} nodes in all)" if len(self._refused) > 1 else ""
            raise Refused(f"{format_refused(node, requested.changes.get(node))}{more}: {words}")
        return self.reached

    def _quarantine_refused(self, seen: ConfigSnapshot, haproxy: Haproxy, wanted: Plan, words: str) -> None:
        """Quarantine the nodes whose lines HAProxy refuses twice.

        Raises Refused where the operator's text is invalid.
        """
        if own := haproxy.find_refusal([target.path for target in seen.targets], seen.names):
            raise Refused(f"haproxy.cfg is invalid, not because of lbagent; nothing was changed: {own}")
        if not wanted.changes:
            raise Refused(f"haproxy.cfg: HAProxy refuses the managed lines: {words}")

        def refusal(nodes: Sequence[str]) -> str | None:
            others = frozenset(wanted.changes) - frozenset(nodes)
            with seen.stage(self._plan(seen, others).after) as paths:
                return haproxy.find_refusal(paths, seen.names)

        # Validate again before a quarantine: haproxy may have been short of memory, or just upgraded, the first time.
        said = refusal(tuple(wanted.changes))
        reasons = quarantine.find_refused_nodes(tuple(wanted.changes), refusal, said) if said else {}
        self._refused.update(reasons)
        self.membership = quarantine.quarantine_nodes(
            self.membership, reasons, self._fingerprint_context(seen), int(time.time())
        )
        self._store.save_membership(self.membership)

    def _roll_out(self, wanted: Plan, rollout: Rollout) -> RolloutResult:
        if not self._options.reload:
            return RolloutResult("not reloaded (--no-reload)", Verdict.WRITTEN, reloaded=False)
        result = rollout.apply_at_runtime(wanted, owing=self._too_soon is not None)
        if result is None and self._too_soon:
            rollout.restore_postponed(wanted, self._too_soon)
        rest = self._options.not_before - time.monotonic()
        if result is None and rest > 0:
            return RolloutResult(f"reload in {rest:.1f} s (min_reload_interval)", Verdict.QUEUED, reloaded=False)
        return result or rollout.reload(wanted)

    def _make_outcome(self, wanted: Plan, result: RolloutResult) -> Outcome:
        said = "; ".join(
            (
                format_line_counts(len(wanted.added), len(wanted.removed)),
                result.words,
                *format_quarantined(self._refused),
            )
        )
        ended = Outcome(result.verdict, said, wanted.added, wanted.removed, wanted.blocked)
        return ended._replace(running=result.running, reloaded=result.reloaded)


def format_refused(node: str, requested: Change | None) -> str:
    """Return what HAProxy refuses of a node; its lines would change as in `requested`."""
    comes = requested is None or any(": server " in line for line in requested.added)
    return f"{node}: HAProxy refuses its line" if comes else f"{node}: HAProxy refuses haproxy.cfg without its line"
