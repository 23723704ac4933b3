"""The Serf event handler: reads environment and stdin, stores the event, and prints the answer to a query.

Only a run imports what a run needs: while `watch` runs, an event becomes a file and nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from lbagent.errors import NotStored, UsageError
from lbagent.run import queue
from lbagent.serf.raw_event import STDIN_LIMIT, read_handler_event
from lbagent.settings import Settings
from lbagent.system.log import Log


def handle(settings: Settings, log: Log, environ: Mapping[bytes, bytes] = os.environb) -> int:
    """Store one event of Serf, and apply the queue if possible; return the exit status.

    Raises LbagentError and OSError, except for a query: Serf drops the answer of a handler that fails.
    """
    if b"SERF_EVENT" not in environ:
        raise UsageError("SERF_EVENT is not set; Serf calls `lbagent handle` as its event handler")
    raw = read_handler_event(environ, b"", int(time.time() * 1000), os.urandom(8).hex())
    if not raw.is_relevant:
        return 0
    raw = raw._replace(payload=_read_stdin())
    if raw.kind == "query":
        from lbagent.commands.query import answer_query  # noqa: PLC0415  # an event must not wait for its imports

        log.silent = True
        sys.stdout.buffer.write(answer_query(raw, settings, log))
        sys.stdout.flush()
        return 0
    try:
        queue.store_event(raw, settings.paths)
    except NotStored as error:
        raise queue.withdraw_without_storing(error, raw, settings, log) from error
    return queue.drain_spool(settings, log)


def _read_stdin() -> bytes:
    pieces, size = [], 0
    while size < STDIN_LIMIT and (piece := os.read(0, 1 << 16)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
