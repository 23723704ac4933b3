"""The transaction: read, plan, withdraw traffic, stage, validate, replace, roll out and confirm; or roll back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lbagent.errors import Busy, LbagentError, Refused, ReloadPostponed, RolledBack, TryAgain
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import Document, Key
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.process import RunningHaproxy
from lbagent.haproxy.runtime.session import Worker
from lbagent.haproxy.server_line import is_drained
from lbagent.membership.model import Membership
from lbagent.outcome import QUIET, Outcome, Verdict, format_line_counts, format_quarantined
from lbagent.planning import guard, quarantine
from lbagent.planning.plan import Change, Plan, PlanOptions, make_plan
from lbagent.roles.model import Roles
from lbagent.run.rollout import ATTEMPTS, Rollout, RolloutResult, list_withheld_servers, predict_servers
from lbagent.state.store import Served, ServersInMaintenance, Store


class AppliedState:
    """The recorded state of HAProxy, compared with haproxy.cfg and with the HAProxy that runs it."""

    def __init__(self, store: Store, snapshot: ConfigSnapshot, haproxy: Haproxy) -> None:
        """Load the record; `snapshot` and `haproxy` are as they are now."""
        self._store, self._snapshot, self._haproxy = store, snapshot, haproxy
        self.served = store.load_served()
        self.assumed_worker: Worker | None = None
        """A worker that was not queried, but has read the present file: it was started after the last change of it."""

    @property
    def is_worth_keeping(self) -> bool:
        """Whether the present text may replace the text that is kept as `previous`."""
        # A text that HAProxy never confirmed must not replace one that it did.
        is_confirmed = self._snapshot.document.compute_digest() == self.served.digest
        return is_confirmed or config_files.read_previous(self._snapshot) is None

    def is_up_to_date(self, plan: Plan, full_plan: Plan) -> bool:
        """Return whether HAProxy runs all of `full_plan` that the file has, or is shown not to run."""
        if self._haproxy.find_worker() is None:
            # HAProxy reads the file when it starts.
            not_running = (self._snapshot.document.compute_digest(), None, None)
            return self.served[:3] == not_running and self._haproxy.is_shown_not_to_run()
        return self.is_loaded() and not self._has_servers_to_enable(plan, full_plan)

    def is_loaded(self) -> bool:
        """Return whether the worker has the managed lines of the file."""
        digest, worker = self._snapshot.document.compute_digest(), self._haproxy.find_worker()
        if self.served[:2] == (digest, worker):
            return True
        if not self.served.digest and not self._snapshot.document.has_managed_lines:
            return True
        # HAProxy was started or reloaded by another process after the last change of the file.
        if self._haproxy.has_read_since(self._snapshot.changed_at, self._snapshot.size):
            self.record_worker(worker, self.served.in_maintenance)
            self.assumed_worker = worker
            return True
        return False

    def has_same_lines(self, worker: Worker) -> bool:
        """Return whether the file has the managed lines that an earlier worker than this one had confirmed."""
        confirmed = self.served.worker
        is_same = self.served.digest == self._snapshot.document.compute_digest()
        return is_same and confirmed is not None and confirmed != worker

    def was_reloaded_by_another(self) -> bool:
        """Return whether another process has started the worker, and the file has the lines of its predecessor."""
        worker = self._haproxy.find_worker()
        return worker is not None and (self.assumed_worker == worker or self.has_same_lines(worker))

    def record_worker(self, worker: Worker | None, in_maintenance: ServersInMaintenance) -> None:
        """Record that this worker runs the managed lines of the file."""
        self.served = Served(self._snapshot.document.compute_digest(), worker, in_maintenance=in_maintenance)
        with contextlib.suppress(OSError):  # on a full disk the next run finds out again
            self._store.save_served(self.served)

    def has_removed_servers(self, plan: Plan) -> bool:
        """Return whether the worker still has servers of removed nodes, in maintenance."""
        in_maintenance = self._list_in_maintenance()
        if not in_maintenance:
            return False
        paused = config.find_paused_servers(self._snapshot.document, plan.changed)
        return any(not config.is_paused_server(key, paused) for key in in_maintenance)

    def has_withdrawn(self, withheld: Mapping[Key, str]) -> bool:
        """Return whether these servers, which the file has, were put into maintenance in this worker."""
        return withheld.keys() <= self._list_in_maintenance().keys()

    def _has_servers_to_enable(self, plan: Plan, full_plan: Plan) -> bool:
        """Return whether a server in maintenance should serve again although its line never left the file."""
        in_maintenance = self._list_in_maintenance()
        if not in_maintenance:
            return False
        after, full_after = predict_servers(self._snapshot.document, plan, full_plan)
        serving = (key for key, line in full_after.items() if key in after and not is_drained(line))
        return any(key in in_maintenance for key in serving)

    def _list_in_maintenance(self) -> Mapping[Key, str]:
        """Return the lines of the servers that were put into maintenance in the present worker."""
        servers = self.served.in_maintenance
        return servers.lines if servers.worker == self._haproxy.find_worker() else {}


class RunOptions(NamedTuple):
    """How a run applies its plan."""

    force: bool = False
    """Apply blocked removals, end quarantines, and retry a failed reload now."""
    adopt: bool = False
    """Turn operator's lines above markers into managed ones."""
    reload: bool = True
    """False to only write haproxy.cfg."""
    not_before: float = 0.0
    """Monotonic seconds before which no reload is allowed; a change that needs one is written, and waits."""
    compare: bool = False
    """Compare what HAProxy runs with the plan, even if it has confirmed the present file."""
    known: RunningHaproxy | None = None
    """The HAProxy of the previous run. While its master runs, no other one is looked for."""
    verify: bool = False
    """Validate an unchanged haproxy.cfg too, and show all notes: a person waits, or the file was edited."""


class _Attempt(NamedTuple):
    """haproxy.cfg as it was read once, with the plans for that text."""

    snapshot: ConfigSnapshot
    haproxy: Haproxy
    applied: AppliedState
    plan: Plan
    """The plan for the file: nodes in quarantine, and those that wait for a reload, keep their lines."""
    full_plan: Plan
    """The plan that membership asks for, without these exceptions."""

    @property
    def is_unchanged(self) -> bool:
        return self.plan.after == self.plan.before

    @property
    def document(self) -> Document:
        return self.snapshot.document


class Transaction:
    """One change of haproxy.cfg, from membership to a worker that runs it."""

    def __init__(self, store: Store, roles: Roles, membership: Membership, options: RunOptions) -> None:
        """Nothing is read or written yet."""
        self._store, self._roles, self._options = store, roles, options
        self._path = ", ".join(roles.haproxy.config)
        self._refused_nodes: dict[str, str] = {}
        """Why HAProxy refuses the lines of a node, by node."""
        self._waiting_nodes: frozenset[str] = frozenset()
        """Nodes whose change needs a reload that is postponed."""
        self._fixed = ""
        """What a comparison with HAProxy has fixed."""
        self._postponed: str | None = None
        """Why the reload is postponed."""
        self.membership = membership
        """Membership, with the nodes that this transaction has quarantined."""
        self.plan: Plan | None = None
        """The last plan."""
        self.haproxy: Haproxy | None = None
        """The HAProxy that runs haproxy.cfg, as last found."""
        self.partial_outcome: Outcome | None = None
        """What was applied while the other changes wait for their reload."""
        self.reasons: list[str] = []
        """Why the runtime API could not make the change."""
        self.withdrawn: list[str] = []
        """Servers from which traffic was taken through the stats socket, as `PROXY/SERVER`."""
        self.confirmed_withdrawn: frozenset[Key] = frozenset()
        """Servers of which HAProxy has confirmed in this run that they get no new clients."""
        self.applied_outcome: Outcome | None = None
        """The outcome for all other nodes, where the run failed for some."""
        self.pending_changes: Mapping[str, Change] = {}
        """Changes that membership asks for and haproxy.cfg lacks, by node: HAProxy refuses them, or they wait."""

    def apply(self) -> Outcome:
        """Make haproxy.cfg as membership asks, and make HAProxy run it.

        Raises Refused, RolledBack, Busy, TryAgain and OSError. haproxy.cfg is complete in every case. Servers to be
        removed get no new traffic, where HAProxy is reachable.
        """
        try:
            return self._apply()
        except LbagentError as error:
            if isinstance(error, Refused | RolledBack):
                self._withdraw_after_failure()
            if self.withdrawn and not self.partial_outcome:
                raise type(error)(f"{error}; no new traffic reaches {', '.join(self.withdrawn)}") from error
            raise

    def withdraw(self) -> None:
        """Only take the traffic from servers that are to be removed. Raises LbagentError, OSError."""
        snapshot = config_files.read_config(self._roles.haproxy)
        haproxy = config_files.find_haproxy(self._roles.haproxy, snapshot)
        self.plan = plan = self._make_plan(snapshot)
        self._start_rollout(self._make_attempt(snapshot, haproxy, plan))

    def explain_refusal(self, node: str) -> str:
        """Return why haproxy.cfg lacks the change for a node of `pending_changes`; empty if it only has to wait."""
        member = self.membership.members.get(node)
        why = self._refused_nodes.get(node) or (member.quarantine.reason if member and member.quarantine else "")
        return f"{format_refused(node, self.pending_changes[node])}: {why}" if why else ""

    def _apply(self) -> Outcome:
        has_waited = False
        for _ in range(ATTEMPTS):
            snapshot = config_files.read_config(self._roles.haproxy)
            snapshot.remove_stale_stages()
            self.haproxy = haproxy = config_files.find_haproxy(self._roles.haproxy, snapshot, self._options.known)
            with self._start_validation(snapshot, haproxy) as find_refusal:
                self.plan = plan = self._make_plan(snapshot)
                self._remember_removals(plan)
                attempt = self._make_attempt(snapshot, haproxy, plan)
                if (
                    attempt.is_unchanged
                    and (attempt.applied.is_up_to_date(plan, attempt.full_plan) or self._runs_same_lines(attempt))
                    and (outcome := self._check_unchanged(attempt, find_refusal))
                ):
                    return self._finish(snapshot, outcome)
            rollout = self._start_rollout(attempt)
            if self._has_to_wait(attempt.plan, rollout):
                continue
            # Servers that were withdrawn while the file could not be written are enabled without a new file.
            result = self._apply_at_runtime(attempt.plan, rollout) if attempt.is_unchanged else None
            if result is None and attempt.is_unchanged and not has_waited and attempt.applied.was_reloaded_by_another():
                # That worker may not answer yet, or its successor is about to serve: compare again before a reload.
                haproxy.wait_for_other_reloads()
                has_waited = True
                continue
            if result is None and not self._replace_file(attempt):
                continue
            result = result or self._roll_out(attempt.plan, rollout)
            self.confirmed_withdrawn |= rollout.confirmed_withdrawn
            self._withdraw_kept_servers(attempt.document, rollout, attempt.plan, attempt.full_plan)
            return self._finish(snapshot, self._make_outcome(attempt.plan, result))
        raise Busy(f"{self._path} was saved by another process during each of {ATTEMPTS} attempts; run again")

    # Read and plan

    def _make_attempt(self, snapshot: ConfigSnapshot, haproxy: Haproxy, plan: Plan) -> _Attempt:
        kept = self._list_kept_nodes(snapshot)
        full_plan = self._make_full_plan(snapshot) if kept else plan
        self.pending_changes = {node: full_plan.changes[node] for node in kept if node in full_plan.changes}
        return _Attempt(snapshot, haproxy, AppliedState(self._store, snapshot, haproxy), plan, full_plan)

    def _make_plan(self, snapshot: ConfigSnapshot, untried: frozenset[str] = frozenset()) -> Plan:
        """Return the plan for the file; `untried` nodes keep their lines as well."""
        kept = self._list_kept_nodes(snapshot) | untried
        options = PlanOptions(force=self._options.force, adopt=self._options.adopt, kept=kept)
        return make_plan(snapshot.document, self._roles, self.membership, options)

    def _make_full_plan(self, snapshot: ConfigSnapshot) -> Plan:
        options = PlanOptions(force=self._options.force, adopt=self._options.adopt)
        return make_plan(snapshot.document, self._roles, self.membership, options)

    def _list_kept_nodes(self, snapshot: ConfigSnapshot) -> frozenset[str]:
        """Return the nodes whose lines stay as they are: HAProxy refuses the new ones, or their reload is postponed."""
        kept = frozenset(self._refused_nodes) | self._waiting_nodes
        if self._options.force:
            return kept
        return kept | quarantine.find_quarantined_in(self.membership, snapshot.document, self._roles)

    def _remember_removals(self, plan: Plan) -> None:
        """Store what the guard allowed and blocked: removals count together, also when they come one after another."""
        now = int(time.time())
        self._save_membership(guard.remember_removals(self.membership, plan.removals, now, force=self._options.force))

    def _save_membership(self, membership: Membership) -> None:
        if membership is not self.membership:
            self.membership = membership
            self._store.save_membership(membership)

    # Nothing to change in the file

    def _runs_same_lines(self, attempt: _Attempt) -> bool:
        """Return whether a worker that another process has started runs the present managed lines.

        They are the lines that the previous worker had confirmed, and the stats socket shows the same servers. A second
        reload right after the one of the other process would gain nothing, and HAProxy 3.2 resets connections then.
        """
        applied, worker = attempt.applied, attempt.haproxy.find_worker()
        if not (self._roles.haproxy.runtime and self._options.reload and worker and applied.has_same_lines(worker)):
            return False
        rollout, is_good = self._compare_with_haproxy(attempt, worker, urgent=True)
        if not is_good or rollout.runtime_changes is None:
            return False
        applied.record_worker(worker, rollout.runtime_changes.in_maintenance)
        return applied.is_up_to_date(attempt.plan, attempt.full_plan)

    def _compare_with_haproxy(self, attempt: _Attempt, worker: Worker, *, urgent: bool) -> tuple[Rollout, bool]:
        """Compare what the worker runs with the plan, and fix differences; return whether all is fixed."""
        rollout = self._make_rollout(attempt)
        applied = attempt.applied
        is_new = applied.was_reloaded_by_another()
        fixed, is_good = rollout.compare_and_fix(attempt.plan, attempt.full_plan, worker, urgent=urgent, is_new=is_new)
        self._fixed = fixed or self._fixed
        self.withdrawn, self.confirmed_withdrawn = rollout.withdrawn, rollout.confirmed_withdrawn
        return rollout, is_good

    def _make_rollout(self, attempt: _Attempt) -> Rollout:
        return Rollout(self._store, self._roles, attempt.haproxy, attempt.snapshot)

    @contextlib.contextmanager
    def _start_validation(self, snapshot: ConfigSnapshot, haproxy: Haproxy) -> Iterator[Callable[[], str | None]]:
        """With the option `verify`, start `haproxy -c` of the present text; yield what waits for its verdict.

        With thousands of servers, it takes as long as the plan and the comparison with HAProxy, beside which it runs.
        Where the plan changes the text, the verdict is not needed, and the check is killed.
        """
        with contextlib.ExitStack() as stack:
            wait_for_refusal = None
            if self._options.verify:
                # haproxy may not be found: no verdict, and no change depends on one.
                with contextlib.suppress(TryAgain):
                    wait_for_refusal = stack.enter_context(haproxy.start_validation(snapshot.paths, snapshot.names))

            def find_refusal() -> str | None:
                with contextlib.suppress(TryAgain):
                    return wait_for_refusal() if wait_for_refusal else None
                return None

            yield find_refusal

    def _check_unchanged(self, attempt: _Attempt, find_refusal: Callable[[], str | None]) -> Outcome | None:
        """Return the outcome where the text stays as it is; None if HAProxy runs something else.

        Raises Refused if HAProxy refuses the text, or if it stays only because HAProxy refuses the lines of some nodes.
        """
        is_loaded = self._compare_unchanged(attempt)
        if reason := find_refusal():
            changed = self._fixed or "nothing was changed"
            raise Refused(f"haproxy.cfg is invalid, not because of lbagent; {changed}: {reason}")
        if not is_loaded:
            return None
        worker, plan, full_plan = attempt.haproxy.find_worker(), attempt.plan, attempt.full_plan
        outcome = Outcome(Verdict.UNCHANGED, self._fixed or QUIET, blocked=plan.blocked, running=worker is not None)
        self.applied_outcome = outcome
        if self._refused_nodes:
            node, reason = next(iter(self._refused_nodes.items()))
            more = f" ({len(self._refused_nodes)} nodes in all)" if len(self._refused_nodes) > 1 else ""
            raise Refused(f"{format_refused(node, full_plan.changes.get(node))}{more}: {reason}")
        return outcome

    def _compare_unchanged(self, attempt: _Attempt) -> bool:
        """Compare HAProxy with the text that stays, and fix differences; return False if HAProxy needs a rollout."""
        plan, full_plan, applied = attempt.plan, attempt.full_plan, attempt.applied
        worker = attempt.haproxy.find_worker()
        if worker is None or not self._options.reload:
            return True
        withheld = list_withheld_servers(attempt.document, plan, full_plan)
        is_suspect = self._options.compare or not applied.served.is_complete
        if not self._roles.haproxy.runtime:
            rollout = self._make_rollout(attempt)
            self._withdraw_kept_servers(attempt.document, rollout, plan, full_plan)
            return applied.served.is_complete or not rollout.can_record()
        if applied.assumed_worker or is_suspect or not applied.has_withdrawn(withheld):
            _, is_good = self._compare_with_haproxy(attempt, worker, urgent=bool(withheld))
            if is_suspect and not is_good:
                return False
        if applied.has_removed_servers(plan):
            self._make_rollout(attempt).delete_removed_servers(plan, full_plan, worker)
        return True

    # Withdraw traffic

    def _start_rollout(self, attempt: _Attempt) -> Rollout:
        """Start the rollout: withdraw traffic first, whatever happens to the rest."""
        rollout, worker = self._make_rollout(attempt), attempt.haproxy.find_worker()
        if self._roles.haproxy.runtime and self._options.reload and worker:
            self.reasons = rollout.reasons
            self.withdrawn = rollout.withdraw_removed_servers(
                attempt.plan, attempt.full_plan, worker, in_sync=attempt.applied.is_loaded()
            )
            self.confirmed_withdrawn = rollout.confirmed_withdrawn
        return rollout

    def _withdraw_kept_servers(self, document: Document, rollout: Rollout, plan: Plan | None, full_plan: Plan) -> None:
        """With `runtime: off`, take the traffic from servers that the file keeps although `full_plan` removes them.

        The file is `document` after `plan`. For a pause that haproxy.cfg cannot have, the stats socket is the last
        resort, also with `runtime: off`.
        """
        if not self._roles.haproxy.runtime and self._options.reload:
            self.withdrawn = rollout.withdraw_servers(list_withheld_servers(document, plan, full_plan))
            self.confirmed_withdrawn = rollout.confirmed_withdrawn

    def _withdraw_after_failure(self) -> None:
        """Do the same after a run that could not write the file. Errors are ignored: the run has failed already."""
        with contextlib.suppress(LbagentError, OSError):
            snapshot = config_files.read_config(self._roles.haproxy)
            haproxy = config_files.find_haproxy(self._roles.haproxy, snapshot, self._options.known)
            rollout = Rollout(self._store, self._roles, haproxy, snapshot)
            self._withdraw_kept_servers(snapshot.document, rollout, None, self._make_full_plan(snapshot))

    def _has_to_wait(self, plan: Plan, rollout: Rollout) -> bool:
        """Return whether more nodes wait for a postponed reload. Raises ReloadPostponed if nothing else can be done."""
        reason = rollout.explain_postponed_reload() if self._options.reload and not self._options.force else None
        if reason is None:
            return False
        nodes = rollout.list_waiting_nodes(plan)
        if nodes is None:
            raise ReloadPostponed(reason)
        self._postponed, known, self._waiting_nodes = reason, self._waiting_nodes, self._waiting_nodes | nodes
        return self._waiting_nodes != known

    # Stage, validate, replace

    def _replace_file(self, attempt: _Attempt) -> bool:
        """Stage, validate and replace haproxy.cfg; return False if a new attempt is needed. Raises Refused, OSError."""
        snapshot = attempt.snapshot
        with snapshot.stage(attempt.plan.after) as paths:
            if reason := attempt.haproxy.find_refusal(paths, snapshot.names):
                self._quarantine_refused_nodes(attempt, reason)
                return False
            return snapshot.is_unchanged and snapshot.swap(paths, keep=attempt.applied.is_worth_keeping)

    def _quarantine_refused_nodes(self, attempt: _Attempt, reason: str) -> None:
        """Quarantine the nodes whose lines HAProxy refuses twice. Raises Refused if the operator's text is invalid."""
        snapshot, plan = attempt.snapshot, attempt.plan
        if own := attempt.haproxy.find_refusal(snapshot.paths, snapshot.names):
            raise Refused(f"haproxy.cfg is invalid, not because of lbagent; nothing was changed: {own}")
        if not plan.changes:
            raise Refused(f"haproxy.cfg: HAProxy refuses the managed lines: {reason}")

        def find_refusal(nodes: Sequence[str]) -> str | None:
            others = frozenset(plan.changes) - frozenset(nodes)
            with snapshot.stage(self._make_plan(snapshot, others).after) as paths:
                return attempt.haproxy.find_refusal(paths, snapshot.names)

        # Validate again before a quarantine: haproxy may have been short of memory, or just upgraded, the first time.
        nodes = tuple(plan.changes)
        second = find_refusal(nodes)
        reasons = quarantine.find_refused_nodes(nodes, find_refusal, second) if second else {}
        self._refused_nodes.update(reasons)
        context = quarantine.fingerprint_context(snapshot.document, self._roles)
        self.membership = quarantine.quarantine_nodes(self.membership, reasons, context, int(time.time()))
        self._store.save_membership(self.membership)

    # Roll out and confirm

    def _apply_at_runtime(self, plan: Plan, rollout: Rollout) -> RolloutResult | None:
        return rollout.apply_at_runtime(plan, reload_pending=self._postponed is not None)

    def _roll_out(self, plan: Plan, rollout: Rollout) -> RolloutResult:
        """Make HAProxy run the new file. Raises RolledBack, ReloadPostponed, TryAgain."""
        if not self._options.reload:
            return RolloutResult("not reloaded (--no-reload)", Verdict.WRITTEN, reloaded=False)
        if result := self._apply_at_runtime(plan, rollout):
            return result
        if self._postponed:
            rollout.restore_postponed(plan, self._postponed)
        rest = self._options.not_before - time.monotonic()
        if rest > 0:
            return RolloutResult(f"reload in {rest:.1f} s (min_reload_interval)", Verdict.QUEUED, reloaded=False)
        return rollout.reload(plan)

    def _make_outcome(self, plan: Plan, result: RolloutResult) -> Outcome:
        counts = format_line_counts(len(plan.added), len(plan.removed))
        message = "; ".join((counts, result.message, *format_quarantined(self._refused_nodes)))
        outcome = Outcome(result.verdict, message, plan.added, plan.removed, plan.blocked)
        return outcome._replace(running=result.running, reloaded=result.reloaded)

    def _finish(self, snapshot: ConfigSnapshot, outcome: Outcome) -> Outcome:
        """Return the outcome, after ending the quarantine of nodes whose lines were added. Raises ReloadPostponed."""
        kept = self._list_kept_nodes(snapshot)
        self._save_membership(quarantine.lift_quarantines(self.membership, kept))
        if self._waiting_nodes and self._postponed:
            self.applied_outcome = outcome
            self.partial_outcome = None if outcome.verdict is Verdict.UNCHANGED else outcome
            raise ReloadPostponed(self._postponed)
        # Only a person gets exit status 4 for a quarantine: an event is stored, and the other nodes' lines are in.
        quarantined = sorted(kept - self._waiting_nodes) if self._options.verify else ()
        return outcome._replace(quarantined=(*quarantined,))


def format_refused(node: str, change: Change | None) -> str:
    """Return what HAProxy refuses of a node whose lines would change as in `change`."""
    is_added = change is None or any(": server " in line for line in change.added)
    return f"{node}: HAProxy refuses its line" if is_added else f"{node}: HAProxy refuses haproxy.cfg without its line"
