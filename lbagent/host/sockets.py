"""The kernel's table of TCP connections, as /proc shows it."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections import Counter
from collections.abc import Iterator

_ESTABLISHED, _LISTENING = "01", "0A"
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound


def established() -> Counter[tuple[str, int]]:
    """How many connections are established from here, by remote address and port."""
    found: Counter[str] = Counter()
    found.update(row[_REMOTE] for row in _rows(_STATE) if row[_STATE] == _ESTABLISHED)
    return Counter({_endpoint(remote): count for remote, count in found.items()})


def listeners(asked: str) -> set[int]:
    """The users who listen at `asked`, HOST:PORT."""
    at = _resolved(asked)
    everywhere = {(one, port) for _, port in at for one in _EVERYWHERE}
    found = set()
    for row in _rows(_USER):
        if row[_STATE] == _LISTENING and _endpoint(row[_LOCAL]) in at | everywhere:
            found.add(int(row[_USER]))
    return found


def same(one: str, other: str) -> bool:
    """Whether two HOST:PORT may be one and the same; who listens everywhere does so at each address."""
    if one == other:
        return True
    here, there = _resolved(one), _resolved(other)
    ports = {port for _, port in here} & {port for _, port in there}
    return not here.isdisjoint(there) or any((host, port) in here | there for host in _EVERYWHERE for port in ports)


def _resolved(given: str) -> set[tuple[str, int]]:
    """Every address that HOST:PORT names; none where that is not to be understood."""
    import socket  # noqa: PLC0415  # for a person who asks

    host, _, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return set()
    try:
        found = socket.getaddrinfo(host.strip("[]") or "0.0.0.0", int(port), type=socket.SOCK_STREAM)  # noqa: S104  # read, not bound
    except (OSError, ValueError, OverflowError):
        return set()
    return {(str(address[0]), int(address[1])) for *_, address in found}


def _rows(last: int) -> Iterator[list[str]]:
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            next(file)
            yield from (line.split(None, last + 1) for line in file)


def _endpoint(remote: str) -> tuple[str, int]:
    address, port = remote.split(":")
    # Words of 32 bits, as numbers of this machine.
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    parsed = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed), int(port, 16)
