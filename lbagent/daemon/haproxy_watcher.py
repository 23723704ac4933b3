"""Whether HAProxy was started, or reloaded by somebody else, since the last run."""

from __future__ import annotations

from lbagent.run.engine import Engine


class HaproxyWatcher:
    """The processes of HAProxy that no run of ours has seen, or made."""

    def __init__(self, engine: Engine) -> None:
        """Nobody is known yet."""
        self._engine = engine
        self._known: frozenset[int] = frozenset()

    def seen(self) -> None:
        """Take those who are there now for known: a run is about to look at them."""
        self._known = self._pids()

    def ours(self) -> None:
        """Take for known whom the run has seen serving: it may have made that worker itself."""
        worker = self._engine.haproxy.find_worker() if self._engine.haproxy else None
        self._known |= {worker.pid} if worker else frozenset()

    @property
    def there(self) -> bool:
        """Whether there is one that is not known."""
        return bool(self._pids() - self._known)

    def _pids(self) -> frozenset[int]:
        return self._engine.haproxy.pids if self._engine.haproxy else frozenset()
