"""Events on their way in: stored first, then folded by whoever holds the lock."""

from __future__ import annotations

import time

from lbagent.errors import NotStored
from lbagent.host.lock import held, locked
from lbagent.host.log import Log
from lbagent.host.paths import Paths
from lbagent.host.spool import Spool
from lbagent.serf.raw import RECORD_LIMIT, Raw
from lbagent.settings import Settings

WATCH_HANGS = 5.0
"""Seconds a record may lie in the spool before a living `watch` is taken for hung."""


def store(raw: Raw, paths: Paths) -> None:
    """Put the event into the spool. Raises NotStored."""
    try:
        paths.prepare()
        spool = Spool(paths.spool, RECORD_LIMIT)
        for record in raw.records():
            spool.put(record)
    except OSError as error:
        raise NotStored(f"not stored: sync needed: {error.filename or paths.spool}: {error.strerror}") from error


def drain(settings: Settings, log: Log) -> int:
    """Run until the spool is empty or the lock is busy: then whoever holds it goes on. Raises as Engine.run."""
    paths = Paths(settings.state_dir)
    spool = Spool(paths.spool, RECORD_LIMIT)
    if held(paths.watch_lock) and time.time() - (spool.oldest() or time.time()) < WATCH_HANGS:
        return 0
    status, seen = 0, set[str]()
    while fresh := set(spool.names()) - seen:
        with locked(paths.lock) as had:
            if not had:
                return status
            from lbagent.apply import Options  # noqa: PLC0415  # 20 ms that a busy lock saves
            from lbagent.engine import Engine  # noqa: PLC0415  # 20 ms that a busy lock saves

            seen |= fresh
            status = Engine(paths, settings.roles, log).run(Options()).exit_status
    return status
