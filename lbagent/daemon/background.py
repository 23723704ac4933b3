"""A question that may take seconds, asked beside the work: who hears it does not keep events waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.run.engine import Learn
from lbagent.system.log import Log, format_error


class BackgroundSync:
    """Asks Serf and the other load balancers, and keeps what it learns until it is taken."""

    def __init__(self, ask: Callable[[], Learn], log: Log, call: Callable[[], None]) -> None:
        """`ask` runs in a thread of its own; `call` is called there once it has ended."""
        self._ask, self._log, self._call = ask, log, call
        self._thread: threading.Thread | None = None
        self._learned: Learn | None = None

    def begin(self) -> None:
        """Ask, unless that is under way."""
        if self._thread is None or not self._thread.is_alive():
            # A daemon: who is told to end does not wait for another load balancer.
            self._thread = threading.Thread(target=self._asked, daemon=True)
            self._thread.start()

    @property
    def answered(self) -> bool:
        """Whether there is something to be taken."""
        return self._learned is not None

    def take(self) -> Learn | None:
        """What was learned, once; None while there is nothing."""
        learned, self._learned = self._learned, None
        return learned

    def _asked(self) -> None:
        try:
            self._learned = self._ask()
        except (LbagentError, OSError) as error:
            self._log.hint(f"sync failed: {format_error(error)}")
        self._call()


def run_beside(work: Callable[[], None]) -> None:
    """Run `work` in a thread of its own, which does not hold up the end of the process."""
    threading.Thread(target=work, daemon=True).start()
