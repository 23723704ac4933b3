"""Whether somebody listens: connections tried side by side, and dropped before they are accepted."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

Endpoint = tuple[str, int]

_AT_ONCE = 200
"""Connections tried at the same time: a process may have few descriptors."""


def silent(endpoints: Iterable[Endpoint], seconds: float) -> set[Endpoint]:
    """Those that refuse, or do not answer within the time; what there was no time for counts as answering."""
    left = sorted(set(endpoints))
    deadline = time.monotonic() + seconds
    found: set[Endpoint] = set()
    while left and time.monotonic() < deadline:
        found |= _tried(left[:_AT_ONCE], deadline)
        left = left[_AT_ONCE:]
    return found


def _tried(endpoints: Iterable[Endpoint], deadline: float) -> set[Endpoint]:
    trials: dict[int, tuple[socket, Endpoint]] = {}
    try:
        refused = set()
        for endpoint in endpoints:
            try:
                one = _socket(endpoint)
            except OSError:  # no descriptors left, or no IPv6: that is not the other side's fault
                continue
            trials[one.fileno()] = one, endpoint
            if one.connect_ex(endpoint) not in (0, errno.EINPROGRESS):
                refused.add(endpoint)
        waiting = {number: trial for number, trial in trials.items() if trial[1] not in refused}
        return refused | _failed(waiting, deadline)
    finally:
        for one, _ in trials.values():
            one.close()


def _failed(trials: dict[int, tuple[socket, Endpoint]], deadline: float) -> set[Endpoint]:
    """Those whose connection has come to nothing, or to no end."""
    import select  # noqa: PLC0415  # on the handler's path only where a server joins

    poll, waiting, found = select.poll(), set(trials), set()
    for number in trials:
        poll.register(number, select.POLLOUT)
    while waiting and (rest := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(rest * 1000):
            poll.unregister(number)
            waiting.discard(number)
            if _error(trials[number][0]):
                found.add(trials[number][1])
    return found | {trials[number][1] for number in waiting}


def _socket(endpoint: Endpoint) -> socket:
    import socket  # noqa: PLC0415

    one = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
    one.settimeout(0)
    # As HAProxy's own checks: reset before it is acknowledged, so that no server sees a client come and go.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return one


def _error(one: socket) -> int:
    import socket  # noqa: PLC0415

    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
