"""Threads of the daemon, for what may take seconds: events must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lbagent.errors import LbagentError
from lbagent.run.engine import SyncMerge
from lbagent.system.log import Log, format_error


class BackgroundSync:
    """Queries Serf and the other load balancers in a thread, as answers take seconds and events must not wait."""

    def __init__(self, prepare: Callable[[], SyncMerge], log: Log, wake: Callable[[], None]) -> None:
        """`prepare` runs in the thread, which calls `wake` at its end."""
        self._prepare, self._log, self._wake = prepare, log, wake
        self._thread: threading.Thread | None = None
        self._result: SyncMerge | None = None

    def start(self) -> None:
        """Start a sync, unless one is in progress."""
        if self._thread is None or not self._thread.is_alive():
            # A daemon thread: the end of the process does not wait for another load balancer.
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    @property
    def has_result(self) -> bool:
        """Whether a result can be taken."""
        return self._result is not None

    def take_result(self) -> SyncMerge | None:
        """Return the result once; None where there is none."""
        result, self._result = self._result, None
        return result

    def _run(self) -> None:
        try:
            self._result = self._prepare()
        except (LbagentError, OSError) as error:
            self._log.hint(f"sync failed: {format_error(error)}")
        self._wake()


def run_in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a daemon thread, which does not delay the end of the process."""
    threading.Thread(target=work, daemon=True).start()
