"""What comes after the swap: HAProxy is told, or reloads; or the previous managed lines are put back."""

from __future__ import annotations

import contextlib
import time
import zlib

from lbagent import quarantine, scene
from lbagent.errors import LbagentError, NotYet, PutBack
from lbagent.haproxy.roster import entry
from lbagent.haproxy.takeover import Haproxy, ReloadFailed
from lbagent.haproxy.text import Document
from lbagent.host.store import Failure, Served, Store
from lbagent.outcome import Verdict
from lbagent.plan import Plan
from lbagent.roles import Roles
from lbagent.scene import Scene
from lbagent.tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import NoReturn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lbagent.dialogue import Dialogue  # loaded only where there is a HAProxy to talk to
    from lbagent.haproxy.process import Worker
    from lbagent.haproxy.roster import Key, Lines

ATTEMPTS = 5
"""How often others may save haproxy.cfg under our hands before we give way."""

_DIFFERS = "HAProxy served something else"
_UNSOLVED = "still ", "not compared: "

_PATIENCE = 5.0
"""Seconds that a new worker may take until it answers on its stats socket."""

_POLL = 0.02

_LONGEST_WAIT = 30
"""Minutes between two tries of a reload that fails."""


class Handed(NamedTuple):
    """How HAProxy came to serve it."""

    words: str
    verdict: Verdict = Verdict.APPLIED
    running: bool = True
    reloaded: bool = True


class Handover:
    """One change that stands in haproxy.cfg, on its way to the worker that is to serve it."""

    def __init__(self, store: Store, roles: Roles, haproxy: Haproxy, seen: Scene) -> None:
        """`seen` is haproxy.cfg as it was before the swap."""
        self._store, self._roles, self._haproxy, self._seen = store, roles, haproxy, seen
        self._served = store.served()
        self.dialogue: Dialogue | None = None
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
        worker = self._haproxy.serving()
        opened = self._opened(worker, _PATIENCE, sure=False) if lines and worker else None
        if opened is None:
            return []
        out = opened.keep_out(self._seen.document, lines)
        self.confirmed_out = frozenset(opened.confirmed_out)
        return out

    def _opened(self, worker: Worker, patience: float, *, sure: bool) -> Dialogue | None:
        from lbagent import dialogue  # noqa: PLC0415  # only where there is a HAProxy to talk to
        from lbagent.haproxy.conversation import Unspoken  # noqa: PLC0415  # as above

        deadline = time.monotonic() + patience
        while True:
            try:
                return dialogue.opened(self._store, self._seen.document.settings, worker, sure=sure)
            except Unspoken as error:
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

    def tell(self, wanted: Plan, *, owing: bool = False) -> Handed | None:
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
            self.reasons += [dialogue.trouble or "not everything was taken"] if not self.reasons else []
            return None
        if amiss := self._amiss():
            self.reasons.append(amiss)
            return None
        self.confirmed_out |= dialogue.confirmed_out
        failure = self._served.failure if owing else None
        self._store.serve(Served(wanted.digest, dialogue.worker, failure, dialogue.left))
        if dialogue.delete_left():
            self._store.serve(Served(wanted.digest, dialogue.worker, failure, dialogue.left))
        return Handed(f"said to HAProxy worker {dialogue.worker.pid} without a reload", reloaded=False)

    def reload(self, wanted: Plan) -> Handed:
        """Have HAProxy reload, and see it. Raises PutBack, TryAgain."""
        changed = {entry(text)[0] for text in (*wanted.added, *wanted.removed)} | self._served.left.lines.keys()
        try:
            worker = self._haproxy.take_over(changed)
        except ReloadFailed as error:
            self._put_back(wanted, str(error))
        self._store.serve(Served(wanted.digest, worker))
        if worker is None:
            return Handed("HAProxy does not run", Verdict.WRITTEN, running=False, reloaded=False)
        differs = [why for why in self.reasons if why.startswith(_DIFFERS)]
        return Handed("; ".join([f"HAProxy worker {worker.pid} serves it", *differs, *self._mended(worker)]))

    def compare(self, wanted: Plan, asked: Plan, worker: Worker, *, urgent: bool) -> tuple[str, bool]:
        """Compare what this worker serves with what it should, and correct it: what was found, and whether it is good.

        Servers that only the file keeps in are taken out again; where that is `urgent`, a worker that is too new to
        answer is waited for.
        """
        if not self.recordable():
            return "", True  # what was taken out without a note stays out until there is room for one
        self.out = self.begin(wanted, asked, worker, sure=True, patience=_PATIENCE if urgent else 0.0)
        if self.dialogue is None:
            return "", self._store.served().complete
        words = self._mended(worker)
        good = not any(one.startswith(_UNSOLVED) for one in words)
        if good:
            with contextlib.suppress(OSError):  # on a full disk it is found out again
                self._store.serve(self._store.served()._replace(left=self.dialogue.left, complete=True))
        return "; ".join(words), good

    def recordable(self) -> bool:
        """Whether there is room to note what is sent: a pause that no disk could remember holds until then."""
        served = self._store.served()
        if served.complete:
            return True
        try:
            self._store.serve(served)
        except OSError:
            return False
        return True

    def delete_left(self, wanted: Plan, asked: Plan, worker: Worker) -> None:
        """Delete the servers left behind by earlier runs whose sessions have ended since."""
        self.begin(wanted, asked, worker, sure=True)
        if self.dialogue and self.dialogue.delete_left():
            self._store.serve(self._store.served()._replace(left=self.dialogue.left))

    def give_up(self, wanted: Plan, words: str) -> NoReturn:
        """Put the previous lines back: what could not be said would take a reload, for which it is too soon."""
        self._restore(wanted, words, NotYet)

    def _amiss(self) -> str:
        from lbagent.haproxy.conversation import Unspoken  # noqa: PLC0415  # only where there is a dialogue

        try:
            amiss = self.dialogue.amiss() if self.dialogue else {}
        except Unspoken as error:
            return f"not compared: {error}"
        return f"{_DIFFERS}: {'; '.join(amiss.values())}" if amiss else ""

    def _mended(self, worker: Worker) -> list[str]:
        """What a state file made of the text, said once more, in words."""
        if self.dialogue is None:
            return []
        from lbagent.haproxy.conversation import Unspoken  # noqa: PLC0415  # only where there is a dialogue

        try:
            self.dialogue = dialogue = self.dialogue.after_reload(self._seen.document.settings, worker)
            self.confirmed_out |= dialogue.confirmed_out
            if not (found := dialogue.amiss()):
                return []
            dialogue.mend(found)
            still = dialogue.amiss()
        except Unspoken as error:
            return [f"not compared: {error}"]
        return [f"{'still' if key in still else 'mended:'} {why}" for key, why in found.items()]

    def _key(self) -> str:
        surroundings = quarantine.surroundings(self._seen.document, self._roles)
        return f"{zlib.crc32(surroundings.encode()):08x}"

    def _put_back(self, wanted: Plan, words: str) -> NoReturn:
        failure, key = self._served.failure, self._key()
        times = failure.times + 1 if failure and failure.key == key else 1
        # Said first: a run killed from here on must not reload again at once.
        self._store.serve(self._store.served()._replace(failure=Failure(int(time.time()), times, key, words)))
        self._restore(wanted, words, PutBack)

    def _restore(self, wanted: Plan, words: str, kind: type[LbagentError]) -> NoReturn:
        from lbagent import restore  # noqa: PLC0415  # for the rare reload that fails

        if self.dialogue:
            self.dialogue.retract()
        seen, previous = self._seen, self._last_confirmed()
        for _ in range(ATTEMPTS):
            now = scene.look(self._roles.haproxy)
            same = previous is seen.document and now.texts == wanted.after
            texts = wanted.before if same else restore.put_back(now.document, previous)
            with now.staged(texts) as paths:
                if not same and (why := self._haproxy.refusal(paths, now.names)):
                    raise kind(f"{words}; the previous managed lines cannot be put back: {why}")
                if now.untouched and now.swap(paths, keep=False):
                    back = Document([("", text) for text in texts]).digest() == previous.digest()
                    part = f"in {now.targets[0].given}{'' if back else ', where their markers still stand'}"
                    raise kind(f"{words}; the previous managed lines are back {part}")
        path = ", ".join(self._roles.haproxy.config)
        raise kind(f"{words}; {path} is being edited by others, the new managed lines still stand in it")

    def _last_confirmed(self) -> Document:
        kept = scene.previous(self._seen)
        if self._seen.document.digest() != self._served.digest and kept and kept.digest() == self._served.digest:
            return kept
        return self._seen.document


def withheld(document: Document, wanted: Plan | None, asked: Plan) -> Lines:
    """The servers of `document` after `wanted` (None: as it is) that `asked` takes out."""
    if wanted is asked:
        return {}
    from lbagent import dialogue  # noqa: PLC0415  # rare
    from lbagent.haproxy import roster  # noqa: PLC0415  # as above

    after = roster.after(document, wanted.after, wanted.changed) if wanted else roster.standing(document)
    return dialogue.withheld(after, roster.after(document, asked.after, asked.changed))
