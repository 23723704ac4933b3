"""What a master tells of its reloads, in the environment that it hands on to itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbagent.haproxy.process import Running
from lbagent.host.processes import Process
from lbagent.tuples import NamedTuple

_POLL = 0.01


class Reloads(NamedTuple):
    """What a master says of its reloads."""

    done: int
    failed: int
    worker: int | None
    """The pid of the worker that is not on its way out."""


def reloads(master: Process) -> Reloads | None:
    """What the master says once it waits for its workers again; None while it reloads."""
    return _said(master.environ)


def at_rest(
    running: Running | None, find: Callable[[], Running | None], seconds: float
) -> tuple[Running | None, Reloads | None]:
    """The same HAProxy, and what its master says, once no reload that somebody else has asked for is under way.

    In the midst of one the master has read the file already, and takes no other signal: one that is sent then is lost,
    and the worker that comes would be taken for ours. None in place of the words where it never says any.
    """
    deadline = time.monotonic() + seconds
    while running is not None and running.is_master:
        environ = running.main.environ
        if not _reloading(environ) or time.monotonic() >= deadline:
            return running, _said(environ)
        time.sleep(_POLL)
        running = find()  # its worker is another then
    return running, None


def _said(environ: dict[str, str]) -> Reloads | None:
    if environ.get("HAPROXY_MWORKER_WAIT_ONLY") != "1":
        return None
    rows = [
        dict(field.partition("=")[::2] for field in row.split(";"))
        for row in environ.get("HAPROXY_PROCESSES", "").split("|")[1:]
    ]
    ours = next((row for row in rows if row.get("type") == "m"), None)
    if ours is None:
        return None
    current = [int(row["pid"]) for row in rows if row.get("type") == "w" and row.get("reloads") == "0"]
    return Reloads(int(ours.get("reloads", 0)), int(ours.get("failedreloads", 0)), current[0] if current else None)


def _reloading(environ: dict[str, str]) -> bool:
    return "HAPROXY_PROCESSES" in environ and environ.get("HAPROXY_MWORKER_WAIT_ONLY") != "1"
