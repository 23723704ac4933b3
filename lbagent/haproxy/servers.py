"""What HAProxy serves, as `show servers state` tells it, beside what haproxy.cfg says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbagent.haproxy.roster import Key, Lines, parts, target
from lbagent.haproxy.server import is_drained
from lbagent.names import canonical_address
from lbagent.tuples import NamedTuple

_OUT = 0x01 | 0x08
"""In maintenance, or draining, because somebody said so; not what a check, a tracked server or the file has done."""

_FIELDS = 19


class State(NamedTuple):
    """One server."""

    address: str
    port: int
    out: bool
    """Somebody has taken it out on the stats socket."""
    passed: bool
    """A check has passed since it was last down."""


def states(answer: str) -> Mapping[Key, State]:
    """Every server by its key. Raises ValueError where that is no answer to `show servers state`."""
    version, *lines = answer.splitlines() or [""]
    if version != "1":
        raise ValueError(f"is no table of servers: {answer[:60]!r}")
    rows = [line.split() for line in lines if not line.startswith("#")]
    if any(len(row) < _FIELDS for row in rows):
        raise ValueError("holds rows that are cut off")
    return {(row[1], row[3]): State(row[4], int(row[18]), bool(int(row[6]) & _OUT), int(row[12]) > 0) for row in rows}


def _at(state: State, address: str, port: int) -> bool:
    return (canonical_address(state.address), state.port) == (address, port)


def differences(found: Mapping[Key, State], wanted: Lines, left: Iterable[Key]) -> Mapping[Key, str]:
    """What HAProxy serves otherwise than `wanted` says, and those of `left` that are not out of balancing."""
    said = {}
    for key, line in wanted.items():
        address, port, options = parts(line)
        state = found.get(key)
        if state is None:
            said[key] = f"{target(key)} is unknown to it"
        elif port and address == canonical_address(address) and not _at(state, address, port):
            said[key] = f"{target(key)} is at {state.address} port {state.port}"
        elif is_drained(line):
            if not state.out:
                said[key] = f"{target(key)} still takes new clients"
        elif state.out and "agent-check" not in options and "disabled" not in options:
            said[key] = f"{target(key)} is out of balancing"
    strays = (key for key in left if key not in wanted and key in found and not found[key].out)
    return said | {key: f"{target(key)} still takes traffic" for key in strays}
