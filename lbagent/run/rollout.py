"""What comes after the swap: HAProxy is told, or reloads; or the previous managed lines are put back."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence

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
from lbagent.haproxy.runtime.servers import LEFT_LIMIT, Admission, Join, KnownServers, ServerChanges, stop_traffic
from lbagent.haproxy.runtime.session import Session, SessionError
from lbagent.haproxy.runtime.state import find_differences
from lbagent.haproxy.server_line import is_drained
from lbagent.names import canonical_address
from lbagent.outcome import Verdict
from lbagent.planning import quarantine
from lbagent.planning.plan import Plan
from lbagent.roles.model import Roles
from lbagent.state.store import Failure, Served, ServersInMaintenance, Store
from lbagent.system.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import NoReturn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lbagent.haproxy.config import Key, Lines
    from lbagent.haproxy.process import Worker

ATTEMPTS = 5
"""How often others may save haproxy.cfg under our hands before we give way."""

_DIFFERS = "HAProxy served something else"
_UNSOLVED = "still ", "not compared: "

_PATIENCE = 5.0
"""Seconds that a new worker may take until it answers on its stats socket."""

_POLL = 0.02

_LONGEST_WAIT = 30
"""Minutes between two tries of a reload that fails."""


class RolloutResult(NamedTuple):
    """How HAProxy came to serve it."""

    words: str
    verdict: Verdict = Verdict.APPLIED
    running: bool = True
    reloaded: bool = True


class Rollout:
    """One change that stands in haproxy.cfg, on its way to the worker that is to serve it."""

    def __init__(self, store: Store, roles: Roles, haproxy: Haproxy, seen: ConfigSnapshot) -> None:
        """`seen` is haproxy.cfg as it was before the swap."""
        self._store, self._roles, self._haproxy, self._seen = store, roles, haproxy, seen
        self._served = store.load_served()
        self.dialogue: RuntimeChanges | None = None
        """With the worker that serves, where there is one that can be told something."""
        self.reasons: list[str] = []
        """Why it took a reload."""
        self.out: list[str] = []
        """The servers whose traffic was taken away by `compare`."""
        self.confirmed_out: frozenset[Key] = frozenset()
        """The servers of which HAProxy has confirmed that they take no new clients."""

    def too_soon(self) -> str | None:
        """Why the reload that failed is not tried again yet; None where it may be."""
        failure = self._served.failure
        if failure is None or failure.key != self._key():
            return None
        wait = 60 * min(2 ** (failure.times - 1), _LONGEST_WAIT)
        rest = failure.at + wait - int(time.time())
        return (
            f"not tried again yet: {failure.words}; in {rest} s, with `lbagent apply --force`,"
            " or when haproxy.cfg or roles.yml changes"
            if 0 < rest <= wait  # more: the clock was ahead then
            else None
        )

    def begin(self, wanted: Plan, asked: Plan, worker: Worker, *, sure: bool, patience: float = 0.0) -> list[str]:
        """Take the traffic from the servers that are to go; returns those from which it was taken.

        `sure` says that the worker has the managed lines of the file. `patience` is in seconds, for a worker that is
        too new to answer.
        """
        if opened := self._opened(worker, patience, sure=sure):
            self.dialogue = opened
            opened.about(self._seen.document, wanted, asked)
            self.confirmed_out = frozenset(opened.confirmed_out)
            return opened.out
        return []

    def keep_out(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers, whatever the file says; returns those from which it was taken."""
        worker = self._haproxy.find_worker()
        opened = self._opened(worker, _PATIENCE, sure=False) if lines and worker else None
        if opened is None:
            return []
        out = opened.keep_out(self._seen.document, lines)
        self.confirmed_out = frozenset(opened.confirmed_out)
        return out

    def _opened(self, worker: Worker, patience: float, *, sure: bool) -> RuntimeChanges | None:
        from lbagent.haproxy.runtime.session import SessionError  # noqa: PLC0415  # as above

        deadline = time.monotonic() + patience
        while True:
            try:
                return opened(self._store, self._seen.document.settings, worker, sure=sure)
            except SessionError as error:
                if time.monotonic() >= deadline or not (error.passing and worker.alive):
                    self.reasons.append(str(error))
                    return None
            time.sleep(_POLL)

    def waiting(self, wanted: Plan) -> frozenset[str] | None:
        """The nodes whose changes take a reload; None where it takes one in any case."""
        if self.dialogue is None or not self.dialogue.sure:
            return None
        nodes = self.dialogue.nodes(wanted)
        missing = self.dialogue.needs_reload.keys() - nodes.keys()
        return None if missing else frozenset(nodes[key] for key in self.dialogue.needs_reload)

    def tell(self, wanted: Plan, *, owing: bool = False) -> RolloutResult | None:
        """Have the worker told; None where that cannot be. `owing` says that another change waits for its reload."""
        dialogue = self.dialogue
        if dialogue is None or self.reasons:
            return None
        if not dialogue.sure:
            self.reasons.append("what HAProxy serves is not known to be what stood in haproxy.cfg")
        self.reasons += [f"{'/'.join(key)}: {why}" for key, why in dialogue.needs_reload.items()]
        if dialogue.crowded and not owing:
            self.reasons.append("too many servers are left behind in maintenance")
        if self.reasons or not dialogue.take_up():
            self.reasons += [dialogue.problems or "not everything was taken"] if not self.reasons else []
            return None
        if amiss := self._amiss():
            self.reasons.append(amiss)
            return None
        self.confirmed_out |= dialogue.confirmed_out
        failure = self._served.failure if owing else None
        self._store.save_served(Served(wanted.digest, dialogue.worker, failure, dialogue.left))
        if dialogue.delete_left():
            self._store.save_served(Served(wanted.digest, dialogue.worker, failure, dialogue.left))
        return RolloutResult(f"said to HAProxy worker {dialogue.worker.pid} without a reload", reloaded=False)

    def reload(self, wanted: Plan) -> RolloutResult:
        """Have HAProxy reload, and see it. Raises RolledBack, TryAgain."""
        changed = {parse_change(text)[0] for text in (*wanted.added, *wanted.removed)} | self._served.left.lines.keys()
        try:
            worker = self._haproxy.take_over(changed)
        except ReloadFailed as error:
            self._put_back(wanted, str(error))
        self._store.save_served(Served(wanted.digest, worker))
        if worker is None:
            return RolloutResult("HAProxy does not run", Verdict.WRITTEN, running=False, reloaded=False)
        differs = [why for why in self.reasons if why.startswith(_DIFFERS)]
        return RolloutResult("; ".join([f"HAProxy worker {worker.pid} serves it", *differs, *self._mended(worker)]))

    def compare(self, wanted: Plan, asked: Plan, worker: Worker, *, urgent: bool) -> tuple[str, bool]:
        """Compare what this worker serves with what it should, and correct it: what was found, and whether it is good.

        Servers that only the file keeps in are taken out again; where that is `urgent`, a worker that is too new to
        answer is waited for.
        """
        if not self.recordable():
            return "", True  # what was taken out without a note stays out until there is room for one
        self.out = self.begin(wanted, asked, worker, sure=True, patience=_PATIENCE if urgent else 0.0)
        if self.dialogue is None:
            return "", self._store.load_served().complete
        words = self._mended(worker)
        good = not any(one.startswith(_UNSOLVED) for one in words)
        if good:
            with contextlib.suppress(OSError):  # on a full disk it is found out again
                self._store.save_served(self._store.load_served()._replace(left=self.dialogue.left, complete=True))
        return "; ".join(words), good

    def recordable(self) -> bool:
        """Whether there is room to note what is sent: a pause that no disk could remember holds until then."""
        served = self._store.load_served()
        if served.complete:
            return True
        try:
            self._store.save_served(served)
        except OSError:
            return False
        return True

    def delete_left(self, wanted: Plan, asked: Plan, worker: Worker) -> None:
        """Delete the servers left behind by earlier runs whose sessions have ended since."""
        self.begin(wanted, asked, worker, sure=True)
        if self.dialogue and self.dialogue.delete_left():
            self._store.save_served(self._store.load_served()._replace(left=self.dialogue.left))

    def give_up(self, wanted: Plan, words: str) -> NoReturn:
        """Put the previous lines back: what could not be said would take a reload, for which it is too soon."""
        self._restore(wanted, words, ReloadPostponed)

    def _amiss(self) -> str:
        from lbagent.haproxy.runtime.session import SessionError  # noqa: PLC0415  # only where there is a dialogue

        try:
            amiss = self.dialogue.amiss() if self.dialogue else {}
        except SessionError as error:
            return f"not compared: {error}"
        return f"{_DIFFERS}: {'; '.join(amiss.values())}" if amiss else ""

    def _mended(self, worker: Worker) -> list[str]:
        """What a state file made of the text, said once more, in words."""
        if self.dialogue is None:
            return []
        from lbagent.haproxy.runtime.session import SessionError  # noqa: PLC0415  # only where there is a dialogue

        try:
            self.dialogue = dialogue = self.dialogue.after_reload(self._seen.document.settings, worker)
            self.confirmed_out |= dialogue.confirmed_out
            if not (found := dialogue.amiss()):
                return []
            dialogue.mend(found)
            still = dialogue.amiss()
        except SessionError as error:
            return [f"not compared: {error}"]
        return [f"{'still' if key in still else 'mended:'} {why}" for key, why in found.items()]

    def _key(self) -> str:
        surroundings = quarantine.fingerprint_context(self._seen.document, self._roles)
        return f"{zlib.crc32(surroundings.encode()):08x}"

    def _put_back(self, wanted: Plan, words: str) -> NoReturn:
        failure, key = self._served.failure, self._key()
        times = failure.times + 1 if failure and failure.key == key else 1
        # Said first: a run killed from here on must not reload again at once.
        self._store.save_served(
            self._store.load_served()._replace(failure=Failure(int(time.time()), times, key, words))
        )
        self._restore(wanted, words, RolledBack)

    def _restore(self, wanted: Plan, words: str, kind: type[LbagentError]) -> NoReturn:
        from lbagent.planning import restore  # noqa: PLC0415  # for the rare reload that fails

        if self.dialogue:
            self.dialogue.retract()
        seen, previous = self._seen, self._last_confirmed()
        for _ in range(ATTEMPTS):
            now = config_files.read_config(self._roles.haproxy)
            same = previous is seen.document and now.texts == wanted.after
            texts = wanted.before if same else restore.restore_managed_lines(now.document, previous)
            with now.stage(texts) as paths:
                if not same and (why := self._haproxy.find_refusal(paths, now.names)):
                    raise kind(f"{words}; the previous managed lines cannot be put back: {why}")
                if now.is_unchanged and now.swap(paths, keep=False):
                    back = Document([("", text) for text in texts]).compute_digest() == previous.compute_digest()
                    part = f"in {now.targets[0].given}{'' if back else ', where their markers still stand'}"
                    raise kind(f"{words}; the previous managed lines are back {part}")
        path = ", ".join(self._roles.haproxy.config)
        raise kind(f"{words}; {path} is being edited by others, the new managed lines still stand in it")

    def _last_confirmed(self) -> Document:
        kept = config_files.read_previous(self._seen)
        if (
            self._seen.document.compute_digest() != self._served.digest
            and kept
            and kept.compute_digest() == self._served.digest
        ):
            return kept
        return self._seen.document


def withheld(document: Document, wanted: Plan | None, asked: Plan) -> Lines:
    """The servers of `document` after `wanted` (None: as it is) that `asked` takes out."""
    if wanted is asked:
        return {}
    from lbagent.haproxy import config  # noqa: PLC0415  # as above

    after = (
        config.predict_servers(document, wanted.after, wanted.changed)
        if wanted
        else config.list_managed_servers(document)
    )
    return dialogue_withheld(after, config.predict_servers(document, asked.after, asked.changed))


# --- dialogue --------------------------------------------------------------------------------------------

_GONE = ("No such server.", "No such backend.")
_DELETED = "Server deleted."

_DELETE = 0.5
"""Seconds that one run waits, in all, for the sessions of removed servers to end; later runs try again."""


class RuntimeChanges:
    """One worker, and what it is known to have."""

    def __init__(  # what is known of a worker
        self, store: Store, worker: Worker, talk: Session, capabilities: Capabilities, left: Lines, *, sure: bool
    ) -> None:
        """`left` is what earlier runs have taken out; `sure` whether its other servers are those of the file."""
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
        self._here: Lines = {}
        self._cut: frozenset[str] = frozenset()
        """Proxies in which `maint` would end sessions."""
        self.out: list[str] = []
        """The servers whose traffic was taken away in this run."""
        self.confirmed_out = set[Key]()
        """The servers of which HAProxy has confirmed in this run that they take no new clients, or are unknown."""
        self._joined: list[Join] = []

    @property
    def left(self) -> ServersInMaintenance:
        """What is in maintenance now, for runs to come."""
        return ServersInMaintenance(self.worker, self._left)

    @property
    def problems(self) -> str:
        """Why something could not be said; nothing where all could."""
        return "; ".join(self._talk.problems)

    @property
    def needs_reload(self) -> Mapping[Key, str]:
        """What takes a reload, and why."""
        return self._difference.needs_reload if self._difference else {}

    @property
    def crowded(self) -> bool:
        """Whether so many servers are left behind for good that a reload has to clear them."""
        if sum(key not in self._wanted for key in self._left) < LEFT_LIMIT:
            return False
        temporary = {*self._removable(), *(self._paused_servers() if self._capabilities.deletes else ())}
        return sum(key not in self._wanted and key not in temporary for key in self._left) >= LEFT_LIMIT

    def about(self, document: Document, wanted: Plan, asked: Plan) -> None:
        """Take the traffic from the servers that `asked` takes out; `take_up` serves the rest of `document` then.

        A server that `wanted` has to keep in the file, though `asked` takes it out, goes too. One that only gets
        another name serves until it has come under that.
        """
        self._here = here = list_managed_servers(document)
        after = config.predict_servers(document, wanted.after, wanted.changed)
        asked_for = after if asked is wanted else config.predict_servers(document, asked.after, asked.changed)
        self._withheld = dialogue_withheld(after, asked_for)
        self._wanted = {key: line for key, line in after.items() if key not in self._withheld}
        self._served = {key: line for key, line in here.items() if key not in self._left}
        self._paused = config.find_paused_servers(document, wanted.changed)
        self._draining = {key: line for key, line in asked_for.items() if is_drained(line) and key in after}
        self._cut = cutting(document)
        checked = {key for key, line in here.items() if is_drained(line)}
        checked |= {key for key, line in self._left.items() if self._drains(key, line)}
        known = KnownServers(self._served, self._left, self.sure, frozenset(checked))
        self._difference = ServerChanges(document, known, self._wanted, self._capabilities)
        managed = {(proxy.name, line.name) for proxy in document.proxies for line in proxy.managed}
        for key, line in map(parse_change, wanted.removed):
            if line and key not in managed:
                self._difference.needs_reload[key] = "was written by hand"
        before = config.list_uncertain_servers(document)
        if document.conditional or before:
            then = config.list_uncertain_servers(document.reread(wanted.after))
            changed = {key for key in (*before, *then) if before.get(key) != then.get(key)}
            self._difference.needs_reload |= dict.fromkeys(changed, "only HAProxy knows whether it has it, and where")
        going = {key: line for key, line in here.items() if key not in self._wanted}
        there = {(key[0], *split_server_line(line)[:2]) for key, line in self._wanted.items()}
        self._renamed = {key: line for key, line in going.items() if (key[0], *split_server_line(line)[:2]) in there}
        pausing = {key: here.get(key, line) for key, line in self._draining.items() if key in here or key in self._left}
        self.out += self.withdraw({key: line for key, line in going.items() if key not in self._renamed} | pausing)

    def keep_out(self, document: Document, lines: Lines) -> list[str]:
        """Take the traffic from these servers of `document` only. Returns those from which it was taken."""
        self._cut = cutting(document)
        return self.withdraw(lines)

    def after_reload(self, settings: Sequence[Sequence[str]], worker: Worker) -> RuntimeChanges:
        """The same with the worker that a reload has brought, which takes from `withheld` again. Raises Unspoken."""
        fresh = opened(self._store, settings, worker, sure=True)
        fresh._wanted, fresh._difference = self._wanted, self._difference  # noqa: SLF001  # another of ours
        fresh._withheld, fresh._draining, fresh._cut = self._withheld, self._draining, self._cut  # noqa: SLF001  # as above
        fresh.withdraw({**self._draining, **self._withheld})
        self.confirmed_out |= fresh.confirmed_out
        return fresh

    @staticmethod
    def nodes(wanted: Plan) -> Mapping[Key, str]:
        """Whose server it is, of those that change."""
        return {
            parse_change(text)[0]: node
            for node, change in wanted.changes.items()
            for text in (*change.added, *change.removed)
        }

    def withdraw(self, lines: Lines) -> list[str]:
        """Take the traffic from these servers, as far as it can be said: running requests finish. Returns which."""
        if not lines:
            return []
        fresh = {key: line if self.sure else "" for key, line in lines.items() if key not in self._left}
        if fresh:
            self._left |= fresh
            # First: a run killed after it has spoken would not know whom to put back. A full disk must not silence us.
            try:
                self._store.save_served(self._store.load_served()._replace(left=self.left))
            except OSError:
                self._store.mark_served_incomplete()
        answers = self._talk.send([stop_traffic(key, drain=self._drains(key, line)) for key, line in lines.items()])
        for key, answer in zip(lines, answers, strict=True):
            if answer == "" or answer in _GONE:
                self.confirmed_out.add(key)
            if answer:
                self._left.pop(key, None)
            if answer and answer not in _GONE:
                self._talk.problems.append(f"{format_target(key)}: {answer}")
        return [format_target(key) for key, answer in zip(lines, answers, strict=True) if answer == ""]

    def take_up(self) -> bool:
        """Have the servers that come take traffic, each once it answers; False where that could not be said."""
        if self._difference is None or self.problems:
            return False
        self._joined = joins = self._difference.joins
        good = Admission(self._talk).admit(joins, self._difference.dynamic_cookies)
        for join in joins if good else ():
            self._left.pop(join.key, None)
        if good:
            self.withdraw(self._renamed)
        return good and not self.problems

    def retract(self) -> None:
        """Take the traffic again from the servers that came in this run: the file does not have them after all."""
        back = [key for key in self._renamed if self._left.pop(key, None) is not None]
        self._talk.send([f"set server {format_target(key)} state ready" for key in back])
        drained = {key: line for key, line in self._here.items() if is_drained(line)}
        self._draining = {**self._draining, **drained}
        came = (one for one in self._joined if one.key in drained or one.key not in self._served)
        self.withdraw({join.key: self._here.get(join.key, join.line) for join in came})

    def amiss(self) -> Mapping[Key, str]:
        """What the worker serves differently from what is wanted. Raises Unspoken."""
        own = self._difference
        out = {
            key
            for key, line in self._wanted.items()
            if own and (own.is_disabled(key, line) or own.has_agent(key, line))
        }
        return find_differences(self._talk.fetch_states(), self._wanted, self._left, out)

    def delete_left(self) -> bool:
        """Delete the servers left behind whose sessions have ended, where HAProxy can; whether any was deleted."""
        gone = self._removable()
        if not gone:
            return False
        with contextlib.suppress(SessionError):
            self._stop_drained(gone)
        deadline = time.monotonic() + _DELETE
        deleted = False
        for key in gone:
            rest = int((deadline - time.monotonic()) * 1000)
            commands = [f"wait {rest}ms srv-removable {format_target(key)}"] if rest > 0 else []
            answer = self._talk.send([*commands, f"del server {format_target(key)}"])[-1]
            if answer is None:
                break
            if answer == _DELETED or answer in _GONE:
                deleted = self._left.pop(key) is not None
        return deleted

    def _stop_drained(self, keys: Iterable[Key]) -> None:
        """Put drained servers without a session into maintenance: others cannot be deleted."""
        states = self._talk.fetch_states()
        drained = [key for key in keys if key in states and states[key].draining]
        if drained:
            open_sessions = self._talk.fetch_sessions()
            self._talk.send([stop_traffic(key, drain=False) for key in drained if not open_sessions.get(key)])

    def _removable(self) -> list[Key]:
        """The servers left behind that may be deleted: gone from the file for good, and easily added again."""
        own, paused = self._difference, self._paused_servers()
        if own is None or not self._capabilities.deletes:
            return []
        staying = {*self._wanted, *self._withheld, *paused}
        return [key for key, line in self._left.items() if key not in staying and own.can_return(key, line)]

    def _paused_servers(self) -> set[Key]:
        return {key for key in self._left if config.is_paused_server(key, self._paused)}

    def mend(self, keys: Iterable[Key]) -> None:
        """Say address and state of these servers once more: a state file may have brought old ones back."""
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

    def _drains(self, key: Key, line: str) -> bool:
        """Whether a server is drained: its node is paused that way, or `maint` would cut its sessions."""
        return key in self._draining or key[0] in self._cut or "on-marked-down" in line


def dialogue_withheld(after: Lines, asked_for: Lines) -> Lines:
    """The servers that the file still has `after` a change, and that are to take no new clients."""

    def as_asked(key: Key, line: str) -> bool:
        return key in asked_for and (is_drained(line) or not is_drained(asked_for[key]))

    return {key: line for key, line in after.items() if not as_asked(key, line)}


def cutting(document: Document) -> frozenset[str]:
    """The proxies that give `on-marked-down shutdown-sessions` to their servers: there `maint` ends all sessions."""
    if not any("on-marked-down" in line for line in document.lines):
        return frozenset()
    from lbagent.haproxy.inherited import find_inherited  # noqa: PLC0415  # reads the whole text once more

    found = find_inherited(document)
    given = {start for start, one in found.items() if "on-marked-down" in one.default_server}
    return frozenset(proxy.name for proxy in document.proxies if proxy.start in given)


def opened(store: Store, settings: Sequence[Sequence[str]], worker: Worker, *, sure: bool) -> RuntimeChanges:
    """The dialogue with this worker. Raises Unspoken where there is none to be had."""
    left = store.load_served().left
    talk = session.open_session(settings, worker)
    capabilities = find_capabilities(talk.version)
    if capabilities is None:
        raise SessionError(f"HAProxy {talk.version}: too old for servers that are added without a reload")
    return RuntimeChanges(store, worker, talk, capabilities, left.lines if left.worker == worker else {}, sure=sure)
