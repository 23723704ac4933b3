"""The servers of a running HAProxy (`show servers state`, `show stat`), compared with haproxy.cfg."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from lbagent.haproxy.config import Key, Lines, format_target, split_server_line
from lbagent.haproxy.server_line import is_drained
from lbagent.names import canonical_address

STATES_COMMAND = "show servers state"
"""The state of the servers of all proxies (management manual, section 9.3, `show servers state`)."""

STATES_VERSION = "1"
"""First line of its answer, and of a server-state file."""

_MAINT, _DRAIN = 0x01, 0x08
_OUT = _MAINT | _DRAIN
"""Administrative states set through the runtime API, not by a check, a tracked server or the file."""

_STOPPED = 0
"""Operational state STOPPED: no traffic, as checks failed."""

_CHECKED = 0x02 | 0x04
"""State of a check: configured and enabled."""

_BE_NAME, _SRV_NAME, _SRV_ADDR, _SRV_OP_STATE, _SRV_ADMIN_STATE = 1, 3, 4, 5, 6
_SRV_CHECK_HEALTH, _SRV_CHECK_STATE, _SRV_PORT = 12, 13, 18
"""Fields of a row, with HAProxy's names."""

_NUMBERS = (_SRV_OP_STATE, _SRV_ADMIN_STATE, _SRV_CHECK_HEALTH, _SRV_CHECK_STATE, _SRV_PORT)
_FIELDS = _SRV_PORT + 1
"""Number of fields of every version of HAProxy; later versions add more."""

STATS_COMMAND = "show stat -1 4 -1"
"""Statistics of the servers of all proxies (management manual, section 9.3, `show stat`)."""

_COLUMNS = ("pxname", "svname", "type", "status", "scur")
_WEIGHT, _ADDRESS = "weight", "addr"
_SERVER = "2"


class ServerState(NamedTuple):
    """One server in `show servers state`. Its fields are parsed when they are used, as few of thousands are."""

    fields: list[str]
    """All words of its row; those that are not used may be one word."""

    @property
    def address(self) -> str:
        """Its address."""
        return self.fields[_SRV_ADDR]

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.fields[_SRV_PORT])

    @property
    def endpoint(self) -> str:
        """ADDRESS:PORT, without the brackets of an IPv6 address."""
        return f"{self.fields[_SRV_ADDR]}:{self.fields[_SRV_PORT]}"

    @property
    def out(self) -> bool:
        """Whether it was put into maintenance or drain through the runtime API."""
        return int(self.fields[_SRV_ADMIN_STATE]) & _OUT != 0

    @property
    def passed(self) -> bool:
        """Whether a check has passed since it was last down."""
        return int(self.fields[_SRV_CHECK_HEALTH]) > 0

    @property
    def draining(self) -> bool:
        """Whether it drains, and is not in maintenance."""
        return int(self.fields[_SRV_ADMIN_STATE]) & _OUT == _DRAIN

    @property
    def down(self) -> bool:
        """Whether it is DOWN because of its checks alone."""
        return int(self.fields[_SRV_OP_STATE]) == _STOPPED and int(self.fields[_SRV_ADMIN_STATE]) == 0

    @property
    def checked(self) -> bool:
        """Whether it has checks, which can bring it back."""
        return int(self.fields[_SRV_CHECK_STATE]) & _CHECKED == _CHECKED

    @property
    def row(self) -> str:
        """The whole row."""
        return " ".join(self.fields)


def parse_states(answer: str) -> Mapping[Key, ServerState]:
    """Parse an answer to `show servers state` into servers by key. Raises ValueError."""
    version, *lines = answer.splitlines() or [answer]
    if version != STATES_VERSION:
        raise ValueError(f"has an unexpected answer: {answer[:60]!r}")
    rows = [line.split(None, _FIELDS) for line in lines if line and not line.startswith("#")]
    if any(len(row) < _FIELDS for row in rows):
        raise ValueError("has truncated rows")
    for at in _NUMBERS:
        for number in {row[at] for row in rows}:
            int(number)
    return {(row[_BE_NAME], row[_SRV_NAME]): ServerState(row) for row in rows}


def _is_at(state: ServerState, address: str, port: int) -> bool:
    return (canonical_address(state.address), state.port) == (address, port)


def find_differences(
    found: Mapping[Key, ServerState],
    wanted: Lines,
    left: Iterable[Key],
    may_be_out: Callable[[Key, str], bool] | None = None,
) -> Mapping[Key, str]:
    """Describe each server that differs from `wanted`, and each of `left` that still gets traffic.

    `may_be_out` returns whether a server may be out of balancing: it is disabled in haproxy.cfg, or by an agent.
    """
    differences = {}
    for key, line in wanted.items():
        state = found.get(key)
        # Fast path: most of ten thousand servers are as their lines are.
        if state and not state.out and line.startswith(f"server {key[1]} {state.endpoint} ") and not is_drained(line):
            continue
        address, port, _ = split_server_line(line)
        if state is None:
            differences[key] = f"{format_target(key)} is missing"
        elif port and address == canonical_address(address) and not _is_at(state, address, port):
            differences[key] = f"{format_target(key)} is at {state.address} port {state.port}"
        elif is_drained(line):
            if not state.out:
                differences[key] = f"{format_target(key)} still gets new clients"
        elif state.out and not (may_be_out and may_be_out(key, line)):
            differences[key] = f"{format_target(key)} is out of balancing"
    strays = (key for key in left if key not in wanted and key in found and not found[key].out)
    return differences | {key: f"{format_target(key)} still gets traffic" for key in strays}


class ServerStats(NamedTuple):
    """The statistics of one server."""

    state: str | None
    """The status: `UP`, `DOWN`, `UP 1/3`, `no check`, `MAINT (via a/b)` and so on."""
    sessions: int | None
    """Number of open sessions."""
    weight: int | None = None
    """The effective weight; without one (0) a server gets no new clients."""
    endpoint: str | None = None
    """ADDRESS:PORT that it connects to; None where HAProxy does not show it."""


Stats = Mapping[tuple[str, str], ServerStats]
"""Statistics by proxy and server."""

NO_STATS = ServerStats(None, None)


def parse_stats(answer: str) -> Stats:
    """Parse an answer to `show stat`. Raises ValueError."""
    rows = csv.reader(f"{line}\n" for line in answer.removeprefix("# ").split("\n"))
    try:
        header = next(rows)
        proxy, server, kind, state, sessions = map(header.index, _COLUMNS)
        weight, address = (header.index(name) if name in header else None for name in (_WEIGHT, _ADDRESS))
        # Complete rows only: an answer may be truncated.
        found = [row for row in rows if len(row) == len(header) and row[kind] == _SERVER]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"answered `show stat` with {answer[:60]!r}") from error
    return {
        (row[proxy], row[server]): ServerStats(
            row[state],
            _parse_number(row[sessions]),
            None if weight is None else _parse_number(row[weight]),
            None if address is None else row[address] or None,
        )
        for row in found
    }


def _parse_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004  # of 64 bits
