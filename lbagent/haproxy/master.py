"""What a master tells of its reloads, in the environment that it hands on to itself."""

from __future__ import annotations

import time

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


def waited_for(master: Process, seconds: float) -> bool:
    """Wait until a reload that somebody else has asked for is over; whether there was one.

    In the midst of it the master has read the file already, and takes no other signal: one that is sent then is lost,
    and the worker that comes would be taken for ours.
    """
    deadline, waited = time.monotonic() + seconds, False
    while _reloading(master) and time.monotonic() < deadline:
        waited = True
        time.sleep(_POLL)
    return waited


def _reloading(master: Process) -> bool:
    environ = master.environ
    return "HAPROXY_PROCESSES" in environ and environ.get("HAPROXY_MWORKER_WAIT_ONLY") != "1"
