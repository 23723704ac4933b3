"""Pass server health to a new worker, so that a DOWN server gets no traffic until its checks pass.

A worker starts with all servers UP. It gets their state from the operator's server-state file, which is rewritten
before the reload, and through the runtime API as soon as it serves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lbagent.haproxy.config import RUNTIME_NAME, Key, format_target
from lbagent.haproxy.process import Worker
from lbagent.haproxy.runtime import session, socket
from lbagent.haproxy.runtime.session import SessionError
from lbagent.state import files

GlobalLines = Sequence[Sequence[str]]
"""The words of each line of `global`."""

_COMMAND = "show servers state"
_TIMEOUT = 2.0
_VERSION = "1"
_HEADER = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state (and more)"
_FIELDS = 19
_STOPPED = 0
"""Operational state STOPPED: no traffic, as checks failed."""

_CHECKED = 0x02 | 0x04
"""State of a check: configured and enabled."""

_READABLE = 0o644


class ServerHealth(NamedTuple):
    """One server in `show servers state` (management manual, section 9.3)."""

    text: str
    address: str
    port: str
    down: bool
    """Whether it is DOWN because of its checks alone."""
    checked: bool
    """Whether it has checks, which can bring it back."""


Health = Mapping[Key, ServerHealth]


def read_health(lines: GlobalLines) -> Health:
    """Return the servers of the worker; empty if no stats socket answers."""
    for address in socket.list_stats_sockets(lines):
        with contextlib.suppress(OSError):
            return parse_health(socket.ask(address, _COMMAND, _TIMEOUT))
    return {}


def parse_health(answer: str) -> Health:
    """Parse an answer to `show servers state`; incomplete rows are skipped."""
    version, *lines = answer.splitlines() or [""]
    if version != _VERSION:
        return {}
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {(row[1], row[3]): _parse_row(row) for row in rows if len(row) >= _FIELDS and _has_numbers(row)}


def restore_down_servers(lines: GlobalLines, worker: Worker, before: Health) -> list[str]:
    """Set the servers that were DOWN before to DOWN in the new worker; return their names.

    A server with another address, or without checks that could bring it back, is left as HAProxy starts it.
    """
    if not any(row.down for row in before.values()):
        return []
    with contextlib.suppress(SessionError):
        talk = session.open_session(lines, worker)
        now = parse_health("".join(answer or "" for answer in talk.send([_COMMAND])))
        same = [key for key, row in before.items() if row.down and _may_start_down(now.get(key), row)]
        down = [key for key in same if all(map(RUNTIME_NAME.fullmatch, key))]
        answers = talk.send([f"set server {format_target(key)} health down" for key in down])
        return [format_target(key) for key, answer in zip(down, answers, strict=True) if answer == ""]
    return []


def write_state_file(lines: GlobalLines, rows: Health, changed: Collection[Key]) -> None:
    """Write the server-state file, if `global` declares one, without the servers in `changed`.

    For HAProxy, the file takes precedence over the server's line, including its port. Errors are ignored: HAProxy can
    start without the file.
    """
    path = next((words[1] for words in lines if words[0] == "server-state-file" and len(words) > 1), "")
    base = next((words[1] for words in lines if words[0] == "server-state-base" and len(words) > 1), "")
    path = os.path.join(base, path)
    if rows and os.path.isabs(path):
        kept = [row.text for key, row in rows.items() if key not in changed]
        text = "\n".join((_VERSION, _HEADER, *kept, ""))
        with contextlib.suppress(OSError):
            files.replace_file(path, text.encode("utf-8", "surrogateescape"), _READABLE, durable=False)


def _parse_row(row: Sequence[str]) -> ServerHealth:
    down = int(row[5]) == _STOPPED and int(row[6]) == 0
    return ServerHealth(" ".join(row), row[4], row[18], down, int(row[13]) & _CHECKED == _CHECKED)


def _has_numbers(row: Sequence[str]) -> bool:
    return all(row[at].isdigit() for at in (5, 6, 13))


def _may_start_down(now: ServerHealth | None, before: ServerHealth) -> bool:
    return now is not None and now.checked and (now.address, now.port) == (before.address, before.port)
