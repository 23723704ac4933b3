"""What one run says to the worker that serves: who goes first, who comes once it answers, and whether it is so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lbagent.admission import Admission
from lbagent.haproxy import conversation, roster
from lbagent.haproxy.conversation import Conversation
from lbagent.haproxy.dynamic import LEFT_LIMIT, Difference, Join, Known
from lbagent.haproxy.process import Worker
from lbagent.haproxy.roster import Key, Lines, entry, parts, standing, target
from lbagent.haproxy.server import is_drained
from lbagent.haproxy.servers import differences
from lbagent.haproxy.text import Document
from lbagent.host.store import Left, Store
from lbagent.names import canonical_address
from lbagent.plan import Plan

_GONE = ("No such server.", "No such backend.")


class Dialogue:
    """One worker, and what it is known to have."""

    def __init__(self, store: Store, worker: Worker, talk: Conversation, left: Lines, *, sure: bool) -> None:
        """`left` is what earlier runs have put into maintenance; `sure` whether its other servers are the file's."""
        self._store, self._talk, self.worker, self.sure = store, talk, worker, sure
        self._left = dict(left)
        self._wanted: Lines = {}
        self._withheld: Lines = {}
        self._renamed: Lines = {}
        self._served: Lines = {}
        self._difference: Difference | None = None
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
    def left(self) -> Left:
        """What is in maintenance now, for runs to come."""
        return Left(self.worker, self._left)

    @property
    def trouble(self) -> str:
        """Why something could not be said; nothing where all could."""
        return "; ".join(self._talk.trouble)

    @property
    def unsayable(self) -> Mapping[Key, str]:
        """What takes a reload, and why."""
        return self._difference.unsayable if self._difference else {}

    @property
    def crowded(self) -> bool:
        """Whether so many servers are left behind that a reload has to clear them."""
        return sum(key not in self._wanted for key in self._left) >= LEFT_LIMIT

    def about(self, document: Document, wanted: Plan, asked: Plan) -> None:
        """Take the traffic from the servers that `asked` takes out; `take_up` serves the rest of `document` then.

        A server that `wanted` has to keep in the file, though `asked` takes it out, goes too. One that only gets
        another name serves until it has come under that.
        """
        self._here = here = standing(document)
        after = roster.after(document, wanted.after, wanted.changed)
        asked_for = after if asked is wanted else roster.after(document, asked.after, asked.changed)
        self._withheld = withheld(after, asked_for)
        self._wanted = {key: line for key, line in after.items() if key not in self._withheld}
        self._served = {key: line for key, line in here.items() if key not in self._left}
        self._draining = {key: line for key, line in asked_for.items() if is_drained(line) and key in after}
        self._cut = cutting(document)
        checked = {key for key, line in here.items() if is_drained(line)}
        checked |= {key for key, line in self._left.items() if self._state(key, line) == "drain"}
        known = Known(self._served, self._left, self.sure, frozenset(checked))
        self._difference = Difference(document, known, self._wanted)
        managed = {(proxy.name, line.name) for proxy in document.proxies for line in proxy.managed}
        for key, line in map(entry, wanted.removed):
            if line and key not in managed:
                self._difference.unsayable[key] = "was written by hand"
        before = roster.doubtful(document)
        if document.conditional or before:
            then = roster.doubtful(document.reread(wanted.after))
            changed = {key for key in (*before, *then) if before.get(key) != then.get(key)}
            self._difference.unsayable |= dict.fromkeys(changed, "only HAProxy knows whether it has it, and where")
        going = {key: line for key, line in here.items() if key not in self._wanted}
        there = {(key[0], *parts(line)[:2]) for key, line in self._wanted.items()}
        self._renamed = {key: line for key, line in going.items() if (key[0], *parts(line)[:2]) in there}
        pausing = {key: here.get(key, line) for key, line in self._draining.items() if key in here or key in self._left}
        self.out += self.withdraw({key: line for key, line in going.items() if key not in self._renamed} | pausing)

    def keep_out(self, document: Document, lines: Lines) -> list[str]:
        """Take the traffic from these servers of `document` only. Returns those from which it was taken."""
        self._cut = cutting(document)
        return self.withdraw(lines)

    def after_reload(self, settings: Sequence[Sequence[str]], worker: Worker) -> Dialogue:
        """The same with the worker that a reload has brought, which takes from `withheld` again. Raises Unspoken."""
        fresh = opened(self._store, settings, worker, sure=True)
        fresh._wanted, fresh._withheld = self._wanted, self._withheld  # noqa: SLF001  # another of ours
        fresh._draining, fresh._cut = self._draining, self._cut  # noqa: SLF001  # as above
        fresh.withdraw({**self._draining, **self._withheld})
        self.confirmed_out |= fresh.confirmed_out
        return fresh

    @staticmethod
    def nodes(wanted: Plan) -> Mapping[Key, str]:
        """Whose server it is, of those that change."""
        return {
            entry(text)[0]: node for node, change in wanted.changes.items() for text in (*change.added, *change.removed)
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
                self._store.serve(self._store.served()._replace(left=self.left))
            except OSError:
                self._store.distrust()
        states = {key: self._state(key, line) for key, line in lines.items()}
        answers = self._talk.say([f"set server {target(key)} state {state}" for key, state in states.items()])
        for key, answer in zip(lines, answers, strict=True):
            if answer == "" or answer in _GONE:
                self.confirmed_out.add(key)
            if answer:
                self._left.pop(key, None)
            if answer and answer not in _GONE:
                self._talk.trouble.append(f"{target(key)}: {answer}")
        return [target(key) for key, answer in zip(lines, answers, strict=True) if answer == ""]

    def take_up(self) -> bool:
        """Have the servers that come take traffic, each once it answers; False where that could not be said."""
        if self._difference is None or self.trouble:
            return False
        self._joined = joins = self._difference.joins
        good = Admission(self._talk).granted(joins, self._difference.dynamic_cookies)
        for join in joins if good else ():
            self._left.pop(join.key, None)
        if good:
            self.withdraw(self._renamed)
        return good and not self.trouble

    def retract(self) -> None:
        """Take the traffic again from the servers that came in this run: the file does not have them after all."""
        back = [key for key in self._renamed if self._left.pop(key, None) is not None]
        self._talk.say([f"set server {target(key)} state ready" for key in back])
        drained = {key: line for key, line in self._here.items() if is_drained(line)}
        self._draining = {**self._draining, **drained}
        came = (one for one in self._joined if one.key in drained or one.key not in self._served)
        self.withdraw({join.key: self._here.get(join.key, join.line) for join in came})

    def amiss(self) -> Mapping[Key, str]:
        """What the worker serves otherwise than wanted. Raises Unspoken."""
        return differences(self._talk.states(), self._wanted, self._left)

    def mend(self, keys: Iterable[Key]) -> None:
        """Say address and state of these servers once more: a state file may have brought old ones back."""
        commands = []
        for key in keys:
            if key in self._wanted:
                address, port, _ = parts(self._wanted[key])
                if port and address == canonical_address(address):
                    commands.append(f"set server {target(key)} addr {address} port {port}")
                state = "drain" if is_drained(self._wanted[key]) else "ready"
                commands.append(f"set server {target(key)} state {state}")
                if state == "ready":
                    self._left.pop(key, None)
        self._talk.say(commands)

    def _state(self, key: Key, line: str) -> str:
        """The state of HAProxy's that takes the traffic from a server and lets its sessions finish."""
        drains = key in self._draining or key[0] in self._cut or "on-marked-down" in line
        return "drain" if drains else "maint"


def withheld(after: Lines, asked_for: Lines) -> Lines:
    """The servers that the file still has `after` a change, and that are to take no new clients."""

    def as_asked(key: Key, line: str) -> bool:
        return key in asked_for and (is_drained(line) or not is_drained(asked_for[key]))

    return {key: line for key, line in after.items() if not as_asked(key, line)}


def cutting(document: Document) -> frozenset[str]:
    """The proxies that give `on-marked-down shutdown-sessions` to their servers: there `maint` ends all sessions."""
    if not any("on-marked-down" in line for line in document.lines):
        return frozenset()
    from lbagent.haproxy.defaults import inherited  # noqa: PLC0415  # reads the whole text once more

    found = inherited(document)
    given = {start for start, one in found.items() if "on-marked-down" in one.default_server}
    return frozenset(proxy.name for proxy in document.proxies if proxy.start in given)


def opened(store: Store, settings: Sequence[Sequence[str]], worker: Worker, *, sure: bool) -> Dialogue:
    """The dialogue with this worker. Raises Unspoken where there is none to be had."""
    left = store.served().left
    talk = conversation.opened(settings, worker)
    return Dialogue(store, worker, talk, left.lines if left.worker == worker else {}, sure=sure)
