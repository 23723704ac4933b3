"""What a master tells of its reloads, in the environment that it hands on to itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbagent.haproxy.process import Running
from lbagent.host.processes import Process
from lbagent.tuples import NamedTuple

_POLL = 0.01

_OTHERS = 3
"""How many reloads of others are waited for, one after the other."""


class Reloads(NamedTuple):
    """What a master says of its reloads."""

    done: int
    failed: int
    worker: int | None
    """The pid of the worker that is not on its way out."""


def reloads(master: Process) -> Reloads | None:
    """What the master says once it waits for its workers again; None while it reloads."""
    environ = master.environ
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


def at_rest(
    running: Running | None, find: Callable[[], Running | None], seconds: float
) -> tuple[Running | None, Reloads | None]:
    """The same HAProxy, and what its master says, once no reload that somebody else has asked for is under way.

    In the midst of one the master has read the file already, and takes no other signal: one that is sent then is lost,
    and the worker that comes would be taken for ours. None in place of the words where it never says any.
    """
    for _ in range(_OTHERS):
        if running is None or not running.is_master:
            break
        said = reloads(running.main)
        if said or not _waited_for(running.main, seconds):
            return running, said or reloads(running.main)
        running = find()
    return running, None


def _waited_for(master: Process, seconds: float) -> bool:
    deadline, waited = time.monotonic() + seconds, False
    while _reloading(master) and time.monotonic() < deadline:
        waited = True
        time.sleep(_POLL)
    return waited


def _reloading(master: Process) -> bool:
    environ = master.environ
    return "HAPROXY_PROCESSES" in environ and environ.get("HAPROXY_MWORKER_WAIT_ONLY") != "1"
