"""TCP connections and listeners of this host, and connection attempts."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ESTABLISHED, _LISTENING = "01", "0A"
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound

_IPV4_BYTES = 4
_MAPPED = "::ffff:"
"""Prefix of an IPv4 address on an IPv6 socket."""

Endpoint = tuple[str, int]
"""Address and port."""

_AT_ONCE = 200
"""Maximum number of simultaneous attempts: a process may have few descriptors."""


class Listener(NamedTuple):
    """A listening TCP socket."""

    address: str
    port: int
    pid: int | None
    """A process that has it open; None if it may not be inspected."""


def list_listeners() -> list[Listener]:
    """Return the listening sockets in our network namespace; empty if they may not be inspected."""
    import psutil  # noqa: PLC0415  # takes 13 ms, needed only after a failed reload

    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return [
        Listener(one.laddr.ip, one.laddr.port, one.pid)
        for one in found
        if one.status == psutil.CONN_LISTEN and one.laddr
    ]


def count_connections() -> Counter[Endpoint]:
    """Count the established connections by remote address and port.

    Reads /proc/net/tcp: psutil inspects the descriptors of all processes too, and takes three times as long.
    """
    found: Counter[str] = Counter()
    found.update(row[_REMOTE] for row in _read_rows(_STATE) if row[_STATE] == _ESTABLISHED)
    return Counter({_parse_endpoint(remote): count for remote, count in found.items()})


def find_listening_users(asked: str) -> set[int]:
    """Return the uids that listen at `asked`, a HOST:PORT.

    Reads /proc/net/tcp, which shows the sockets of other users to any user; psutil gives no uid of a socket.
    """
    at = _resolve_endpoint(asked)
    everywhere = {(one, port) for _, port in at for one in _EVERYWHERE}
    found = set()
    for row in _read_rows(_USER):
        if row[_STATE] == _LISTENING and _parse_endpoint(row[_LOCAL]) in at | everywhere:
            found.add(int(row[_USER]))
    return found


def is_same_endpoint(one: str, other: str) -> bool:
    """Return whether two HOST:PORT may be the same endpoint; a wildcard address includes each address."""
    if one == other:
        return True
    here, there = _resolve_endpoint(one), _resolve_endpoint(other)
    ports = {port for _, port in here} & {port for _, port in there}
    return not here.isdisjoint(there) or any((host, port) in here | there for host in _EVERYWHERE for port in ports)


def _resolve_endpoint(given: str) -> set[Endpoint]:
    """Return every address of HOST:PORT; empty if it cannot be resolved."""
    host, _, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return set()
    try:
        found = socket.getaddrinfo(host.strip("[]") or "0.0.0.0", int(port), type=socket.SOCK_STREAM)  # noqa: S104  # read, not bound
    except (OSError, ValueError, OverflowError):
        return set()
    return {(str(address[0]), int(address[1])) for *_, address in found}


def _read_rows(last: int) -> Iterator[list[str]]:
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            next(file)
            yield from (line.split(None, last + 1) for line in file)


def _parse_endpoint(row: str) -> Endpoint:
    """Parse an endpoint of /proc/net/tcp: words of 32 bits in the byte order of this machine, a colon and the port."""
    digits, port = row.split(":")
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = socket.inet_ntop(socket.AF_INET if len(packed) == _IPV4_BYTES else socket.AF_INET6, packed)
    return address.removeprefix(_MAPPED) if "." in address else address, int(port, 16)


def find_silent_endpoints(endpoints: Iterable[Endpoint], seconds: float) -> set[Endpoint]:
    """Return the endpoints that refuse a connection, or do not accept one in `seconds`.

    Endpoints that were not tried in time count as answering.
    """
    left = sorted(set(endpoints))
    deadline = time.monotonic() + seconds
    found: set[Endpoint] = set()
    while left and time.monotonic() < deadline:
        found |= _try_connections(left[:_AT_ONCE], deadline)
        left = left[_AT_ONCE:]
    return found


def _try_connections(endpoints: Iterable[Endpoint], deadline: float) -> set[Endpoint]:
    trials: dict[int, tuple[socket.socket, Endpoint]] = {}
    try:
        refused = set()
        for endpoint in endpoints:
            try:
                one = _open_socket(endpoint)
            except OSError:  # no descriptors left, or no IPv6: not the fault of the other side
                continue
            trials[one.fileno()] = one, endpoint
            if one.connect_ex(endpoint) not in (0, errno.EINPROGRESS):
                refused.add(endpoint)
        waiting = {number: trial for number, trial in trials.items() if trial[1] not in refused}
        return refused | _wait_for_failures(waiting, deadline)
    finally:
        for one, _ in trials.values():
            one.close()


def _wait_for_failures(trials: dict[int, tuple[socket.socket, Endpoint]], deadline: float) -> set[Endpoint]:
    """Return the endpoints whose connection failed, or did not complete until the deadline."""
    poll, waiting, found = select.poll(), set(trials), set()
    for number in trials:
        poll.register(number, select.POLLOUT)
    while waiting and (rest := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(rest * 1000):
            poll.unregister(number)
            waiting.discard(number)
            if _read_error(trials[number][0]):
                found.add(trials[number][1])
    return found | {trials[number][1] for number in waiting}


def _open_socket(endpoint: Endpoint) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(0)
    # As HAProxy's own checks: reset before the acknowledgement, so that the server does not see a client.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return one


def _read_error(one: socket.socket) -> int:
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
