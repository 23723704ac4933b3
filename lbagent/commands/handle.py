"""The door Serf comes through: environment and stdin in, exit status out, and to a query its answer.

What a run needs is loaded only where there is a run: while `watch` lives, an event is a file and no more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from lbagent.errors import NotStored, UsageError
from lbagent.run import queue
from lbagent.serf.raw_event import STDIN_LIMIT, read_handler_event
from lbagent.settings import Settings
from lbagent.state.paths import Paths
from lbagent.system.log import Log


def handle(settings: Settings, log: Log, environ: Mapping[bytes, bytes] = os.environb) -> int:
    """Take one event from Serf as far as it can be taken now; returns the exit status.

    Raises LbagentError and OSError, but not for a query: Serf drops the answer of a handler that fails.
    """
    if b"SERF_EVENT" not in environ:
        raise UsageError("SERF_EVENT is not set; Serf calls `lbagent handle` as its event handler")
    raw = read_handler_event(environ, b"", int(time.time() * 1000), os.urandom(8).hex())
    if not raw.is_relevant:
        return 0
    raw = raw._replace(payload=_stdin())
    if raw.kind == "query":
        from lbagent.commands.query import answer  # noqa: PLC0415  # queries are rare, and need all there is

        log.silent = True
        os.write(1, answer(raw, settings, log))
        return 0
    try:
        queue.store_event(raw, Paths(settings.state_dir))
    except NotStored as error:
        raise queue.withdraw_unstored(error, raw, settings, log) from error
    return queue.drain_spool(settings, log)


def _stdin() -> bytes:
    pieces, size = [], 0
    while size < STDIN_LIMIT and (piece := os.read(0, 1 << 16)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
