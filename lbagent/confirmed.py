"""What the worker that serves is known to have of the managed lines that stand in haproxy.cfg."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from lbagent import scene
from lbagent.haproxy.process import Worker
from lbagent.haproxy.roster import Key
from lbagent.haproxy.takeover import Haproxy
from lbagent.host.store import Served, Store
from lbagent.plan import Plan
from lbagent.scene import Scene


class Confirmed:
    """What served.json says, beside a text and the HAProxy that runs it."""

    def __init__(self, store: Store, seen: Scene, haproxy: Haproxy) -> None:
        """As both stand now."""
        self._store, self._seen, self._haproxy = store, seen, haproxy
        self.served = store.served()
        self.met: Worker | None = None
        """The worker that is believed, since just now, to have what stands in the file: it has not been asked."""

    @property
    def worth_keeping(self) -> bool:
        """Whether the text that stands is to be kept as the previous one."""
        # What HAProxy never confirmed must not push out what it did.
        return self._seen.document.digest() == self.served.digest or scene.previous(self._seen) is None

    def nothing_to_do(self, wanted: Plan, asked: Plan) -> bool:
        """Whether HAProxy serves all that is `asked` for and the file can have (`wanted`), or is shown not to run."""
        if self._haproxy.serving() is None:
            # It will read the file when it starts.
            here = (self._seen.document.digest(), None, None)
            return self.served[:3] == here and self._haproxy.shown_not_to_run()
        return self.sure() and not self._owes(wanted, asked)

    def sure(self) -> bool:
        """Whether the worker has the managed lines of the file."""
        digest, worker = self._seen.document.digest(), self._haproxy.serving()
        if self.served[:2] == (digest, worker) or (not self.served.digest and not self._seen.document.serves):
            return True
        # Started or reloaded by somebody else, after the file became what it is.
        if self._haproxy.has_read_since(self._seen.changed_at, self._seen.size):
            self.served, self.met = Served(digest, worker, left=self.served.left), worker
            with contextlib.suppress(OSError):  # on a full disk it is found out again
                self._store.serve(self.served)
            return True
        return False

    def _owes(self, wanted: Plan, asked: Plan) -> bool:
        """Whether a server that was taken out is to serve again, though its line has never been away."""
        left = self.served.left
        if left.worker != self._haproxy.serving() or not left.lines:
            return False
        from lbagent.haproxy import roster  # noqa: PLC0415  # only after a server went
        from lbagent.haproxy.server import is_drained  # noqa: PLC0415  # as above

        after = roster.after(self._seen.document, wanted.after, wanted.changed)
        asked_for = after if asked is wanted else roster.after(self._seen.document, asked.after, asked.changed)
        serving = (key for key, line in asked_for.items() if key in after and not is_drained(line))
        return any(key in left.lines for key in serving)

    def pauses_sent(self, withheld: Collection[Key]) -> bool:
        """Whether the worker that serves was sent that these servers take no traffic, though the file has them."""
        left = self.served.left
        return not withheld or (left.worker == self._haproxy.serving() and all(key in left.lines for key in withheld))
