"""The rollout of a new haproxy.cfg: by the runtime API or a reload; on failure, the previous lines are restored."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, NoReturn

from lbagent.errors import LbagentError, ReloadPostponed, RolledBack
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import (
    Document,
    Key,
    Lines,
    format_target,
    parse_change,
    split_server_line,
)
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy
from lbagent.haproxy.reload import ReloadFailed
from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.capabilities import Capabilities, find_capabilities, find_inherited
from lbagent.haproxy.runtime.servers import (
    LEFT_LIMIT,
    Admission,
    Join,
    KnownServers,
    ServerChanges,
    format_stop_command,
)
from lbagent.haproxy.runtime.session import GlobalLines, Session, SessionError, Worker
from lbagent.haproxy.runtime.state import find_differences
from lbagent.haproxy.server_line import is_drained, select_drained
from lbagent.names import canonical_address
from lbagent.outcome import Verdict
from lbagent.planning import quarantine
from lbagent.planning.plan import Plan
from lbagent.planning.proxy import restore_managed_lines
from lbagent.roles.model import Roles
from lbagent.state.store import Failure, Served, ServersInMaintenance, Store

ATTEMPTS = 5
"""How often other processes may save haproxy.cfg during a run before the run gives up."""

_DIFFERS = "HAProxy differed from haproxy.cfg"

_WORKER_TIMEOUT = 5.0
"""Seconds that a new worker may take until it answers on its stats socket."""

_SETTLE_LIMIT = 1.0
"""Seconds until the servers that HAProxy lists have to match the plan."""

_POLL_INTERVAL = 0.02

_RETRY_WAIT_LIMIT = 30
"""Maximum minutes between two attempts of a reload that fails."""

_GONE_ANSWERS = ("No such server.", "No such backend.")

_DELETED_ANSWER = "Server deleted."

_DELETE_TIMEOUT = 0.5
"""Seconds that one run waits, in all, for the sessions of removed servers to end. Later runs retry."""


class RolloutResult(NamedTuple):
    """How HAProxy loaded the new configuration."""

    message: str
    verdict: Verdict = Verdict.APPLIED
    running: bool = True
    reloaded: bool = True


class RepairReport(NamedTuple):
    """The differences between a worker and the plan, and what became of them."""

    lines: tuple[str, ...] = ()
    is_good: bool = True
    """Whether the worker now runs the plan."""


class Rollout:
    """One change of haproxy.cfg on its way to the worker that is to run it."""

    def __init__(self, store: Store, roles: Roles, haproxy: Haproxy, snapshot: ConfigSnapshot) -> None:
        """`snapshot` is haproxy.cfg before it was replaced."""
        self._store, self._roles, self._haproxy, self._snapshot = store, roles, haproxy, snapshot
        self._served = store.load_served()
        self.runtime_changes: RuntimeChanges | None = None
        """Changes through the runtime API; None where no worker can be reached that way."""
        self.reasons: list[str] = []
        """Why a reload was needed."""
        self.withdrawn: list[str] = []
        """Servers that `compare_and_fix` withdrew, as `PROXY/SERVER`."""
        self.confirmed_withdrawn: frozenset[Key] = frozenset()
        """Servers of which HAProxy has confirmed that they get no new clients."""

    def explain_postponed_reload(self) -> str | None:
        """Return why the reload that failed is not retried yet; None where it may be."""
        failure = self._served.failure
        if failure is None or failure.key != self._make_failure_key():
            return None
        wait = 60 * min(2 ** (failure.times - 1), _RETRY_WAIT_LIMIT)
        rest = failure.at + wait - int(time.time())
        if not 0 < rest <= wait:  # a longer rest means that the clock was ahead
            return None
        retry = f"next attempt in {rest} s, with `lbagent apply --force`, or after an edit of haproxy.cfg or roles.yml"
        return f"reload postponed: {failure.words}; {retry}"

    def withdraw_removed_servers(
        self, plan: Plan, full_plan: Plan, worker: Worker, *, in_sync: bool, timeout: float = 0.0
    ) -> list[str]:
        """Take the traffic from the servers that are to be removed; return those from which it was taken.

        `in_sync`: the worker has the managed lines of the file. A worker that has just started gets `timeout`
        seconds to answer.
        """
        if changes := self._open_runtime(worker, timeout, in_sync=in_sync):
            self.runtime_changes = changes
            doubt = self._haproxy.explain_other_files(self._snapshot.names)
            changes.plan_changes(self._snapshot.document, plan, full_plan, doubt)
            self.confirmed_withdrawn = frozenset(changes.confirmed_withdrawn)
            return changes.withdrawn
        return []

    def withdraw_servers(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers, whatever the file has; return those from which it was taken."""
        worker = self._haproxy.find_worker()
        changes = self._open_runtime(worker, _WORKER_TIMEOUT, in_sync=False) if lines and worker else None
        if changes is None:
            return []
        withdrawn = changes.withdraw_servers(self._snapshot.document, lines)
        self.confirmed_withdrawn = frozenset(changes.confirmed_withdrawn)
        return withdrawn

    def _open_runtime(self, worker: Worker, timeout: float, *, in_sync: bool) -> RuntimeChanges | None:
        """Connect to the worker; None where that is not possible, with the reason in `reasons`."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return open_runtime_changes(self._store, self._snapshot.document.settings, worker, in_sync=in_sync)
            except SessionError as error:
                if time.monotonic() >= deadline or not (error.is_temporary and worker.alive):
                    self.reasons.append(str(error))
                    return None
            time.sleep(_POLL_INTERVAL)

    def list_waiting_nodes(self, plan: Plan) -> frozenset[str] | None:
        """Return the nodes whose changes need a reload; None if a reload is needed in any case."""
        if self.runtime_changes is None or not self.runtime_changes.in_sync:
            return None
        nodes = self.runtime_changes.map_servers_to_nodes(plan)
        missing = self.runtime_changes.needs_reload.keys() - nodes.keys()
        return None if missing else frozenset(nodes[key] for key in self.runtime_changes.needs_reload)

    def apply_at_runtime(self, plan: Plan, *, reload_pending: bool = False) -> RolloutResult | None:
        """Apply the plan through the runtime API; None where that is not possible, with the reasons in `reasons`.

        `reload_pending`: another change waits for its reload.
        """
        changes = self.runtime_changes
        if changes is None or self.reasons:
            return None
        if not changes.in_sync:
            self.reasons.append("HAProxy may not run the servers of haproxy.cfg")
        self.reasons += [f"{'/'.join(key)}: {why}" for key, why in changes.needs_reload.items()]
        if changes.has_too_many_in_maintenance and not reload_pending:
            self.reasons.append("too many removed servers are still in maintenance")
        if self.reasons:
            return None
        if not changes.admit_servers():
            self.reasons.append(changes.problems or "HAProxy did not accept every command")
            return None
        if difference := self._find_difference():
            self.reasons.append(difference)
            return None
        self.confirmed_withdrawn |= changes.confirmed_withdrawn
        failure = self._served.failure if reload_pending else None
        self._store.save_served(Served(plan.digest, changes.worker, failure, changes.in_maintenance))
        if changes.delete_removed_servers():
            self._store.save_served(Served(plan.digest, changes.worker, failure, changes.in_maintenance))
        return RolloutResult(f"applied to HAProxy (worker {changes.worker.pid}) without a reload", reloaded=False)

    def reload(self, plan: Plan) -> RolloutResult:
        """Reload HAProxy and confirm it. Raises RolledBack, TryAgain."""
        changed = {parse_change(text)[0] for text in (*plan.added, *plan.removed)}
        changed |= self._served.in_maintenance.lines.keys()
        try:
            worker = self._haproxy.reload(changed)
        except ReloadFailed as error:
            self._roll_back(plan, str(error))
        self._store.save_served(Served(plan.digest, worker))
        if worker is None:
            return RolloutResult("HAProxy is not running", Verdict.WRITTEN, running=False, reloaded=False)
        differences = [reason for reason in self.reasons if reason.startswith(_DIFFERS)]
        report = self._fix_differences(worker)
        return RolloutResult("; ".join([f"HAProxy reloaded, worker {worker.pid}", *differences, *report.lines]))

    def compare_and_fix(
        self, plan: Plan, full_plan: Plan, worker: Worker, *, urgent: bool, is_new: bool
    ) -> tuple[str, bool]:
        """Compare what this worker runs with the plan, and fix differences; return a report, and whether all is fixed.

        Servers that only the file keeps are withdrawn again. If that is `urgent`, a worker that has just started is
        waited for. `is_new`: another process has started the worker, so that it may have read an older text.
        """
        if not self.can_record():
            return "", True  # servers that were withdrawn without a record stay so until it can be written
        self.withdrawn = self.withdraw_removed_servers(
            plan, full_plan, worker, in_sync=True, timeout=_WORKER_TIMEOUT if urgent else 0.0
        )
        if self.runtime_changes is None:
            return "", self._store.load_served().is_complete
        strays, are_withdrawn = self.runtime_changes.withdraw_strays(self._snapshot.document) if is_new else ([], True)
        report = self._fix_differences(worker)
        report = RepairReport((*strays, *report.lines), is_good=report.is_good and are_withdrawn)
        if report.is_good:
            in_maintenance = self.runtime_changes.in_maintenance
            with contextlib.suppress(OSError):  # on a full disk the next run finds out again
                self._store.save_served(
                    self._store.load_served()._replace(in_maintenance=in_maintenance, is_complete=True)
                )
        return "; ".join(report.lines), report.is_good

    def can_record(self) -> bool:
        """Return whether served.json can be written: withdrawals that it lacks must stay until it can."""
        served = self._store.load_served()
        if served.is_complete:
            return True
        try:
            self._store.save_served(served)
        except OSError:
            return False
        return True

    def delete_removed_servers(self, plan: Plan, full_plan: Plan, worker: Worker) -> None:
        """Delete the servers left in maintenance by earlier runs whose sessions have ended since."""
        self.withdraw_removed_servers(plan, full_plan, worker, in_sync=True)
        if self.runtime_changes and self.runtime_changes.delete_removed_servers():
            self._store.save_served(
                self._store.load_served()._replace(in_maintenance=self.runtime_changes.in_maintenance)
            )

    def restore_postponed(self, plan: Plan, reason: str) -> NoReturn:
        """Restore the previous lines, as the change needs a reload that is postponed. Raises ReloadPostponed."""
        self._restore(plan, reason, ReloadPostponed)

    def _find_difference(self) -> str:
        """Return how the worker differs from the plan, or why that is unknown; empty if it does not."""
        if self.runtime_changes is None:
            return ""
        try:
            differences = self.runtime_changes.find_lasting_differences()
        except SessionError as error:
            return f"not compared: {error}"
        return f"{_DIFFERS}: {'; '.join(differences.values())}" if differences else ""

    def _fix_differences(self, worker: Worker) -> RepairReport:
        """Fix what a server state file restored in a new worker."""
        if self.runtime_changes is None:
            return RepairReport()
        try:
            settings = self._snapshot.document.settings
            self.runtime_changes = changes = self.runtime_changes.reopen_after_reload(settings, worker)
            self.confirmed_withdrawn |= changes.confirmed_withdrawn
            if not (found := changes.find_differences()):
                return RepairReport()
            changes.fix_servers(found)
            remaining = changes.find_lasting_differences()
        except SessionError as error:
            return RepairReport((f"not compared: {error}",), is_good=False)
        lines = (f"{'not fixed' if key in remaining else 'fixed'}: {text}" for key, text in found.items())
        return RepairReport((*lines,), is_good=not found.keys() & remaining.keys())

    def _make_failure_key(self) -> str:
        """Return a checksum of what has to change before a failed reload is worth a retry."""
        context = quarantine.fingerprint_context(self._snapshot.document, self._roles)
        return f"{zlib.crc32(context.encode()):08x}"

    def _roll_back(self, plan: Plan, reason: str) -> NoReturn:
        failure, key = self._served.failure, self._make_failure_key()
        times = failure.times + 1 if failure and failure.key == key else 1
        # Record the failure first: if this run is killed, the next one must not reload at once.
        failure = Failure(int(time.time()), times, key, reason)
        self._store.save_served(self._store.load_served()._replace(failure=failure))
        self._restore(plan, reason, RolledBack)

    def _restore(self, plan: Plan, reason: str, error: type[LbagentError]) -> NoReturn:
        """Restore the previous managed lines in the text as it is now, and raise `error`."""
        if self.runtime_changes:
            self.runtime_changes.withdraw_added_servers()
        snapshot, previous = self._snapshot, self._find_last_confirmed()
        for _ in range(ATTEMPTS):
            now = config_files.read_config(self._roles.haproxy)
            is_own_text = previous is snapshot.document and now.texts == plan.after
            texts = plan.before if is_own_text else restore_managed_lines(now.document, previous)
            with now.stage(texts) as paths:
                if not is_own_text and (refusal := self._haproxy.find_refusal(paths, now.names)):
                    raise error(f"{reason}; the previous managed lines cannot be restored: {refusal}")
                if now.is_unchanged and now.swap(paths, keep=False):
                    restored = Document([("", text) for text in texts])
                    is_complete = restored.compute_digest() == previous.compute_digest()
                    where = f"in {now.targets[0].given}{'' if is_complete else ', at the markers that are still there'}"
                    raise error(f"{reason}; the previous managed lines are restored {where}")
        path = ", ".join(self._roles.haproxy.config)
        raise error(f"{reason}; {path} keeps changing, the new managed lines are still in it")

    def _find_last_confirmed(self) -> Document:
        """Return the text that HAProxy confirmed last: the kept one if the present one was never confirmed."""
        present, kept = self._snapshot.document, config_files.read_previous(self._snapshot)
        if present.compute_digest() != self._served.digest and kept and kept.compute_digest() == self._served.digest:
            return kept
        return present


def list_withheld_servers(document: Document, plan: Plan | None, full_plan: Plan) -> Lines:
    """Return the servers that `document` has after `plan` (None: as it is) although `full_plan` removes them."""
    return {} if plan is full_plan else _compare_withheld(*predict_servers(document, plan, full_plan))


def predict_servers(document: Document, plan: Plan | None, full_plan: Plan) -> tuple[Lines, Lines]:
    """Return the managed servers of `document` after `plan` (None: as it is), and after `full_plan`."""
    after = config.predict_servers(document, plan.after, plan.changed) if plan else document.managed_servers
    if plan is full_plan:
        return after, after
    return after, config.predict_servers(document, full_plan.after, full_plan.changed)


class RuntimeChanges:
    """Changes of one worker through the runtime API, and the state it is known to have."""

    def __init__(
        self,
        store: Store,
        worker: Worker,
        connection: Session,
        capabilities: Capabilities,
        in_maintenance: Lines,
        *,
        in_sync: bool,
    ) -> None:
        """`in_maintenance`: the servers that earlier runs withdrew. `in_sync`: all others are as in the file."""
        self._store, self._session, self.worker, self.in_sync = store, connection, worker, in_sync
        self._capabilities = capabilities
        self._in_maintenance = dict(in_maintenance)
        self._wanted: Lines = {}
        """Servers that should serve, or drain, after the change."""
        self._withheld: Lines = {}
        """Servers that the file keeps although they should get no new clients."""
        self._renamed: Lines = {}
        """Servers that come back under another name."""
        self._present: Lines = {}
        """Managed servers of the file before the change."""
        self._serving: Lines = {}
        """Those of them that are not in maintenance."""
        self._draining: Lines = {}
        """Servers of nodes that are paused with `on_pause: drain`."""
        self._paused: set[Key] = set()
        self._changes: ServerChanges | None = None
        self._session_cutters: frozenset[str] = frozenset()
        """Proxies in which `maint` would end sessions."""
        self._joins: list[Join] = []
        """Servers that this run has added."""
        self.withdrawn: list[str] = []
        """Servers from which this run has taken the traffic, as `PROXY/SERVER`."""
        self.confirmed_withdrawn = set[Key]()
        """Servers of which HAProxy has confirmed in this run that they get no new clients, or that it has none."""

    @property
    def in_maintenance(self) -> ServersInMaintenance:
        """Servers in maintenance now, to be recorded for later runs."""
        return ServersInMaintenance(self.worker, self._in_maintenance)

    @property
    def problems(self) -> str:
        """Why a command failed; empty where none did."""
        return "; ".join(self._session.problems)

    @property
    def needs_reload(self) -> Mapping[Key, str]:
        """Changes that need a reload, with the reason."""
        return self._changes.needs_reload if self._changes else {}

    @property
    def has_too_many_in_maintenance(self) -> bool:
        """Whether so many servers are left in maintenance that a reload has to clear them."""
        if sum(key not in self._wanted for key in self._in_maintenance) < LEFT_LIMIT:
            return False
        temporary = {*self._list_removable(), *(self._list_paused() if self._capabilities.deletes else ())}
        return sum(key not in self._wanted and key not in temporary for key in self._in_maintenance) >= LEFT_LIMIT

    def plan_changes(self, document: Document, plan: Plan, full_plan: Plan, doubt: str = "") -> None:
        """Compare `document` with the plans, and take the traffic from the servers that `full_plan` removes.

        `admit_servers` makes the other changes later. A server that `plan` keeps in the file although `full_plan`
        removes it is withdrawn as well. A renamed server serves until it serves under its new name. `doubt` is why
        HAProxy may load more than `document`; empty where it does not.
        """
        self._present = present = document.managed_servers
        after, full_after = predict_servers(document, plan, full_plan)
        self._withheld = _compare_withheld(after, full_after)
        self._wanted = _omit_servers(after, self._withheld)
        self._serving = _omit_servers(present, self._in_maintenance)
        self._paused = config.find_paused_servers(document, plan.changed)
        self._draining = {key: line for key, line in select_drained(full_after).items() if key in after}
        self._session_cutters = find_session_cutters(document)
        self._changes = self._compare_servers(document, plan, doubt)
        leaving = {key: line for key, line in present.items() if key not in self._wanted}
        self._renamed = self._find_renamed(leaving)
        pausing = {
            key: present.get(key, line)
            for key, line in self._draining.items()
            if key in present or key in self._in_maintenance
        }
        self.withdrawn += self._withdraw(
            {key: line for key, line in leaving.items() if key not in self._renamed} | pausing
        )

    def _find_renamed(self, leaving: Lines) -> Lines:
        """Return those of the `leaving` servers whose address and port a wanted server of the proxy has."""
        proxies = {proxy for proxy, _ in leaving}
        endpoints = {
            (proxy, *split_server_line(line)[:2]) for (proxy, _), line in self._wanted.items() if proxy in proxies
        }
        return {key: line for key, line in leaving.items() if (key[0], *split_server_line(line)[:2]) in endpoints}

    def _compare_servers(self, document: Document, plan: Plan, doubt: str) -> ServerChanges:
        """Return the changes from what the worker runs to `_wanted`, with those that need a reload."""
        checked = {*select_drained(self._present)}
        checked |= {key for key, line in self._in_maintenance.items() if self._should_drain(key, line)}
        known = KnownServers(self._serving, self._in_maintenance, self.in_sync, frozenset(checked))
        changes = ServerChanges(document, known, self._wanted, self._capabilities, doubt)
        removed = {key: line for key, line in map(parse_change, plan.removed) if line}
        names = {name for name, _ in removed}
        here = (proxy for proxy in document.proxies if proxy.name in names)
        managed = {(proxy.name, line.name) for proxy in here for line in proxy.managed}
        for key in removed:
            if key not in managed:
                changes.needs_reload[key] = "was an operator's line"
        before = config.list_uncertain_servers(document)
        if document.is_conditional or before:
            after = config.list_uncertain_servers(document.reread(plan.after))
            changed = {key for key in (*before, *after) if before.get(key) != after.get(key)}
            changes.needs_reload |= dict.fromkeys(changed, "an .if or a variable decides whether HAProxy has it")
        return changes

    def withdraw_servers(self, document: Document, lines: Lines) -> list[str]:
        """Take the traffic from these servers of `document`; return those from which it was taken."""
        self._session_cutters = find_session_cutters(document)
        return self._withdraw(lines)

    def withdraw_strays(self, document: Document) -> tuple[list[str], bool]:
        """Take the traffic from servers that the worker has and `document` lacks; return a report, and whether it is.

        The worker was started while the file was replaced, and has read the previous text. Servers that a process adds
        through the runtime API are not found: no worker has them when it starts.
        """
        try:
            states = self._session.fetch_states()
        except SessionError as error:
            return [f"not compared: {error}"], False
        strays = [key for key, one in states.items() if not one.out and config.is_stray(document, key)]
        withdrawn = set(self._withdraw(dict.fromkeys(strays, "")))
        words = {key: "fixed" if format_target(key) in withdrawn else "not fixed" for key in strays}
        lines = [f"{how}: {format_target(key)} still gets traffic" for key, how in words.items()]
        return lines, len(withdrawn) == len(strays)

    def reopen_after_reload(self, settings: GlobalLines, worker: Worker) -> RuntimeChanges:
        """Return the same changes for the new worker; withheld servers are withdrawn again. Raises SessionError."""
        fresh = open_runtime_changes(self._store, settings, worker, in_sync=True)
        fresh._wanted, fresh._changes = self._wanted, self._changes  # noqa: SLF001  # the same class
        fresh._withheld, fresh._draining, fresh._session_cutters = self._withheld, self._draining, self._session_cutters  # noqa: SLF001  # as above
        fresh._withdraw({**self._draining, **self._withheld})  # noqa: SLF001  # as above
        self.confirmed_withdrawn |= fresh.confirmed_withdrawn
        return fresh

    @staticmethod
    def map_servers_to_nodes(plan: Plan) -> Mapping[Key, str]:
        """Return the node of each server that changes."""
        return {
            parse_change(text)[0]: node
            for node, change in plan.changes.items()
            for text in (*change.added, *change.removed)
        }

    def _withdraw(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers where possible; running requests finish.

        Returns the servers from which it was taken.
        """
        if not lines:
            return []
        unrecorded = {
            key: line if self.in_sync else "" for key, line in lines.items() if key not in self._in_maintenance
        }
        if unrecorded:
            self._in_maintenance |= unrecorded
            # Record before sending: after a crash the next run must know what to enable. A full disk stops nothing.
            # Without fsync: a power failure ends the worker too, and its servers in maintenance with it.
            served = self._store.load_served()._replace(in_maintenance=self.in_maintenance)
            try:
                self._store.save_served(served, durable=False)
            except OSError:
                self._store.mark_served_incomplete()
        commands = [format_stop_command(key, drain=self._should_drain(key, line)) for key, line in lines.items()]
        answers = dict(zip(lines, self._session.send(commands), strict=True))
        for key, answer in answers.items():
            is_gone = answer in _GONE_ANSWERS
            if answer == "" or is_gone:
                self.confirmed_withdrawn.add(key)
            if answer:
                self._in_maintenance.pop(key, None)
                if not is_gone:
                    self._session.problems.append(f"{format_target(key)}: {answer}")
        return [format_target(key) for key, answer in answers.items() if answer == ""]

    def admit_servers(self) -> bool:
        """Enable the added servers, each once it answers; False where a command failed."""
        if self._changes is None or self.problems:
            return False
        self._joins = joins = self._changes.joins
        good = Admission(self._session).admit_servers(joins, self._changes.dynamic_cookies)
        for join in joins if good else ():
            self._in_maintenance.pop(join.key, None)
        if good:
            self._withdraw(self._renamed)
        return good and not self.problems

    def withdraw_added_servers(self) -> None:
        """Take the traffic from the servers added in this run, as the file will not have them."""
        renamed = [key for key in self._renamed if self._in_maintenance.pop(key, None) is not None]
        self._session.send([f"set server {format_target(key)} state ready" for key in renamed])
        drained = {key: line for key, line in self._present.items() if is_drained(line)}
        self._draining = {**self._draining, **drained}
        added = (join for join in self._joins if join.key in drained or join.key not in self._serving)
        self._withdraw({join.key: self._present.get(join.key, join.line) for join in added})

    def find_differences(self) -> Mapping[Key, str]:
        """Return the differences between what the worker runs and the plan. Raises SessionError."""
        may_be_out = self._changes.may_be_disabled if self._changes else None
        return find_differences(self._session.fetch_states(), self._wanted, self._in_maintenance, may_be_out)

    def find_lasting_differences(self) -> Mapping[Key, str]:
        """Return the differences that are left after the commands have had time to take effect. Raises SessionError.

        HAProxy 3.0 and later change the address of a server some time after they have confirmed the command.
        """
        deadline = time.monotonic() + _SETTLE_LIMIT
        while (differences := self.find_differences()) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        return differences

    def delete_removed_servers(self) -> bool:
        """Delete the servers in maintenance whose sessions have ended, where HAProxy can; return whether any was."""
        removable = self._list_removable()
        if not removable:
            return False
        with contextlib.suppress(SessionError):
            self._stop_drained(removable)
        deadline = time.monotonic() + _DELETE_TIMEOUT
        deleted = False
        for key in removable:
            rest = int((deadline - time.monotonic()) * 1000)
            commands = [f"wait {rest}ms srv-removable {format_target(key)}"] if rest > 0 else []
            answer = self._session.send([*commands, f"del server {format_target(key)}"])[-1]
            if answer is None:
                break
            if answer == _DELETED_ANSWER or answer in _GONE_ANSWERS:
                deleted = self._in_maintenance.pop(key) is not None
        return deleted

    def _stop_drained(self, keys: Iterable[Key]) -> None:
        """Put drained servers without sessions into maintenance: HAProxy deletes no others."""
        states = self._session.fetch_states()
        drained = [key for key in keys if key in states and states[key].draining]
        if drained:
            open_sessions = self._session.fetch_sessions()
            self._session.send([format_stop_command(key, drain=False) for key in drained if not open_sessions.get(key)])

    def _list_removable(self) -> list[Key]:
        """Return the servers in maintenance that may be deleted: removed for good, and easily added again."""
        changes = self._changes
        if changes is None or not self._capabilities.deletes:
            return []
        staying = {*self._wanted, *self._withheld, *self._list_paused()}
        return [
            key for key, line in self._in_maintenance.items() if key not in staying and changes.can_return(key, line)
        ]

    def _list_paused(self) -> set[Key]:
        return {key for key in self._in_maintenance if config.is_paused_server(key, self._paused)}

    def fix_servers(self, keys: Iterable[Key]) -> None:
        """Send address and state of these servers again: a state file may have restored old ones."""
        commands = []
        for key in keys:
            if key in self._wanted:
                address, port, _ = split_server_line(self._wanted[key])
                if port and address == canonical_address(address):
                    commands.append(f"set server {format_target(key)} addr {address} port {port}")
                state = "drain" if is_drained(self._wanted[key]) else "ready"
                commands.append(f"set server {format_target(key)} state {state}")
                if state == "ready":
                    self._in_maintenance.pop(key, None)
        self._session.send(commands)

    def _should_drain(self, key: Key, line: str) -> bool:
        """Return whether a server is drained: its node is paused that way, or `maint` would end its sessions."""
        return key in self._draining or key[0] in self._session_cutters or "on-marked-down" in line


def _omit_servers(lines: Lines, keys: Collection[Key]) -> Lines:
    """Return `lines` without these servers; the same object where there are none."""
    return {key: line for key, line in lines.items() if key not in keys} if keys else lines


def _compare_withheld(after: Lines, full_after: Lines) -> Lines:
    """Return the servers of the file `after` a change that should get no new clients.

    `full_after` is the file as membership asks for it: a server is missing there, or drained.
    """
    if after is full_after:
        return {}

    def is_as_requested(key: Key, line: str) -> bool:
        return key in full_after and (is_drained(line) or not is_drained(full_after[key]))

    return {key: line for key, line in after.items() if not is_as_requested(key, line)}


def find_session_cutters(document: Document) -> frozenset[str]:
    """Return the proxies that set `on-marked-down shutdown-sessions`: there `maint` ends all sessions."""
    if not any("on-marked-down" in line or ("$" in line and "default-server" in line) for line in document.lines):
        return frozenset()
    inherited = find_inherited(document)
    starts = {start for start, settings in inherited.items() if "on-marked-down" in settings.default_server}
    return frozenset(document.find_name(proxy) for proxy in document.proxies if proxy.start in starts)


def open_runtime_changes(store: Store, settings: GlobalLines, worker: Worker, *, in_sync: bool) -> RuntimeChanges:
    """Connect to this worker. Raises SessionError where that is not possible."""
    recorded = store.load_served().in_maintenance
    connection = session.open_session(settings, worker)
    capabilities = find_capabilities(connection.version)
    if capabilities is None:
        raise SessionError(f"HAProxy {connection.version}: too old to add servers without a reload")
    in_maintenance = recorded.lines if recorded.worker == worker else {}
    return RuntimeChanges(store, worker, connection, capabilities, in_maintenance, in_sync=in_sync)
