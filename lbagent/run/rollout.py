"""The rollout of a new haproxy.cfg: by the runtime API or a reload; on failure, the previous lines are restored."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from lbagent.errors import LbagentError, ReloadPostponed, RolledBack
from lbagent.haproxy import config, config_files
from lbagent.haproxy.config import (
    Document,
    Key,
    Lines,
    format_target,
    list_managed_servers,
    parse_change,
    split_server_line,
)
from lbagent.haproxy.config_files import ConfigSnapshot
from lbagent.haproxy.instance import Haproxy, ReloadFailed
from lbagent.haproxy.process import Worker
from lbagent.haproxy.runtime import session
from lbagent.haproxy.runtime.capabilities import Capabilities, find_capabilities
from lbagent.haproxy.runtime.servers import (
    LEFT_LIMIT,
    Admission,
    Join,
    KnownServers,
    ServerChanges,
    format_stop_command,
)
from lbagent.haproxy.runtime.session import Session, SessionError
from lbagent.haproxy.runtime.state import find_differences
from lbagent.haproxy.server_line import is_drained
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

_UNFIXED = "not fixed: ", "not compared: "

_PATIENCE = 5.0
"""Seconds that a new worker may take until it answers on its stats socket."""

_POLL_INTERVAL = 0.02

_RETRY_WAIT_LIMIT = 30
"""Maximum minutes between two attempts of a reload that fails."""

_GONE_ANSWERS = ("No such server.", "No such backend.")

_DELETED_ANSWER = "Server deleted."

_DELETE_TIMEOUT = 0.5
"""Seconds that one run waits, in all, for the sessions of removed servers to end. Later runs retry."""


class RolloutResult(NamedTuple):
    """How HAProxy loaded the new configuration."""

    words: str
    verdict: Verdict = Verdict.APPLIED
    running: bool = True
    reloaded: bool = True


class Rollout:
    """One change of haproxy.cfg on its way to the worker that is to run it."""

    def __init__(self, store: Store, roles: Roles, haproxy: Haproxy, seen: ConfigSnapshot) -> None:
        """`seen` is haproxy.cfg before it was replaced."""
        self._store, self._roles, self._haproxy, self._seen = store, roles, haproxy, seen
        self._served = store.load_served()
        self.runtime_changes: RuntimeChanges | None = None
        """Changes through the runtime API; None where no worker can be reached that way."""
        self.reasons: list[str] = []
        """Why a reload was needed."""
        self.out: list[str] = []
        """Servers whose traffic `compare_and_fix` took away."""
        self.confirmed_out: frozenset[Key] = frozenset()
        """Servers of which HAProxy has confirmed that they take no new clients."""

    def explain_postponed_reload(self) -> str | None:
        """Return why the reload that failed is not retried yet; None where it may be."""
        failure = self._served.failure
        if failure is None or failure.key != self._make_failure_key():
            return None
        wait = 60 * min(2 ** (failure.times - 1), _RETRY_WAIT_LIMIT)
        rest = failure.at + wait - int(time.time())
        return (
            f"reload postponed: {failure.words}; next attempt in {rest} s, with `lbagent apply --force`,"
            " or after an edit of haproxy.cfg or roles.yml"
            if 0 < rest <= wait  # a longer rest means that the clock was ahead
            else None
        )

    def withdraw_leaving(
        self, wanted: Plan, requested: Plan, worker: Worker, *, sure: bool, patience: float = 0.0
    ) -> list[str]:
        """Take the traffic from the servers that are to be removed. Returns those whose traffic was taken.

        `sure` says that the worker has the managed lines of the file. `patience` is the time in seconds for a worker
        that is too new to answer.
        """
        if connection := self._open_runtime(worker, patience, sure=sure):
            self.runtime_changes = connection
            connection.plan_changes(self._seen.document, wanted, requested)
            self.confirmed_out = frozenset(connection.confirmed_out)
            return connection.out
        return []

    def keep_out(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers, whatever the file holds. Returns those whose traffic was taken."""
        worker = self._haproxy.find_worker()
        connection = self._open_runtime(worker, _PATIENCE, sure=False) if lines and worker else None
        if connection is None:
            return []
        out = connection.keep_out(self._seen.document, lines)
        self.confirmed_out = frozenset(connection.confirmed_out)
        return out

    def _open_runtime(self, worker: Worker, patience: float, *, sure: bool) -> RuntimeChanges | None:

        deadline = time.monotonic() + patience
        while True:
            try:
                return open_runtime_changes(self._store, self._seen.document.settings, worker, sure=sure)
            except SessionError as error:
                if time.monotonic() >= deadline or not (error.is_temporary and worker.alive):
                    self.reasons.append(str(error))
                    return None
            time.sleep(_POLL_INTERVAL)

    def list_waiting_nodes(self, wanted: Plan) -> frozenset[str] | None:
        """Return the nodes whose changes need a reload; None where a reload is needed in any case."""
        if self.runtime_changes is None or not self.runtime_changes.sure:
            return None
        nodes = self.runtime_changes.map_servers_to_nodes(wanted)
        missing = self.runtime_changes.needs_reload.keys() - nodes.keys()
        return None if missing else frozenset(nodes[key] for key in self.runtime_changes.needs_reload)

    def apply_at_runtime(self, wanted: Plan, *, owing: bool = False) -> RolloutResult | None:
        """Apply the plan through the runtime API; None where that is not possible.

        `owing` says that another change waits for its reload.
        """
        changes = self.runtime_changes
        if changes is None or self.reasons:
            return None
        if not changes.sure:
            self.reasons.append("HAProxy may not run the servers of haproxy.cfg")
        self.reasons += [f"{'/'.join(key)}: {why}" for key, why in changes.needs_reload.items()]
        if changes.has_too_many_left and not owing:
            self.reasons.append("too many removed servers are still in maintenance")
        if self.reasons or not changes.admit_servers():
            self.reasons += [changes.problems or "HAProxy did not accept every command"] if not self.reasons else []
            return None
        if amiss := self._explain_differences():
            self.reasons.append(amiss)
            return None
        self.confirmed_out |= changes.confirmed_out
        failure = self._served.failure if owing else None
        self._store.save_served(Served(wanted.digest, changes.worker, failure, changes.left))
        if changes.delete_left():
            self._store.save_served(Served(wanted.digest, changes.worker, failure, changes.left))
        return RolloutResult(f"applied to HAProxy (worker {changes.worker.pid}) without a reload", reloaded=False)

    def reload(self, wanted: Plan) -> RolloutResult:
        """Reload HAProxy and confirm it. Raises RolledBack, TryAgain."""
        changed = {parse_change(text)[0] for text in (*wanted.added, *wanted.removed)} | self._served.left.lines.keys()
        try:
            worker = self._haproxy.reload(changed)
        except ReloadFailed as error:
            self._roll_back(wanted, str(error))
        self._store.save_served(Served(wanted.digest, worker))
        if worker is None:
            return RolloutResult("HAProxy is not running", Verdict.WRITTEN, running=False, reloaded=False)
        differs = [why for why in self.reasons if why.startswith(_DIFFERS)]
        return RolloutResult(
            "; ".join([f"HAProxy reloaded, worker {worker.pid}", *differs, *self._fix_differences(worker)])
        )

    def compare_and_fix(self, wanted: Plan, requested: Plan, worker: Worker, *, urgent: bool) -> tuple[str, bool]:
        """Compare what this worker runs with the plan, and fix differences; returns a report, and whether all is fixed.

        Servers that only the file keeps are taken out again. Where that is `urgent`, wait for a worker that is too new
        to answer.
        """
        if not self.can_record():
            return "", True  # servers taken out without a record stay out until it can be written
        self.out = self.withdraw_leaving(wanted, requested, worker, sure=True, patience=_PATIENCE if urgent else 0.0)
        if self.runtime_changes is None:
            return "", self._store.load_served().complete
        words = self._fix_differences(worker)
        good = not any(one.startswith(_UNFIXED) for one in words)
        if good:
            with contextlib.suppress(OSError):  # on a full disk the next run finds out again
                self._store.save_served(
                    self._store.load_served()._replace(left=self.runtime_changes.left, complete=True)
                )
        return "; ".join(words), good

    def can_record(self) -> bool:
        """Return whether there is disk space to record what is sent: an unrecorded withdrawal lasts until there is."""
        served = self._store.load_served()
        if served.complete:
            return True
        try:
            self._store.save_served(served)
        except OSError:
            return False
        return True

    def delete_left(self, wanted: Plan, requested: Plan, worker: Worker) -> None:
        """Delete the servers left in maintenance by earlier runs whose sessions have ended since."""
        self.withdraw_leaving(wanted, requested, worker, sure=True)
        if self.runtime_changes and self.runtime_changes.delete_left():
            self._store.save_served(self._store.load_served()._replace(left=self.runtime_changes.left))

    def restore_postponed(self, wanted: Plan, words: str) -> NoReturn:
        """Restore the previous lines: the change needs a reload, which has to wait. Raises ReloadPostponed."""
        self._restore(wanted, words, ReloadPostponed)

    def _explain_differences(self) -> str:
        try:
            amiss = self.runtime_changes.find_differences() if self.runtime_changes else {}
        except SessionError as error:
            return f"not compared: {error}"
        return f"{_DIFFERS}: {'; '.join(amiss.values())}" if amiss else ""

    def _fix_differences(self, worker: Worker) -> list[str]:
        """Fix what a server state file changed after a reload; returns a report."""
        if self.runtime_changes is None:
            return []
        try:
            self.runtime_changes = changes = self.runtime_changes.after_reload(self._seen.document.settings, worker)
            self.confirmed_out |= changes.confirmed_out
            if not (found := changes.find_differences()):
                return []
            changes.fix_servers(found)
            still = changes.find_differences()
        except SessionError as error:
            return [f"not compared: {error}"]
        return [f"{'not fixed' if key in still else 'fixed'}: {why}" for key, why in found.items()]

    def _make_failure_key(self) -> str:
        surroundings = quarantine.fingerprint_context(self._seen.document, self._roles)
        return f"{zlib.crc32(surroundings.encode()):08x}"

    def _roll_back(self, wanted: Plan, words: str) -> NoReturn:
        failure, key = self._served.failure, self._make_failure_key()
        times = failure.times + 1 if failure and failure.key == key else 1
        # Record the failure first: if this run is killed, the next one must not reload at once.
        self._store.save_served(
            self._store.load_served()._replace(failure=Failure(int(time.time()), times, key, words))
        )
        self._restore(wanted, words, RolledBack)

    def _restore(self, wanted: Plan, words: str, kind: type[LbagentError]) -> NoReturn:

        if self.runtime_changes:
            self.runtime_changes.retract()
        seen, previous = self._seen, self._find_last_confirmed()
        for _ in range(ATTEMPTS):
            now = config_files.read_config(self._roles.haproxy)
            same = previous is seen.document and now.texts == wanted.after
            texts = wanted.before if same else restore_managed_lines(now.document, previous)
            with now.stage(texts) as paths:
                if not same and (why := self._haproxy.find_refusal(paths, now.names)):
                    raise kind(f"{words}; the previous managed lines cannot be restored: {why}")
                if now.is_unchanged and now.swap(paths, keep=False):
                    back = Document([("", text) for text in texts]).compute_digest() == previous.compute_digest()
                    part = f"in {now.targets[0].given}{'' if back else ', at the markers that are still there'}"
                    raise kind(f"{words}; the previous managed lines are restored {part}")
        path = ", ".join(self._roles.haproxy.config)
        raise kind(f"{words}; {path} keeps changing, the new managed lines are still in it")

    def _find_last_confirmed(self) -> Document:
        kept = config_files.read_previous(self._seen)
        if (
            self._seen.document.compute_digest() != self._served.digest
            and kept
            and kept.compute_digest() == self._served.digest
        ):
            return kept
        return self._seen.document


def find_withheld(document: Document, wanted: Plan | None, requested: Plan) -> Lines:
    """Return the servers that `document` has after `wanted` (None: as it is) and that `requested` takes out."""
    if wanted is requested:
        return {}

    after = (
        config.predict_servers(document, wanted.after, wanted.changed)
        if wanted
        else config.list_managed_servers(document)
    )
    return compare_withheld(after, config.predict_servers(document, requested.after, requested.changed))


class RuntimeChanges:
    """Changes of one worker through the runtime API, and the state it is known to have."""

    def __init__(
        self, store: Store, worker: Worker, talk: Session, capabilities: Capabilities, left: Lines, *, sure: bool
    ) -> None:
        """`left` holds servers taken out by earlier runs; `sure` says that its other servers are those of the file."""
        self._store, self._talk, self.worker, self.sure = store, talk, worker, sure
        self._capabilities = capabilities
        self._left = dict(left)
        self._wanted: Lines = {}
        self._withheld: Lines = {}
        self._renamed: Lines = {}
        self._served: Lines = {}
        self._paused: set[Key] = set()
        self._difference: ServerChanges | None = None
        self._draining: Lines = {}
        self._present: Lines = {}
        self._session_cutters: frozenset[str] = frozenset()
        """Proxies in which `maint` would end sessions."""
        self.out: list[str] = []
        """Servers whose traffic was taken away in this run."""
        self.confirmed_out = set[Key]()
        """Servers of which HAProxy has confirmed in this run that they take no new clients, or are unknown."""
        self._joins: list[Join] = []

    @property
    def left(self) -> ServersInMaintenance:
        """Servers in maintenance now, to be recorded for later runs."""
        return ServersInMaintenance(self.worker, self._left)

    @property
    def problems(self) -> str:
        """Why a command failed; empty where none did."""
        return "; ".join(self._talk.problems)

    @property
    def needs_reload(self) -> Mapping[Key, str]:
        """Changes that need a reload, with the reason."""
        return self._difference.needs_reload if self._difference else {}

    @property
    def has_too_many_left(self) -> bool:
        """Whether so many servers are left in maintenance that a reload has to clear them."""
        if sum(key not in self._wanted for key in self._left) < LEFT_LIMIT:
            return False
        temporary = {*self._list_removable(), *(self._list_paused() if self._capabilities.deletes else ())}
        return sum(key not in self._wanted and key not in temporary for key in self._left) >= LEFT_LIMIT

    def plan_changes(self, document: Document, wanted: Plan, requested: Plan) -> None:
        """Compare `document` with the plans, and take the traffic from the servers that `requested` takes out.

        `admit_servers` makes the remaining changes later. A server that `wanted` keeps in the file although `requested`
        takes it out is taken out too. A renamed server serves until it serves under its new name.
        """
        self._present = here = list_managed_servers(document)
        after = config.predict_servers(document, wanted.after, wanted.changed)
        asked_for = (
            after if requested is wanted else config.predict_servers(document, requested.after, requested.changed)
        )
        self._withheld = compare_withheld(after, asked_for)
        self._wanted = {key: line for key, line in after.items() if key not in self._withheld}
        self._served = {key: line for key, line in here.items() if key not in self._left}
        self._paused = config.find_paused_servers(document, wanted.changed)
        self._draining = {key: line for key, line in asked_for.items() if is_drained(line) and key in after}
        self._session_cutters = find_session_cutters(document)
        checked = {key for key, line in here.items() if is_drained(line)}
        checked |= {key for key, line in self._left.items() if self._should_drain(key, line)}
        known = KnownServers(self._served, self._left, self.sure, frozenset(checked))
        self._difference = ServerChanges(document, known, self._wanted, self._capabilities)
        managed = {(proxy.name, line.name) for proxy in document.proxies for line in proxy.managed}
        for key, line in map(parse_change, wanted.removed):
            if line and key not in managed:
                self._difference.needs_reload[key] = "was an operator's line"
        before = config.list_uncertain_servers(document)
        if document.is_conditional or before:
            then = config.list_uncertain_servers(document.reread(wanted.after))
            changed = {key for key in (*before, *then) if before.get(key) != then.get(key)}
            self._difference.needs_reload |= dict.fromkeys(
                changed, "an .if or a variable decides whether HAProxy has it"
            )
        going = {key: line for key, line in here.items() if key not in self._wanted}
        there = {(key[0], *split_server_line(line)[:2]) for key, line in self._wanted.items()}
        self._renamed = {key: line for key, line in going.items() if (key[0], *split_server_line(line)[:2]) in there}
        pausing = {key: here.get(key, line) for key, line in self._draining.items() if key in here or key in self._left}
        self.out += self.withdraw({key: line for key, line in going.items() if key not in self._renamed} | pausing)

    def keep_out(self, document: Document, lines: Lines) -> list[str]:
        """Take the traffic from these servers of `document`. Returns those whose traffic was taken."""
        self._session_cutters = find_session_cutters(document)
        return self.withdraw(lines)

    def after_reload(self, settings: Sequence[Sequence[str]], worker: Worker) -> RuntimeChanges:
        """Return the changes for the worker of a reload, which withdraws `_withheld` again. Raises SessionError."""
        fresh = open_runtime_changes(self._store, settings, worker, sure=True)
        fresh._wanted, fresh._difference = self._wanted, self._difference  # noqa: SLF001  # the same class
        fresh._withheld, fresh._draining, fresh._session_cutters = self._withheld, self._draining, self._session_cutters  # noqa: SLF001  # as above
        fresh.withdraw({**self._draining, **self._withheld})
        self.confirmed_out |= fresh.confirmed_out
        return fresh

    @staticmethod
    def map_servers_to_nodes(wanted: Plan) -> Mapping[Key, str]:
        """Return the node of each server that changes."""
        return {
            parse_change(text)[0]: node
            for node, change in wanted.changes.items()
            for text in (*change.added, *change.removed)
        }

    def withdraw(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers where possible; running requests finish.

        Returns the servers whose traffic was taken.
        """
        if not lines:
            return []
        fresh = {key: line if self.sure else "" for key, line in lines.items() if key not in self._left}
        if fresh:
            self._left |= fresh
            # Record before sending: after a crash the next run must know what to enable. A full disk stops nothing.
            try:
                self._store.save_served(self._store.load_served()._replace(left=self.left))
            except OSError:
                self._store.mark_served_incomplete()
        answers = self._talk.send(
            [format_stop_command(key, drain=self._should_drain(key, line)) for key, line in lines.items()]
        )
        for key, answer in zip(lines, answers, strict=True):
            if answer == "" or answer in _GONE_ANSWERS:
                self.confirmed_out.add(key)
            if answer:
                self._left.pop(key, None)
            if answer and answer not in _GONE_ANSWERS:
                self._talk.problems.append(f"{format_target(key)}: {answer}")
        return [format_target(key) for key, answer in zip(lines, answers, strict=True) if answer == ""]

    def admit_servers(self) -> bool:
        """Enable the added servers, each once it answers; False where a command failed."""
        if self._difference is None or self.problems:
            return False
        self._joins = joins = self._difference.joins
        good = Admission(self._talk).admit_servers(joins, self._difference.dynamic_cookies)
        for join in joins if good else ():
            self._left.pop(join.key, None)
        if good:
            self.withdraw(self._renamed)
        return good and not self.problems

    def retract(self) -> None:
        """Take the traffic from the servers added in this run: the file does not have them after all."""
        back = [key for key in self._renamed if self._left.pop(key, None) is not None]
        self._talk.send([f"set server {format_target(key)} state ready" for key in back])
        drained = {key: line for key, line in self._present.items() if is_drained(line)}
        self._draining = {**self._draining, **drained}
        came = (one for one in self._joins if one.key in drained or one.key not in self._served)
        self.withdraw({join.key: self._present.get(join.key, join.line) for join in came})

    def find_differences(self) -> Mapping[Key, str]:
        """Return the differences between what the worker runs and the plan. Raises SessionError."""
        own = self._difference
        out = {
            key
            for key, line in self._wanted.items()
            if own and (own.is_disabled(key, line) or own.has_agent(key, line))
        }
        return find_differences(self._talk.fetch_states(), self._wanted, self._left, out)

    def delete_left(self) -> bool:
        """Delete the servers in maintenance whose sessions have ended, where HAProxy can; returns whether any was."""
        gone = self._list_removable()
        if not gone:
            return False
        with contextlib.suppress(SessionError):
            self._stop_drained(gone)
        deadline = time.monotonic() + _DELETE_TIMEOUT
        deleted = False
        for key in gone:
            rest = int((deadline - time.monotonic()) * 1000)
            commands = [f"wait {rest}ms srv-removable {format_target(key)}"] if rest > 0 else []
            answer = self._talk.send([*commands, f"del server {format_target(key)}"])[-1]
            if answer is None:
                break
            if answer == _DELETED_ANSWER or answer in _GONE_ANSWERS:
                deleted = self._left.pop(key) is not None
        return deleted

    def _stop_drained(self, keys: Iterable[Key]) -> None:
        """Put drained servers without sessions into maintenance: HAProxy deletes no others."""
        states = self._talk.fetch_states()
        drained = [key for key in keys if key in states and states[key].draining]
        if drained:
            open_sessions = self._talk.fetch_sessions()
            self._talk.send([format_stop_command(key, drain=False) for key in drained if not open_sessions.get(key)])

    def _list_removable(self) -> list[Key]:
        """Return the servers in maintenance that may be deleted: removed for good, and easily added again."""
        own, paused = self._difference, self._list_paused()
        if own is None or not self._capabilities.deletes:
            return []
        staying = {*self._wanted, *self._withheld, *paused}
        return [key for key, line in self._left.items() if key not in staying and own.can_return(key, line)]

    def _list_paused(self) -> set[Key]:
        return {key for key in self._left if config.is_paused_server(key, self._paused)}

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
                    self._left.pop(key, None)
        self._talk.send(commands)

    def _should_drain(self, key: Key, line: str) -> bool:
        """Return whether a server is drained: its node is paused that way, or `maint` would end its sessions."""
        return key in self._draining or key[0] in self._session_cutters or "on-marked-down" in line


def compare_withheld(after: Lines, asked_for: Lines) -> Lines:
    """Return the servers in the file `after` a change that are to take no new clients."""

    def as_asked(key: Key, line: str) -> bool:
        return key in asked_for and (is_drained(line) or not is_drained(asked_for[key]))

    return {key: line for key, line in after.items() if not as_asked(key, line)}


def find_session_cutters(document: Document) -> frozenset[str]:
    """Return the proxies that set `on-marked-down shutdown-sessions`: there `maint` ends all sessions."""
    if not any("on-marked-down" in line for line in document.lines):
        return frozenset()
    from lbagent.haproxy.inherited import find_inherited  # noqa: PLC0415  # few files use on-marked-down

    found = find_inherited(document)
    given = {start for start, one in found.items() if "on-marked-down" in one.default_server}
    return frozenset(proxy.name for proxy in document.proxies if proxy.start in given)


def open_runtime_changes(
    store: Store, settings: Sequence[Sequence[str]], worker: Worker, *, sure: bool
) -> RuntimeChanges:
    """Connect to this worker. Raises SessionError where that is not possible."""
    left = store.load_served().left
    talk = session.open_session(settings, worker)
    capabilities = find_capabilities(talk.version)
    if capabilities is None:
        raise SessionError(f"HAProxy {talk.version}: too old to add servers without a reload")
    return RuntimeChanges(store, worker, talk, capabilities, left.lines if left.worker == worker else {}, sure=sure)
