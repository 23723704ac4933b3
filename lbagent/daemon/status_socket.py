"""The status of this load balancer for local readers without privileges, on a Unix socket.

`lbagent web` may not read the state directory or HAProxy's stats socket. It connects, reads one JSON object to the end,
and sends nothing. Each object is made when a reader connects, so without a reader it costs nothing.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import socket
import threading
import time
from typing import Any

from lbagent.errors import LbagentError
from lbagent.run.engine import Engine
from lbagent.serf import agent
from lbagent.settings import STATUS_SOCKET
from lbagent.state import store
from lbagent.state.files import read_stamp
from lbagent.state.lock import list_holders
from lbagent.status.report import collect_status
from lbagent.system import untrusted_files
from lbagent.system.log import Log, format_error

VERSION = 1
"""Version of the object: it grows by keys; what a key means changes only with this number."""

GROUP = "lbagent-web"
"""The group that may connect."""

_HISTORY = 200
"""Entries of history.jsonl in an object."""

_SAME, _SHARE = 0.3, 4
"""Seconds for which an object is sent again, and at least so many times the seconds that it took to make.

The status of 1,000 nodes takes 0.3 s. Events must not wait for it.
"""

_SEND = 2.0
"""Seconds that a reader has to take the whole object."""

_NAME_FOR = 300.0
"""Seconds for which the agent's name is remembered."""


class StatusSocket:
    """Answers readers in a thread of its own until `close`."""

    def __init__(self, folder: str, engine: Engine, log: Log) -> None:
        """Listen in `folder`; `engine` is used by no other thread. Raises OSError."""
        self._path, self._engine, self._log = os.path.join(folder, STATUS_SOCKET), engine, log
        self.heartbeat = time.time()
        """When the daemon's main loop was last active, in epoch seconds."""
        self._listener = _listen(self._path)
        self._content, self._sent_until = b"", float("-inf")
        self._name, self._named = "", float("-inf")
        self._history: tuple[tuple[int, int, int] | None, list[dict[str, Any]]] = (None, [])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` does not
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _serve(self) -> None:
        while True:
            try:
                reader, _ = self._listener.accept()
            except OSError:
                return  # closed
            with reader, contextlib.suppress(OSError):
                reader.settimeout(_SEND)  # for all of it: a reader that takes nothing must not keep others waiting
                reader.sendall(self._make_content())

    def _make_content(self) -> bytes:
        begin = time.monotonic()
        if begin > self._sent_until:
            try:
                self._content = json.dumps(self._describe()).encode()
            except Exception as error:  # noqa: BLE001  # a defect here must not end the daemon's only answer
                self._content = json.dumps(self._wrap(None, f"{type(error).__name__}: {error}", busy=False)).encode()
            end = time.monotonic()
            self._sent_until = end + max(_SAME, _SHARE * (end - begin))
        return self._content

    def _describe(self) -> dict[str, Any]:
        paths = self._engine.paths
        before, was_busy = read_stamp(paths.served), bool(list_holders(paths.lock))
        try:
            status, error = collect_status(self._engine).as_json(), None
        except (LbagentError, OSError) as refused:
            status, error = None, format_error(refused)
        # A run that changes haproxy.cfg and served.json between two reads looks like a change that is not confirmed.
        busy = was_busy or bool(list_holders(paths.lock)) or before != read_stamp(paths.served)
        return self._wrap(status, error, busy=busy)

    def _wrap(self, status: dict[str, Any] | None, error: str | None, *, busy: bool) -> dict[str, Any]:
        return {
            "version": VERSION,
            "name": self._find_name(),
            "at": time.time(),
            "heartbeat": self.heartbeat,
            "busy": busy,
            "status": status,
            "error": error,
            "history": self._read_history(),
            "metrics": self._read_metrics(),
        }

    def _find_name(self) -> str:
        """Return this load balancer's name in Serf; the host's name while the agent cannot be asked."""
        if time.monotonic() - self._named > _NAME_FOR:
            with contextlib.suppress(LbagentError, OSError):
                self._name, self._named = agent.fetch_info().name, time.monotonic()
        return self._name or os.uname().nodename

    def _read_history(self) -> list[dict[str, Any]]:
        version = read_stamp(self._engine.paths.history)
        if version != self._history[0]:
            with contextlib.suppress(OSError):
                self._history = version, store.read_entries(self._engine.paths.history, _HISTORY)
        return self._history[1]

    def _read_metrics(self) -> str | None:
        try:
            return untrusted_files.read_whole_file(self._engine.paths.metrics).decode("utf-8", "replace")
        except OSError:
            return None


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Only this user may connect before the group is set.
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
            os.chmod(path, 0o660)
        listener.listen(64)
    except OSError as error:
        listener.close()
        error.filename = error.filename or path
        raise
    return listener
